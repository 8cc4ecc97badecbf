"""What happens to adapters' files while they are served: the right answers, or a clear error for those who ask, only."""

from __future__ import annotations

import shutil
import time

import pytest
from engine_harness import EngineHarness

from evenflow import LLM, SamplingParams
from evenflow.base.errors import AdapterDamaged, AdapterError, AdapterNotFound, AdapterRejected
from evenflow.serving.adapters.row_file import RowFile
from evenflow.serving.core.shape import MODULES
from evenflow.serving.models.model_config import load_config
from evenflow.serving.models.random.random_adapter import make_adapter

PROMPT = [5, 9, 30, 7]


@pytest.fixture
def expected(tiny_model, tiny_adapters):
    plain = EngineHarness(tiny_model, tiny_adapters)
    return {name: plain.generate((PROMPT, name))[0] for name in (None, "r8", "r64")}


@pytest.fixture
def folders(tiny_adapters, tmp_path):
    return {name: shutil.copytree(tiny_adapters[name], tmp_path / name) for name in ("r8", "r64")}


def row_files(cache):
    return sorted(cache.rglob("*.rows"))


def test_folders_may_change_or_go_while_they_are_served(tiny_model, folders, tmp_path, expected):
    engine = EngineHarness(tiny_model, folders, adapter_cache=tmp_path / "cache")
    with (folders["r8"] / "adapter_model.safetensors").open("r+b") as file:
        file.truncate(64)
    shutil.rmtree(folders["r64"])
    assert engine.generate((PROMPT, "r8"), (PROMPT, "r64")) == [expected["r8"], expected["r64"]]
    engine.assert_nothing_leaked()


@pytest.mark.parametrize("how", ["cut", "changed", "gone"])
def test_damaged_rows_fail_their_own_requests_and_are_made_again(tiny_model, folders, tmp_path, expected, how):
    cache = tmp_path / "cache"
    engine = EngineHarness(tiny_model, folders, adapter_cache=cache)
    digest = engine.engine.catalog.resolve("r8")
    [path] = [path for path in row_files(cache) if path.stem == digest]
    if how == "cut":
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size - 10_000)
    elif how == "changed":
        data = bytearray(path.read_bytes())
        data[-200] ^= 255
        path.write_bytes(data)
    else:
        path.unlink()
    bad = [engine.submit(PROMPT, "r8"), engine.submit(PROMPT, "r8")]
    good = [engine.submit(PROMPT), engine.submit(PROMPT, "r64")]
    engine.run()
    for request_id in bad:
        assert engine.answers[request_id].last.error_type == "AdapterDamaged"
        assert digest[:12] in engine.answers[request_id].last.error
        assert engine.answers[request_id].token_ids == []
    assert [engine.answers[request_id].token_ids for request_id in good] == [expected[None], expected["r64"]]
    assert [info.state for info in engine.engine.adapters({"r8"})] == ["disk"]
    [(damaged, folder, _)] = engine.engine.repairs.take()
    assert damaged == digest
    assert engine.engine.catalog.prepare(folder).record.digest == digest
    assert engine.generate((PROMPT, "r8")) == [expected["r8"]]
    engine.assert_nothing_leaked()


def test_an_adapter_that_cannot_be_made_again_is_given_up(tiny_model, folders, tmp_path):
    engine = EngineHarness(tiny_model, folders, adapter_cache=tmp_path / "cache")
    digest = engine.engine.catalog.resolve("r8")
    engine.engine.pin_adapter("r8", True)
    for path in row_files(tmp_path / "cache"):
        path.unlink()
    engine.submit(PROMPT)
    engine.run()
    assert engine.engine.repairs.take() == [(digest, folders["r8"], None)], (
        "noticed without anybody asking for it: it was pinned"
    )
    assert not engine.engine.adapters({"r8"})[0].is_pinned
    engine.engine.repairs.end(digest, "its folder is gone")
    late = engine.submit(PROMPT, "r8")
    assert engine.answers[late].last.error_type == "AdapterNotFound"
    engine.assert_nothing_leaked()


