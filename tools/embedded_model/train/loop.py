"""The training loop that the base model and every adapter share: Muon or AdamW, bf16 autocast, checkpoints.

A checkpoint holds weights, optimiser, step and losses; rows are drawn by step number, so a run that was
interrupted goes on as if it had not been.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import torch
from tokenizers import Tokenizer

from embedded_model.tidewick.corpus import Piece
from embedded_model.train.batches import draw_batch
from embedded_model.train.recipes import TrainingSchedule

Draw = Callable[[Random], list[Piece]]

_CHECKPOINT_EVERY_S = 30.0
_REPORT_EVERY = 50


@dataclass(slots=True)
class Progress:
    """What a training run has come to; kept in its checkpoint."""

    step: int = 0
    seconds: float = 0.0
    """Wall-clock seconds of all parts of the run together."""
    losses: list[list[float]] = field(default_factory=list)
    """[step, mean loss since the last entry]."""


def _optimisers(parameters: dict[str, torch.nn.Parameter], schedule: TrainingSchedule) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices where the schedule asks for it, AdamW for the rest."""
    is_for_muon = {key: schedule.muon_rate > 0 and p.ndim == 2 and "embed" not in key for key, p in parameters.items()}
    chosen: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(
            [p for key, p in parameters.items() if not is_for_muon[key]],
            lr=schedule.learning_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True,
        )
    ]  # fmt: skip
    if any(is_for_muon.values()):
        matrices = [p for key, p in parameters.items() if is_for_muon[key]]
        chosen.append(
            torch.optim.Muon(matrices, lr=schedule.muon_rate, weight_decay=0.01, momentum=0.95, adjust_lr_fn="match_rms_adamw")
        )
    return chosen


def train(
    model: Any,
    tokenizer: Tokenizer,
    draw_at: Callable[[int], Draw],
    schedule: TrainingSchedule,
    seed: str,
    checkpoint: Path,
    name: str,
) -> Progress:
    """Train the parameters of ``model`` that require gradients, in place; continue from ``checkpoint`` if it exists.

    ``draw_at`` returns what draws the text of a step.
    """
    parameters = {key: p for key, p in model.named_parameters() if p.requires_grad}
    optimisers = _optimisers(parameters, schedule)
    rates = [[group["lr"] for group in optimiser.param_groups] for optimiser in optimisers]
    progress = Progress()
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=False)
        model.load_state_dict(saved["weights"], strict=False)
        for optimiser, state in zip(optimisers, saved["optimisers"], strict=True):
            optimiser.load_state_dict(state)
        progress = Progress(**saved["progress"])
        print(f"{name}: going on from step {progress.step}", flush=True)

    def save() -> None:
        weights = {key: p.detach() for key, p in parameters.items()}
        fields = {"step": progress.step, "seconds": progress.seconds, "losses": progress.losses}
        part = checkpoint.with_suffix(".part")
        torch.save(
            {"weights": weights, "optimisers": [optimiser.state_dict() for optimiser in optimisers], "progress": fields}, part
        )
        part.replace(checkpoint)

    model.train()
    began = last_saved = time.monotonic()
    before = progress.seconds
    recent: list[float] = []
    while progress.step < schedule.steps:
        factor = schedule.factor(progress.step)
        for optimiser, own_rates in zip(optimisers, rates, strict=True):
            for group, rate in zip(optimiser.param_groups, own_rates, strict=True):
                group["lr"] = rate * factor
        ids, labels = draw_batch(tokenizer, draw_at(progress.step), schedule.rows, schedule.length, seed, progress.step)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        recent.append(float(loss.detach()))
        progress.step += 1
        progress.seconds = before + time.monotonic() - began
        if progress.step % _REPORT_EVERY == 0 or progress.step == schedule.steps:
            progress.losses.append([progress.step, round(sum(recent) / len(recent), 4)])
            recent = []
            print(
                f"{name}: step {progress.step}/{schedule.steps}  loss {progress.losses[-1][1]:.4f}  {progress.seconds:.0f} s",
                flush=True,
            )
        if time.monotonic() - last_saved > _CHECKPOINT_EVERY_S:
            save()
            last_saved = time.monotonic()
    save()
    model.eval()
    return progress
