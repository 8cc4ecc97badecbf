"""LoRA of one site, decode rows: every backend on the same adapters, inputs and outputs, in turn."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from evenflow.bench.lora.baselines.lora_backends import lora_backend
from evenflow.bench.lora.baselines.padding import PaddedAdapters
from evenflow.bench.lora.variants import Testbed
from evenflow.serving.adapters.row_file import MemoryRows, RowFile
from evenflow.serving.backends.devices.batch import Batch, build_batch
from evenflow.serving.backends.devices.storage import Storage
from evenflow.serving.backends.lora.lora_backend import LoRABackend
from evenflow.serving.core.adapter import AdapterSignature
from evenflow.serving.core.plan import PlannedSequence, StepPlan
from evenflow.serving.core.request import AdapterDigest, RequestId
from evenflow.serving.core.shape import MODULES, SITES

BACKENDS = {"unified": "cpu", "padded": "padded", "gather": "gather", "loop": "torch"}
"""Variant: LoRA backend. ``slots`` is the shipped one on padded adapters."""


def measure(testbed: Testbed, case: Mapping[str, Any], repeats: int) -> dict[str, Any]:
    """Seconds per layer of one site, a list for each variant; one pass through all layers is one sample.

    ``case``: site, rows (one sequence each), adapters (row i has adapter i mod adapters; 0 based). All layers' weights lie
    between two uses of one, so that no cache keeps them. Outputs are compared before anything is timed.
    """
    site, rows, num_adapters = str(case["site"]), int(case["rows"]), int(case["adapters"])
    digests = [AdapterDigest(str(i)) for i in range(num_adapters)]
    padded = PaddedAdapters(testbed.layout, testbed.max_lora_rank, testbed.adapters.record, testbed.adapters.host_rows)
    own_pages = sum(testbed.adapters.record(digest).num_pages for digest in digests)
    padded_pages = sum(padded.record(digest).num_pages for digest in digests)
    plain = Storage(testbed.layout, own_pages, testbed.dtype, testbed.device)
    slots = Storage(testbed.layout, padded_pages, testbed.dtype, testbed.device)
    backends: dict[str, LoRABackend] = {variant: lora_backend(name, plain) for variant, name in BACKENDS.items()}
    backends["slots"] = lora_backend("cpu", slots)
    _load(plain, [b for name, b in backends.items() if name != "slots"], map(testbed.adapters.host_rows, digests))
    _load(slots, [backends["slots"]], map(padded.host_rows, digests))
    batch = _batch(testbed, rows, num_adapters)
    shape, modules = testbed.config.shape, SITES[site]
    generator = torch.Generator().manual_seed(0)
    x_TI = torch.randn(rows, shape.module_widths(modules[0])[0], generator=generator).to(testbed.dtype)
    y_TO = torch.zeros(rows, sum(shape.module_widths(module)[1] for module in modules), dtype=testbed.dtype)
    outputs = {}
    for name, backend in backends.items():
        backend.warm_up()
        backend.plan(batch)
        outputs[name] = y_TO.clone()
        backend.run(1, site, x_TI, outputs[name])
    for name, output in outputs.items():
        scale = float(outputs["loop"].float().abs().max())
        assert torch.allclose(output.float(), outputs["loop"].float(), rtol=0.05, atol=0.02 * scale), f"{name} is wrong"
    seconds: dict[str, list[float]] = {name: [] for name in backends}
    for repeat in range(repeats + 1):
        for name, backend in backends.items():
            started_s = time.perf_counter()
            for layer in range(shape.num_layers):
                backend.run(layer, site, x_TI, y_TO)
            if repeat:
                seconds[name].append((time.perf_counter() - started_s) / shape.num_layers)
    return {"seconds": seconds, "bytes": _site_bytes(testbed, digests, site)}


def _load(
    storage: Storage, backends: Iterable[LoRABackend], adapters: Iterable[tuple[AdapterSignature, RowFile | MemoryRows]]
) -> None:
    """Copy adapters into the arena one after another; the i-th is slot i."""
    first = 0
    for slot, (signature, rows) in enumerate(adapters):
        pages = list(range(first, first + rows.size_bytes // storage.layout.page_bytes))
        first += len(pages)
        rows.read(0, storage.page_views(pages))
        for backend in backends:
            backend.bind(slot, signature, pages)


def _batch(testbed: Testbed, rows: int, num_adapters: int) -> Batch:
    sequences = tuple(PlannedSequence(RequestId(str(i)), (1,), 1, (0,), i % num_adapters, None) for i in range(rows))
    return build_batch(StepPlan(0, sequences), testbed.layout.page_tokens, testbed.device)


def _site_bytes(testbed: Testbed, digests: list[AdapterDigest], site: str) -> int:
    """Bytes of the adapters' rows at one layer of the site."""
    total = 0
    for digest in digests:
        lora_ranks = testbed.adapters.record(digest).signature.lora_ranks[0]
        for module in SITES[site]:
            total += lora_ranks[MODULES.index(module)] * sum(
                map(testbed.layout.row_bytes, testbed.config.shape.module_widths(module))
            )
    return total
