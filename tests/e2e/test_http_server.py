"""`evenflow serve` as users start it: process, engine, kernels, HTTP and signals, on a tiny random model."""

from __future__ import annotations

import json
import re
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from engine_harness import EngineHarness
from safetensors.numpy import load_file, save_file
from served import Served

pytestmark = pytest.mark.multiprocess


@pytest.fixture(scope="module")
def adapter_dir(tiny_adapters, tmp_path_factory) -> Path:
    """Adapters that load when they are asked for, two of them broken."""
    folder = tmp_path_factory.mktemp("lazy")
    for name in ("r3", "pattern"):
        shutil.copytree(tiny_adapters[name], folder / f"lazy-{name}")
    shutil.copytree(tiny_adapters["r8"], folder / "nan")
    file = folder / "nan" / "adapter_model.safetensors"
    tensors = load_file(file)
    next(iter(tensors.values())).flat[3] = float("nan")
    save_file(tensors, file)
    (folder / "no-weights").mkdir()
    (folder / "no-weights" / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 8}')
    return folder


@pytest.fixture(scope="module")
def served(tiny_model, tiny_adapters, adapter_dir) -> Iterator[Served]:
    adapters = [f"{name}={tiny_adapters[name]}" for name in ("r1", "r8", "r64")]
    options = ["--kernels", "torch", "--dtype", "float32", "--memory", "4MiB", "--threads", "1", "--max-num-seqs", "8"]
    server = Served(str(tiny_model), "--adapters", *adapters, "--adapter-dir", str(adapter_dir), *options)
    yield server
    server.close()


def test_tokens_are_those_of_the_engine_alone(served, tiny_model, tiny_adapters):
    models = {"base": None, "r1": "r1", "r8": "r8", "r64": "r64", "lazy-r3": "r3", "lazy-pattern": "pattern"}
    harness = EngineHarness(tiny_model, tiny_adapters, kernels="torch")
    prompts = {model: list(range(5 + i, 40 + 3 * i)) for i, model in enumerate(models)}
    expected = {m: harness.generate((prompts[m], models[m]), max_tokens=12)[0] for m in models}
    assert len({tuple(tokens) for tokens in expected.values()}) == len(models)
    with ThreadPoolExecutor(12) as pool:
        got = list(pool.map(lambda m: (m, served.tokens(m, prompts[m])), list(models) * 3))
    assert all(tokens == expected[model] for model, tokens in got)


def test_chat_and_models_through_the_openai_client(served):
    answer = served.openai.chat.completions.create(
        model="r8", messages=[{"role": "user", "content": "hello"}], max_tokens=8, temperature=0
    )
    assert answer.usage.completion_tokens <= 8
    text = ""
    for chunk in served.openai.chat.completions.create(
        model="r8", messages=[{"role": "user", "content": "hello"}], max_tokens=8, temperature=0, stream=True
    ):
        text += chunk.choices[0].delta.content or ""
    assert text == answer.choices[0].message.content
    assert {"base", "r1", "r8", "r64"} <= {model.id for model in served.openai.models.list()}


def test_clients_killed_in_the_middle_leave_no_pages(served):
    def kill(i: int) -> None:
        body = {"model": ("base", "r1", "r8")[i % 3], "prompt": [i + 1] * 60, "max_tokens": 400, "ignore_eos": True}
        with served.http.stream("POST", "/v1/completions", json={**body, "stream": True}) as response:
            for number, _ in enumerate(response.iter_lines()):
                if number > i % 5:
                    return

    with ThreadPoolExecutor(24) as pool:
        list(pool.map(kill, range(48)))
    served.wait_until_idle()
    unused = sum(served.metric("evenflow_pages", owner=owner) for owner in ("free", "adapter", "prefix"))
    num_pages = float(re.search(r'num_gpu_blocks="(\d+)"', served.http.get("/metrics").text)[1])
    assert unused == num_pages
    assert served.metric("vllm:request_success_total", finished_reason="abort") >= 40


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"prompt": "word " * 2000}, "context"),
        ({"prompt": "x" * 3_000_000}, "context"),
        ({"prompt": [1] * 500, "max_tokens": 100}, "context"),
        ({"prompt": [99999]}, "token id"),
        ({"model": "nan", "prompt": "x"}, "lora"),
        ({"model": "no-weights", "prompt": "x"}, "no-weights"),
    ],
)
def test_hard_cases_are_400_and_the_server_goes_on(served, body, says):
    answer = served.http.post("/v1/completions", json={"model": "base", **body})
    assert answer.status_code == 400, answer.text
    assert says in answer.json()["error"]["message"]
    assert served.tokens("base", [5, 6, 7], 2)


