"""Decode on a GPU with one adapter for every sequence: what LoRA adds to a step, and how fast its kernels read.

    TRITON_INTERPRET=0 python benchmarks/recipes/gpu_lora.py --hardware h100 [--shape 8b] [--samples 30]

Random weights of the model's shape, random rows in the arena; needs torch, triton and numba, no web framework. Variants:

    base      no adapters                        unified   rows of true rank, in place (the product)
    padded    stacks padded to a rank, bmm       gather    one copy of the weights per row, bmm
    slots     the product's kernels on adapters padded to rank 64, as servers with slots of a largest rank keep them

Outputs are compared before anything is timed. Every variant's step is recorded once as a CUDA graph and replayed in turn
(A B A B), so that launching weighs on none of them; ``host_step`` is the worker's own path with plan, upload and sampled ids.
Kernels of one site are timed over all layers, whose rows no cache can hold. Writes results/gpu_lora--HARDWARE.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from evenflow.bench.harness import paired_ratio, summary, write_result
from evenflow.bench.lora.baselines.lora_backends import lora_backend
from evenflow.serving.backends.attention.attention_backend import AttentionBackend
from evenflow.serving.backends.choose import ATTENTION_BACKENDS
from evenflow.serving.backends.devices.batch import build_batch
from evenflow.serving.backends.devices.storage import Storage
from evenflow.serving.backends.lora.lora_backend import LoRABackend
from evenflow.serving.core.adapter import AdapterSignature
from evenflow.serving.core.plan import PlannedSequence, SampleSpec, StepPlan
from evenflow.serving.core.request import RequestId
from evenflow.serving.core.sampling import GREEDY
from evenflow.serving.core.shape import MODULES, SITES, ModelShape
from evenflow.serving.memory.layout import ArenaLayout, place
from evenflow.serving.models.attention_block import AttentionWeights
from evenflow.serving.models.decoder import Decoder
from evenflow.serving.models.decoder_layer import LayerWeights
from evenflow.serving.models.gated_mlp import GatedMLPWeights
from evenflow.serving.models.model_config import load_config
from evenflow.serving.models.rope_table import rope_table
from evenflow.serving.models.weights import ModelWeights
from evenflow.serving.runner.forward import EagerForward, GraphedForward
from evenflow.serving.runner.sampler import Sampler

SHAPES = {
    "8b": ModelShape(32, 4096, 14336, 32, 8, 128, 128256),
    "1b": ModelShape(16, 2048, 8192, 32, 8, 64, 128256),
    "toy": ModelShape(2, 64, 112, 4, 2, 16, 320),
}
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
SLOT_RANK = 64


@dataclass(frozen=True)
class Case:
    shape: str
    sequences: int = 64
    context: int = 512
    lora_rank: int = 16
    samples: int = 30


class Timer:
    """Milliseconds of work on a device: CUDA events there, the clock here."""

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._kept: list[object] = []
        self.launched_one_by_one: list[str] = []
        """Variants that could not be recorded, because they ask the device something on the way."""

    def __call__(self, work: Callable[[], object]) -> float:
        if not self._is_cuda:
            start = time.perf_counter()
            work()
            return 1e3 * (time.perf_counter() - start)
        start_event, end_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start_event.record()
        work()
        end_event.record()
        end_event.synchronize()
        return float(start_event.elapsed_time(end_event))

    def recorded(self, name: str, work: Callable[[], object]) -> Callable[[], object]:
        """``work`` as one CUDA graph, where there are such. Keeps what the graph reads alive."""
        work()
        self._kept.append(work)
        if not self._is_cuda:
            return work
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                work()
        except RuntimeError:
            self.launched_one_by_one.append(name)
            return work
        return graph.replay

    def in_turns(self, variants: dict[str, Callable[[], object]], samples: int) -> dict[str, list[float]]:
        found: dict[str, list[float]] = {name: [] for name in variants}
        for i in range(samples + 3):
            for name, work in variants.items():
                milliseconds = self(work)
                if i >= 3:
                    found[name].append(milliseconds)
        return found


def random_model(shape: ModelShape, dtype: torch.dtype, device: torch.device, context: int) -> Decoder:
    raw = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size, "num_hidden_layers": shape.num_layers, "vocab_size": shape.vocab_size,
        "num_attention_heads": shape.num_heads, "num_key_value_heads": shape.num_kv_heads, "head_dim": shape.head_dim,
        "max_position_embeddings": max(2048, 2 * context), "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "hidden_act": "silu",
        "tie_word_embeddings": False, "bos_token_id": None, "eos_token_id": 0,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(raw))
        config = load_config(folder)

    def noise(rows: int, columns: int) -> torch.Tensor:
        return torch.empty((rows, columns), dtype=dtype, device=device).normal_(std=columns**-0.5)

    def ones() -> torch.Tensor:
        return torch.ones(shape.hidden_size, dtype=dtype, device=device)

    hidden, inter, qkv = shape.hidden_size, shape.intermediate_size, shape.q_width + 2 * shape.kv_width
    layers = deque(
        LayerWeights(
            norms={"input_layernorm": ones(), "post_attention_layernorm": ones()},
            attention=AttentionWeights(noise(qkv, hidden), None, noise(hidden, shape.q_width), None),
            mlp=GatedMLPWeights(noise(2 * inter, hidden), None, noise(hidden, inter), None),
        )
        for _ in range(shape.num_layers)
    )
    weights = ModelWeights(noise(shape.vocab_size, hidden), layers, ones(), noise(shape.vocab_size, hidden))
    return Decoder(config, weights)


class Bench:
    """Model, arena and the variants' LoRA backends, with an adapter for every sequence."""

    def __init__(self, case: Case, device: torch.device, dtype: torch.dtype) -> None:
        self.case, self.device, self.shape = case, device, SHAPES[case.shape]
        self.timer = Timer(device)
        self._kept: list[object] = []
        self.model = random_model(self.shape, dtype, device, case.context)
        layout = ArenaLayout(self.shape, dtype.itemsize)
        per_sequence = layout.num_pages_for_tokens(case.context + 1)
        self.ranks = {"true": case.lora_rank, "slots": SLOT_RANK}
        signatures = {name: self._signature(rank) for name, rank in self.ranks.items()}
        per_adapter = {name: place(layout, signature).num_pages for name, signature in signatures.items()}
        num_pages = case.sequences * (per_sequence + sum(per_adapter.values()))
        self.storage = Storage(layout, num_pages, dtype, device)
        for part in self.storage.elements.split(1 << 28):
            part.normal_(std=0.02)
        pages = torch.randperm(num_pages, generator=torch.Generator().manual_seed(0)).tolist()
        self.kv_pages = [[pages.pop() for _ in range(per_sequence)] for _ in range(case.sequences)]
        config = self.model.config
        tables = rope_table(config.rope, self.shape.head_dim, 2 * case.context + 16)
        fast = "triton"
        self.attention: AttentionBackend = ATTENTION_BACKENDS.load(fast)(self.storage, *tables, self.shape.head_dim**-0.5)
        names = {"unified": fast, "slots": fast, "padded": "padded", "gather": "gather"}
        self.lora: dict[str, LoRABackend] = {name: lora_backend(backend, self.storage) for name, backend in names.items()}
        self.oracle: LoRABackend = lora_backend("torch", self.storage)
        for slot in range(case.sequences):
            own = {name: [pages.pop() for _ in range(count)] for name, count in per_adapter.items()}
            for name, backend in [*self.lora.items(), ("oracle", self.oracle)]:
                rank = "slots" if name == "slots" else "true"
                backend.bind(slot, signatures[rank], own[rank])

    def _signature(self, rank: int) -> AdapterSignature:
        return AdapterSignature((tuple(rank if module in TARGETS else 0 for module in MODULES),) * self.shape.num_layers)

    def plan(self, with_adapters: bool) -> StepPlan:
        spec = SampleSpec(GREEDY, [1], [], 0)
        return StepPlan(
            0,
            tuple(
                PlannedSequence(
                    RequestId(str(i)), [7 + i], self.case.context, self.kv_pages[i], i if with_adapters else -1, spec
                )
                for i in range(self.case.sequences)
            ),
        )

    def step(self, variant: str) -> Callable[[], object]:
        """One decode step of the variant, recorded."""
        is_base = variant == "base"
        lora = self.lora["unified"] if is_base else self.lora[variant]
        batch = build_batch(self.plan(not is_base), self.storage.layout.page_tokens, self.device)
        self.attention.plan(batch)
        lora.plan(batch)
        batch.staging.upload()

        def work() -> torch.Tensor:
            self.model.bind(self.attention, None if is_base else lora)
            return self.model.logits(self.model.forward(batch))

        return self.timer.recorded(f"step {variant}", work)

    def site(self, lora: LoRABackend, site: str) -> tuple[torch.Tensor, torch.Tensor]:
        widths = [self.shape.module_widths(module) for module in SITES[site]]
        batch = build_batch(self.plan(True), self.storage.layout.page_tokens, self.device)
        lora.plan(batch)
        batch.staging.upload()
        self._kept.append(batch)  # its buffer is read by what follows
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(self.case.sequences, widths[0][0], generator=generator).to(self.device, self.storage.dtype)
        return x, torch.zeros(len(x), sum(out for _, out in widths), dtype=x.dtype, device=self.device)

    def check(self) -> None:
        """All variants of true rank give the same delta."""
        for site in ("qkv", "o"):
            outputs = {}
            for name, backend in (("oracle", self.oracle), *((n, b) for n, b in self.lora.items() if n != "slots")):
                x, y = self.site(backend, site)
                backend.run(1, site, x, y)
                outputs[name] = y.float()
            want = outputs["oracle"]
            for name, found in outputs.items():
                error = float((found - want).norm() / want.norm())
                assert error < 1e-2, f"{name} is wrong at {site}: {error:.1e}"

    def kernels(self, site: str) -> dict[str, Any]:
        """Bytes that one pass through all layers reads of rows, and milliseconds it takes, by variant."""
        works: dict[str, Any] = {}
        results: dict[str, Any] = {}
        for name, backend in self.lora.items():
            x, y = self.site(backend, site)

            def work(backend: LoRABackend = backend, x: torch.Tensor = x, y: torch.Tensor = y) -> None:
                for layer in range(self.shape.num_layers):
                    backend.run(layer, site, x, y)

            works[name] = self.timer.recorded(f"{site} {name}", work)
            rank = self.ranks["slots" if name == "slots" else "true"]
            elements = sum(sum(self.shape.module_widths(module)) for module in SITES[site] if module in TARGETS)
            row_bytes = rank * elements * self.storage.layout.itemsize
            results[name] = {"row_bytes": self.case.sequences * row_bytes * self.shape.num_layers}
        for name, samples in self.timer.in_turns(works, self.case.samples).items():
            size = results[name]["row_bytes"]
            results[name] |= {"ms": samples, **summary(samples), "gb_per_s": size / summary(samples)["median"] / 1e6}
        return results

    def host_step(self) -> dict[str, list[float]]:
        """Wall time of plan, upload, replay and sampled ids, as the worker does it."""
        if self.device.type != "cuda":
            return {}
        eager = EagerForward(self.model, self.storage, self.attention, self.lora["unified"])
        graphed, sampler = GraphedForward(eager, [self.case.sequences]), Sampler()
        graphed.warm_up()
        found: dict[str, list[float]] = {"base": [], "unified": []}
        for i in range(self.case.samples + 3):
            for name in found:
                plan = self.plan(name == "unified")
                specs = [sequence.sample for sequence in plan.sequences if sequence.sample is not None]
                start = time.perf_counter()
                sampler(graphed(plan), specs)
                if i >= 3:
                    found[name].append(1e3 * (time.perf_counter() - start))
        return found


