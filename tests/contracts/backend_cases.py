"""Small worlds for the backend contracts: an arena full of NaN, sequences on scattered pages, adapters of odd ranks."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from dataclasses import dataclass

import numba
import numpy as np
import torch

from evenflow.serving.backends.devices.batch import Batch, build_batch
from evenflow.serving.backends.devices.storage import Storage
from evenflow.serving.core.adapter import AdapterSignature
from evenflow.serving.core.plan import NO_ADAPTER_SLOT, PlannedSequence, StepPlan
from evenflow.serving.core.request import RequestId
from evenflow.serving.core.shape import MODULES, ModelShape
from evenflow.serving.memory.layout import ArenaLayout, K, V, place
from triton_interpreter import mend

CPU = torch.device("cpu")
DEVICE = torch.device("cuda") if os.environ.get("TRITON_INTERPRET") == "0" and torch.cuda.is_available() else CPU
"""Where the contracts of Triton's and torch's backends run: ``make gpu`` takes the GPU."""
mend()
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def on_one_thread() -> Iterator[None]:
    """A fixture: many small parallel regions on a busy machine wait for each other more than they compute."""
    before = torch.get_num_threads(), numba.get_num_threads()
    torch.set_num_threads(1)
    numba.set_num_threads(1)
    yield
    torch.set_num_threads(before[0])
    numba.set_num_threads(before[1])


def tolerance(dtype: torch.dtype) -> dict[str, float]:
    """For values of size 1. bf16 keeps 8 bits and may round weights or ranks on the way; fp32 differs in the order of sums."""
    return {"rtol": 1e-5, "atol": 5e-6} if dtype == torch.float32 else {"rtol": 2**-7, "atol": 2**-6}


def make_storage(shape: ModelShape, dtype: torch.dtype, page_tokens: int, num_pages: int) -> Storage:
    """An arena whose every byte is 0xFF, a NaN in each dtype: who reads a stale byte shows it."""
    storage = Storage(ArenaLayout(shape, dtype.itemsize, page_tokens), num_pages, dtype, DEVICE)
    storage.bytes.fill_(0xFF)
    return storage


class _OnDevice:
    """A backend of the GPU with the tests' tensors on the host: uploads after plan, copies in and out around run."""

    def __init__(self, backend):
        self._backend = backend
        self.bind = getattr(backend, "bind", None)

    def plan(self, batch: Batch) -> None:
        self._backend.plan(batch)
        batch.staging.upload()

    def run(self, layer: int, *arguments):
        copies = [_like(a).copy_(a) if isinstance(a, torch.Tensor) else a for a in arguments]
        out = self._backend.run(layer, *copies)
        if out is None:  # LoRA: y in place
            arguments[-1].copy_(copies[-1])
        return None if out is None else out.cpu()


def _like(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=DEVICE)


def on_device(backend):
    """``backend``, to be used with tensors on the host wherever its arena is."""
    return backend if DEVICE == CPU else _OnDevice(backend)


@dataclass
class Seq:
    """One sequence of a step: ``start`` tokens of history, ``rows`` new ones."""

    start: int
    rows: int
    slot: int = NO_ADAPTER_SLOT


def plan_of(seqs: list[Seq], pages: list[list[int]]) -> StepPlan:
    return StepPlan(
        0,
        tuple(
            PlannedSequence(RequestId(str(i)), [0] * seq.rows, seq.start, pages[i], seq.slot, None)
            for i, seq in enumerate(seqs)
        ),
    )


def scatter_pages(storage: Storage, seqs: list[Seq], rng: random.Random) -> list[list[int]]:
    """Distinct pages in random places for each sequence."""
    free = list(range(storage.num_pages))
    rng.shuffle(free)
    return [[free.pop() for _ in range(storage.layout.num_pages_for_tokens(s.start + s.rows))] for s in seqs]


def batch_of(storage: Storage, seqs: list[Seq], pages: list[list[int]]) -> Batch:
    return build_batch(plan_of(seqs, pages), storage.layout.page_tokens, DEVICE)


