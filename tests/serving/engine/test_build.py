from types import SimpleNamespace

import pytest

from evenflow.base.errors import ConfigError
from evenflow.serving.config.engine_config import EngineConfig
from evenflow.serving.core.shape import ModelShape
from evenflow.serving.engine.build import end_tokens
from evenflow.serving.memory.layout import ArenaLayout
from evenflow.serving.models.model_config import parse_config
from evenflow.serving.models.random.random_model import TINY
from evenflow.serving.runner import build_worker
from evenflow.serving.runner.build_worker import arena_pages, context_length
from evenflow.serving.runner.membership import resolve_device

SHAPE = ModelShape(
    num_layers=2, hidden_size=64, intermediate_size=112, num_heads=4, num_kv_heads=2, head_dim=16, vocab_size=320
)
LAYOUT = ArenaLayout(SHAPE, 4)


def tokenizer(eos_token, eos_token_id):
    return SimpleNamespace(
        special_tokens={} if eos_token is None else {"eos_token": eos_token}, token_id={eos_token: eos_token_id}.get
    )


def test_the_tokenizers_end_token_ends_an_answer_too():
    config = parse_config({**TINY, "eos_token_id": 5})
    assert end_tokens(config, tokenizer("<|im_end|>", 7)) == (5, 7)
    assert end_tokens(config, tokenizer("<|im_end|>", 5)) == (5,)
    assert end_tokens(config, tokenizer(None, None)) == (5,)
    assert end_tokens(config, tokenizer("<far>", 320)) == (5,), "an id the model cannot produce"


def test_the_arena_is_what_was_asked_for_and_never_more_than_is_free():
    import torch

    cpu = torch.device("cpu")
    assert arena_pages(EngineConfig(model="m", memory_bytes=10 * LAYOUT.page_bytes + 1), LAYOUT, cpu) == 10
    assert arena_pages(EngineConfig(model="m"), LAYOUT, cpu) > 100
    with pytest.raises(ConfigError, match="two pages"):
        arena_pages(EngineConfig(model="m", memory_bytes=LAYOUT.page_bytes), LAYOUT, cpu)
    with pytest.raises(ConfigError, match="are free"):
        arena_pages(EngineConfig(model="m", memory_bytes=1 << 50), LAYOUT, cpu)


def test_the_context_is_cut_to_the_arena_unless_it_was_asked_for():
    model = parse_config(dict(TINY))
    assert context_length(EngineConfig(model="m"), model, LAYOUT, 1000) == 512
    assert context_length(EngineConfig(model="m"), model, LAYOUT, 11) == 10 * LAYOUT.page_tokens
    assert context_length(EngineConfig(model="m", max_model_len=100), model, LAYOUT, 1000) == 100
    with pytest.raises(ConfigError, match="holds one sequence of 160 tokens"):
        context_length(EngineConfig(model="m", max_model_len=200), model, LAYOUT, 11)


def test_a_device_that_is_not_there_is_refused():
    import torch

    with pytest.raises(ConfigError, match="CUDA devices"):
        resolve_device(f"cuda:{torch.cuda.device_count()}")
    assert resolve_device("cpu").type == "cpu"


@pytest.mark.parametrize(("share", "pages"), [(1.0, 60), (0.9, 50), (0.5, 10)])
def test_a_share_of_the_memory_counts_what_is_in_use_already(monkeypatch, share, pages):
    monkeypatch.setattr(build_worker, "free_memory_bytes", lambda: 60 * LAYOUT.page_bytes)
    monkeypatch.setattr(build_worker, "total_memory_bytes", lambda: 100 * LAYOUT.page_bytes)
    cpu = resolve_device("cpu")
    assert arena_pages(EngineConfig(model="m", gpu_memory_utilization=share), LAYOUT, cpu) in (pages, pages - 1)
    with pytest.raises(ConfigError, match="are in use already, which leaves no room"):
        arena_pages(EngineConfig(model="m", gpu_memory_utilization=0.4), LAYOUT, cpu)
