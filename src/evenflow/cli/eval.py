"""``evenflow eval``: how near a model is to another on text: perplexity, divergence, greedy agreement."""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict
from pathlib import Path


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Describe the command."""
    parser = subparsers.add_parser(
        "eval",
        help="what quantisation does to a model: perplexity, divergence, agreement on a text",
        description="Compare models on a text, token by token, with the kernels that serve. The reference is OTHER, or the "
        "model itself unquantised; both must have one vocabulary.",
        epilog="examples:\n"
        "  evenflow eval MODEL_DIR --quantization int8,int4 --texts FILE\n"
        "  evenflow eval model.Q4_K_M.gguf --against MODEL_DIR --texts FILE --json quality.json\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", type=Path, metavar="MODEL_DIR", help="folder of a model, or a GGUF file")
    parser.add_argument("--against", type=Path, metavar="OTHER", help="the reference; default: MODEL_DIR, unquantised")
    parser.add_argument(
        "--quantization", default="none", metavar="NAME,...", help="forms of MODEL_DIR to try, e.g. int8,int4 (none)"
    )
    parser.add_argument("--texts", type=Path, required=True, metavar="FILE", help="UTF-8 text")
    parser.add_argument("--length", type=int, default=512, metavar="N", help="tokens of a window (512)")
    parser.add_argument("--tokens", type=int, default=16384, metavar="N", help="tokens of the text, whole windows (16384)")
    parser.add_argument("--dtype", default="auto", help="auto, bfloat16 or float32")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    from rich.console import Console

    from evenflow.base.errors import ConfigError
    from evenflow.base.logs import say
    from evenflow.base.openmp import share_openmp, start_numba_threads
    from evenflow.base.progress import find_teller

    share_openmp()
    from evenflow.bench.harness import write_result
    from evenflow.bench.quality.comparison import compare, windows_of
    from evenflow.bench.quality.scored_model import ModelChoice
    from evenflow.report.tables import table_terminal
    from evenflow.serving.client.environment import default_adapter_cache
    from evenflow.serving.models.stored.gguf_folder import model_folder
    from evenflow.serving.text import Tokenizer

    if args.length < 2:
        raise ConfigError(f"--length is {args.length}; allowed: 2 or more")
    try:
        text = args.texts.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"--texts {args.texts} cannot be read: {error}") from None
    start_numba_threads()
    cache = default_adapter_cache(os.environ).parent
    folder = model_folder(args.model, cache / "gguf")
    forms = [name.strip() for name in args.quantization.split(",") if name.strip()]
    if args.against is None:
        reference, forms = ModelChoice(folder, "none", args.dtype), [form for form in forms if form != "none"]
    else:
        reference = ModelChoice(model_folder(args.against, cache / "gguf"), "none", args.dtype)
    if not forms:
        raise ConfigError("nothing to compare; give --against OTHER, or --quantization int8,int4")
    token_ids = Tokenizer.from_folder(reference.folder).encode(text, add_special_tokens=False)
    windows = windows_of(token_ids, args.length, args.tokens)
    others = [ModelChoice(folder, form, args.dtype) for form in forms]
    console = Console()
    with find_teller(say) as tell:
        rows = compare(reference, others, windows, cache_folder=cache / "quantised", tell=tell)
    header = ["model", "perplexity", "ratio", "KL", "KL 99 %", "agreement"]
    cells = [
        [
            r.label,
            f"{r.perplexity:.3f}",
            f"{r.perplexity_ratio:.4f}",
            f"{r.kl:.5f}",
            f"{r.kl_99:.4f}",
            f"{100 * r.agreement:.2f} %",
        ]
        for r in rows
    ]
    console.print(table_terminal(header, cells))
    console.print(f"{rows[0].num_tokens} predictions of {args.texts.name}, in windows of {args.length}")
    if args.json is not None:
        parameters = {"texts": args.texts.name, "length": args.length, "tokens": args.tokens, "reference": reference.label}
        write_result(args.json, "quality", parameters, {"rows": [asdict(row) for row in rows]})
    return 0
