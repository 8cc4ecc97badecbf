"""``LLM``, the command line and the engine process they share."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from engine_harness import EngineHarness

from evenflow import LLM, SamplingParams
from evenflow.base.errors import (
    AdapterExists,
    AdapterNotFound,
    AdapterRejected,
    ConfigError,
    EngineDead,
    InvalidRequest,
    ModelError,
    PromptTooLong,
)

pytestmark = pytest.mark.multiprocess
GREEDY = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)


@pytest.fixture(scope="module")
def llm(tiny_model, tiny_adapters):
    with LLM(tiny_model, {"r1": tiny_adapters["r1"], "r8": tiny_adapters["r8"]}, dtype="float32", memory="8MiB") as llm:
        yield llm


def test_results_come_in_the_order_of_the_prompts_and_equal_the_engine_in_process(llm, tiny_model, tiny_adapters):
    prompts, names = [[5, 6, 7], "hello", [9] * 30], ["r8", None, "r1"]
    results = llm.generate(prompts, GREEDY, adapters=names, clients=["x", "y", "x"])
    ids = [llm.tokenizer.encode(p) if isinstance(p, str) else p for p in prompts]
    expected = EngineHarness(tiny_model, tiny_adapters).generate(*zip(ids, names, strict=True), max_tokens=6)
    assert [r.token_ids for r in results] == expected
    assert [r.prompt_token_ids for r in results] == ids
    assert all(r.finish_reason == "length" for r in results)
    assert results[0].usage.completion_tokens == 6
    assert results[1].text == llm.tokenizer.decode(expected[1])
    assert llm.stats.clients["x"].completion_tokens >= 0


def test_one_prompt_may_be_given_bare(llm):
    assert llm.generate("hello", GREEDY)[0].token_ids == llm.generate(["hello"], GREEDY)[0].token_ids
    assert llm.generate([3, 4, 5], GREEDY)[0].prompt_token_ids == [3, 4, 5]
    assert llm.generate([]) == []


def test_n_completions_differ_and_a_seed_repeats_them(llm):
    params = SamplingParams(n=3, temperature=1.0, seed=11, max_tokens=8, ignore_eos=True)
    first, again = llm.generate("hello", params)[0], llm.generate("hello", params)[0]
    texts = [completion.token_ids for completion in first.completions]
    assert len({tuple(t) for t in texts}) == 3
    assert [completion.token_ids for completion in again.completions] == texts


def test_adapters_come_and_go(llm, tiny_adapters):
    assert llm.load_adapter("new", tiny_adapters["r3"])[0].lora_rank == 3
    with pytest.raises(AdapterExists, match="new"):
        llm.load_adapter("new", tiny_adapters["r8"])
    llm.load_adapter("new", tiny_adapters["r64"], replace=True)
    assert {info.name: info.lora_rank for info in llm.list_adapters()} == {"r1": 1, "r8": 8, "new": 64}
    llm.unload_adapter("new")
    with pytest.raises(AdapterNotFound, match="new"):
        llm.generate("hello", GREEDY, adapters="new")
    with pytest.raises(AdapterNotFound, match="new"):
        llm.unload_adapter("new")


def test_a_rejected_adapter_tells_every_reason(llm, tiny_adapters, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    config = json.loads((tiny_adapters["r3"] / "adapter_config.json").read_text())
    (broken / "adapter_config.json").write_text(json.dumps(config | {"layer_replication": [[0, 1]], "bias": "all"}))
    (broken / "adapter_model.safetensors").write_bytes((tiny_adapters["r3"] / "adapter_model.safetensors").read_bytes())
    with pytest.raises(AdapterRejected) as caught:
        llm.load_adapter("broken", broken)
    assert len(caught.value.reasons) == 2
    assert "layer_replication" in str(caught.value)
    with pytest.raises(AdapterNotFound):
        llm.load_adapter("nothing", tmp_path / "nothing")


@pytest.mark.parametrize(
    ("prompt", "options", "kind"),
    [
        ([[1] * 600], {}, PromptTooLong),
        ([[1, 2], [3, 999]], {}, InvalidRequest),
        (["a", "b"], {"adapters": ["r1"]}, InvalidRequest),
        ([[1.5]], {}, InvalidRequest),
        (["a"], {"adapters": "nobody"}, AdapterNotFound),
    ],
)
def test_a_bad_prompt_raises_and_the_next_call_works(llm, prompt, options, kind):
    with pytest.raises(kind):
        llm.generate(prompt, GREEDY, **options)
    assert len(llm.generate("hello", GREEDY)[0].token_ids) == 6


def test_what_cannot_start_says_why(tmp_path, tiny_model):
    with pytest.raises(ModelError, match="not a model folder"):
        LLM(tmp_path)
    with pytest.raises(ConfigError, match="no option colour"):
        LLM(tiny_model, colour="red")
    with pytest.raises(ConfigError, match="max_num_seqs is 0"):
        LLM(tiny_model, max_num_seqs=0)
    with pytest.raises(ConfigError, match="unknown policy 'lifo'"):
        LLM(tiny_model, policy="lifo")
    with pytest.raises(ConfigError, match="only a simulation"):
        LLM(tiny_model, policy="vtc-oracle")


def test_a_killed_engine_is_reported_not_waited_for(tiny_model):
    llm = LLM(tiny_model, dtype="float32", memory="4MiB")
    os.kill(llm._connection.process.pid, signal.SIGKILL)
    with pytest.raises(EngineDead, match="SIGKILL"):
        llm.generate("hello", GREEDY)
    llm.close()


def test_the_engine_ends_with_its_parent(tiny_model, tmp_path):
    script = (
        "import os, signal, sys\nfrom evenflow import LLM\n"
        f"llm = LLM({str(tiny_model)!r}, memory='4MiB', dtype='float32')\n"
        "print(llm._connection.process.pid, flush=True)\nos.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    pid = int(done.stdout)
    deadline = time.monotonic() + 10
    while _is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _is_running(pid)


def test_generate_from_the_command_line(tiny_model, tiny_adapters):
    command = [sys.executable, "-m", "evenflow.cli.main", "generate", str(tiny_model), "--adapter", f"a={tiny_adapters['r8']}"]
    done = subprocess.run(
        [*command, "--prompt", "hello", "--max-tokens", "4", "--json", "--memory", "4MiB", "--dtype", "float32"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout)
    assert (row["prompt"], row["adapter"], row["usage"]["completion_tokens"]) == ("hello", "a", 4)
    wrong = subprocess.run([*command[:4], "/nowhere", "--prompt", "x"], capture_output=True, text=True, timeout=120)
    assert wrong.returncode == 1
    assert wrong.stderr.strip() == "evenflow generate: /nowhere is not a model folder: no such folder"


def _is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
