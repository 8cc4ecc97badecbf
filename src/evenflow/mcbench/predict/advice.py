"""Which compressor pays for a model on a link: predicted times, ranges of sizes, and what it costs in accuracy where tried."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from evenflow.base.errors import ConfigError
from evenflow.mcbench.predict.cost_model import Shape, exchange_s, step_s, winning_ranges
from evenflow.mcbench.predict.machine import Machine
from evenflow.mcbench.tasks.scores import baseline_key, mean_and_interval

TORCH_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""What dense tensors may travel in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What advice is asked about. Raises ConfigError for what cannot be answered."""

    hidden: int
    """Hidden size of the model."""
    tp: int
    sequence: int = 512
    batch: int = 4
    """Sequences of a micro-batch."""
    dtype: str = "bf16"
    """What the model computes in, and dense sums travel in: what trainers send today is bf16."""

    def __post_init__(self) -> None:
        if self.tp < 2:
            raise ConfigError(f"tp is {self.tp}; with one rank nothing is sent")
        if self.dtype not in TORCH_DTYPES:
            raise ConfigError(f"dtype {self.dtype!r}; allowed: {', '.join(TORCH_DTYPES)}")
        if self.sequence < 1 or self.batch < 1:
            raise ConfigError(f"sequence {self.sequence} and batch {self.batch}; allowed: 1 or more")

    @property
    def rows(self) -> int:
        """Tokens of a micro-batch."""
        return self.sequence * self.batch

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype of dense sums."""
        return TORCH_DTYPES[self.dtype]


def advise(
    machine: Machine,
    question: Question,
    results: Sequence[Mapping[str, Any]] = (),
    evaluations: Sequence[Mapping[str, Any]] = (),
) -> list[str]:
    """Return the advice, line by line, best first: predictions, and as evidence what was measured in results given.

    ``results`` are training runs, ``evaluations`` those of ``mcbench eval``. Every compressor is compared with a dense sum in
    the model's dtype, and with one in bf16, which is what it has to beat.
    """
    dtype, rows, width, tp = question.torch_dtype, question.rows, question.hidden, question.tp
    dense = exchange_s(machine, "none", rows, width, tp, dtype)
    timed = sorted((exchange_s(machine, spec, rows, width, tp, dtype), spec) for spec in machine.encode)
    halved = "none" if question.dtype in ("bf16", "fp16") else "bf16"
    rival = dense if halved == "none" or "bf16" not in machine.encode else exchange_s(machine, "bf16", rows, width, tp, dtype)
    shape = Shape(hidden=width, layers=1, sequence=question.sequence, micro_batch=question.batch, tp=tp, dtype=dtype)
    step = step_s(machine, shape)
    lines = [
        f"predicted for one sum of [{rows}, {width}] {question.dtype} over {tp} ranks on {machine.link} ({machine.link_kind}); "
        f"{machine.flops_at(width) / 1e12:.3g} TFLOP/s a rank:",
        f"{'none':<20}{1e3 * dense:9.3f} ms",
    ]
    for time_s, spec in timed:
        faster = step / step_s(machine, shape, spec, spec)
        where = ranges_in_words(winning_ranges(machine, spec, tp, width, dtype))
        against = f", x{rival / time_s:.2f} of bf16" if halved == "bf16" and spec != "bf16" else ""
        gain = f"x{dense / time_s:.2f} of dense{against}; a training step x{faster:.2f}"
        lines.append(f"{spec:<20}{1e3 * time_s:9.3f} ms  {gain}; {where}; {_evidence(spec, results, evaluations)}")
    best_s, best = timed[0]
    if best_s < min(dense, rival):
        lines.append(f"fastest: {best}. Check its accuracy on your model before you rely on it (`evenflow mcbench eval`).")
    else:
        lines.append("compression does not pay here: the link is fast enough, or the messages are too small.")
    return lines


def ranges_in_words(ranges: Sequence[tuple[int, int | None]]) -> str:
    """Return where a compressor pays: ``pays from 64 KiB to 1 MiB and from 8 MiB``."""
    if not ranges:
        return "does not pay up to 1 GiB"
    parts = [f"from {_size(low)}" + (f" to {_size(high)}" if high is not None else "") for low, high in ranges]
    return "pays " + " and ".join(parts)


def _size(count: int) -> str:
    """Return bytes in the largest unit that they fill, with at most three digits."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} B"


def _evidence(spec: str, results: Sequence[Mapping[str, Any]], evaluations: Sequence[Mapping[str, Any]]) -> str:
    found = [*_evaluated(spec, evaluations), *_trained(spec, results)]
    return "evidence: " + (", ".join(found) if found else "none (give --text or --results)")


def _evaluated(spec: str, evaluations: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what a compressor did to the loss of language models that were evaluated with it at the forward sums."""
    found = []
    for evaluation in evaluations:
        p = evaluation["parameters"]
        for row in evaluation["rows"]:
            name = row["spec"].removeprefix("tp.forward=").partition("/")[0]
            if name == spec and "error" not in row:
                spread = f" ± {row['interval']:.4f}" if row["interval"] is not None else ""
                found.append(f"loss {row['difference']:+.4f}{spread} on {p['model']}, TP {p['tp']}, {p['text']}")
    return found


def _trained(spec: str, results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what a compressor did to the scores of training runs, paired with their dense runs."""
    dense = {baseline_key(r): r for r in results if r["parameters"]["compress"] == "none"}
    found = []
    for result in results:
        p = result["parameters"]
        specs = {rule.partition("=")[2].partition("/")[0].strip() for rule in p["compress"].split(";")}
        if specs != {spec} or baseline_key(result) not in dense:
            continue
        name, baseline = result["metric"], dense[baseline_key(result)]
        base = dict(zip(baseline["seeds"], baseline[f"{name}_by_seed"]))
        pairs = [v - base[s] for s, v in zip(result["seeds"], result[f"{name}_by_seed"]) if s in base]
        if pairs:
            mean, half = mean_and_interval(pairs)
            spread = f" ± {half:.4f}" if half is not None else " (one seed)"
            found.append(f"{name} on {p['task']} with {p['compress']} {mean:+.4f}{spread}")
    return found
