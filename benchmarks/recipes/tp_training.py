"""TP 2 training of a small BERT over a shaped link: dense fp32, bf16 and two-shot int8, predicted first, then measured.

    python benchmarks/recipes/tp_training.py --link 1gbit --json benchmarks/results/tp_training--MACHINE.json

The prediction is made from a calibration of the same minute and is written before the measurements it is judged by. Variants
run in turn, A B C A B C, each in fresh processes; the figure of a round is the median of its iterations.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from evenflow.bench.recipes import interleave, paired_ratio, summary, write_result
from evenflow.comm.links import Link
from evenflow.mcbench.calibration import calibrate
from evenflow.mcbench.config import RunConfig
from evenflow.mcbench.cost_model import Shape, errors_of, step_s
from evenflow.mcbench.run import run

VARIANTS = {"fp32": "none", "bf16": "tp=bf16", "int8": "tp=int8-g32/two-shot"}
SPECS = {"fp32": "none", "bf16": "bf16", "int8": "int8-g32"}
HIDDEN, LAYERS, BATCH = 256, 4, 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--link", default="1gbit")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=15)
    args = parser.parse_args()
    machine = calibrate(Link.parse(args.link), ("bf16", "int8-g32"), print)
    shape = Shape(hidden=HIDDEN, layers=LAYERS, sequence=64, micro_batch=BATCH, tp=2)
    predicted = {name: 1e3 * step_s(machine, shape, spec, spec) for name, spec in SPECS.items()}
    print("predicted:", {name: round(value, 1) for name, value in predicted.items()}, flush=True)
    details: dict[str, list[object]] = {name: [] for name in VARIANTS}

    def measured(name: str) -> float:
        sizes = {"hidden": HIDDEN, "num_layers": LAYERS, "batch": BATCH}
        result = run(
            RunConfig(
                task="pairs",
                tp=2,
                compress=VARIANTS[name],
                layers="all",
                seeds=1,
                steps=1,
                link=args.link,
                timed_steps=args.steps,
                **sizes,
            )
        )
        details[name].append({key: result[key] for key in ("ms_per_iteration", "bytes_per_step", "achieved_gbit_s", "link")})
        return float(result["ms_per_iteration"]["total"])

    samples = interleave({name: lambda name=name: measured(name) for name in VARIANTS}, args.rounds, warm_up=0)
    medians = {name: summary(values)["median"] for name, values in samples.items()}
    results = {
        "unit": "milliseconds per iteration",
        "predicted_before": predicted,
        "measured": {name: summary(values) for name, values in samples.items()},
        "speed_up": {
            "int8 over fp32": paired_ratio(samples["fp32"], samples["int8"]),
            "int8 over bf16": paired_ratio(samples["bf16"], samples["int8"]),
        },
        "judged": errors_of(predicted, medians),
        "samples": samples,
        "details": details,
    }
    parameters = {"link": args.link, "hidden": HIDDEN, "layers": LAYERS, "batch": BATCH, "sequence": 64, "steps": args.steps}
    write_result(args.json, "tp_training", parameters, results)
    print(results["speed_up"], results["judged"])


if __name__ == "__main__":
    main()
