"""The matrix products of a step and nothing else: what no engine can beat on this machine with these products.

``python -m evenflow.bench.peers.matmul_floor MODEL_DIR`` answers JSON lines ``{"rows": [16, 512, ...]}``
with ``{"seconds": s}``: the time of one pass through all linears and the output head for each entry.
Uses the same packed products as the engine, in the same environment.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from evenflow.base.openmp import share_openmp
from evenflow.serving.core.shape import SITES
from evenflow.serving.models.model_config import load_config


def main(argv: list[str]) -> int:
    """Serve requests from stdin until it closes."""
    share_openmp()
    import torch

    from evenflow.serving.backends.devices.weight_products import prepare_matmul

    shape = load_config(Path(argv[0])).shape
    widths = []
    for modules in SITES.values():
        inputs = shape.module_widths(modules[0])[0]
        widths.append((inputs, sum(shape.module_widths(m)[1] for m in modules)))
    with torch.inference_mode():
        layers = [
            [(inputs, prepare_matmul(torch.randn(outputs, inputs).bfloat16())) for inputs, outputs in widths]
            for _ in range(shape.num_layers)
        ]
        head = prepare_matmul(torch.randn(shape.vocab_size, shape.hidden_size).bfloat16())
        print(json.dumps({"ready": True}), flush=True)
        for line in sys.stdin:
            seconds = 0.0
            for rows in json.loads(line)["rows"]:
                inputs_by_width = {inputs: torch.randn(rows, inputs).bfloat16() for inputs, _ in widths}
                last_rows = torch.randn(min(rows, 16), shape.hidden_size).bfloat16()
                started_s = time.perf_counter()
                for layer in layers:
                    for inputs, multiply in layer:
                        multiply(inputs_by_width[inputs])
                head(last_rows)
                seconds += time.perf_counter() - started_s
            print(json.dumps({"seconds": seconds}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
