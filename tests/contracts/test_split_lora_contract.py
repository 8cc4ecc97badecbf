"""What LoRA backends promise whose halves can be called apart: all ranks together equal the whole, in fp64."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from backend_cases import DTYPES, Seq, batch_of, on_one_thread, random_ranks, row_slots, tolerance

from evenflow.serving.backends.choose import LORA_BACKENDS
from evenflow.serving.backends.devices.storage import Storage
from evenflow.serving.backends.lora.lora_backend import SplitLoRABackend
from evenflow.serving.backends.lora.rank_space import RankSpace
from evenflow.serving.core.adapter import AdapterSignature
from evenflow.serving.core.shape import MODULES, SITES, ModelShape
from evenflow.serving.core.shard import COLUMN_SITES, Shard
from evenflow.serving.memory.layout import ArenaLayout, place

SHAPE = ModelShape(2, 90, 72, 4, 2, 24, 10)
RANKS = [0, 1, 3, 8, 33]
SPLIT = [name for name in LORA_BACKENDS if hasattr(LORA_BACKENDS.load(name), "shrink")]
one_thread = pytest.fixture(autouse=True)(on_one_thread)
backends = pytest.mark.parametrize("name", SPLIT)
dtypes = pytest.mark.parametrize("dtype", DTYPES.values(), ids=list(DTYPES))


def test_the_cpu_and_torch_backends_can_be_split():
    assert {"cpu", "torch"} <= set(SPLIT)


class Ranks:
    """N ranks' arenas, each with its shard of the same adapters, run in lockstep."""

    def __init__(self, name, dtype, world_size, ranks_by_slot, num_pages=400):
        self.dtype, self.world_size = dtype, world_size
        generator = torch.Generator().manual_seed(1)
        self.generator = generator
        self.weights = {}
        for slot, ranks in ranks_by_slot.items():
            for layer, row in enumerate(ranks):
                for module, rank in zip(MODULES, row):
                    inputs, outputs = SHAPE.module_widths(module)
                    a = (torch.randn(rank, inputs, generator=generator) * inputs**-0.5).to(dtype)
                    b = (torch.randn(rank, outputs, generator=generator) * max(rank, 1) ** -0.5).to(dtype)
                    self.weights[slot, layer, module] = a, b
        self.shards = [Shard(SHAPE, rank, world_size, tuple(SITES)) for rank in range(world_size)]
        self.storages, self.backends, self.spaces = [], [], []
        for shard in self.shards:
            storage = Storage(ArenaLayout.of_shard(shard, dtype.itemsize), num_pages, dtype, torch.device("cpu"))
            storage.bytes.fill_(0xFF)
            backend = LORA_BACKENDS.load(name)(storage)
            assert isinstance(backend, SplitLoRABackend)
            self.storages.append(storage)
            self.backends.append(backend)
            self.spaces.append({site: RankSpace(site, SHAPE.num_layers, world_size) for site in SITES})
        free = list(range(num_pages))
        random.Random(2).shuffle(free)
        for slot, ranks in ranks_by_slot.items():
            signature = AdapterSignature(tuple(tuple(row) for row in ranks))
            num_pages = place(self.storages[0].layout, signature).num_pages
            pages, free = free[:num_pages], free[num_pages:]
            for storage, backend, spaces in zip(self.storages, self.backends, self.spaces):
                storage.write_pages(pages, self.image(storage.layout, slot, signature))
                backend.bind(slot, signature, pages)
                for space in spaces.values():
                    space.bind(slot, signature)

    def image(self, layout, slot, signature):
        placement = place(layout, signature)
        flat = torch.full((placement.num_pages * layout.page_bytes,), 0xFF, dtype=torch.uint8)
        for layer in range(SHAPE.num_layers):
            for module in MODULES:
                for part, weight in zip("AB", self.weights[slot, layer, module]):
                    held = weight[layout.held(module, part, len(weight))].contiguous()
                    for row, offset in zip(held, placement.row_offsets(layer, module, part), strict=True):
                        flat[offset : offset + layout.row_bytes(len(row))] = 0
                        flat[offset : offset + len(row) * layout.itemsize] = row.view(torch.uint8)
        return flat.view(placement.num_pages, -1)

    def run(self, seqs, layer, site):
        """(what all ranks' outputs make together, what it should be, slots of the rows)"""
        modules = SITES[site]
        batches = [batch_of(storage, seqs, [[0] * 40 for _ in seqs]) for storage in self.storages]
        slots = row_slots(batches[0])
        x = torch.randn(len(slots), SHAPE.module_widths(modules[0])[0], generator=self.generator).to(self.dtype)
        whole = {
            m: torch.randn(len(slots), SHAPE.module_widths(m)[1], generator=self.generator).to(self.dtype) for m in modules
        }
        messages = []
        for shard, backend, spaces, batch in zip(self.shards, self.backends, self.spaces, batches):
            backend.plan(batch)
            spaces[site].plan(batch)
            columns = shard.inputs(modules[0])
            messages.append(backend.shrink(layer, site, x[:, columns.start : columns.stop], spaces[site]))
        assert len({m.shape for m in messages}) == 1
        parts = torch.stack(messages) if site in COLUMN_SITES else torch.stack(messages).sum(0, keepdim=True)
        found = {m: y.clone() for m, y in whole.items()}
        for shard, backend, spaces in zip(self.shards, self.backends, self.spaces):
            pieces = [whole[m][:, shard.b_columns(m).start : shard.b_columns(m).stop] for m in modules]
            y = torch.cat([torch.full((len(slots), 3), torch.nan, dtype=self.dtype), *pieces], dim=1)[:, 3:]
            backend.expand(layer, site, parts, y, spaces[site])
            for module, piece in zip(modules, y.split([p.shape[1] for p in pieces], dim=1)):
                columns = shard.b_columns(module)
                found[module][:, columns.start : columns.stop] = piece
        for t, slot in enumerate(slots):
            for m in modules:
                if slot >= 0:
                    a, b = (w.double() for w in self.weights[int(slot), layer, m])
                    whole[m] = whole[m].double()
                    whole[m][t] += (x[t].double() @ a.T) @ b
        return torch.cat([found[m] for m in modules], 1), torch.cat([whole[m] for m in modules], 1), slots, messages[0]


