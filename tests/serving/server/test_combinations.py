"""Several adapters in one model name: understood, made once, for those who may use every part, and out of others' sight."""

from __future__ import annotations

import asyncio

import pytest
from server_fakes import FakeEngine, FakeTemplate, FakeTokenizer, in_process, make_adapter

from evenflow.access.identity import Client
from evenflow.base.errors import AdapterNotFound, AdapterRejected
from evenflow.serving.server.access.combinations import PREFIX, Combinations, parse_combination
from evenflow.serving.server.app import create_app
from evenflow.serving.server.server_config import ServerConfig


def test_names_and_weights_are_understood():
    assert parse_combination("a") is None
    assert parse_combination("a+b") == [("a", 1.0), ("b", 1.0)]
    assert parse_combination("org/a*0.7 + b*-1e-1") == [("org/a", 0.7), ("b", -0.1)]
    assert parse_combination("a*2") == [("a", 2.0)]
    for model, reason in (("a*x+b", "no weight"), ("a" + "+b" * 8, "it names 9")):
        with pytest.raises(AdapterRejected, match=reason):
            parse_combination(model)


def test_the_longest_unused_are_forgotten_first():
    kept = Combinations()
    for i in range(256):
        assert kept.add([("d", float(i))], str(i)) == []
    assert kept.find([("d", 0.0)]) == "0"
    assert kept.add([("d", 256.0)], "256") == ["1"]


def serve(tmp_path, *models, client=None):
    for name in ("a", "b", "secret"):
        make_adapter(tmp_path, name)

    async def run():
        engine = FakeEngine()
        app = create_app(engine, FakeTokenizer(), FakeTemplate(), ServerConfig(adapter_dir=tmp_path))
        answers = []
        async with in_process(app) as http:
            if client is not None:
                for model in models:
                    try:
                        answers.append(await app.state.server.names.resolve(model, client))
                    except AdapterNotFound:
                        answers.append(None)
                return engine, answers
            for model in models:
                answers.append(await http.post("/v1/completions", json={"model": model, "prompt": "hi"}))
            answers.append(await http.get("/v1/models"))
        return engine, answers

    return asyncio.run(run())


def test_a_combination_is_made_once_and_is_nobodys_name(tmp_path):
    engine, answers = serve(tmp_path, "a+b", "a+b", "a*0.5+b", "a+nobody", "a+base", "+", f"{PREFIX}0", "a*x+b")
    assert [answer.status_code for answer in answers] == [200, 200, 200, 404, 404, 404, 404, 400, 200]
    assert engine.combined == [[("a", 1.0), ("b", 1.0)], [("a", 0.5), ("b", 1.0)]]
    assert answers[0].json()["model"] == "a+b"
    assert not any(PREFIX in model["id"] for model in answers[-1].json()["data"])


def test_every_part_must_be_the_clients(tmp_path):
    patterns = Client(name="guest", adapters=("a*", "b"))
    engine, found = serve(tmp_path, "a+b", "a+secret", "secret+a", "a*1+secret", client=patterns)
    assert [name is not None for name in found] == [True, False, False, False]
    assert engine.combined == [[("a", 1.0), ("b", 1.0)]]
    assert "secret" not in engine.infos, "loaded for one who may not use it"
