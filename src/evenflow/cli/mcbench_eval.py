"""``evenflow mcbench eval``: what compressors do to the loss of a language model of one's own."""

from __future__ import annotations

import argparse

from evenflow.cli.mcbench_output import check_folder, say, write_json


def run_eval(args: argparse.Namespace) -> int:
    """Evaluate, print the table, write the JSON; return the exit status."""
    from rich.console import Console

    from evenflow.mcbench.runs.language_eval import DEFAULT_EVALUATED, LanguageEval, evaluate_language, table_of
    from evenflow.report.tables import table_terminal

    check_folder(args.json)
    config = LanguageEval(
        model=args.model,
        text=args.text,
        tp=args.tp,
        compress=specs_of(args.compress) or DEFAULT_EVALUATED,
        layers=args.layers,
        modules=args.modules,
        dtype=args.dtype,
        length=args.length,
        tokens=args.tokens,
        batch=args.batch,
        threads=args.threads,
    )
    result = evaluate_language(config, say)
    if args.json:
        write_json(args.json, result)
    title = f"{result['tokens']} tokens, TP {config.tp}, {config.dtype}, windows of {config.length}"
    Console().print(table_terminal(*table_of(result), title=title))
    return 0


def specs_of(given: list[str]) -> tuple[str, ...]:
    """Return the SPECs of flags that may be given several times, and hold several separated by commas."""
    return tuple(spec.strip() for text in given for spec in text.split(",") if spec.strip())
