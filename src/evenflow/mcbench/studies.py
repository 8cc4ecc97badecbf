"""Two studies that are not training runs: where compression breaks even, and whether activations are low-rank."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from evenflow.base.errors import WireError
from evenflow.comm import DEFAULT_SPECS, Exchange, TorchCollective, get_compressor
from evenflow.comm.links import Link, interface_bytes, shaped
from evenflow.mcbench.attach import emulate_model
from evenflow.mcbench.launch import launch
from evenflow.mcbench.metrics import loss_of
from evenflow.mcbench.models import make_model
from evenflow.mcbench.parity import first_tensor
from evenflow.mcbench.roles import roles_of
from evenflow.mcbench.tasks import load_task
from evenflow.mcbench.trainer import Schedule, train

BREAK_EVEN_SPECS = ("none", "bf16", "int8-g32", "int4-g32", "q8", "topk:0.1", "powersgd:8", "srht:0.1", "ae:100")
BREAK_EVEN_ROWS = (4, 16, 64, 256, 1024, 2048)
WIDTH = 512
SERVING_SPECS = tuple(spec for spec in DEFAULT_SPECS if not spec.startswith(("caat", "ae", "subspace-learned", "aqsgd")))
"""What a server can use without training or memory of its samples."""


def break_even(
    link: Link,
    world_size: int = 2,
    progress: Callable[[str], None] = lambda text: None,
    specs: Sequence[str] = BREAK_EVEN_SPECS,
    rows: Sequence[int] = BREAK_EVEN_ROWS,
) -> dict[str, Any]:
    """Measure one compressed sum by compressor and message size over real ranks. Raises WireError if the ranks fail."""

    def say(kind: str, value: Any) -> None:
        if kind == "exchange":
            progress(f"{value['spec']:>12} {value['dense_bytes']:>9} B dense: {value['ms']:.2f} ms")

    launched = launch("break-even", {"specs": list(specs), "rows": list(rows)}, world_size, link, say)
    found = [record["value"] for record in launched.records if record["kind"] == "exchange"]
    if launched.failure or not found:
        raise WireError(f"break-even on {link.name}: {launched.failure or 'no measurements'}")
    kind = launched.link_kind
    return {"study": "break-even", "link": link.name, "link_kind": kind, "world_size": world_size, "rows": found}


def break_even_rank(payload: Mapping[str, Any], emit: Callable[[str, Any], None], link: Link, repeats: int = 9) -> None:
    """Measure as one rank: interleaved over compressors, so that a slow moment of the machine hits all of them."""
    group, interface = shaped(TorchCollective(), link), payload.get("interface", "")
    for rows in payload["rows"]:
        x = torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(group.rank))
        exchanges = {spec: Exchange("tp.forward", get_compressor(spec), group) for spec in payload["specs"]}
        times: dict[str, list[float]] = {spec: [] for spec in exchanges}
        seen = dict.fromkeys(exchanges, 0)
        for _ in range(repeats + 1):
            for spec, exchange in exchanges.items():
                group.barrier()
                before = interface_bytes(interface) if interface else None
                start = time.perf_counter()
                exchange.sum(x)
                times[spec].append(1e3 * (time.perf_counter() - start))
                group.barrier()
                after = interface_bytes(interface) if interface else None
                if before and after:
                    seen[spec] += sum(after) - sum(before)
        for spec, values in times.items():
            counted = exchanges[spec].ledger.by_site["tp.forward"].counted
            value = {
                "spec": spec,
                "dense_bytes": 4 * x.numel(),
                "sent_bytes": counted / (repeats + 1),
                # Both directions, headers, acknowledgements and one barrier included; both ranks of two send equally much.
                "interface_ratio": seen[spec] / (2 * counted) if seen[spec] else None,
                "ms": median(values[1:]),
                "raw_ms": values[1:],
            }
            emit("exchange", value)


def break_even_points(study: Mapping[str, Any]) -> dict[str, int | None]:
    """Return, by compressor, the smallest measured dense message from which on it was always faster than none at all."""
    ms = {(row["spec"], row["dense_bytes"]): row["ms"] for row in study["rows"]}
    sizes = sorted({size for _, size in ms})
    points: dict[str, int | None] = {}
    for spec in dict.fromkeys(row["spec"] for row in study["rows"]):
        if spec == "none":
            continue
        slower = [size for size in sizes if ms[spec, size] >= ms["none", size]]
        beyond = [size for size in sizes if not slower or size > slower[-1]]
        points[spec] = beyond[0] if beyond else None
    return points


def activation_rank(task_name: str = "digits", steps: int = 200, seed: int = 0) -> dict[str, Any]:
    """Return how many singular values hold 90 % of the energy of activations, and of weight gradients, by layer.

    The paper's study: gradients are nearly low-rank, activations are not, so compressors of gradients do not carry over.
    """
    task = load_task(task_name)
    sizes = {"num_labels": task.num_labels, "vocab_size": task.vocab_size, "max_length": max(task.length, 16)}
    model = make_model(task.default_model, seed, **sizes)
    train(model, task, Schedule(num_steps=steps, batch_size=32, learning_rate=2e-3), seed)
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
    from evenflow.mcbench.attach import compression_of

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
