"""What adapters cost that change more than linears: decode throughput by kind, and others' steps while large ones come and go.

    python benchmarks/recipes/adapter_kinds.py --json benchmarks/results/adapter_kinds--MACHINE.json

A random Llama of SmolLM2-135M's shape (30 layers of 576, 49,152 tokens, tied) in bf16; 16 requests over 8 adapters of LoRA
rank 16 decode together. Kinds take turns (A B C A B C ...), and the figure is the ratio to plain LoRA of the same round.
Then 8 requests of the base model decode while adapters with an own embedding and head (108 MiB each) are asked for, one after
another, in an arena that holds two of them: how long the others' steps took, with and without.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from evenflow.bench.harness import interleave, paired_ratio, summary, write_result
from evenflow.serving.client.messages import Submit
from evenflow.serving.config.engine_config import EngineConfig
from evenflow.serving.core.sampling import SamplingParams
from evenflow.serving.engine.build import build_engine
from evenflow.serving.engine.engine import Engine
from evenflow.serving.models.model_config import ModelConfig
from evenflow.serving.models.random.random_adapter import make_adapter
from evenflow.serving.models.random.random_model import make_model

SHAPE = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
    "max_position_embeddings": 2048,
}
LORA_RANK, ADAPTERS, REQUESTS, TOKENS = 16, 8, 16, 48
ROOT = "base_model.model."
KINDS = ("plain", "head", "dora", "norms")


def make_kind(folder: Path, config: ModelConfig, kind: str, seed: int) -> Path:
    """One adapter on q and v, and what the kind has besides."""
    shape, targets = config.shape, ["q_proj", "v_proj"]
    fields: dict[str, object] = {}
    more: dict[str, torch.Tensor] = {}
    if kind == "head":
        targets.append("lm_head")
        more[ROOT + "lm_head.lora_A.weight"] = torch.randn(LORA_RANK, shape.hidden_size) / 24
        more[ROOT + "lm_head.lora_B.weight"] = torch.randn(shape.vocab_size, LORA_RANK) / 24
    if kind == "dora":
        fields["use_dora"] = True
        for layer in range(shape.num_layers):
            for module in ("q_proj", "v_proj"):
                name = f"{ROOT}model.layers.{layer}.self_attn.{module}.lora_magnitude_vector"
                more[name] = 1 + torch.rand(shape.module_widths(module)[1])
    if kind == "norms":
        fields["modules_to_save"] = ["norm", "input_layernorm"]
        more[ROOT + "model.norm.weight"] = 1 + torch.rand(shape.hidden_size)
        for layer in range(shape.num_layers):
            more[f"{ROOT}model.layers.{layer}.input_layernorm.weight"] = 1 + torch.rand(shape.hidden_size)
    if kind == "tables":
        fields["modules_to_save"] = ["embed_tokens", "lm_head"]
        for name in ("model.embed_tokens", "lm_head"):
            more[f"{ROOT}{name}.weight"] = torch.randn(shape.vocab_size, shape.hidden_size, dtype=torch.bfloat16)
    make_adapter(folder, config, lora_rank=LORA_RANK, target_modules=targets, seed=seed, dtype=torch.bfloat16, **fields)
    file = folder / "adapter_model.safetensors"
    save_file({**load_file(file), **{name: tensor.to(torch.bfloat16) for name, tensor in more.items()}}, file)
    return folder


def engine_with(model: Path, adapters: dict[str, Path], memory_bytes: int, cache: Path) -> Engine:
    """An engine in this process that knows these adapters."""
    config = EngineConfig(model=model, memory_bytes=memory_bytes, max_num_seqs=REQUESTS, adapter_cache=cache)
    engine = build_engine(config)
    for name, path in adapters.items():
        engine.register_adapter(name, engine.catalog.prepare(path))
    return engine


def submit(engine: Engine, request_id: str, adapter: str | None, tokens: int) -> None:
    """One request of 32 prompt tokens."""
    sampling = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)
    refusal = engine.submit(Submit(request_id, "c", list(range(5, 37)), sampling, adapter))
    assert refusal is None, refusal


def decode_rate(engine: Engine, kind: str) -> float:
    """Output tokens per second while all requests decode."""
    for i in range(REQUESTS):
        submit(engine, f"{kind}{i}", f"{kind}{i % ADAPTERS}", TOKENS)
    for _ in range(4):  # prompts, loads
        engine.step()
    began, count = time.perf_counter(), 0
    while engine.has_work:
        count += sum(len(output.token_ids) for output in engine.step())
    return count / (time.perf_counter() - began)


def step_times(engine: Engine, num_large: int) -> list[float]:
    """Seconds of each step that 8 requests of the base model take, with a large adapter asked for every 20 steps."""
    for i in range(8):
        submit(engine, f"base{i}", None, 160)
    times: list[float] = []
    while engine.has_work:
        if num_large and len(times) % 20 == 10 and len(times) < 140:
            submit(engine, f"large{len(times)}", f"tables{(len(times) // 20) % num_large}", 4)
        began = time.perf_counter()
        engine.step()
        times.append(time.perf_counter() - began)
    return times[5:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        torch.manual_seed(0)
        config = make_model(root / "model", dtype=torch.bfloat16, **SHAPE)
        names = {f"{kind}{i}": make_kind(root / f"{kind}{i}", config, kind, i) for kind in KINDS for i in range(ADAPTERS)}
        engine = engine_with(root / "model", names, 1 << 30, root / "cache")
        runs: dict[str, Callable[[], float]] = {kind: partial(decode_rate, engine, kind) for kind in KINDS}
        rates = interleave(runs, args.repeats)
        engine.close()
        large = {f"tables{i}": make_kind(root / f"tables{i}", config, "tables", i) for i in range(4)}
        engine = engine_with(root / "model", large, 400 << 20, root / "cache")
        steps: dict[str, list[float]] = {"alone": [], "swapping": []}
        for _ in range(2):
            steps["alone"] += step_times(engine, 0)
            steps["swapping"] += step_times(engine, 4)
        num_loads = sum(engine.adapters({name})[0].num_loads for name in large)
        engine.close()
    found: dict[str, Any] = {
        "decode_tokens_per_s": {kind: {**summary(samples), "samples": samples} for kind, samples in rates.items()},
        "of_plain": {kind: paired_ratio(rates[kind], rates["plain"]) for kind in KINDS},
        "step_s": {name: {**summary(times), "highest": max(times)} for name, times in steps.items()},
        "large_adapters_loaded": num_loads,
    }
    for kind in KINDS:
        print(f"{kind}: {found['decode_tokens_per_s'][kind]['median']:.0f} tokens/s, {found['of_plain'][kind]:.3f} of plain")
    for name, told in found["step_s"].items():
        median, p90, highest = (1e3 * told[which] for which in ("median", "p90", "highest"))
        print(f"steps {name}: median {median:.1f} ms, p90 {p90:.1f}, highest {highest:.1f}")
    print(f"{num_loads} loads of large adapters")
    if args.json is not None:
        parameters = {"shape": SHAPE, "lora_rank": LORA_RANK, "adapters": ADAPTERS, "requests": REQUESTS, "tokens": TOKENS}
        write_result(args.json, "adapter_kinds", parameters, found)


if __name__ == "__main__":
    main()
