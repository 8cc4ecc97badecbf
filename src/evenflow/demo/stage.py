"""What the demo is played on: a model, its trained adapters, and what to ask them. The embedded one, or one in a file.

A stage file is JSON, as ``tools/real_model`` writes it: title, model, adapters by name (path, description),
example_prompts, questions, beginnings, memory.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evenflow.base.errors import ConfigError
from evenflow.demo.assets import COMPLETION_PROMPTS, EXAMPLE_PROMPTS, adapter_paths, model_path, questions


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One base model and what is known of it."""

    title: str
    """In words, for the first line of the demo."""
    model: Path
    adapters: Mapping[str, Path]
    """The trained ones, by name."""
    example_prompts: tuple[str, ...]
    """Asked of every trained adapter and of the base model."""
    questions: tuple[str, ...]
    """What clients that chat draw from."""
    beginnings: tuple[str, ...]
    """What the greedy client has continued."""
    memory: str
    """Of the arena: small on purpose, so that the adapters do not all fit and are evicted and loaded again."""


def embedded_stage() -> Stage:
    """The model that comes with the package."""
    return Stage(
        title="one model of 3 M parameters",
        model=model_path(),
        adapters=adapter_paths(),
        example_prompts=EXAMPLE_PROMPTS,
        questions=questions(),
        beginnings=COMPLETION_PROMPTS,
        memory="12MiB",
    )


def read_stage(path: Path) -> Stage:
    """The stage that the file ``path`` describes. Raises ConfigError, saying what is wrong with it."""
    try:
        told: dict[str, Any] = json.loads(path.read_text())
        stage = Stage(
            title=str(told["title"]),
            model=Path(told["model"]),
            adapters={str(name): Path(adapter["path"]) for name, adapter in told["adapters"].items()},
            example_prompts=tuple(map(str, told["example_prompts"])),
            questions=tuple(map(str, told["questions"])),
            beginnings=tuple(map(str, told["beginnings"])),
            memory=str(told["memory"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"stage {path} cannot be read ({type(error).__name__}: {error})") from None
    if not stage.adapters or not stage.example_prompts or not stage.questions or not stage.beginnings:
        raise ConfigError(f"stage {path} needs adapters, example_prompts, questions and beginnings")
    return stage


__all__ = ["Stage", "embedded_stage", "read_stage"]
