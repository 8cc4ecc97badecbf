"""What weights in few bits are worth: tokens per second of one model in bf16, int8 and int4, in turn.

    python benchmarks/recipes/quantised.py --json benchmarks/results/quantised--MACHINE.json [--model DIR]

Without --model it is a random Llama of 1.07 B parameters (22 layers, hidden 2048), written once into --folder. One stream and
16, prompts of 32 tokens, greedy; and 16 with 8 different adapters. Each form is an engine of its own; they stand beside each
other and take turns, A B C A B C. The roofline of one stream is the bytes of weights that a token reads, divided by what this
machine reads from memory in the same run.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evenflow import LLM, SamplingParams
from evenflow.bench.harness import interleave, paired_ratio, summary, write_result
from evenflow.bench.peers.roofline import measure as measure_machine
from evenflow.bench.peers.roofline import weight_bytes
from evenflow.serving.core.shape import MODULES
from evenflow.serving.models.model_config import load_config
from evenflow.serving.models.random.random_adapter import make_adapter
from evenflow.serving.models.random.random_model import TINY, make_model

ONE_B = {
    **TINY,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
}
"""The sizes of TinyLlama, 1.10 B with the embedding."""
RANKS = (4, 8, 16, 32, 8, 4, 32, 16)


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    model = args.model or folder / "llama-1b"
    if not (model / "config.json").exists():
        make_model(model, ONE_B, dtype=torch.bfloat16)
    config = load_config(model)
    adapters = {}
    for seed, rank in enumerate(RANKS):
        modules = MODULES if seed % 2 else ("q_proj", "v_proj")
        name = f"m{seed}-{model.name}"
        if not (folder / name).exists():
            make_adapter(folder / name, config, lora_rank=rank, target_modules=modules, seed=seed)
        adapters[name] = folder / name
    generator = np.random.default_rng(0)
    prompts = generator.integers(1, config.shape.vocab_size, (16, 32)).tolist()
    forms = args.forms.split(",")
    engines = {
        form: LLM(model, adapters, quantization=form, memory="512MiB", max_num_seqs=16, enable_prefix_caching=False)
        for form in forms
    }

    def run(form: str, count: int, length: int, names: list[str | None]) -> Callable[[], float]:
        sampling = SamplingParams(temperature=0.0, max_tokens=length, ignore_eos=True)

        def measured() -> float:
            started_s = time.perf_counter()
            answers = engines[form].generate(prompts[:count], sampling, adapters=names)
            seconds = time.perf_counter() - started_s
            assert sum(len(answer.token_ids) for answer in answers) == count * length
            return count * length / seconds

        return measured

    base: list[str | None] = [None] * 16
    mixed: list[str | None] = [list(adapters)[i % 8] for i in range(16)]
    results: dict[str, Any] = {"cases": {}}
    try:
        for case, count, length, names in (
            ("1 stream", 1, args.tokens, base[:1]),
            ("16 streams", 16, args.tokens, base),
            ("16 streams, 8 adapters", 16, args.tokens, mixed),
        ):
            samples = interleave({form: run(form, count, length, names) for form in forms}, args.repeats)
            results["cases"][case] = {
                form: {
                    "tokens_per_s": summary(found),
                    "to_first": paired_ratio(found, samples[forms[0]]),
                    "samples": found,
                }
                for form, found in samples.items()
            }
            print(
                case,
                {
                    form: (round(summary(s)["median"], 1), round(paired_ratio(s, samples[forms[0]]), 2))
                    for form, s in samples.items()
                },
                flush=True,
            )
    finally:
        for engine in engines.values():
            engine.close()
    bandwidth = measure_machine().bytes_per_s
    results["read_bytes_per_s"] = bandwidth
    results["roofline_tokens_per_s"] = {form: bandwidth / weight_bytes(config, form) for form in forms}
    results["weight_bytes"] = {form: weight_bytes(config, form) for form in forms}
    print("roofline", {form: round(value, 1) for form, value in results["roofline_tokens_per_s"].items()})
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--folder", type=Path, help="keeps the random model and adapters; default: a temporary one")
    parser.add_argument("--forms", default="none,int8,int4-g32,int4")
    parser.add_argument("--tokens", type=int, default=32, help="output tokens of a request")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        results = measure(args, folder)
    parameters = {
        "model": args.model.name if args.model else "random Llama of 1.1 B",
        "forms": args.forms,
        "prompt_tokens": 32,
        "output_tokens": args.tokens,
        "repeats": args.repeats,
        "adapter_lora_ranks": list(RANKS),
    }
    write_result(args.json, "quantised", parameters, results)


if __name__ == "__main__":
    main()
