"""``evenflow profile``: measure a model on this machine and fit the cost of a request and the time of a step."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evenflow.bench.profile.step_fit import Fit
    from evenflow.serving.client.llm import LLM


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Describe the command."""
    parser = subparsers.add_parser(
        "profile",
        help="measure a model here: cost of a request, time of a step, with the errors of the fits",
        description="Serve equal requests of several shapes with the model on this machine, fit VTC's quadratic cost function "
        "and a step-time profile to the times, and print both with their errors. Nothing else should run on the machine.",
        epilog="examples:\n"
        "  evenflow profile MODEL_DIR                                  # print the fits and their errors\n"
        "  evenflow profile MODEL_DIR --output mine.toml               # and keep them as a profile\n"
        "  evenflow replay --profile mine.toml --workload poisson_short_long --cost profiled --policy vtc,vtc-predict\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", type=Path, metavar="MODEL_DIR")
    parser.add_argument("--inputs", default="16,64,192", metavar="N,...", help="prompt lengths (16,64,192)")
    parser.add_argument("--outputs", default="8,32,64", metavar="N,...", help="output lengths (8,32,64)")
    parser.add_argument("--max-num-seqs", type=int, default=16, metavar="N", help="size of a full batch (16)")
    parser.add_argument("--max-batch-tokens", type=int, default=512, metavar="N", help="tokens computed in one step (512)")
    parser.add_argument("--memory", metavar="SIZE", help="arena, e.g. 2GiB; default: half of the free memory")
    parser.add_argument("--dtype", default="auto", help="auto, bfloat16 or float32")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="measurements of each shape, the median counts (3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was measured, the fits and their errors")
    parser.add_argument("--output", type=Path, metavar="FILE.toml", help="write a profile for `evenflow replay --profile`")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    from rich.console import Console

    from evenflow.base.errors import ConfigError
    from evenflow.base.logs import say
    from evenflow.base.progress import find_teller
    from evenflow.bench.harness import write_result
    from evenflow.bench.profile.profiling import disagreement, fit_cost, measure, profile_toml
    from evenflow.bench.profile.step_fit import fit_steps
    from evenflow.bench.replay.profiles import ServerSettings
    from evenflow.report.page import write_whole
    from evenflow.report.tables import table_terminal
    from evenflow.serving.client.llm import LLM

    inputs, outputs = _lengths("--inputs", args.inputs), _lengths("--outputs", args.outputs)
    if len(inputs) < 2 or len(outputs) < 3:
        raise ConfigError("the fit needs at least two --inputs and three --outputs")
    if args.repeats < 1:
        raise ConfigError(f"--repeats is {args.repeats}; allowed: 1 or more")
    if args.output is not None and args.output.suffix != ".toml":
        raise ConfigError(f"--output is {args.output}; allowed: a name that ends in .toml")
    for path in (args.output, args.json):
        if path is not None and not path.parent.is_dir():
            raise ConfigError(f"cannot write {path}: there is no folder {path.parent}")
    console = Console()
    options = {"dtype": args.dtype, "memory": args.memory, "max_num_seqs": args.max_num_seqs, "policy": "fcfs"}
    options["enable_prefix_caching"] = False  # every prompt is to be computed
    with LLM(args.model, max_batch_tokens=args.max_batch_tokens, **options) as llm:
        longest = max(inputs) + max(outputs)
        if longest > llm.info.max_model_len:
            raise ConfigError(f"the longest shape has {longest} tokens; the model's context is {llm.info.max_model_len}")
        batches = sorted({1, max(1, args.max_num_seqs // 4), args.max_num_seqs})
        with find_teller(say) as tell:
            points = measure(
                TimedLLM(llm),
                batches,
                inputs,
                outputs,
                repeats=args.repeats,
                progress=lambda done, total: tell("measuring shapes", done, total),
            )
        info = llm.info
    server = ServerSettings(
        name="chunked",
        pool_tokens=info.num_pages * info.page_tokens,
        page_tokens=info.page_tokens,
        max_num_seqs=args.max_num_seqs,
        max_batch_tokens=args.max_batch_tokens,
        is_exclusive=False,
    )
    cost, cost_fit = fit_cost(points)
    steps, steps_fit = fit_steps(points, server)
    rows = [[p.num_requests, p.input_tokens, p.output_tokens, 1e3 * p.prefill_s, 1e3 * p.decode_s] for p in points]
    console.print(table_terminal(["batch", "input", "output", "prefill ms", "decode ms"], rows, title="measured, per request"))
    fitted = (
        f"h(x, y) = {cost.input_ms:.4g} x + {cost.output_ms:.4g} y + {cost.product_ms:.4g} x y + "
        f"{cost.output_squared_ms:.4g} y^2 + {cost.constant_ms:.4g} ms"
    )
    error = f"{_told(cost_fit)} over {cost_fit.num_points} shapes"
    console.print(f"cost of a request at a full batch: {fitted}\n  fit: {error}", highlight=False, markup=False)
    step_error = f"{_told(steps_fit)} over {steps_fit.num_points} prefill and decode times"
    repeats_differ = f"repeats of a shape differ from their median by {100 * disagreement(points):.0f} %"
    console.print(
        f"a step: {1e3 * steps.decode_base_s:.3g} ms ({1e3 * steps.prefill_base_s:.3g} with prompt tokens) + "
        f"{1e3 * steps.decode_sequence_s:.3g} ms x sequences + {1e6 * steps.context_token_s:.3g} us x context tokens + "
        f"{1e3 * steps.prefill_token_s:.3g} ms x prompt tokens\n  fit: {step_error}; {repeats_differ}",
        highlight=False,
        markup=False,
    )
    if args.json is not None:
        parameters = {"model": args.model.name, "dtype": info.dtype, "max_num_seqs": args.max_num_seqs, "repeats": args.repeats}
        found = {
            "points": [asdict(point) for point in points],
            "cost": asdict(cost) | {"fit": asdict(cost_fit)},
            "step_time": asdict(steps) | {"fit": asdict(steps_fit)},
            "repeats_differ": disagreement(points),
            "server": asdict(server),
        }
        write_result(args.json, "profile", parameters | {"max_batch_tokens": args.max_batch_tokens}, found)
        console.print(f"wrote {args.json}", highlight=False, markup=False)
    if args.output is not None:
        comment = (
            f"measured by evenflow profile: {args.model.name}, {info.dtype}\ncost fit: {error}\nstep fit: {step_error}\n"
            f"{repeats_differ}; copying adapters was not measured"
        )
        write_whole(args.output, profile_toml(steps, server, cost, comment).encode())
        console.print(
            f"wrote {args.output}; use it with: evenflow replay --profile {args.output}", highlight=False, markup=False
        )
    return 0


class TimedLLM:
    """An engine that serves equal requests of random tokens and says how long they took."""

    def __init__(self, llm: LLM) -> None:
        self._llm = llm
        self._next_token = 1

    def run(self, num_requests: int, input_tokens: int, output_tokens: int) -> tuple[float, float]:
        """Mean (prefill, decode) seconds of a request."""
        from evenflow import SamplingParams

        prompts = [self._prompt(input_tokens) for _ in range(num_requests)]
        sampling = SamplingParams(temperature=0.0, max_tokens=output_tokens, ignore_eos=True)
        usages = [generation.usage for generation in self._llm.generate(prompts, sampling)]
        assert all(usage is not None for usage in usages)
        prefill_s = sum(usage.prefill_s for usage in usages if usage is not None) / num_requests
        decode_s = sum(usage.decode_s for usage in usages if usage is not None) / num_requests
        return prefill_s, decode_s

    def _prompt(self, num_tokens: int) -> list[int]:
        first, self._next_token = self._next_token, self._next_token + 1
        vocab = self._llm.info.vocab_size
        return [(first * 7919 + i * 104729) % vocab for i in range(num_tokens)]


def _told(fit: Fit) -> str:
    return f"off by {100 * fit.median_relative:.0f} % (median) and {100 * fit.worst_relative:.0f} % (worst)"


def _lengths(name: str, text: str) -> list[int]:
    from evenflow.base.errors import ConfigError

    try:
        lengths = sorted({int(part) for part in text.split(",")})
    except ValueError:
        lengths = [0]
    if lengths[0] < 1:
        raise ConfigError(f"{name} is {text!r}; allowed: whole numbers from 1, separated by commas")
    return lengths
