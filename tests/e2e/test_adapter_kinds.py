"""Adapters that change more than linears, through the whole engine: mixed, preempted, evicted, cached, on ranks, repaired."""

from __future__ import annotations

import pytest
import torch
from adapter_kinds import make_kinds
from engine_harness import Answer, EngineHarness
from safetensors.torch import load_file, save_file

from evenflow import LLM, SamplingParams
from evenflow.serving.client.messages import Submit
from evenflow.serving.models.model_config import load_config
from evenflow.serving.models.random.random_adapter import make_adapter

PROMPTS = [list(range(5, 5 + n)) for n in (3, 37, 17)]


@pytest.fixture(scope="module")
def kinds(tiny_model, tmp_path_factory):
    return make_kinds(tmp_path_factory.mktemp("kinds"), load_config(tiny_model))


@pytest.fixture(scope="module")
def engine(tiny_model, kinds):
    return EngineHarness(tiny_model, kinds, memory_bytes=32 << 20)


@pytest.fixture(scope="module")
def alone(engine, kinds):
    """What each kind says to each prompt when nobody else is there."""
    return {(name, i): engine.generate((p, name))[0] for name in (None, *kinds) for i, p in enumerate(PROMPTS)}


def test_all_kinds_in_one_batch_equal_each_alone(engine, alone, kinds):
    for i in range(len(PROMPTS)):
        assert len({tuple(alone[name, i]) for name in (None, *kinds)}) == len(kinds) + 1, "each kind must change the answer"
    mixed = engine.generate(*((PROMPTS[i], name) for name, i in alone))
    for asked, tokens in zip(alone, mixed, strict=True):
        assert tokens == alone[asked], asked
    engine.assert_nothing_leaked()


@pytest.mark.parametrize("settings", [{"max_batch_tokens": 16}, {"kernels": "torch"}, {"adapter_cache": "cache"}])
def test_answers_do_not_depend_on_chunks_kernels_or_where_rows_are_kept(tiny_model, kinds, alone, tmp_path, settings):
    if "adapter_cache" in settings:
        settings = {"adapter_cache": tmp_path}
    other = EngineHarness(tiny_model, kinds, memory_bytes=32 << 20, **settings)
    assert other.generate(*((PROMPTS[i], name) for name, i in alone)) == list(alone.values())


def test_adapters_that_evict_each_other_and_requests_that_are_preempted(tiny_model, kinds, engine):
    """The arena holds some of the adapters at a time; own tables take more pages than everything else."""
    requests = [([7 + i, *range(3, 20 + i)], name) for i, name in enumerate([None, *kinds, *kinds])]
    expected = engine.generate(*requests, max_tokens=30)
    pages = {name: engine.engine.catalog.record(engine.engine.catalog.resolve(name)).num_pages for name in kinds}
    room = max(pages.values()) + 30
    small = EngineHarness(tiny_model, kinds, memory_bytes=room * engine.engine.ready().page_bytes, max_model_len=128)
    small.generate(*[([1, 2], None)] * 60, max_tokens=1)  # teaches the admission to expect short answers
    assert small.generate(*requests, max_tokens=30) == expected
    assert small.engine._residency.num_evictions > 0, "the arena was too large to show anything"
    small.assert_nothing_leaked()


def test_prefixes_are_found_under_their_own_adapter_alone(engine, alone):
    prompt = list(range(40, 90))
    first = {name: engine.generate((prompt, name))[0] for name in ("saved", "embedding", None)}
    again = {name: engine.generate((prompt, name))[0] for name in ("saved", "embedding", None)}
    assert first == again
    assert len({tuple(tokens) for tokens in first.values()}) == 3


def test_row_files_of_another_version_are_made_again(tiny_model, kinds, alone, tmp_path):
    settings = {"memory_bytes": 32 << 20, "adapter_cache": tmp_path}
    EngineHarness(tiny_model, {"saved": kinds["saved"]}, **settings)
    (file,) = tmp_path.glob("*/rows/*.rows")
    with file.open("r+b") as opened:
        opened.write(b"EVFLROW2")
    again = EngineHarness(tiny_model, {"saved": kinds["saved"]}, **settings)
    assert file.read_bytes().startswith(b"EVFLROW3")
    assert again.generate((PROMPTS[0], "saved"))[0] == alone["saved", 0]


def test_dora_is_worked_out_again_when_the_base_weights_change(tiny_model, kinds, tmp_path):
    """Its rows depend on weights that are not in its folder: the same folder under another base model is another adapter."""
    model = tmp_path / "model"
    model.mkdir()
    for file in tiny_model.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    settings = {"memory_bytes": 32 << 20, "adapter_cache": tmp_path / "cache"}
    digest = EngineHarness(model, {"dora": kinds["dora"]}, **settings).engine.catalog.resolve("dora")
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.0.self_attn.q_proj.weight"] *= 1.5
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    changed = EngineHarness(model, {"dora": kinds["dora"]}, **settings).engine.catalog
    assert changed.resolve("dora") != digest, "the rows of another base model were used"


@pytest.mark.multiprocess
@pytest.mark.slow
def test_two_ranks_serve_every_kind_as_one_does(tiny_model, kinds, alone):
    settings = {"dtype": "float32", "memory": "64MiB", "num_threads": 1}
    greedy = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
    for sharding in ("sharded", "replicated"):
        with LLM(tiny_model, kinds, tensor_parallel=2, lora_sharding=sharding, **settings) as llm:
            for name in kinds:
                results = llm.generate(PROMPTS, greedy, adapters=[name] * len(PROMPTS))
                assert [r.token_ids for r in results] == [alone[name, i] for i in range(len(PROMPTS))], (name, sharding)


def test_tokens_that_an_adapter_adds_are_drawn_and_told(tiny_model, tmp_path):
    """A vocabulary of one token more, which a bias makes the likeliest: it is said, in its own words, and read back."""
    config = load_config(tiny_model)
    size, hidden = config.shape.vocab_size + 1, config.shape.hidden_size
    folder = make_adapter(tmp_path / "a", config, lora_rank=2, target_modules=["q_proj"])
    file = folder / "adapter_model.safetensors"
    generator = torch.Generator().manual_seed(1)
    tables = {name: torch.randn(size, hidden, generator=generator) for name in ("model.embed_tokens", "lm_head")}
    save_file({**load_file(file), **{f"base_model.model.{name}.weight": table for name, table in tables.items()}}, file)
    engine = EngineHarness(tiny_model, {"a": folder}, memory_bytes=32 << 20)
    added = [(engine.engine._tokenizer.vocab_size, "<new>", False)]
    new = size - 1
    assert added[0][0] <= new
    sampling = SamplingParams(temperature=0.0, max_tokens=3, ignore_eos=True, logit_bias=((new, 100.0),))
    submit = Submit("r", "c", [1, new, 2], sampling, "a")
    submit.added_tokens = [(i, f"<{i}>", False) for i in range(added[0][0], size)]
    assert engine.engine.submit(submit) is None
    engine.answers["r"] = Answer([], "", None)
    engine.run()
    assert engine.answers["r"].token_ids == [new] * 3
    assert engine.answers["r"].text == f"<{new}>" * 3
    refused = engine.engine.submit(Submit("s", "c", [1, new], SamplingParams(max_tokens=3), None))
    assert refused is not None, "the base model does not know the token"
    assert "allowed: 0 to" in refused.error
