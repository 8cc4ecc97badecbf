"""Pre-training before the task of a run: its weights are the start of fine-tuning, its compressors are dropped.

One object remembers what it has trained, so that a suite pre-trains once for each seed and kind of compression.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from evenflow.base.errors import ModelError

if TYPE_CHECKING:
    from evenflow.mcbench.runs.run_config import RunConfig

State = dict[str, Tensor]


def pretraining_of(config: RunConfig) -> RunConfig:
    """Return the run that comes before ``config``: the same model on the pre-training task, split only if it is compressed."""
    is_dense = config.pretrain_compress == "none"
    return replace(
        config,
        tp=1 if is_dense else config.tp,
        pp=1 if is_dense else config.pp,
        task=config.pretrain,
        compress=config.pretrain_compress,
        gradient=config.pretrain_gradient,
        pretrain="",
        pretrain_compress="none",
        pretrain_gradient="",
        warmup_steps=0,
        steps=0,
        batch=0,
        rate=0.0,
        seeds=1,
    )


def backbone_of(model: nn.Module) -> nn.Module:
    """Return a model without its head. Raises ModelError if it has none."""
    found = getattr(model, getattr(model, "base_model_prefix", "") or "no prefix", None)
    if not isinstance(found, nn.Module):
        raise ModelError(f"{type(model).__name__} has no part to take over from pre-training")
    return found


def start_from(model: nn.Module, state: State) -> None:
    """Load pre-trained weights into the backbone of ``model``. Raises ModelError if they are another model's."""
    try:
        result = backbone_of(model).load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise ModelError(f"pre-trained weights do not fit: {str(error).splitlines()[-1].strip()}") from error
    # A pooler belongs to the classification head and may be new.
    missing = [name for name in result.missing_keys if "pooler" not in name]
    if missing or result.unexpected_keys:
        raise ModelError(f"pre-trained weights do not fit: missing {missing[:3]}, unexpected {result.unexpected_keys[:3]}")


class Backbones:
    """Pre-trained backbones by run and seed; owner of what it has trained, and of its files if it has a folder."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._state: dict[tuple[str, int], State] = {}

    def _path(self, config: RunConfig, seed: int) -> Path | None:
        return self.folder / f"{config.key()}-{seed}.pt" if self.folder is not None else None

    def find(self, config: RunConfig, seed: int) -> State | None:
        """Return what was trained for that run and seed, if anything."""
        path = self._path(config, seed)
        if (config.key(), seed) not in self._state and path is not None and path.is_file():
            self._state[config.key(), seed] = torch.load(path, weights_only=True)
        return self._state.get((config.key(), seed))

    def keep(self, config: RunConfig, seed: int, model: nn.Module) -> State:
        """Remember the backbone of a trained model and return it."""
        state = {name: value.detach().clone() for name, value in backbone_of(model).state_dict().items()}
        self._state[config.key(), seed] = state
        path = self._path(config, seed)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".partial")
            torch.save(state, partial)
            partial.replace(path)
        return state
