"""Decoding with mixtures of experts against the bytes that a token must read.

    python benchmarks/recipes/experts.py --json benchmarks/results/experts--MACHINE.json

Two random models of 0.8 B parameters in bf16, 12 layers of hidden width 1024: eight experts as wide as the MLP of the 135 M
benchmark model, two chosen (Mixtral); and 64 experts of an eighth of that, eight chosen (Qwen3-MoE). One stream, greedy, with
and without an adapter on q and v. The bound is the bytes of the matrices that one token reads (attention, router, the chosen
experts, the head), divided by what this machine reads from memory, measured between the rounds of the same run.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from evenflow import LLM, SamplingParams
from evenflow.bench.harness import interleave, paired_ratio, summary, write_result
from evenflow.serving.models.model_config import ModelConfig
from evenflow.serving.models.random.random_adapter import make_adapter
from evenflow.serving.models.random.random_model import LLAMA_135M, make_model
from evenflow.serving.models.weights import expected_tensors

MODELS: dict[str, dict[str, Any]] = {
    "8 x 2816, 2 chosen": {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    },
    "64 x 352, 8 chosen": {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "num_experts": 64,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 352,
        "norm_topk_prob": True,
        "head_dim": 64,
    },
}


def token_bytes(config: ModelConfig) -> int:
    """Bytes of the matrices that one token reads."""
    assert config.mixture is not None
    total = 0.0
    for name, shape in expected_tensors(config).items():
        if len(shape) == 2 and name != "model.embed_tokens.weight":
            share = config.mixture.num_chosen / config.mixture.num_experts if ".experts." in name else 1
            total += 2 * shape[0] * shape[1] * share
    return round(total)


def measure(folder: Path, num_tokens: int, repeats: int) -> dict[str, Any]:
    sampling = SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)
    configs: dict[str, ModelConfig] = {}
    engines: dict[str, LLM] = {}

    def decode(name: str, adapter: str | None) -> Callable[[], float]:
        def measured() -> float:
            started_s = time.perf_counter()
            (answer,) = engines[name].generate([[7, 8]], sampling, adapters=[adapter])
            assert len(answer.token_ids) == num_tokens
            return num_tokens / (time.perf_counter() - started_s)

        return measured

    memory = torch.ones(128 << 20)

    def read() -> float:
        """Bytes per second, all threads."""
        best = 0.0
        for _ in range(4):
            started_s = time.perf_counter()
            memory.sum()
            best = max(best, memory.numel() * 4 / (time.perf_counter() - started_s))
        return best

    variants: dict[str, Callable[[], float]] = {"read": read}
    try:
        for number, (name, fields) in enumerate(MODELS.items()):
            configs[name] = make_model(folder / str(number), {**LLAMA_135M, **fields}, dtype=torch.bfloat16)
            adapter = make_adapter(folder / f"a{number}", configs[name], lora_rank=8, target_modules=["q_proj", "v_proj"])
            engines[name] = LLM(folder / str(number), {"a": str(adapter)}, memory="256MiB", enable_prefix_caching=False)
            variants[name] = decode(name, None)
            variants[f"{name}, adapter"] = decode(name, "a")
        samples = interleave(variants, repeats)
    finally:
        for engine in engines.values():
            engine.close()
    bounds = {name: [rate / token_bytes(config) for rate in samples["read"]] for name, config in configs.items()}
    ratios = {f"{name} / bound": paired_ratio(samples[name], bounds[name]) for name in configs}
    ratios |= {f"{name}: adapter / base": paired_ratio(samples[f"{name}, adapter"], samples[name]) for name in configs}
    return {
        "unit": "tokens per second; read: bytes per second",
        "token_bytes": {name: token_bytes(config) for name, config in configs.items()},
        "summary": {name: summary(found) for name, found in samples.items()},
        "bounds": {name: summary(found) for name, found in bounds.items()},
        "ratios": {name: round(ratio, 3) for name, ratio in ratios.items()},
        "samples": samples,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = measure(Path(folder), args.tokens, args.repeats)
    parameters = {
        "base": dict(LLAMA_135M),
        "models": MODELS,
        "dtype": "bfloat16",
        "tokens": args.tokens,
        "repeats": args.repeats,
    }
    write_result(args.json, "experts", parameters, results)
    for name, ratio in results["ratios"].items():
        print(f"{name:40s} {ratio:6.2f}")


if __name__ == "__main__":
    main()