@pytest.mark.parametrize(
    "sampling",
    [
        {"seed": -(2**63), "temperature": 1.5, "top_p": 0.01, "top_k": 1, "min_p": 1},
        {"seed": 2**63 - 1, "temperature": 100, "top_k": 2**31 - 1, "n": 4},
        {"logit_bias": {str(i): 100 if i % 2 else -100 for i in range(320)}, "temperature": 0.7},
        {"repetition_penalty": 100, "presence_penalty": -2, "frequency_penalty": 2, "min_tokens": 6, "max_tokens": 6},
        {"repetition_penalty": 1e-300, "temperature": 1e-300, "top_p": 1e-300},
        {"stop": ["a", "e", "\n", "\u0000", "é"], "stop_token_ids": list(range(0, 320, 2))},
        {"logprobs": 20, "echo": True, "prompt_logprobs": 20, "return_token_ids": True, "n": 2},
        {"temperature": 0, "min_tokens": 5, "stop_token_ids": list(range(320)), "max_tokens": 5},
    ],
)
def test_extreme_but_allowed_sampling(served, sampling):
    body = {"model": "r64", "prompt": "to be or not", "max_tokens": 5, **sampling}
    answer = served.http.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["choices"]) == sampling.get("n", 1)
    json.loads(answer.text, parse_constant=lambda name: pytest.fail(f"{name} in the answer"))


def test_unload_and_reload_while_requests_run(served, tiny_adapters):
    """A running request ends with the weights it started with; the next one gets the new ones."""
    prompt = list(range(30, 60))
    expected = served.tokens("r1", prompt, 150)
    other = served.tokens("r8", prompt, 150)
    load = {"lora_name": "moving", "lora_path": str(tiny_adapters["r1"])}
    assert served.http.post("/v1/load_lora_adapter", json=load).status_code == 200
    body = {"model": "moving", "prompt": prompt, "max_tokens": 150, "temperature": 0, "ignore_eos": True}
    tokens: list[int] = []
    with served.http.stream("POST", "/v1/completions", json={**body, "stream": True, "return_token_ids": True}) as response:
        for line in response.iter_lines():
            if not line.startswith("data: {"):
                continue
            tokens += json.loads(line[6:])["choices"][0]["token_ids"]
            if len(tokens) == 3:
                replace = {**load, "lora_path": str(tiny_adapters["r8"]), "load_inplace": True}
                assert served.http.post("/v1/load_lora_adapter", json=replace).status_code == 200
                assert served.tokens("moving", prompt, 20) == other[:20]
                gone = served.http.post("/v1/unload_lora_adapter", json={"lora_name": "moving"})
                assert gone.text == "Success: LoRA adapter 'moving' removed successfully."
                assert served.http.post("/v1/completions", json=body).status_code == 404
    assert tokens == expected
    served.wait_until_idle()
    listed = served.http.get("/v1/adapters").json()["data"]
    assert "moving" not in {adapter["name"] for adapter in listed}


def test_pinning(served):
    assert served.http.post("/v1/adapters/r1/pin").json()["pinned"] is True
    assert served.http.post("/v1/adapters/r1/unpin").json()["pinned"] is False
    assert served.http.post("/v1/adapters/nobody/pin").status_code == 404


def test_sigterm_ends_server_and_engine(served):
    """The last test of this server."""
    served.process.send_signal(signal.SIGTERM)
    assert served.process.wait(30) == 0
    assert "Traceback" not in "".join(served.log)
