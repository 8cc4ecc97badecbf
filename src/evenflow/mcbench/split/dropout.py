"""Dropout on tensors that every tensor-parallel rank holds whole: all ranks must draw the same masks."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import nn

from evenflow.base.errors import ConfigError
from evenflow.comm import Collective

_RATES = ("attention_dropout", "attention_probs_dropout_prob", "attn_pdrop", "dropout", "hidden_dropout_prob", "resid_pdrop")


def has_dropout(model: nn.Module) -> bool:
    """Return whether a model drops anything in training: by its modules, or by the rates of its configuration."""
    if any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules()):
        return True
    config: Any = getattr(model, "config", None)
    return any(isinstance(rate := getattr(config, name, 0), float) and rate > 0 for name in _RATES)


def check_random_state(model: nn.Module, collective: Collective) -> None:
    """Raise ConfigError on all ranks unless they draw the same random numbers from now on, if the model has dropout.

    Hidden states are whole on every rank between two blocks. If ranks draw different masks for them, each rank goes on with
    other hidden states, and the sums that follow mix them: no error is raised and the gradients are wrong. A collective call.
    """
    if not has_dropout(model):
        return
    state = hashlib.sha256(torch.get_rng_state().numpy().tobytes())
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state.update(torch.cuda.get_rng_state().numpy().tobytes())
    own = torch.frombuffer(bytearray(state.digest()[:8]), dtype=torch.int64)
    everybody = collective.all_gather(own).flatten().tolist()
    if different := [rank for rank, value in enumerate(everybody) if value != everybody[0]]:
        raise ConfigError(
            f"the model has dropout, and ranks {', '.join(map(str, different))} would draw other random numbers than rank 0: "
            "call torch.manual_seed with the same seed on all ranks right before, give seed=..., or set dropout to 0"
        )
