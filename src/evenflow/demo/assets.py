"""Where the embedded model and its adapters are, what to ask them, and how to make a thousand adapters more.

The files are package data under ``assets/``: ``base/`` is an ordinary Hugging Face folder, ``adapters/NAME/`` are PEFT
folders, ``TRAINING.json`` says how they were trained and how often they are right, ``questions.json`` holds what the
demo's clients ask. Nothing here imports torch.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

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

_WIDTHS = {"q_proj": (256, 256), "k_proj": (256, 64), "v_proj": (256, 64), "o_proj": (256, 256),
           "gate_proj": (256, 704), "up_proj": (256, 704), "down_proj": (704, 256)}  # fmt: skip
_NUM_LAYERS = 4


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


def random_adapter(
    path: Path, seed: int, *, rank: int = 4, target_modules: Sequence[str] = ("q_proj", "v_proj"), scale: float = 0.02
) -> Path:
    """Write a PEFT adapter folder for the embedded model with random weights; return ``path``.

    Equal arguments give equal files; another seed gives other weights, so another digest. ``scale`` is the size of
    the change relative to a typical weight of the base: small enough that the answers stay readable.
    Needs numpy and safetensors only, about a millisecond each.
    """
    rng = np.random.default_rng([seed, rank])
    tensors: dict[str, np.ndarray] = {}
    for layer in range(_NUM_LAYERS):
        for module in target_modules:
            width_in, width_out = _WIDTHS[module]
            block = "self_attn" if module in ("q_proj", "k_proj", "v_proj", "o_proj") else "mlp"
            prefix = f"base_model.model.model.layers.{layer}.{block}.{module}"
            a = rng.standard_normal((rank, width_in), dtype=np.float32) / np.float32(np.sqrt(width_in))
            b = rng.standard_normal((width_out, rank), dtype=np.float32) * np.float32(scale / np.sqrt(rank))
            tensors[f"{prefix}.lora_A.weight"] = a.astype(np.float16)
            tensors[f"{prefix}.lora_B.weight"] = b.astype(np.float16)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": list(target_modules),
        "inference_mode": True,
    }
    path.mkdir(parents=True, exist_ok=True)
    (path / "adapter_config.json").write_text(json.dumps(config, indent=1))
    save_file(tensors, path / "adapter_model.safetensors", {"format": "pt"})
    return path
