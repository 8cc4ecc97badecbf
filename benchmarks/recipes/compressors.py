"""Encode and decode of every compressor against copying; group-32 kernels against naive torch; Top-K against torch.topk.

    python benchmarks/recipes/compressors.py --json benchmarks/results/compressors--MACHINE.json

One thread, fp32 [rows, 1024]. Copy bandwidth is `y.copy_(x)` between buffers that exist; the kernels write into buffers
that exist as well. ``share_of_copy`` is copy time / (encode + decode) time of the same tensor: moving it, not
bytes of traffic. Kernel, naive and copy run in turn, A B C A B C; times are CPU time of the thread, which other work on
the machine disturbs least.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from evenflow.bench.recipes import interleave, paired_ratio, summary, write_result
from evenflow.comm import DEFAULT_SPECS, get_compressor, quantise_cpu
from evenflow.comm.quantise import GroupInt
from evenflow.comm.sparsify_cpu import largest

WIDTH = 1024
KERNEL_ROWS = (1024, 4096, 16384)


def kernels(samples: dict[str, list[float]], ratios: dict[str, float], repeats: int) -> None:
    for rows in KERNEL_ROWS:
        x = torch.randn(rows * WIDTH)
        out = torch.empty_like(x)
        calls = {f"copy rows={rows}": partial(out.copy_, x)}
        for bits in (8, 4):
            naive = GroupInt(bits, use_kernels=False)
            message = GroupInt(bits).encode(x)
            assert torch.equal(message, naive.encode(x))

            def both(bits: int = bits, message: torch.Tensor = message, x: torch.Tensor = x, out: torch.Tensor = out) -> None:
                quantise_cpu.encode(x, message, bits)
                quantise_cpu.decode(message, out, bits)

            def naive_both(naive: GroupInt = naive, x: torch.Tensor = x) -> None:
                naive.decode(naive.encode(x), x.shape, x.dtype)

            calls[f"int{bits}-g32 rows={rows}"] = both
            calls[f"naive int{bits}-g32 rows={rows}"] = naive_both
        timed = interleave({name: milliseconds(call) for name, call in calls.items()}, repeats)
        samples |= timed
        for bits in (8, 4):
            kernel = timed[f"int{bits}-g32 rows={rows}"]
            ratios[f"int{bits}-g32 share_of_copy rows={rows}"] = paired_ratio(timed[f"copy rows={rows}"], kernel)
            ratios[f"int{bits}-g32 naive/kernel rows={rows}"] = paired_ratio(timed[f"naive int{bits}-g32 rows={rows}"], kernel)


def top_k(samples: dict[str, list[float]], ratios: dict[str, float], repeats: int) -> None:
    x = torch.randn(1024 * WIDTH)
    for share in (0.01, 0.1):
        k = int(share * x.numel())
        assert torch.equal(largest(x, k), torch.topk(x.abs(), k).indices.sort().values)
        ours, theirs = f"top-k {share}", f"torch.topk {share}"
        timed = interleave(
            {ours: milliseconds(partial(largest, x, k)), theirs: milliseconds(partial(_torch_top_k, x, k))}, repeats
        )
        samples |= timed
        ratios[f"torch.topk/ours {share}"] = paired_ratio(timed[theirs], timed[ours])


def _torch_top_k(x: torch.Tensor, k: int) -> torch.Tensor:
    return torch.topk(x.abs(), k, sorted=False).indices


def every_compressor(samples: dict[str, list[float]], repeats: int) -> None:
    x = torch.randn(512, WIDTH)
    for spec in DEFAULT_SPECS:
        compressor = get_compressor(spec)
        compressor.prepare(WIDTH)

        def once(compressor=compressor) -> None:  # type: ignore[no-untyped-def]
            compressor.decode(compressor.encode(x), x.shape, x.dtype)

        samples |= interleave({f"{spec} [512, {WIDTH}]": milliseconds(once)}, repeats)


def milliseconds(call: Callable[[], object]) -> Callable[[], float]:
    def measure() -> float:
        started_s = time.thread_time()
        call()
        return 1e3 * (time.thread_time() - started_s)

    return measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    samples: dict[str, list[float]] = {}
    ratios: dict[str, float] = {}
    with torch.no_grad():
        kernels(samples, ratios, args.repeats)
        top_k(samples, ratios, args.repeats)
        every_compressor(samples, max(3, args.repeats // 3))
    results = {
        "unit": "milliseconds of one thread",
        "summary": {name: summary(values) for name, values in samples.items()},
        "ratios": ratios,
        "samples": samples,
    }
    write_result(args.json, "compressors", {"width": WIDTH, "kernel_rows": KERNEL_ROWS, "repeats": args.repeats}, results)
    print("\n".join(f"{name:<44}{value:8.2f}" for name, value in ratios.items()))


if __name__ == "__main__":
    main()
