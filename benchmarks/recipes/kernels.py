"""How fast the CPU kernels are against the same work in plain torch operations, and against reading the bytes.

    python benchmarks/recipes/kernels.py --hardware epyc-2-cores [--only attention] [--samples 60]

Each case first checks that the variants agree, then times them in turn (A B A B), each call on another layer and
other sequences, so that nothing it reads is in a cache. Writes benchmarks/results/kernels--<hardware>.json with all
samples; prints medians.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numba
import torch
from torch.nn.functional import scaled_dot_product_attention

from evenflow.bench.harness import write_result
from evenflow.serving.backends.attention.cpu_attention import CPUAttention
from evenflow.serving.backends.devices.batch import build_batch
from evenflow.serving.backends.devices.storage import Storage
from evenflow.serving.backends.lora.cpu_lora import CPULoRA
from evenflow.serving.backends.lora.torch_lora import TorchLoRA
from evenflow.serving.core.adapter import AdapterSignature
from evenflow.serving.core.plan import PlannedSequence, StepPlan
from evenflow.serving.core.request import RequestId
from evenflow.serving.core.shape import MODULES, SITES, ModelShape
from evenflow.serving.memory.layout import ArenaLayout, K, V, place

CPU = torch.device("cpu")
WORKING_SET_BYTES = 256 << 20
"""What the calls of a case read before any byte is read again: several times a last-level cache."""


@dataclass(frozen=True)
class Timing:
    samples: int
    clock: Callable[[], float]


@dataclass(frozen=True)
class AttentionCase:
    name: str
    sequences: int
    tokens: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rows: int = 1
    """New tokens of each sequence; 1 is decode."""


@dataclass(frozen=True)
class LoRACase:
    name: str
    sequences: int
    hidden: int
    ranks: tuple[int, ...]
    """Ranks of the adapters, dealt out in turn."""
    site: str = "o"
    modules: tuple[str, ...] = MODULES
    rows: int = 1
    adapters: int | None = None
    """Different adapters; None: one per sequence."""
    base_only: int = 0
    """How many of the sequences have none."""


ATTENTION = [
    AttentionCase("16 x 128, 16/4 heads x 64", 16, 128, 16, 4, 64),
    AttentionCase("32 x 512, 16/8 heads x 64", 32, 512, 16, 8, 64),
    AttentionCase("16 x 1024, 32/8 heads x 128", 16, 1024, 32, 8, 128),
    AttentionCase("8 x 512, 32/32 heads x 128", 8, 512, 32, 32, 128),
    AttentionCase("32 x 500, 14/2 heads x 64", 32, 500, 14, 2, 64),
    AttentionCase("1 x 4096, 16/8 heads x 64", 1, 4096, 16, 8, 64),
]
CHUNKS = [
    AttentionCase(f"chunk of {rows} on {1024 - rows}, {heads}/{kv} x {dim}", 1, 1024, heads, kv, dim, rows)
    for heads, kv, dim in ((16, 4, 64), (32, 8, 128))
    for rows in (4, 16, 64, 256)
]
LORA = [
    LoRACase("16 x 1024, r 4/8/16/32, o", 16, 1024, (4, 8, 16, 32)),
    LoRACase("16 x 1024, r 4/8/16/32, q k v", 16, 1024, (4, 8, 16, 32), site="qkv"),
    LoRACase("32 x 2048, r 16, o", 32, 2048, (16,)),
    LoRACase("16 x 1024, r 8, q v", 16, 1024, (8,), site="qkv", modules=("q_proj", "v_proj")),
    LoRACase("16 x 1024, r 8, gate up", 16, 1024, (8,), site="gate_up"),
    LoRACase("16 x 1024, r 8, down", 16, 1024, (8,), site="down"),
    LoRACase("16 x 1024, r 8, q v, one adapter", 16, 1024, (8,), site="qkv", modules=("q_proj", "v_proj"), adapters=1),
    LoRACase("16 x 1024, r 4/8/16/32, q k v, half base-only", 16, 1024, (4, 8, 16, 32), site="qkv", base_only=8),
    LoRACase("1 x 1024, r 8, q v", 1, 1024, (8,), site="qkv", modules=("q_proj", "v_proj")),
    LoRACase("16 x 1024, r 1, q v", 16, 1024, (1,), site="qkv", modules=("q_proj", "v_proj")),
]
SEGMENTS = [
    LoRACase(f"one adapter, {rows} rows x {hidden}, r 16, o", 1, hidden, (16,), rows=rows)
    for hidden in (1024, 2048)
    for rows in (16, 32, 64, 128, 256, 512)
]


def in_turns(variants: dict[str, Callable[[int], object]], timing: Timing, warm_up: int = 4) -> dict[str, list[float]]:
    """Seconds of each call, A B A B; a variant gets the number of the call, and uses other data for each."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    call = 0
    for i in range(timing.samples + warm_up):
        for name, variant in variants.items():
            start = timing.clock()
            variant(call)
            if i >= warm_up:
                seconds[name].append(timing.clock() - start)
            call += 1
    return seconds


