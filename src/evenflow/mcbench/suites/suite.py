"""Named sets of configurations, resumable, within a budget; several at a time if they are not timed.

A configuration whose result file exists is not run again. With a budget, configurations are taken in an order in which
every prefix is spread over compressors and layouts.
"""

from __future__ import annotations

import json
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evenflow.base.errors import ConfigError, EvenFlowError, RegistryError, WireError
from evenflow.comm import DEFAULT_SPECS, get_compressor
from evenflow.comm.compressor import Algebra
from evenflow.mcbench.names import MODELS, STUDIES, SUITES
from evenflow.mcbench.runs.benchmark_models import hidden_of
from evenflow.mcbench.runs.pretrain import Backbones
from evenflow.mcbench.runs.run import run
from evenflow.mcbench.runs.run_config import RunConfig
from evenflow.report.page import write_whole

LAYOUTS = ((4, 1), (1, 4), (2, 2))
WIDTH = 64
"""Hidden size of the suites' models. The paper's settings are scaled from BERT-large's 1024 to it."""


@dataclass(frozen=True, slots=True)
class _Case:
    """A configuration and its rank: lower ranks are run first."""

    rank: tuple[int, ...]
    config: RunConfig


def suite(name: str, seeds: int = 5, base: RunConfig | None = None) -> list[RunConfig]:
    """Return the configurations of a suite, most telling ones first, dense ones before what is compared with them.

    ``base`` is a training run of one's own (task, model, data, link) in the place of the suite's three kinds of training. The
    paper's settings are scaled to the width of its model. Raises RegistryError.
    """
    if name not in SUITES:
        raise RegistryError(f"unknown suite {name!r}; known: {', '.join((*SUITES, *STUDIES))}")
    bases = _bases(seeds) if base is None else (replace(base, seeds=seeds),)
    cases = _paper(bases) if name == "paper" else _modern(bases if base is not None else bases[1:])
    return [case.config for case in sorted(cases, key=lambda case: case.rank)]


# One of each kind first, then the rest.
_PAPER_ORDER = ("A2", "T4", "Q2", "P1", "R4", "Q1", "Q3", "A1", "T3", "R3", "T1", "R1", "P2", "T2", "R2")
_PLACES = ("all", "first-half", "4")


def _bases(seeds: int) -> tuple[RunConfig, ...]:
    """One dense configuration for each kind of training: fine-tuning, from scratch, and language pre-training."""
    base = RunConfig(emulate=True, seeds=seeds, hidden=WIDTH, layers="last-half")
    return (
        replace(base, task="digits-high", pretrain="digits-low"),
        replace(base, task="digits"),
        # Eight heads, so that the four key-value heads can be split over four ranks. Losses scatter less than accuracies.
        replace(base, task="chars", heads=8, steps=150, seeds=min(seeds, 3)),
    )


def width_of_run(config: RunConfig) -> int:
    """Return the hidden size of a run's model: the one asked for, or that of its folder; 0 if it is a built-in default."""
    if config.hidden or config.model in ("", *MODELS):
        return config.hidden
    return hidden_of(config.model)


def with_setting(config: RunConfig, setting: str) -> RunConfig:
    """Return ``config`` with one of the paper's settings, at the sites and with the gradients it had.

    Tensor parallelism: forward sums only; gathered where messages do not add up. Pipelines: auto-encoders send the gradient of
    their code back, sparse methods the gradient at the kept positions, quantisers a dense one, and PowerSGD another PowerSGD.
    """
    # Wider than BERT-large: its own widths, 50 and 100.
    scale = min(1.0, (width_of_run(config) or WIDTH) / 1024)
    spec = f"paper:{setting}" if setting[0] == "Q" or scale == 1.0 else f"paper:{setting}:{scale:g}"
    rules, gradient = [], ""
    if config.tp > 1:
        rules.append(f"tp.forward={spec}" + ("/one-shot" if setting[0] in "TRQ" else ""))
    if config.pp > 1:
        rules.append(f"pp={spec}" if setting[0] == "P" else f"pp.forward={spec}")
        gradient = "pp.forward=masked" if setting[0] in "TR" else ""
    return replace(config, compress="; ".join(rules), gradient=gradient)


