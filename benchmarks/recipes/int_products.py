"""One thread's time for a product of a few rows with weights in bf16, int8 and int4.

    OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 python benchmarks/recipes/int_products.py --json FILE

2048 inputs x 8192 outputs, eight matrices in turn, so that weights come from memory. Times are this thread's own processor
time, which other work on the machine disturbs least; the forms take turns, and ratios are within one round. bf16 is oneDNN's
packed product, which serves unquantised models.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch

from evenflow.bench.harness import interleave, paired_ratio, summary, write_result
from evenflow.serving.backends.devices.quantised_products import quantised_weight
from evenflow.serving.backends.devices.weight_products import Matmul, prepare_matmul
from evenflow.serving.quant.grouped_matrix import quantise
from evenflow.serving.quant.schemes import SCHEMES

INPUTS, OUTPUTS, MATRICES = 2048, 8192, 8
ROWS = (1, 4, 8, 16, 64, 256)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    weight_OI = torch.randn(OUTPUTS, INPUTS, generator=torch.Generator().manual_seed(0)) * 0.05
    products: dict[str, list[Matmul]] = {"bf16": [prepare_matmul(weight_OI.bfloat16()) for _ in range(MATRICES)]}
    for name, scheme in SCHEMES.items():
        made = quantise(weight_OI, scheme)
        products[name] = [prepare_matmul(quantised_weight([made], torch.bfloat16)) for _ in range(MATRICES)]
    results = {}
    for num_rows in ROWS:
        x_TI = torch.randn(num_rows, INPUTS, generator=torch.Generator().manual_seed(num_rows)).bfloat16()

        def run(form: str, x_TI: torch.Tensor = x_TI) -> Callable[[], float]:
            def measured() -> float:
                started_s = time.thread_time()
                for product in products[form]:
                    product(x_TI)
                return (time.thread_time() - started_s) / MATRICES

            return measured

        samples = interleave({form: run(form) for form in products}, args.repeats)
        results[str(num_rows)] = {
            form: {"seconds": summary(found), "times_as_fast": paired_ratio(samples["bf16"], found), "samples": found}
            for form, found in samples.items()
        }
        for form, found in samples.items():
            median_ms = 1e3 * summary(found)["median"]
            print(f"{num_rows} rows, {form}: {median_ms:.2f} ms, {paired_ratio(samples['bf16'], found):.2f} x", flush=True)
    parameters = {"inputs": INPUTS, "outputs": OUTPUTS, "matrices": MATRICES, "repeats": args.repeats, "clock": "thread"}
    write_result(args.json, "int_products", parameters, results)


if __name__ == "__main__":
    main()
