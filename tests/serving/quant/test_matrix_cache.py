"""Quantised weights kept on the disk: whole or not at all, checked, bounded."""

import os

import torch

from evenflow.serving.quant.matrix_cache import MatrixCache, model_digest


def part(value, size=1000):
    return {"what": value}, torch.full((size,), value, dtype=torch.uint8)


def fill(folder, digest="a", capacity_bytes=None):
    with MatrixCache(folder, digest, capacity_bytes) as cache:
        cache.add("x", [part(1), part(2, 77)])
        cache.add("y", [part(3)])


def test_what_is_added_is_read_by_the_next(tmp_path):
    fill(tmp_path)
    with MatrixCache(tmp_path, "a") as cache:
        found = cache.read("x")
        assert [(meta["what"], data.tolist()) for meta, data in found] == [(1, [1] * 1000), (2, [2] * 77)]
        assert all(data.data_ptr() % 64 == 0 for _, data in found)
        assert cache.read("z") is None
    with MatrixCache(tmp_path, "b") as other:
        assert other.read("x") is None
    assert [path.name for path in tmp_path.iterdir()] == ["a.matrices"]


def test_an_interrupted_start_leaves_nothing(tmp_path):
    try:
        with MatrixCache(tmp_path, "a") as cache:
            cache.add("x", [part(1)])
            raise RuntimeError
    except RuntimeError:
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_is_as_good_as_none(tmp_path):
    fill(tmp_path)
    file = tmp_path / "a.matrices"
    whole = file.read_bytes()
    for bad in (whole[:500], whole[:100] + bytes([whole[100] ^ 1]) + whole[101:], b"", b"x" * 4000, whole[:-3] + b"}}}"):
        file.write_bytes(bad)
        with MatrixCache(tmp_path, "a") as cache:
            assert cache.read("x") is None
            cache.add("x", [part(7)])
        with MatrixCache(tmp_path, "a") as cache:
            assert cache.read("x")[0][1][0] == 7


def test_a_file_of_which_a_part_was_read_is_never_replaced_by_the_rest(tmp_path):
    fill(tmp_path)
    file = tmp_path / "a.matrices"
    whole = bytearray(file.read_bytes())
    at = whole.index(bytes([3] * 1000))
    whole[at] = 0
    file.write_bytes(whole)
    with MatrixCache(tmp_path, "a") as cache:
        assert cache.read("x") is not None
        assert cache.read("y") is None
        cache.add("y", [part(3)])
    assert not file.exists()
    fill(tmp_path)
    with MatrixCache(tmp_path, "a") as cache:
        assert cache.read("x") is not None
        assert cache.read("y") is not None


def test_the_folder_is_bounded_and_the_longest_unused_goes_first(tmp_path):
    for age, digest in ((300, "old"), (200, "older"), (100, "new")):
        fill(tmp_path, digest, 10_000)
        os.utime(tmp_path / f"{digest}.matrices", (1_000_000 - age, 1_000_000 - age))
    with MatrixCache(tmp_path, "old") as cache:
        assert cache.read("y") is not None
    fill(tmp_path, "last", 9_000)
    assert {path.stem for path in tmp_path.iterdir()} == {"old", "new", "last"}
    fill(tmp_path, "huge", 100)
    assert not (tmp_path / "huge.matrices").exists()


def test_a_folder_that_cannot_be_used_is_not_used(tmp_path):
    (tmp_path / "file").write_text("")
    fill(tmp_path / "file" / "below")


def test_a_digest_changes_with_the_files(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"one")
    first = model_digest([file], "int8")
    assert first == model_digest([file], "int8") != model_digest([file], "int4")
    file.write_bytes(b"two")
    assert model_digest([file], "int8") != first