def copy_gb_per_s(device: torch.device, timer: Timer) -> float:
    """Bytes read and written by the largest plain copy: what memory can do here."""
    size = (4 << 30) if device.type == "cuda" else (64 << 20)
    source = torch.empty(size // 4, device=device).normal_()
    target = torch.empty_like(source)
    return 2 * size / min(timer(lambda: target.copy_(source)) for _ in range(10)) / 1e6


@torch.inference_mode()
def run(case: Case, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    bench = Bench(case, device, dtype)
    bench.check()
    copied = copy_gb_per_s(device, bench.timer)
    kernels = {site: bench.kernels(site) for site in ("qkv", "o")}
    for by_variant in kernels.values():
        for result in by_variant.values():
            result["of_copy"] = result["gb_per_s"] / copied
    steps = bench.timer.in_turns({name: bench.step(name) for name in ("base", *bench.lora)}, case.samples)
    host = bench.host_step()
    ratios = {name: paired_ratio(samples, steps["base"]) for name, samples in steps.items()}
    return {
        "copy_gb_per_s": copied,
        "launched_one_by_one": bench.timer.launched_one_by_one,
        "kernels": kernels,
        "step_ms": {name: {"samples": samples, **summary(samples)} for name, samples in steps.items()},
        "step_over_base": ratios,
        "host_step_ms": {name: {"samples": samples, **summary(samples)} for name, samples in host.items()},
        "host_step_over_base": paired_ratio(host["unified"], host["base"]) if host else None,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hardware", required=True, help="name of the machine, for the file's name")
    parser.add_argument("--shape", default="8b", choices=list(SHAPES))
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--samples", type=int, default=30)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results")
    args = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    case = Case(args.shape, args.sequences, args.context, samples=args.samples)
    results = run(case, device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    write_result(args.out / f"gpu_lora--{args.hardware}.json", "gpu_lora", {**asdict(case), "gpu": gpu}, results)
    print(f"copy {results['copy_gb_per_s']:.0f} GB/s")
    for site, by_variant in results["kernels"].items():
        for name, result in by_variant.items():
            print(
                f"{site:4} {name:8} {result['median']:8.3f} ms {result['gb_per_s']:7.0f} GB/s {result['of_copy']:.2f} of copy"
            )
    for name, step in results["step_ms"].items():
        print(f"step {name:8} {step['median']:8.3f} ms  {results['step_over_base'][name]:.3f} of base")
    if results["host_step_over_base"]:
        print(f"host step unified over base: {results['host_step_over_base']:.3f}")


if __name__ == "__main__":
    main()
