"""What this machine could do at most: bytes it reads and products it computes in a second, and what a batch needs of both.

``python -m evenflow.bench.peers.roofline`` measures and prints one JSON line; in a process of its own, with the threads that
its environment says, so that it is calibrated as the engines run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass

from evenflow.serving.models.model_config import ModelConfig
from evenflow.serving.models.weights import expected_tensors
from evenflow.serving.quant.schemes import QUANTIZATIONS

_TRIES = 6


@dataclass(frozen=True, slots=True)
class Machine:
    """Measured, the best of a few tries."""

    bytes_per_s: float
    """Read from memory, all threads."""
    operations_per_s: float
    """Of bfloat16 matrix products of 512 rows; a multiplication and an addition are two."""


def weight_bytes(config: ModelConfig, form: str) -> float:
    """Bytes that one token reads: all matrices once, and not the embedding. ``form``: as for ``--quantization``."""
    return sum(count * bits / 8 for count, bits in _matrices(config, form))


def bound_tokens_per_s(
    config: ModelConfig, machine: Machine, form: str, streams: int, prompt_tokens: int, output_tokens: int
) -> float:
    """Output tokens per second that no engine can exceed which reads all weights once a step and multiplies in bfloat16.

    Attention, activations and everything but matrices count nothing. Of quantised weights only the bytes are counted.
    """
    read_s = weight_bytes(config, form) / machine.bytes_per_s
    operations = 2 * sum(count for count, _ in _matrices(config, "none")) if form == "none" else 0
    prefill_s = max(read_s, operations * streams * prompt_tokens / machine.operations_per_s)
    step_s = max(read_s, operations * streams / machine.operations_per_s)
    return streams * output_tokens / (prefill_s + (output_tokens - 1) * step_s)


def calibrate(num_threads: int) -> Machine:
    """Measure in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(num_threads)}
    done = subprocess.run(
        [sys.executable, "-m", "evenflow.bench.peers.roofline"], env=environment, capture_output=True, text=True, check=True
    )
    return Machine(**json.loads(done.stdout.splitlines()[-1]))


def _matrices(config: ModelConfig, form: str) -> list[tuple[int, float]]:
    """(weights, bits of each) of every matrix that a token multiplies."""
    found = []
    for name, shape in expected_tensors(config).items():
        if len(shape) != 2 or (name == "model.embed_tokens.weight" and not config.tie_word_embeddings):
            continue
        bits = 16.0
        if form != "none":
            chosen = QUANTIZATIONS[form]
            is_head = name in ("lm_head.weight", "model.embed_tokens.weight")
            bits = (chosen.vocabulary if is_head else chosen.linears).bits_per_weight
        found.append((shape[0] * shape[1], bits))
    return found


def measure() -> Machine:
    """Measure in this process, with the threads that torch has."""
    import torch

    memory = torch.ones(64 << 20)
    left, right = torch.randn(512, 2048).bfloat16(), torch.randn(2048, 8192).bfloat16()
    read_s = multiply_s = float("inf")
    with torch.inference_mode():
        for _ in range(_TRIES):
            started_s = time.perf_counter()
            memory.sum()
            read_s = min(read_s, time.perf_counter() - started_s)
            started_s = time.perf_counter()
            left @ right
            multiply_s = min(multiply_s, time.perf_counter() - started_s)
    return Machine(memory.numel() * 4 / read_s, 2 * 512 * 2048 * 8192 / multiply_s)


if __name__ == "__main__":
    print(json.dumps(asdict(measure())))
