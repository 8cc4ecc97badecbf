"""Real ranks: processes over gloo say what one process says, come and go cleanly, and tell what one of them died of."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from engine_harness import EngineHarness
from served import Served

from evenflow import LLM, SamplingParams
from evenflow.base.errors import AdapterDamaged, AdapterNotFound, AdapterRejected, ConfigError, EngineDead, EvenFlowError
from evenflow.serving.models.model_config import load_config
from evenflow.serving.models.random.random_adapter import make_adapter
from evenflow.serving.models.random.random_model import make_model

pytestmark = pytest.mark.multiprocess
GREEDY = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
PROMPTS = [[5, 6, 7], list(range(30, 70)), [9] * 3, [200, 7], [11] * 20]
SETTINGS = {"dtype": "float32", "memory": "8MiB", "num_threads": 1}


def children_of(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_until_gone(pids: list[int], timeout_s: float = 10.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline_s, "a process outlived its engine"
        time.sleep(0.02)


def expected(model: Path, adapters: dict[str, Path], names: list[str | None]) -> list[list[int]]:
    return EngineHarness(model, adapters).generate(*zip(PROMPTS, names, strict=True), max_tokens=8)


def test_two_ranks_say_what_one_says_and_go_quietly(tiny_model, tiny_adapters, tmp_path, capfd):
    """Ranks 1, 3, 4 with a pattern, 64 and base rows, prompts in chunks; then adapters come and go, one of them broken."""
    names = ["r1", "pattern", None, "r64", "r3"]
    with LLM(tiny_model, tiny_adapters, tensor_parallel=2, lora_sharding="sharded", max_batch_tokens=16, **SETTINGS) as llm:
        engine = llm._connection.process.pid
        ranks = children_of(engine)
        assert len(ranks) == 1
        assert llm.info.tensor_parallel == 2
        results = llm.generate(PROMPTS, GREEDY, adapters=names)
        assert [r.token_ids for r in results] == expected(tiny_model, tiny_adapters, names)
        scored = llm.generate("hello", SamplingParams(max_tokens=1, prompt_logprobs=0))[0]
        assert len(scored.prompt_logprobs) == len(scored.prompt_token_ids)
        sent = llm.stats.wire
        assert {"embedding", "o", "down", "logits", "lora.qkv", "lora.o", "lora.gate_up", "lora.down"} <= set(sent)
        assert all(s.sent_bytes == pytest.approx(s.planned_bytes) and s.exchanges for s in sent.values())
        llm.load_adapter("r64", tiny_adapters["r8"], replace=True)
        llm.unload_adapter("r1")
        broken = tmp_path / "broken"
        shutil.copytree(tiny_adapters["r3"], broken)
        raw = json.loads((broken / "adapter_config.json").read_text())
        (broken / "adapter_config.json").write_text(json.dumps(raw | {"use_dora": True}))
        with pytest.raises(AdapterRejected, match="lora_magnitude_vector"):
            llm.load_adapter("broken", broken)
        again = llm.generate(PROMPTS, GREEDY, adapters=["r64"] * len(PROMPTS))
    assert [r.token_ids for r in again] == expected(tiny_model, tiny_adapters, ["r8"] * len(PROMPTS))
    wait_until_gone([engine, *ranks])
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.slow
def test_rows_damaged_on_one_rank_fail_their_own_requests_and_are_made_again(tiny_model, tiny_adapters, tmp_path):
    """Each rank has rows of its own: one adapter's are cut on one rank, another's changed on the other; a third is lost."""
    names = ["r8", "r64", "r3"]
    folders = {name: shutil.copytree(tiny_adapters[name], tmp_path / name) for name in names}
    cache = tmp_path / "cache"
    right = dict(zip([None, *names], expected(tiny_model, folders, [None, *names, None]), strict=False))
    prompts = dict(zip([None, *names], PROMPTS))
    with LLM(tiny_model, folders, tensor_parallel=2, adapter_cache=cache, **SETTINGS) as llm:

        def ask(name):
            return llm.generate(prompts[name], GREEDY, adapters=name)[0].token_ids

        def ask_until_repaired(name):
            deadline_s = time.monotonic() + 30
            while time.monotonic() < deadline_s:
                try:
                    return ask(name)
                except AdapterDamaged:
                    time.sleep(0.05)
            raise AssertionError("the repair never ended")

        digests = {info.name: info.digest for info in llm.list_adapters()}
        one, other = sorted({path.parent for path in cache.rglob("*.rows")})
        cut, changed = one / f"{digests['r8']}.rows", other / f"{digests['r64']}.rows"
        cut.write_bytes(cut.read_bytes()[:-4000])
        data = bytearray(changed.read_bytes())
        data[-200] ^= 255
        changed.write_bytes(data)
        (other / f"{digests['r3']}.rows").unlink()
        shutil.rmtree(folders["r3"])
        for name in names:
            with pytest.raises(AdapterDamaged, match=digests[name][:12]):
                ask(name)
            assert ask(None) == right[None], "nobody else is touched"
        assert ask_until_repaired("r8") == right["r8"]
        assert ask_until_repaired("r64") == right["r64"]
        with pytest.raises(AdapterNotFound):
            ask_until_repaired("r3")
        assert {info.name for info in llm.list_adapters()} == {"r8", "r64"}
        assert ask(None) == right[None]


@pytest.mark.parametrize("moment", [pytest.param("idle", marks=pytest.mark.slow), "busy"])
def test_a_killed_rank_ends_the_engine_and_says_so(tiny_model, moment):
    with LLM(tiny_model, tensor_parallel=2, **SETTINGS) as llm:
        engine = llm._connection.process.pid
        (rank,) = children_of(engine)
        if moment == "busy":
            import threading

            threading.Timer(0.3, os.kill, (rank, signal.SIGKILL)).start()
        else:
            os.kill(rank, signal.SIGKILL)
        started_s = time.monotonic()
        with pytest.raises(EngineDead, match=rf"rank 1 of 2 \(process {rank}\) ended with signal SIGKILL"):
            llm.generate([[1, 2, 3]] * 64, SamplingParams(temperature=0.0, max_tokens=400, ignore_eos=True))
        assert time.monotonic() < started_s + 10
    wait_until_gone([engine, rank])


@pytest.mark.slow
def test_ranks_do_not_outlive_a_killed_engine(tiny_model):
    with LLM(tiny_model, tensor_parallel=2, **SETTINGS) as llm:
        engine = llm._connection.process.pid
        ranks = children_of(engine)
        os.kill(engine, signal.SIGKILL)
        wait_until_gone(ranks)
        with pytest.raises(EngineDead, match="SIGKILL"):
            llm.generate("hello", GREEDY)


def test_a_rank_that_cannot_start_is_told_of(tiny_model, monkeypatch):
    """Every rank leaves before it has met the others."""
    monkeypatch.setattr("evenflow.serving.ranks.rank_processes.RANK_MODULE", "evenflow.no_such_module")
    started_s = time.monotonic()
    with pytest.raises(EngineDead, match=r"rank 1 of 2 \(process \d+\) ended with exit status 1"):
        EngineHarness(tiny_model, tensor_parallel=2)
    assert time.monotonic() < started_s + 30


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tensor_parallel": 3}, "tensor_parallel is 3; this model has 4 query heads, 2 KV heads .* allowed: 1, 2, 4"),
        ({"tensor_parallel": 0}, "tensor_parallel is 0; allowed: 1 to 256"),
        ({"compress": "int8-g32"}, "one rank sends nothing"),
        ({"tensor_parallel": 2, "compress": "ef(topk:0.1)"}, "no training"),
        ({"tensor_parallel": 2, "compress": "int9"}, "unknown compressor"),
        ({"tensor_parallel": 2, "lora_sharding": "both"}, "allowed: auto, sharded, replicated"),
    ],
)
def test_what_cannot_work_is_refused(tiny_model, settings, message):
    with pytest.raises(ConfigError, match=message):
        EngineHarness(tiny_model, **settings)


def test_the_server_over_two_ranks_ends_cleanly_on_ctrl_c(tiny_model, tiny_adapters):
    adapters = [f"{name}={tiny_adapters[name]}" for name in ("r3", "r64")]
    options = ["--dtype", "float32", "--memory", "8MiB", "--threads", "1", "--tensor-parallel", "2", "--compress", "bf16"]
    served = Served(str(tiny_model), "--adapters", *adapters, *options, process_group=0)
    try:
        (engine,) = children_of(served.process.pid)
        pids = [engine, *children_of(engine)]
        assert len(pids) == 2
        assert len(served.tokens("r64", PROMPTS[1])) == 12
        served.wait_until_idle()
        assert served.metric("evenflow_wire_bytes_total", site="down") > 0
        assert served.metric("evenflow_info", tensor_parallel="2") == 1
        assert served.http.get("/health").status_code == 200
        os.killpg(served.process.pid, signal.SIGINT)
        assert served.process.wait(20) == 0
        wait_until_gone(pids)
        assert not [line for line in served.log if "Traceback" in line or "ERROR" in line]
    finally:
        served.close()


@pytest.mark.slow
def test_a_killed_rank_ends_the_server_with_its_reason(tiny_model):
    served = Served(str(tiny_model), "--dtype", "float32", "--memory", "8MiB", "--threads", "1", "-tp", "2")
    try:
        (engine,) = children_of(served.process.pid)
        (rank,) = children_of(engine)
        os.kill(rank, signal.SIGKILL)
        assert served.process.wait(15) == 1
        served.wait_for(rf"(rank 1 of 2 \(process {rank}\) ended with signal SIGKILL)", is_ended=True)
        wait_until_gone([engine])
        assert not [line for line in served.log if "Traceback" in line]
    finally:
        served.close()


@pytest.mark.slow
@pytest.mark.parametrize("tensor_parallel", [2, 4])
@pytest.mark.parametrize("sharding", ["sharded", "replicated"])
def test_more_ranks_gqa_and_ranks_that_do_not_divide(tmp_path, tensor_parallel, sharding):
    """Eight query heads on two KV heads: with four ranks, two hold each KV head. LoRA ranks 1, 3, 7 and 64."""
    model = tmp_path / "model"
    make_model(model, num_attention_heads=8, num_key_value_heads=2, num_hidden_layers=3)
    config = load_config(model)
    adapters = {
        "odd": make_adapter(tmp_path / "odd", config, lora_rank=3, rank_pattern={"q_proj": 7, "down_proj": 1}, seed=1),
        "wide": make_adapter(tmp_path / "wide", config, lora_rank=64, target_modules=("q_proj", "o_proj", "gate_proj"), seed=2),
        "one-layer": make_adapter(tmp_path / "one", config, lora_rank=7, layers=[2], seed=3),
    }
    names = ["odd", "wide", "one-layer", None, "odd"]
    with LLM(model, adapters, tensor_parallel=tensor_parallel, lora_sharding=sharding, max_batch_tokens=16, **SETTINGS) as llm:
        results = llm.generate(PROMPTS, GREEDY, adapters=names)
    assert [r.token_ids for r in results] == expected(model, adapters, names)


@pytest.mark.slow
def test_an_arena_too_small_for_each_rank_is_refused(tiny_model):
    with pytest.raises(EvenFlowError, match="for each of 2 ranks; two pages of 4 KiB"):
        LLM(tiny_model, tensor_parallel=2, dtype="float32", memory=12 << 10)


@pytest.mark.slow
@pytest.mark.parametrize("compress", ["int8-g32", "bf16", "int8-g32/one-shot"])
def test_compressed_sums_say_almost_the_same(tiny_model, compress):
    with LLM(tiny_model, tensor_parallel=2, compress=compress, **SETTINGS) as llm:
        found = llm.generate(PROMPTS, SamplingParams(temperature=0.0, max_tokens=1, logprobs=1))
        sent = llm.stats.wire
    with LLM(tiny_model, **SETTINGS) as llm:
        exact = llm.generate(PROMPTS, SamplingParams(temperature=0.0, max_tokens=1, logprobs=1))
    for one, other in zip(found, exact):
        assert one.logprobs[0].logprob == pytest.approx(other.logprobs[0].logprob, abs=0.2)
    bytes_per_exchange = {site: sent[site].sent_bytes / sent[site].exchanges for site in ("o", "embedding")}
    assert bytes_per_exchange["o"] < 0.6 * bytes_per_exchange["embedding"]