def mixed(name, dtype, world_size):
    rng = random.Random(3)
    ranks = {slot: random_ranks(SHAPE, rng, RANKS) for slot in (0, 1, 2, 3, 17)}
    ranks[4] = [[0] * len(MODULES), [2] * len(MODULES)]
    return Ranks(name, dtype, world_size, ranks)


DECODE = [Seq(5, 1, slot) for slot in (0, -1, 3, 0, 0, 4, 0, 17, 2, 0)]
MIXED = [Seq(0, 7, 1), Seq(3, 1, -1), Seq(0, 40, 2), Seq(9, 1, 4), Seq(0, 5, -1)]


@backends
@dtypes
@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("seqs", [DECODE, MIXED], ids=["decode", "mixed"])
def test_all_ranks_together_are_the_whole(name, dtype, world_size, seqs):
    ranks = mixed(name, dtype, world_size)
    for layer in range(SHAPE.num_layers):
        for site in SITES:
            found, expected, slots, _ = ranks.run(seqs, layer, site)
            torch.testing.assert_close(found.double(), expected.double(), **tolerance(dtype))
            base = np.flatnonzero(slots < 0)
            assert torch.equal(found[base].double(), expected[base].double()), "a base-only row changed"


@backends
def test_matrix_products_agree_with_the_row_kernel(name):
    """Prompts of hundreds of tokens take another road in some backends."""
    ranks = Ranks(name, torch.float32, 2, {0: [[33] * 7, [5] * 7], 1: [[0, 0, 4, 0, 0, 4, 4]] * 2}, num_pages=100)
    for backend in ranks.backends:
        if hasattr(backend, "_product_macs"):
            backend._product_macs = 1
    for site in SITES:
        found, expected, _, _ = ranks.run([Seq(0, 9, 0), Seq(0, 3, -1), Seq(0, 11, 1)], 1, site)
        torch.testing.assert_close(found.double(), expected.double(), **tolerance(torch.float32))


@backends
@pytest.mark.parametrize("site", list(SITES))
def test_a_message_is_as_long_as_its_rows_own_ranks(name, site):
    world_size = 4
    ranks = mixed(name, torch.float32, world_size)
    for layer in range(SHAPE.num_layers):
        _, _, slots, message = ranks.run(MIXED, layer, site)
        share = sum(
            -(-len(ranks.weights[int(slot), layer, module][0]) // world_size)
            for slot in slots
            if slot >= 0
            for module in SITES[site]
        )
        assert message.numel() == share * (1 if site in COLUMN_SITES else world_size)
        assert message.dtype == torch.float32
