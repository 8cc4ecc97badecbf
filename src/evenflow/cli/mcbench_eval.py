"""``evenflow mcbench eval``: what compressors do to the loss of a language model of one's own."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from evenflow.cli.mcbench_output import check_folder, say, write_json


def run_eval(args: argparse.Namespace) -> int:
    """Evaluate and print the table; write the JSON after every compressor, or go on with one that is there."""
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
    path = Path(args.json) if args.json else None
    before = json.loads(path.read_text()) if path is not None and path.exists() else None

    def keep(result: dict[str, Any]) -> None:
        if path is not None:
            write_json(path, result)

    result = evaluate_language(config, say, before, keep)
    title = f"{result['tokens']} tokens, TP {config.tp}, {config.dtype}, windows of {config.length}"
    Console().print(table_terminal(*table_of(result), title=title))
    return 0


def specs_of(given: list[str]) -> tuple[str, ...]:
    """Return the SPECs of flags that may be given several times, and hold several separated by commas."""
    return tuple(spec.strip() for text in given for spec in text.split(",") if spec.strip())