def _paper(bases: Sequence[RunConfig]) -> list[_Case]:
    """The paper's settings in its layouts; then its places, warm-up and error feedback; scaled down, emulated."""
    cases = []
    for which, base in enumerate(bases):
        is_language = which == 2
        for tier, (tp, pp) in zip((0, 0, 3), LAYOUTS):
            layout = replace(base, tp=tp, pp=pp)
            tier += is_language
            cases.append(_Case((tier, -1, which), layout))
            for order, setting in enumerate(_PAPER_ORDER):
                cases.append(_Case((tier, order, which), with_setting(layout, setting)))
        wide = replace(base, tp=4)
        for order, setting in enumerate(("A2", "Q1", "T4", "R4", "Q2", "P1")):
            made = with_setting(wide, setting)
            rank = (2 + is_language, order, which)
            cases.extend(_Case(rank, replace(made, layers=layers)) for layers in _PLACES)
            cases.append(_Case(rank, replace(made, warmup_steps=base.training().num_steps // 2)))
            spec, slash, transport = made.compress.removeprefix("tp.forward=").partition("/")
            cases.append(_Case(rank, replace(wide, compress=f"tp.forward=ef({spec}){slash}{transport}")))
            if base.pretrain:
                # Compressed before, dense after; and compressed throughout.
                after = replace(wide, pretrain_compress=made.compress, pretrain_gradient=made.gradient)
                cases.append(_Case((1, order, which), after))
                cases.append(_Case((1, order, which), replace(after, compress=made.compress, gradient=made.gradient)))
    return cases


def two_shot(spec: str) -> str:
    """Return a rule with the transport that larger groups have by default: two ranks stand for them in these suites."""
    compressor = get_compressor(spec)
    return f"{spec}/two-shot" if compressor.algebra is Algebra.NONLINEAR and compressor.resends_sums else spec


def _modern(bases: Sequence[RunConfig]) -> list[_Case]:
    """Every registered method, forward and in both directions, at TP 2, in all layers."""
    cases = []
    specs = [spec for spec in (*DEFAULT_SPECS, "ef(topk:0.1)", "ef(int4-g32)") if spec not in ("none", "caat:0.5")]
    # Widths for h = 64: an eighth, as 128 of 1024.
    narrow = {f"{name}:{width}": f"{name}:8" for name, width in (("ae", 100), ("powersgd", 50), ("subspace", 64))}
    narrow["subspace-learned:64"] = "subspace-learned:8"
    for which, base in enumerate(bases):
        layout = replace(base, tp=2, layers="all")
        cases.append(_Case((which, -1), layout))
        for order, spec in enumerate(specs):
            spec = two_shot(narrow.get(spec, spec))
            cases.append(_Case((which, order), replace(layout, compress=f"tp.forward={spec}")))
            cases.append(_Case((2 + which, order), replace(layout, compress=f"tp={spec}")))
    return cases


@dataclass(frozen=True, slots=True)
class SuiteRun:
    """Runs one configuration of a suite. A value, so that it can be sent to the processes of ``jobs``."""

    pretrained: Path | None = None
    """Folder of pre-trained backbones, which configurations share."""
    progress: Callable[[str], None] | None = None
    """Told about partial results; a function of a module if it is to be sent to another process."""

    def __call__(self, config: RunConfig) -> dict[str, Any]:
        return run(config, self.progress or (lambda text: None), Backbones(self.pretrained))


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a suite went."""

    done: int
    skipped: int
    failed: int
    left: int


def run_suite(
    configs: list[RunConfig],
    folder: str | Path,
    budget_s: float | None = None,
    progress: Callable[[str], None] = lambda text: None,
    run_one: Callable[[RunConfig], dict[str, Any]] | None = None,
    clock: Callable[[], float] = time.monotonic,
    jobs: int = 1,
) -> Outcome:
    """Run what has no result yet in ``folder``; write each result when it is there. A failure is noted and ends nothing.

    With ``jobs`` above 1 so many configurations run at a time, each in a process of its own; ``run_one`` (default: ``SuiteRun``
    without progress) must be picklable then. How many run at a time changes no score: each computes with its own number of
    threads. Raises ConfigError if there is one among them that is timed.
    """
    run_one = run_one or SuiteRun()
    if jobs < 1:
        raise ConfigError(f"jobs {jobs}; allowed: 1 or more")
    if jobs > 1 and not all(config.emulate for config in configs):
        raise ConfigError(
            f"jobs {jobs}; allowed: 1, because configurations of real ranks beside each other would time each other"
        )
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    todo = [(n, config) for n, config in enumerate(configs, start=1) if not (target / f"{config.key()}.json").exists()]
    start, done, failed, begun = clock(), 0, 0, 0
    running: dict[Future[dict[str, Any]], tuple[str, RunConfig]] = {}
    with _workers(jobs) as submit:
        while running or begun < len(todo):
            is_over = budget_s is not None and clock() - start > budget_s
            if begun < len(todo) and len(running) < jobs and not is_over:
                number, config = todo[begun]
                begun += 1
                label = f"[{number}/{len(configs)}]"
                progress(f"{label} {config.task} tp{config.tp} pp{config.pp} {config.compress} ({config.layers})")
                running[submit(run_one, config)] = (f"{label} " if jobs > 1 else "    ", config)
                continue
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                label, config = running.pop(future)
                try:
                    result = future.result()
                except (EvenFlowError, BrokenProcessPool) as error:
                    failed += 1
                    note = {"parameters": config.to_json(), "error": str(error)}
                    note["errors_by_rank"] = getattr(error, "errors_by_rank", {})
                    write_whole(target / f"{config.key()}.failed.json", _json(note))
                    progress(f"{label}failed: {error}")
                    if isinstance(error, BrokenProcessPool):
                        raise WireError(
                            "a process of the suite was killed; what it ran has no result, the others are kept"
                        ) from None
                    continue
                write_whole(target / f"{config.key()}.json", _json(result))
                (target / f"{config.key()}.failed.json").unlink(missing_ok=True)
                done += 1
                progress(f"{label}{_score(result)} ({result['wall_s']:.0f} s)")
    return Outcome(done, len(configs) - len(todo), failed, len(todo) - begun)


@contextmanager
def _workers(jobs: int) -> Iterator[Callable[..., Future[dict[str, Any]]]]:
    """Yield what starts a call: here and now for one job, in processes for more. They end with the block, whatever ends it."""
    if jobs == 1:
        yield _now
        return
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _start_worker)
    try:
        yield pool.submit
    except BaseException:
        for child in multiprocessing.active_children():
            child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _score(result: Mapping[str, Any]) -> str:
    """Return the headline in words, and what diverged."""
    name, count = result["metric"], len(result.get("diverged", ()))
    words = "no score" if result[name] is None else f"{name} {result[name]:.4f}"
    return words + (f", {count} seed{'s' if count > 1 else ''} diverged" if count else "")


def _now(call: Callable[..., dict[str, Any]], *args: Any) -> Future[dict[str, Any]]:
    future: Future[dict[str, Any]] = Future()
    try:
        future.set_result(call(*args))
    except EvenFlowError as error:
        future.set_exception(error)
    return future


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


def read_results(folder: str | Path, is_needed: bool = True) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return (results, failures) of a folder, or of one file that holds many.

    Raises ConfigError if there are none but some are needed.
    """
    target = Path(folder)
    paths = sorted(target.glob("*.json")) if target.is_dir() else [target] if target.is_file() else []
    results: list[Any] = []
    for path in paths:
        try:
            content = json.loads(path.read_text())
        except ValueError:
            raise ConfigError(f"{path} is not JSON") from None
        bundle = content.get("results") if isinstance(content, dict) else None
        runs = bundle.get("runs") if isinstance(bundle, dict) else None
        results += [_whole(run) for run in runs] if isinstance(runs, list) else [content]
    good = [result for result in results if isinstance(result, dict) and "metric" in result]
    if not good and is_needed:
        raise ConfigError(f"{target} holds no results of `evenflow mcbench run` or `suite`")
    return good, [result for result in results if isinstance(result, dict) and "error" in result]


def _whole(run: dict[str, Any]) -> dict[str, Any]:
    """Return a run of a bundle with the parameters at their defaults, and the parts that virtual ranks do not have."""
    parameters = {**RunConfig().to_json(), **run["parameters"]}
    return {"ms_per_iteration": {}, "achieved_gbit_s": None, **run, "parameters": parameters}


def read_evaluations(folder: str | Path) -> list[dict[str, Any]]:
    """Return the evaluations of language models of a folder, or of one file; possibly none."""
    target = Path(folder)
    paths = sorted(target.glob("*.json")) if target.is_dir() else [target] if target.is_file() else []
    found = []
    for path in paths:
        value = json.loads(path.read_text())
        # A published file has the evaluation under ``results``, beside what it was made on.
        value = value.get("results", value) if isinstance(value, dict) else {}
        if isinstance(value, dict) and value.get("evaluation") == "language":
            found.append(value)
    return found


def read_studies(folder: str | Path) -> list[dict[str, Any]]:
    """Return the studies of a folder, or of one file that holds many; possibly none."""
    return _read_all(Path(folder), "study", "studies")


def read_predictions(folder: str | Path) -> list[dict[str, Any]]:
    """Return the predictions of a folder, or of one file that holds many; possibly none."""
    return _read_all(Path(folder), "prediction", "predictions")


def _read_all(target: Path, prefix: str, bundled: str) -> list[dict[str, Any]]:
    if target.is_dir():
        return [json.loads(path.read_text()) for path in sorted(target.glob(f"{prefix}-*.json"))]
    bundle = json.loads(target.read_text()) if target.is_file() else {}
    found = bundle.get("results", {}).get(bundled, {}) if isinstance(bundle, dict) else {}
    return list(found.values()) if isinstance(found, dict) else []