def rope_tables(shape: ModelShape, positions: int) -> tuple[torch.Tensor, torch.Tensor]:
    half = shape.head_dim // 2
    angles = torch.arange(positions)[:, None] / 100.0 ** (torch.arange(half) / half)[None, :]
    return angles.cos().float(), angles.sin().float()


def rotate_exactly(x_TND: torch.Tensor, positions: torch.Tensor, tables: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """The rope formula in fp64, pair by pair."""
    cos, sin = (t.double()[positions][:, None, :] for t in tables)
    x = x_TND.double()
    half = x.shape[-1] // 2
    out = x.clone()
    out[..., :half] = x[..., :half] * cos - x[..., half:] * sin
    out[..., half:] = x[..., half:] * cos + x[..., :half] * sin
    return out


def attend_exactly(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    start: int,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """Softmax attention in fp64, one row and head at a time. A row sees ``window`` tokens, its own included."""
    rows, heads, _ = q.shape
    group = heads // k.shape[1]
    out = torch.zeros(q.shape, dtype=torch.float64)
    for t in range(rows):
        n = start + t + 1
        seen = slice(max(0, n - (window or n)), n)
        for h in range(heads):
            scores = k[seen, h // group].double() @ q[t, h].double() * scale
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            out[t, h] = torch.softmax(scores, 0) @ v[seen, h // group].double()
    return out


def write_history(storage: Storage, layer: int, pages: list[int], k: torch.Tensor, v: torch.Tensor) -> None:
    """Put the (rotated) K and V of the first tokens of a sequence where the layout says."""
    layout = storage.layout
    for token in range(len(k)):
        page, slot = pages[token // layout.page_tokens], token % layout.page_tokens
        storage.kv_rows[layout.kv_row(page, layer, K, slot)] = k[token].flatten().to(storage.dtype)
        storage.kv_rows[layout.kv_row(page, layer, V, slot)] = v[token].flatten().to(storage.dtype)


@dataclass
class Adapter:
    """An adapter in the arena, and its weights as plain matrices."""

    signature: AdapterSignature
    pages: list[int]
    a: dict[tuple[int, str], torch.Tensor]
    """[rank, inputs]"""
    b: dict[tuple[int, str], torch.Tensor]
    """[rank, outputs]"""

    def delta(self, layer: int, module: str, x: torch.Tensor) -> torch.Tensor | None:
        if (layer, module) not in self.a:
            return None
        return (x.double() @ self.a[layer, module].double().T) @ self.b[layer, module].double()


def put_adapter(storage: Storage, ranks: list[list[int]], pages: list[int], seed: int) -> Adapter:
    """Random weights of the given ranks ([layer][module]), written row by row into ``pages``."""
    layout = storage.layout
    signature = AdapterSignature(tuple(tuple(layer) for layer in ranks))
    placement = place(layout, signature)
    pages = pages[: placement.num_pages]
    generator = torch.Generator().manual_seed(seed)
    image = torch.full((placement.num_pages, layout.page_bytes), 0xFF, dtype=torch.uint8)
    flat = image.view(-1)
    adapter = Adapter(signature, pages, {}, {})
    for layer, row in enumerate(ranks):
        for module, rank in zip(MODULES, row):
            if not rank:
                continue
            for part, store in (("A", adapter.a), ("B", adapter.b)):
                width = placement.row_width(module, part)
                scale = width**-0.5 if part == "A" else rank**-0.5
                weight = (torch.randn(rank, width, generator=generator) * scale).to(storage.dtype)
                store[layer, module] = weight
                for r, offset in enumerate(placement.row_offsets(layer, module, part)):
                    size = layout.row_bytes(width)
                    flat[offset : offset + size] = 0
                    flat[offset : offset + width * layout.itemsize] = weight[r].view(torch.uint8)
    storage.write_pages(pages, image)
    return adapter


def random_ranks(shape: ModelShape, rng: random.Random, choices: list[int]) -> list[list[int]]:
    return [[rng.choice(choices) for _ in MODULES] for _ in range(shape.num_layers)]


def row_slots(batch: Batch) -> np.ndarray:
    return np.repeat(batch.adapter_slots, np.diff(batch.row_starts))