def test_two_names_of_one_digest_take_their_pages_once(tiny_model, folders, tmp_path, expected):
    twin = shutil.copytree(folders["r8"], tmp_path / "twin")
    engine = EngineHarness(tiny_model, {**folders, "twin": twin}, adapter_cache=tmp_path / "cache")
    assert engine.generate((PROMPT, "r8"), (PROMPT, "twin")) == [expected["r8"]] * 2
    assert engine.scheduler.snapshot().num_adapter_loads == 1
    assert len(row_files(tmp_path / "cache")) == 2
    engine.engine.unload_adapter("r8", purge=True)
    assert engine.generate((PROMPT, "twin")) == [expected["r8"]]


def test_unloading_frees_pages_file_and_rows(tiny_model, folders, tmp_path):
    engine = EngineHarness(tiny_model, {"r64": folders["r64"]}, adapter_cache=tmp_path / "cache")
    engine.generate((PROMPT, "r64"))
    rows = engine.engine.catalog.rows(engine.engine.catalog.resolve("r64"))
    assert isinstance(rows, RowFile)
    assert rows.is_open
    assert engine.scheduler.snapshot().num_adapter_pages == rows.header.record.num_pages
    engine.engine.unload_adapter("r64", purge=True)
    snapshot = engine.scheduler.snapshot()
    assert snapshot.num_free_pages == snapshot.num_pages
    assert not rows.is_open
    assert not row_files(tmp_path / "cache")
    assert engine.engine.adapters() == []


def test_an_arena_smaller_than_one_adapter_refuses_it_and_serves_on(tiny_model, folders, tmp_path, expected):
    plain = EngineHarness(tiny_model, folders, adapter_cache=tmp_path / "cache")
    num_pages = plain.engine.adapters({"r64"})[0].num_pages
    page_bytes = plain.engine.ready().page_bytes
    small = EngineHarness(
        tiny_model,
        {"r8": folders["r8"]},
        adapter_cache=tmp_path / "cache",
        memory_bytes=num_pages * page_bytes,
        max_model_len=32,
    )
    with pytest.raises(AdapterError, match=f"'r64' needs {num_pages} pages and a request two more; the arena has {num_pages}"):
        small.load("r64", folders["r64"])
    assert small.generate((PROMPT, "r8")) == [expected["r8"]]
    small.assert_nothing_leaked()


def test_a_rank_above_the_hidden_size_is_refused(tiny_model, tmp_path):
    config = load_config(tiny_model)
    folder = make_adapter(tmp_path / "wide", config, lora_rank=config.shape.hidden_size + 1, target_modules=MODULES[:1])
    engine = EngineHarness(tiny_model, adapter_cache=tmp_path / "cache", max_lora_rank=100_000)
    with pytest.raises(AdapterRejected, match=f"rank {config.shape.hidden_size + 1} is above the model's hidden size"):
        engine.load("wide", folder)
    assert not row_files(tmp_path / "cache")


@pytest.mark.multiprocess
def test_a_running_engine_repairs_what_it_finds_damaged_and_gives_up_what_it_cannot(tiny_model, folders, tmp_path, expected):
    greedy = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
    with LLM(tiny_model, folders, dtype="float32", memory="8MiB", adapter_cache=tmp_path / "cache") as llm:

        def ask_until(kind, name):
            """Ask again while the answer is that the rows are damaged: the repair runs beside the steps."""
            deadline = time.monotonic() + 30
            while time.monotonic() < deadline:
                try:
                    return llm.generate(PROMPT, greedy, adapters=name)[0].token_ids
                except AdapterDamaged:
                    time.sleep(0.05)
                except kind as error:
                    return error
            raise AssertionError("the repair never ended")

        for path in row_files(tmp_path / "cache"):
            path.write_bytes(path.read_bytes()[:-4000])
        shutil.rmtree(folders["r8"])
        with pytest.raises(AdapterDamaged, match="shorter than it was"):
            llm.generate(PROMPT, greedy, adapters="r64")
        assert llm.generate(PROMPT, greedy)[0].token_ids == expected[None], "nobody else is touched"
        assert ask_until(AdapterNotFound, "r64") == expected["r64"]
        assert isinstance(ask_until(AdapterNotFound, "r8"), AdapterNotFound)
        assert [info.name for info in llm.list_adapters()] == ["r64"]