def decode_plan(sequences: int, start: int, rows: int, pages: list[list[int]], slots: list[int]) -> StepPlan:
    return StepPlan(
        0,
        tuple(PlannedSequence(RequestId(str(s)), [0] * rows, start, pages[s], slots[s], None) for s in range(sequences)),
    )


def run_attention(case: AttentionCase, timing: Timing, generator: torch.Generator) -> dict:
    layer_bytes = case.sequences * case.tokens * 2 * case.num_kv_heads * case.head_dim * 2
    layers = max(2, min(64, -(-WORKING_SET_BYTES // layer_bytes)))
    shape = ModelShape(layers, 64, 64, case.num_heads, case.num_kv_heads, case.head_dim, 16)
    layout = ArenaLayout(shape, 2)
    per_sequence = layout.num_pages_for_tokens(case.tokens)
    storage = Storage(layout, case.sequences * per_sequence, torch.bfloat16, CPU)
    storage.elements.normal_(generator=generator)
    order = torch.randperm(storage.num_pages, generator=generator).tolist()
    pages = [order[s * per_sequence : (s + 1) * per_sequence] for s in range(case.sequences)]
    start = case.tokens - case.rows
    batch = build_batch(decode_plan(case.sequences, start, case.rows, pages, [-1] * case.sequences), layout.page_tokens, CPU)
    angles = torch.arange(case.tokens)[:, None] / 10000.0 ** (torch.arange(case.head_dim // 2) / (case.head_dim // 2))
    tables = angles.cos(), angles.sin()
    scale = case.head_dim**-0.5
    by_row = CPUAttention(storage, *tables, scale, row_limit=10**9)
    by_chunk = CPUAttention(storage, *tables, scale, row_limit=0)
    by_row.plan(batch), by_chunk.plan(batch)
    total = case.sequences * case.rows
    qkv = torch.randn(total, shape.q_width + 2 * shape.kv_width, generator=generator).bfloat16()

    tokens = torch.arange(case.tokens)
    rows = torch.stack([torch.tensor(p)[tokens // layout.page_tokens] for p in pages])
    rows = layout.kv_row(rows, 0, K, tokens % layout.page_tokens).flatten()

    k, v = torch.empty(2, len(rows), shape.kv_width, dtype=torch.bfloat16)

    def gather_sdpa(layer: int) -> torch.Tensor:
        """Its best case: all sequences equally long, in one call, gathered into memory that is there already.

        The query heads of a group stand as rows of one head, which is 4x faster here than enable_gqa for a single row.
        """
        torch.index_select(storage.kv_rows[layout.kv_row(0, layer, K, 0) :], 0, rows, out=k)
        torch.index_select(storage.kv_rows[layout.kv_row(0, layer, V, 0) :], 0, rows, out=v)
        heads = (case.sequences, case.tokens, case.num_kv_heads, case.head_dim)
        q = qkv[:, : shape.q_width].unflatten(1, (case.num_kv_heads, case.num_heads // case.num_kv_heads, case.head_dim))
        out = scaled_dot_product_attention(q, k.view(heads).transpose(1, 2), v.view(heads).transpose(1, 2), scale=scale)
        return out.reshape(total, shape.q_width)

    half = torch.empty(case.sequences * case.tokens * shape.kv_width // 2, dtype=torch.float32)
    contiguous = storage.bytes.view(torch.float32)

    def read(layer: int) -> None:
        """Sum as many bytes as K and V of one layer have, in one run."""
        first = layer % (contiguous.numel() // (2 * half.numel())) * 2 * half.numel()
        contiguous[first : first + 2 * half.numel()].sum()

    def through(backend: CPUAttention) -> Callable[[int], None]:
        out = torch.empty(total, shape.q_width, dtype=torch.bfloat16)

        def attend(call: int) -> None:
            if backend is by_row:
                backend._attend(call % layers, qkv, out)
            else:
                backend._attend_chunk(call % layers, backend._work[None].chunks[0], qkv, out)

        return attend

    variants: dict[str, Callable[[int], object]] = {"row kernel": through(by_row)}
    got = torch.empty(total, shape.q_width, dtype=torch.bfloat16)
    by_row._attend(1, qkv, got)
    if case.rows == 1:
        variants["gather + sdpa"] = lambda call: gather_sdpa(call % layers)
        variants["plain read of the bytes"] = lambda call: read(call % layers)
        want = gather_sdpa(1)
    else:
        variants["chunk: gather + sdpa"] = through(by_chunk)
        want = torch.empty_like(got)
        by_chunk._attend_chunk(1, by_chunk._work[None].chunks[0], qkv, want)
    torch.testing.assert_close(got, want, rtol=2e-2, atol=2e-2)
    return {"case": asdict(case), "bytes": layer_bytes, "seconds": in_turns(variants, timing)}


def run_write(tokens: int, timing: Timing, generator: torch.Generator) -> dict:
    """Rope on q and k and the write of K and V, against the torch backend's way."""
    shape = ModelShape(12, 64, 64, 16, 4, 64, 16)
    layout = ArenaLayout(shape, 2)
    per_sequence = layout.num_pages_for_tokens(tokens)
    storage = Storage(layout, 512, torch.bfloat16, CPU)
    pages = torch.randperm(512, generator=generator).tolist()[:per_sequence]
    batch = build_batch(decode_plan(1, 0, tokens, [pages], [-1]), layout.page_tokens, CPU)
    angles = torch.arange(tokens)[:, None] / 10000.0 ** (torch.arange(32) / 32)
    backend = CPUAttention(storage, angles.cos(), angles.sin(), 0.1)
    backend.plan(batch)
    qkv = torch.randn(tokens, shape.q_width + 2 * shape.kv_width, generator=generator).bfloat16()
    cos, sin = (t()[batch.positions_T][:, None].bfloat16() for t in (angles.cos, angles.sin))
    rows = torch.as_tensor(layout.kv_row(batch.page_of_row, 0, K, batch.page_slot_of_row))

    def rotate(x: torch.Tensor) -> torch.Tensor:
        a, b = x.chunk(2, dim=-1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)

    def torch_ops(call: int) -> torch.Tensor:
        layer = call % shape.num_layers
        q, k, v = qkv.split([shape.q_width, shape.kv_width, shape.kv_width], 1)
        q = rotate(q.unflatten(1, (16, 64)))
        k = rotate(k.unflatten(1, (4, 64)))
        storage.kv_rows.index_copy_(0, rows + layout.kv_row(0, layer, K, 0), k.flatten(1))
        storage.kv_rows.index_copy_(0, rows + layout.kv_row(0, layer, V, 0), v)
        return q

    variants = {"rope and write kernel": lambda call: backend._rotate_and_write(call % 12, qkv), "torch operations": torch_ops}
    return {"case": {"name": f"rope and write, {tokens} rows, 16/4 x 64"}, "bytes": 0, "seconds": in_turns(variants, timing)}


def run_lora(case: LoRACase, timing: Timing, generator: torch.Generator) -> dict:
    adapters = case.sequences if case.adapters is None else case.adapters
    inter = 2816 * case.hidden // 1024 // 64 * 64
    layers = 24
    heads = case.hidden // 64
    shape = ModelShape(layers, case.hidden, inter, heads, heads // 4, 64, 16)
    layout = ArenaLayout(shape, 2)
    modules = [m for m in SITES[case.site] if m in case.modules]
    signatures = [AdapterSignature((tuple(rank if m in modules else 0 for m in MODULES),) * layers) for rank in case.ranks]
    rank_of = [case.ranks[a % len(case.ranks)] for a in range(adapters)]
    useful = sum(rank * sum(sum(shape.module_widths(m)) for m in modules) * 2 for rank in rank_of)
    groups = max(2, min(64, -(-WORKING_SET_BYTES // (useful * layers))))
    placements = [place(layout, signatures[a % len(case.ranks)]) for a in range(adapters)]
    num_pages = groups * sum(p.num_pages for p in placements)
    storage = Storage(layout, num_pages, torch.bfloat16, CPU)
    storage.elements.normal_(std=0.05, generator=generator)
    by_row = CPULoRA(storage, product_macs=1 << 62)
    by_product = CPULoRA(storage, product_macs=0)
    oracle = TorchLoRA(storage)
    page, slot = 0, 0
    slots: list[list[int]] = []
    for _ in range(groups):
        slots.append([])
        for a in range(adapters):
            pages = list(range(page, page + placements[a].num_pages))
            for backend in (by_row, by_product, oracle):
                backend.bind(slot, signatures[a % len(case.ranks)], pages)
            page, slot = page + len(pages), slot + 1
            slots[-1].append(slot - 1)
    batches = []
    for group in slots:
        of_sequence: list[int] = [group[s % adapters] for s in range(case.sequences)]
        of_sequence[: case.base_only] = [-1] * case.base_only
        of_rows = [list(range(layout.num_pages_for_tokens(case.rows)))] * case.sequences
        batches.append(build_batch(decode_plan(case.sequences, 0, case.rows, of_rows, of_sequence), layout.page_tokens, CPU))
    width_in = shape.module_widths(SITES[case.site][0])[0]
    width_out = sum(shape.module_widths(m)[1] for m in SITES[case.site])
    total = case.sequences * case.rows
    x = torch.randn(total, width_in, generator=generator).bfloat16()
    y = torch.randn(total, width_out, generator=generator).bfloat16()

    max_rank = max(case.ranks)

    def gather_bmm(batch: object, layer: int, y: torch.Tensor) -> None:
        """One weight copy per row, padded to the largest rank with rows of rank 0 masked out, then two bmm per module."""
        bound = tables[id(batch)]
        column = 0
        for module in SITES[case.site]:
            outputs = shape.module_widths(module)[1]
            if module in modules:
                lines_a, lines_b, mask = bound[layer, module]
                a = storage.factor_rows(lines_a, width_in).view(total, max_rank, width_in)
                b = storage.factor_rows(lines_b, outputs).view(total, max_rank, outputs)
                s = torch.bmm(a, x[:, :, None]).squeeze(2) * mask
                y[:, column : column + outputs] += torch.bmm(s[:, None], b).squeeze(1)
            column += outputs

    tables: dict[int, dict] = {}
    if case.rows == 1:
        for batch in batches:
            table: dict = {}
            for layer in range(layers):
                for module in modules:
                    index = MODULES.index(module)
                    lines = torch.zeros(2, total, max_rank, dtype=torch.int64)
                    mask = torch.zeros(total, max_rank, dtype=torch.bfloat16)
                    for t, s in enumerate(batch.adapter_slots):
                        if s >= 0:
                            bound = oracle._bound[int(s)]
                            rank = int(bound.placement.lora_ranks[layer, index])
                            for half, first in enumerate((bound.placement.first_a, bound.placement.first_b)):
                                lines[half, t, :rank] = bound.lines[first[layer, index] :][:rank]
                            mask[t, :rank] = 1
                    table[layer, module] = lines[0].flatten(), lines[1].flatten(), mask
            tables[id(batch)] = table

    def planned(backend: CPULoRA) -> Callable[[int], None]:
        works = []
        for batch in batches:
            backend.plan(batch)
            works.append(backend._work)

        def run(call: int) -> None:
            backend._work = works[call // layers % groups]
            backend.run(call % layers, case.site, x, y)

        return run

    variants: dict[str, Callable[[int], object]] = {"row kernel": planned(by_row)}
    check = [y.clone() for _ in range(3)]
    oracle.plan(batches[0])
    oracle.run(1, case.site, x, check[0])
    by_row.plan(batches[0])
    by_row.run(1, case.site, x, check[1])
    if case.rows == 1:
        variants["gather + bmm"] = lambda call: gather_bmm(batches[call // layers % groups], call % layers, y)
        variants["loop over adapters"] = planned(by_product)
        gather_bmm(batches[0], 1, check[2])
    else:
        variants["matrix products"] = planned(by_product)
        by_product.plan(batches[0])
        by_product.run(1, case.site, x, check[2])
    for got in check[1:]:
        torch.testing.assert_close(got, check[0], rtol=5e-2, atol=5e-2 * float(check[0].float().std()))
    macs = total * sum(rank_of[0] * sum(shape.module_widths(m)) for m in modules) if adapters == 1 else 0
    return {"case": asdict(case), "bytes": useful, "macs": macs, "seconds": in_turns(variants, timing)}


def describe(result: dict) -> None:
    name = result["case"]["name"]
    medians = {v: statistics.median(s) for v, s in result["seconds"].items()}
    first = next(iter(medians.values()))
    parts = []
    for variant, median in medians.items():
        rate = f" ({result['bytes'] / median / 1e9:.1f} GB/s)" if result["bytes"] else ""
        parts.append(f"{variant} {median * 1e6:.0f} us{rate} x{median / first:.2f}")
    extra = f"  [{result['macs'] / 1e6:.1f} M multiply-adds]" if result.get("macs") else ""
    print(f"{name}{extra}: " + ", ".join(parts), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hardware", required=True, help="short name for the result file")
    parser.add_argument("--only", default="", help="run the groups whose name contains this")
    parser.add_argument("--samples", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument(
        "--clock", choices=["wall", "cpu"], default="wall", help="cpu: processor time of the calling thread, with --threads 1"
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results")
    options = parser.parse_args()
    if options.clock == "cpu" and options.threads != 1:
        parser.error("--clock cpu sees one thread only: give --threads 1")
    timing = Timing(options.samples, time.perf_counter if options.clock == "wall" else time.thread_time)
    torch.set_grad_enabled(False)
    torch.set_num_threads(options.threads)
    numba.set_num_threads(options.threads)
    groups: dict[str, list[Callable[[torch.Generator], dict]]] = {
        "attention": [partial(run_attention, c, timing) for c in ATTENTION],
        "chunks": [partial(run_attention, c, timing) for c in CHUNKS],
        "write": [partial(run_write, t, timing) for t in (1, 16, 32, 512)],
        "lora": [partial(run_lora, c, timing) for c in LORA],
        "segments": [partial(run_lora, c, timing) for c in SEGMENTS],
    }
    results: dict[str, list[dict]] = {}
    for name, runs in groups.items():
        if options.only in name:
            results[name] = []
            for run in runs:
                result = run(torch.Generator().manual_seed(options.seed))
                describe(result)
                results[name].append(result)
    if not options.only:
        path = options.out / f"kernels--{options.hardware}.json"
        parameters = {key: getattr(options, key) for key in ("seed", "samples", "threads", "clock")} | {"dtype": "bfloat16"}
        write_result(path, "kernels", parameters, results)
        print(path)


if __name__ == "__main__":
    main()
