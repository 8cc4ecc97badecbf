"""The gate before every benchmark: uncompressed model-parallel logits and gradients equal the single process.

Some models split without an error and compute something else (OPT counts its heads in an attribute). No compression is
measured on a model that fails here.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from evenflow.base.errors import ModelError
from evenflow.comm import Collective
from evenflow.mcbench.split.families import Segments, make_linear
from evenflow.mcbench.split.roles import roles_of

TOLERANCE = 1e-5
"""Largest difference in fp32, relative to the largest entry, for models of a few layers."""


@dataclass(frozen=True, slots=True)
class Parity:
    """Largest differences between the split and the single model, relative to the largest entry."""

    output_error: float
    gradient_error: float
    worst_parameter: str


def check_parity(
    model: nn.Module,
    split: Callable[[nn.Module], nn.Module],
    inputs: Mapping[str, Any],
    collective: Collective | None = None,
    tolerance: float = TOLERANCE,
    logits: Callable[[nn.Module, Mapping[str, Any]], Tensor] | None = None,
) -> Parity:
    """Compare ``model`` with ``split(copy of model)`` on one batch. Raises ModelError beyond ``tolerance``.

    ``collective`` gathers cut gradients; None where weights stay whole (virtual ranks). ``logits`` runs a model in the
    precision that is compared; None: as it is.
    """
    run = logits or (lambda model, inputs: first_tensor(model(**inputs)))
    single = make_linear(copy.deepcopy(model)).eval()
    roles = roles_of(single)
    divided = split(copy.deepcopy(model)).eval()
    expected, result = run(single, inputs), run(divided, inputs)
    if expected.shape != result.shape:
        raise ModelError(f"parity: the split model returns {tuple(result.shape)}, the single one {tuple(expected.shape)}")
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(0), dtype=expected.dtype)
    (expected * weights).sum().backward()
    (result * weights).sum().backward()
    output_error = _relative(result.detach(), expected.detach())
    worst, gradient_error = "", 0.0
    parameters = dict(divided.named_parameters())
    largest = max(float(p.grad.abs().max()) for p in single.parameters() if p.grad is not None)
    for name, parameter in single.named_parameters():
        if parameter.grad is None:
            continue
        other = parameters[name].grad
        if other is None:
            raise ModelError(f"parity: {name} gets no gradient in the split model")
        whole = gathered(other, parameter.grad.shape, collective, roles.segments_of(name))
        # Against the largest gradient of the model: some parameters have none but rounding (keys' biases).
        error = float((whole - parameter.grad).abs().max()) / largest
        if error > gradient_error:
            worst, gradient_error = name, error
    parity = Parity(output_error, gradient_error, worst)
    if not max(output_error, gradient_error) <= tolerance:
        raise ModelError(
            f"parity: the uncompressed split model differs from the single one by {output_error:.1e} in outputs and "
            f"{gradient_error:.1e} in gradients (worst: {worst}); allowed: {tolerance:.0e}"
        )
    return parity


def first_tensor(output: Any) -> Tensor:
    """Return the logits, or the last hidden state, of a model's output."""
    for name in ("logits", "last_hidden_state"):
        value = getattr(output, name, None)
        if isinstance(value, Tensor):
            return value
    return output if isinstance(output, Tensor) else output[0]


def _relative(result: Tensor, expected: Tensor) -> float:
    return float((result - expected).abs().max() / expected.abs().max())


def gathered(part: Tensor, shape: torch.Size, collective: Collective | None, segments: Segments = ()) -> Tensor:
    """Return the whole of a cut tensor, of shape ``shape``; ``segments`` are those of a packed column product."""
    if part.shape == shape or collective is None:
        return part
    if segments:
        by_rank = [p.split([width // collective.world_size for width in segments]) for p in collective.all_gather(part)]
        return torch.cat([parts[s] for s in range(len(segments)) for parts in by_rank])
    dim = next(i for i, (a, b) in enumerate(zip(part.shape, shape)) if a != b)
    return torch.cat(list(collective.all_gather(part)), dim=dim)
