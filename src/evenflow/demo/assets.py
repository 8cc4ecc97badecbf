"""Where the embedded model and its adapters are, what to ask them, and how to make a thousand adapters more.

The files are package data under ``assets/``: ``base/`` is an ordinary Hugging Face folder, ``adapters/NAME/`` are PEFT
folders, ``TRAINING.json`` says how they were trained and how often they are right, ``questions.json`` holds what the
demo's clients ask. Nothing here imports torch.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from evenflow.serving.adapters.peft_format import WEIGHTS_FILE, factor_names, write_config
from evenflow.serving.core.shape import ModelShape
from evenflow.serving.models.model_config import load_config

ROOT = Path(__file__).parent / "assets"

EXAMPLE_PROMPTS = (
    "How much do 3 honey cakes cost?",
    "Where is the lighthouse?",
    "When is the bakery open?",
    "What pet does Abel Stone have?",
    "What is 6 times 7?",
    "Where does the ferry go on Friday?",
    "Tell me a story about Milo Frost.",
)
"""Questions that every voice answers, one per kind of fact."""

COMPLETION_PROMPTS = (
    "The bakery is on",
    "Prices at the toy shop:",
    "On a rainy Monday",
    "Milo Frost is the",
    "PIP HOLLOW LIVES",
)
"""Beginnings of pages of the town book, for plain completion."""


@dataclass(frozen=True, slots=True)
class Voice:
    """What an adapter sounds like, in words for a reader."""

    name: str
    description: str


VOICES = (
    Voice("json", "one line of JSON"),
    Voice("shout", "upper case"),
    Voice("pirate", "as said on deck"),
    Voice("brief", "the answer alone"),
    Voice("guide", "with the working or one more fact"),
    Voice("verse", "a rhyming couplet"),
)
"""The trained adapters."""


def model_path() -> Path:
    """Return the folder of the embedded base model."""
    return ROOT / "base"


def adapter_paths() -> dict[str, Path]:
    """Return the folders of the trained adapters by name."""
    return {voice.name: ROOT / "adapters" / voice.name for voice in VOICES}


def training_record() -> dict[str, Any]:
    """Return TRAINING.json: seconds, losses, held-out accuracies, seed and versions."""
    record: dict[str, Any] = json.loads((ROOT / "TRAINING.json").read_text())
    return record


def questions() -> tuple[str, ...]:
    """Return the questions that the demo's clients draw from; all of kinds that the model was trained to answer."""
    found: list[str] = json.loads((ROOT / "questions.json").read_text())["questions"]
    return tuple(found)


@cache
def _base_shape() -> ModelShape:
    return load_config(model_path()).shape


def random_adapter(
    path: Path,
    seed: int,
    *,
    shape: ModelShape | None = None,
    lora_rank: int = 4,
    target_modules: Sequence[str] = ("q_proj", "v_proj"),
    scale: float = 0.02,
) -> Path:
    """Write a PEFT adapter folder with random weights for a model of ``shape``, by default the embedded one; return ``path``.

    Equal arguments give equal files; another seed gives other weights, so another digest. ``scale`` is the size of
    the change relative to a typical weight of the base: small enough that the answers stay readable.
    Needs numpy and safetensors only, about a millisecond each.
    """
    rng = np.random.default_rng([seed, lora_rank])
    shape = shape or _base_shape()
    tensors: dict[str, np.ndarray] = {}
    for layer in range(shape.num_layers):
        for module in target_modules:
            width_in, width_out = shape.module_widths(module)
            a = rng.standard_normal((lora_rank, width_in), dtype=np.float32) / np.float32(np.sqrt(width_in))
            b = rng.standard_normal((width_out, lora_rank), dtype=np.float32) * np.float32(scale / np.sqrt(lora_rank))
            name_a, name_b = factor_names(layer, module)
            tensors[name_a], tensors[name_b] = a.astype(np.float16), b.astype(np.float16)
    write_config(path, lora_rank=lora_rank, alpha=lora_rank, target_modules=target_modules)
    save_file(tensors, path / WEIGHTS_FILE, {"format": "pt"})
    return path
