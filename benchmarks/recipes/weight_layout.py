"""A decoder layer's four matrix products with plain weights and with weights packed by oneDNN.

    python benchmarks/recipes/weight_layout.py --json benchmarks/results/weight_layout--MACHINE.json

The matrices of the 135 M benchmark model (hidden 1024, intermediate 2816, 16/4 heads), twelve layers in turn so
that weights come from memory. Variants run in turn: A B A B. Figures are milliseconds of CPU time of one thread for
all twelve layers, which other work on the machine disturbs least.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch.nn.functional import linear

from evenflow.bench.harness import interleave, paired_ratio, summary, write_result
from evenflow.serving.backends.devices.weight_products import Matmul, prepare_matmul

SHAPES = ((1536, 1024), (1024, 1024), (5632, 1024), (1024, 2816))
NUM_LAYERS = 12
ROWS = (1, 4, 16, 64, 256)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    torch.set_num_threads(1)
    samples: dict[str, list[float]] = {}
    ratios: dict[str, float] = {}
    for dtype in (torch.bfloat16, torch.float32):
        name = str(dtype).removeprefix("torch.")
        weights = [[(0.02 * torch.randn(shape)).to(dtype) for shape in SHAPES] for _ in range(NUM_LAYERS)]
        packed = [[prepare_matmul(weight) for weight in layer] for layer in weights]
        for rows in ROWS:
            inputs = [torch.randn(rows, shape[1]).to(dtype) for shape in SHAPES]
            for weight, matmul, x in zip(weights[0], packed[0], inputs):
                torch.testing.assert_close(matmul(x), linear(x, weight), rtol=2e-2, atol=2e-2)
            plain_name, packed_name = f"{name} {rows} rows plain", f"{name} {rows} rows packed"
            plain = [[partial(linear, weight=weight) for weight in layer] for layer in weights]
            taken = interleave({plain_name: timed(plain, inputs), packed_name: timed(packed, inputs)}, args.repeats)
            samples |= taken
            ratios[f"{name} {rows} rows: plain / packed"] = round(paired_ratio(taken[plain_name], taken[packed_name]), 3)
            print(f"{name} {rows:4d} rows: plain / packed = {ratios[f'{name} {rows} rows: plain / packed']}")
    results = {
        "unit": "milliseconds of one thread for twelve layers",
        "summary": {key: summary(values) for key, values in samples.items()},
        "ratios": ratios,
        "samples": samples,
    }
    parameters = {"shapes": SHAPES, "num_layers": NUM_LAYERS, "rows": ROWS}
    write_result(args.json, "weight_layout", parameters, results)


def timed(layers: list[list[Matmul]], inputs: list[torch.Tensor]) -> Callable[[], float]:
    def measure() -> float:
        started_s = time.thread_time()
        for layer in layers:
            for matmul, x in zip(layer, inputs):
                matmul(x)
        return 1e3 * (time.thread_time() - started_s)

    measure()
    return measure


if __name__ == "__main__":
    main()
