"""Studies that are not training runs: whether activations are low-rank, and what compressed sums do to a served model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from evenflow.comm import DEFAULT_SPECS
from evenflow.mcbench.runs.benchmark_models import make_model
from evenflow.mcbench.runs.trainer import ModelTrainee, Schedule, train
from evenflow.mcbench.split.attach import emulate_model
from evenflow.mcbench.split.parity import first_tensor
from evenflow.mcbench.split.roles import roles_of
from evenflow.mcbench.tasks.load import load_task
from evenflow.mcbench.tasks.scores import loss_of

SERVING_SPECS = tuple(spec for spec in DEFAULT_SPECS if not spec.startswith(("caat", "ae", "subspace-learned", "aqsgd")))
"""What a server can use without training or memory of its samples."""


def activation_rank(task_name: str = "digits", steps: int = 200, seed: int = 0) -> dict[str, Any]:
    """Return how many singular values hold 90 % of the energy of activations, and of weight gradients, by layer.

    The paper's study: gradients are nearly low-rank, activations are not, so compressors of gradients do not carry over.
    """
    task = load_task(task_name)
    sizes = {"num_labels": task.num_labels, "vocab_size": task.vocab_size, "max_length": max(task.length, 16)}
    model = make_model(task.default_model, seed, **sizes)
    train(ModelTrainee(model, task, Schedule(num_steps=steps, batch_size=32, learning_rate=2e-3)), seed)
    roles, modules = roles_of(model), dict(model.named_modules())
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            outputs[name] = output.detach()

        return hook

    handles = [modules[name].register_forward_hook(keep(name)) for name in roles.rows]
    inputs, labels = task.train.batch(torch.arange(min(64, len(task.train))))
    model.train()
    model.zero_grad()
    loss_of(task, first_tensor(model(**inputs)), labels).backward()
    for handle in handles:
        handle.remove()
    rows = []
    for name in roles.rows:
        activation = outputs[name].reshape(-1, outputs[name].shape[-1])
        gradient = modules[name].weight.grad
        assert isinstance(gradient, Tensor)
        rows.append(
            {
                "module": name,
                "width": activation.shape[-1],
                "activation_rank_90": energy_rank(activation),
                "gradient_rank_90": energy_rank(gradient),
                "activation_spectrum": spectrum(activation),
                "gradient_spectrum": spectrum(gradient),
            }
        )
    return {"study": "activation-rank", "task": task_name, "steps": steps, "seed": seed, "rows": rows}


def spectrum(matrix: Tensor) -> list[float]:
    """Return the singular values, largest first, as shares of the largest."""
    values = torch.linalg.svdvals(matrix.double())
    return (values / values[0].clamp_min(1e-30)).tolist()


def energy_rank(matrix: Tensor, share: float = 0.9) -> int:
    """Return how many singular values hold ``share`` of the sum of squares."""
    energy = torch.linalg.svdvals(matrix.double()).square()
    total = energy.cumsum(0)
    return int((total < share * total[-1]).sum()) + 1


def serving_errors(world_size: int = 2, specs: Sequence[str] = SERVING_SPECS) -> dict[str, Any]:
    """Return what compressed sums do to the logits of a random Llama, and what they send."""
    return {"study": "serving", "world_size": world_size, "rows": logit_errors(specs, world_size)}


def logit_errors(specs: Sequence[str], world_size: int = 2, seed: int = 0) -> list[dict[str, Any]]:
    """Return logit error and bytes by compressor for tensor-parallel inference of a random Llama, on virtual ranks."""
    from evenflow.mcbench.split.attach import compression_of

    ids = torch.randint(3, 200, (2, 32), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        dense = first_tensor(make_model("llama-tiny", seed)(input_ids=ids))
        rows = []
        for spec in specs:
            model = emulate_model(make_model("llama-tiny", seed), world_size, f"tp.forward={spec}").eval()
            logits = first_tensor(model(input_ids=ids))
            sent = compression_of(model).ledger.by_site["tp.forward"].counted
            rows.append({"spec": spec, "logit_error": float((logits - dense).norm() / dense.norm()), "bytes": sent})
    return rows
