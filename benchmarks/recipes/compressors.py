"""Encode and decode of every compressor against copying; group-32 kernels against naive torch; Top-K against torch.topk.

    python benchmarks/recipes/compressors.py --json benchmarks/results/compressors--MACHINE.json

Copy bandwidth is `y.copy_(x)` between buffers that exist; the kernels write into buffers that exist as well.
``share_of_copy`` is copy time / (encode + decode) time of the same tensor: moving it, not bytes of traffic. Kernel, naive and
copy run in turn, A B C A B C, fp32 and bf16, with one thread (CPU time of the thread, which other work on the machine
disturbs least) and with two (wall time). The largest tensors do not fit the last cache; the smallest are timed a second time
one call right after the other (``warm``), where copying runs at the speed of the cache. Single calls of every method: one
thread, fp32.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median

import numba
import torch

from evenflow.base.openmp import start_numba_threads
from evenflow.bench.harness import interleave, paired_ratio, summary, write_result
from evenflow.comm import DEFAULT_SPECS, get_compressor
from evenflow.comm.compressors.quantise import GroupInt
from evenflow.comm.kernels import quantise_cpu
from evenflow.comm.kernels.sparsify_cpu import largest

WIDTH = 1024
KERNEL_ROWS = (1024, 4096, 16384)


Clock = Callable[[], float]


@dataclass
class Book:
    """What has been measured so far."""

    repeats: int
    samples: dict[str, list[float]] = field(default_factory=dict)
    ratios: dict[str, float] = field(default_factory=dict)


def kernels(book: Book, threads: int) -> None:
    clock = time.thread_time if threads == 1 else time.perf_counter
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        for rows in KERNEL_ROWS:
            cold(book, torch.randn(rows * WIDTH).to(dtype), f"{name} rows={rows} threads={threads}", clock)
        warm(book, torch.randn(KERNEL_ROWS[0] * WIDTH).to(dtype), f"{name} rows={KERNEL_ROWS[0]} threads={threads} warm", clock)


def cold(book: Book, x: torch.Tensor, what: str, clock: Clock) -> None:
    out = torch.empty_like(x)
    calls: dict[str, Callable[[], object]] = {f"copy {what}": partial(out.copy_, x)}
    for bits in (8, 4):
        naive = GroupInt(bits, use_kernels=False)
        message = GroupInt(bits).encode(x)
        assert torch.equal(message, naive.encode(x))
        calls[f"int{bits}-g32 {what}"] = partial(both, x, message, out, bits)
        calls[f"naive int{bits}-g32 {what}"] = partial(naive_both, naive, x)
    timed = interleave({name: milliseconds(call, clock) for name, call in calls.items()}, book.repeats)
    book.samples |= timed
    for bits in (8, 4):
        kernel = timed[f"int{bits}-g32 {what}"]
        book.ratios[f"int{bits}-g32 share_of_copy {what}"] = paired_ratio(timed[f"copy {what}"], kernel)
        book.ratios[f"int{bits}-g32 naive/kernel {what}"] = paired_ratio(timed[f"naive int{bits}-g32 {what}"], kernel)


def warm(book: Book, x: torch.Tensor, what: str, clock: Clock) -> None:
    out = torch.empty_like(x)
    copy = milliseconds(partial(out.copy_, x), clock)
    copies = book.samples[f"copy {what}"] = [copy() for _ in range(3 * book.repeats)]
    for bits in (8, 4):
        coded = milliseconds(partial(both, x, GroupInt(bits).encode(x), out, bits), clock)
        times = book.samples[f"int{bits}-g32 {what}"] = [coded() for _ in range(3 * book.repeats)]
        book.ratios[f"int{bits}-g32 share_of_copy {what}"] = median(copies) / median(times)


def both(x: torch.Tensor, message: torch.Tensor, out: torch.Tensor, bits: int) -> None:
    quantise_cpu.encode(x, message, bits)
    quantise_cpu.decode(message, out, bits)


def naive_both(naive: GroupInt, x: torch.Tensor) -> None:
    naive.decode(naive.encode(x), x.shape, x.dtype)


def top_k(book: Book) -> None:
    x = torch.randn(1024 * WIDTH)
    for share in (0.01, 0.1):
        k = int(share * x.numel())
        assert torch.equal(largest(x, k), torch.topk(x.abs(), k).indices.sort().values)
        ours, theirs = f"top-k {share}", f"torch.topk {share}"
        timed = interleave(
            {ours: milliseconds(partial(largest, x, k)), theirs: milliseconds(partial(_torch_top_k, x, k))}, book.repeats
        )
        book.samples |= timed
        book.ratios[f"torch.topk/ours {share}"] = paired_ratio(timed[theirs], timed[ours])


def _torch_top_k(x: torch.Tensor, k: int) -> torch.Tensor:
    return torch.topk(x.abs(), k, sorted=False).indices


def every_compressor(book: Book) -> None:
    x = torch.randn(512, WIDTH)
    for spec in DEFAULT_SPECS:
        compressor = get_compressor(spec)
        compressor.prepare(WIDTH)

        def once(compressor=compressor) -> None:
            compressor.decode(compressor.encode(x), x.shape, x.dtype)

        book.samples |= interleave({f"{spec} [512, {WIDTH}]": milliseconds(once)}, max(3, book.repeats // 3))


def milliseconds(call: Callable[[], object], clock: Callable[[], float] = time.thread_time) -> Callable[[], float]:
    def measure() -> float:
        started_s = clock()
        call()
        return 1e3 * (clock() - started_s)

    return measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    book = Book(args.repeats)
    with torch.no_grad():
        kernels(book, threads=1)
        top_k(book)
        every_compressor(book)
        torch.set_num_threads(2)
        numba.set_num_threads(2)
        start_numba_threads()
        kernels(book, threads=2)
    results = {
        "unit": "milliseconds",
        "summary": {name: summary(values) for name, values in book.samples.items()},
        "ratios": book.ratios,
        "samples": book.samples,
    }
    write_result(args.json, "compressors", {"width": WIDTH, "kernel_rows": KERNEL_ROWS, "repeats": args.repeats}, results)
    print("\n".join(f"{name:<44}{value:8.2f}" for name, value in book.ratios.items()))


if __name__ == "__main__":
    main()
