"""What every page loader promises: the right bytes in the right pages, and zeros after a fault."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from evenflow.base.errors import AdapterDamaged
from evenflow.serving.adapters.row_file import MemoryRows
from evenflow.serving.backends.devices.page_loader import CpuPageLoader, StagedPageLoader
from evenflow.serving.backends.devices.storage import Storage
from evenflow.serving.memory.layout import ArenaLayout
from evenflow.serving.models.model_config import parse_config
from evenflow.serving.models.random.random_model import TINY

LAYOUT = ArenaLayout(parse_config(TINY).shape, 4)
LOADERS: dict[str, Callable[[Storage], CpuPageLoader | StagedPageLoader]] = {
    "cpu": CpuPageLoader,
    "staged": lambda storage: StagedPageLoader(storage, staging_pages=2),
}
IMAGE = np.random.default_rng(0).integers(1, 255, (7, LAYOUT.page_bytes), np.uint8)
PAGES = [9, 3, 4, 5, 0, 11, 10]


class Broken:
    """Fails when page 2 is read, having scribbled on what came before."""

    def read(self, first, buffers):
        for buffer in buffers:
            buffer.fill(7)
            first += len(buffer)
            if first > 2:
                raise AdapterDamaged("page 2 is damaged")


@pytest.fixture(params=["cpu", "staged", pytest.param("staged on cuda", marks=pytest.mark.gpu)])
def storage_and_loader(request):
    device = torch.device("cuda" if request.param.endswith("cuda") else "cpu")
    storage = Storage(LAYOUT, 12, torch.float32, device)
    storage.bytes.fill_(77)
    loader = LOADERS[request.param.split()[0]](storage)
    yield storage, loader
    loader.close()
    loader.close()


def test_a_load_fills_its_pages_and_no_other(storage_and_loader):
    storage, loader = storage_and_loader
    assert loader.load(MemoryRows(IMAGE), 0, PAGES) is None
    np.testing.assert_array_equal(storage.read_pages(PAGES).cpu().numpy(), IMAGE)
    others = [page for page in range(12) if page not in PAGES]
    assert (storage.read_pages(others) == 77).all()


def test_parts_make_a_whole(storage_and_loader):
    storage, loader = storage_and_loader
    rows = MemoryRows(IMAGE)
    loader.prefetch(rows, 0, PAGES[:3])
    loader.prefetch(rows, 5, PAGES[5:])
    assert loader.load(rows, 3, PAGES[3:5]) is None
    assert loader.finish() == [None, None]
    assert loader.finish() == []
    np.testing.assert_array_equal(storage.read_pages(PAGES).cpu().numpy(), IMAGE)


def test_a_fault_leaves_zeros_and_is_told(storage_and_loader):
    storage, loader = storage_and_loader
    assert "page 2 is damaged" in str(loader.load(Broken(), 0, PAGES))
    assert (storage.read_pages(PAGES[2:4]) == 0).all(), "nothing half read may stay"
    storage.bytes.fill_(77)
    loader.prefetch(Broken(), 0, PAGES[:4])
    loader.prefetch(MemoryRows(IMAGE), 4, PAGES[4:])
    broken, whole = loader.finish()
    assert "page 2 is damaged" in str(broken)
    assert whole is None
    assert not (storage.read_pages(PAGES[:4]) == 77).any()
    np.testing.assert_array_equal(storage.read_pages(PAGES[4:]).cpu().numpy(), IMAGE[4:])
