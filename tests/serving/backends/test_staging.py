"""Arrays arrive at the place and with the values they were added with, in one copy, whatever came before."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from evenflow.serving.backends.devices.staging import CopiedStaging, DirectStaging, make_staging

CPU = torch.device("cpu")


def test_the_cpu_needs_none():
    staging = make_staging(CPU)
    array = np.arange(3)
    assert isinstance(staging, DirectStaging)
    assert staging.add(array).data_ptr() == array.ctypes.data


def test_steps_of_any_size_arrive():
    rng = np.random.default_rng(0)
    staging = CopiedStaging(CPU, capacity_bytes=256)
    for step in range(6):
        staging.begin()
        arrays = [rng.integers(0, 1000, 50 * step).astype(dtype) for dtype in (np.int32, np.int64, np.float32)]
        views = [staging.add(array) for array in arrays]
        staging.upload()
        for array, view in zip(arrays, views):
            assert torch.equal(view, torch.from_numpy(array))
            assert view.data_ptr() % 64 == 0


def test_after_a_step_that_did_not_fit_there_is_one_buffer_again():
    staging = CopiedStaging(CPU, capacity_bytes=256)
    for expected in (2, 1, 1):
        staging.begin()
        views = [staging.add(np.full(20, i)) for i in range(3)]
        staging.upload()
        assert [int(view[0]) for view in views] == [0, 1, 2]
        assert len(staging._buffers) == expected


def test_a_capacity_keeps_later_arrays_in_their_place():
    staging = CopiedStaging(CPU)
    places = []
    for length in (0, 7, 100):
        staging.begin()
        first = staging.add(np.full(length, 3), 100)
        second = staging.add(np.full(5, 4))
        staging.upload()
        places.append((first.data_ptr(), second.data_ptr()))
        assert len(first) == 100
        assert first[:length].eq(3).all()
        assert second.eq(4).all()
    assert len(set(places)) == 1


@pytest.mark.parametrize("staging", [DirectStaging(), CopiedStaging(CPU)], ids=["direct", "copied"])
def test_more_than_the_capacity_is_refused(staging):
    with pytest.raises(ValueError, match="3 elements for a capacity of 2"):
        staging.add(np.arange(3), 2)
