"""What folders say beside weights: recommended sampling is applied as vLLM does, an adapter of another model is told."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator

import pytest
from served import Served

from evenflow.cli.main import main

pytestmark = pytest.mark.multiprocess


@pytest.fixture(scope="module")
def served(tiny_model, tiny_adapters, tmp_path_factory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("recommends")
    shutil.copytree(tiny_model, folder / "tiny")
    (folder / "tiny" / "generation_config.json").write_text(json.dumps({"top_k": 1, "temperature": 0.7, "max_new_tokens": 9}))
    adapters = []
    for name, source, base_model in (
        ("fits", "r1", "someone/Tiny"),
        ("other", "r8", "someone/else-7b"),
        ("silent", "r3", None),
    ):
        shutil.copytree(tiny_adapters[source], folder / name)
        config = json.loads((folder / name / "adapter_config.json").read_text())
        config["base_model_name_or_path"] = base_model
        (folder / name / "adapter_config.json").write_text(json.dumps(config))
        adapters.append(f"{name}={folder / name}")
    options = ["--kernels", "torch", "--dtype", "float32", "--memory", "4MiB", "--threads", "1"]
    server = Served(str(folder / "tiny"), "--adapters", *adapters, *options)
    yield server
    server.close()


def tokens(served: Served, **fields: object) -> list[int]:
    body = {"model": "base", "prompt": [5, 6, 7, 8], "max_tokens": 8, "ignore_eos": True, "return_token_ids": True}
    answer = served.http.post("/v1/completions", json={**body, **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["token_ids"]


def test_recommended_sampling_is_for_requests_that_do_not_say(served):
    greedy = tokens(served, temperature=0)
    assert [tokens(served, seed=seed) for seed in (1, 2, 3)] == [greedy] * 3  # top_k 1 of the folder
    own = [tokens(served, top_k=0, temperature=2.0, seed=seed) for seed in (1, 2, 3)]
    assert len({tuple(each) for each in own}) == 3


def test_max_new_tokens_is_for_requests_that_do_not_say(served):
    assert len(tokens(served, max_tokens=40)) == 40
    answer = served.http.post(
        "/v1/chat/completions", json={"model": "base", "messages": [{"role": "user", "content": "a"}], "ignore_eos": True}
    )
    assert answer.json()["usage"]["completion_tokens"] == 9, answer.text


def test_an_adapter_of_another_model_is_served_and_told(served):
    cards = {card["name"]: card for card in served.http.get("/v1/adapters").json()["data"]}
    assert [cards[name]["warning"] for name in ("fits", "silent")] == [None, None]
    assert cards["other"]["base_model"] == "someone/else-7b"
    assert "someone/else-7b" in cards["other"]["warning"]
    served.wait_for(r"(adapter 'other': it was trained for)")
    assert len(tokens(served, model="other")) == 8


def test_steps_are_counted_by_their_tokens(served):
    tokens(served)
    served.wait_until_idle()
    assert served.metric("vllm:iteration_tokens_total_count") >= 8
    assert served.metric("vllm:iteration_tokens_total_sum") >= served.metric("vllm:generation_tokens_total")


@pytest.mark.parametrize("policy", ["nonsense", "vtc-shared", "vtc-shared:http://x", "vtc-oracle"])
def test_a_policy_that_cannot_be_is_told_before_anything_starts(policy, tiny_model, capsys):
    assert main(["serve", str(tiny_model), "--policy", policy, "--port", "0"]) != 0
    told = capsys.readouterr().err
    assert "evenflow serve: " in told
    assert policy.partition(":")[2] in told
