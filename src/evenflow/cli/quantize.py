"""``evenflow quantize``: write a model's folder in few bits, so that every start reads these."""

from __future__ import annotations

import argparse
import os
from pathlib import Path


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Describe the command."""
    parser = subparsers.add_parser(
        "quantize",
        help="write a model in 8 or 4 bits",
        description="Write MODEL_DIR to OUT with its matrices in few bits: an ordinary folder that `evenflow serve` takes as "
        "it is. Norms, biases and an embedding of its own stay as they are.",
        epilog="example: evenflow quantize MODEL_DIR OUT --scheme int4-g32",
    )
    parser.add_argument("model", type=Path, metavar="MODEL_DIR", help="folder of a model, or a GGUF file with float16 weights")
    parser.add_argument("out", type=Path, metavar="OUT", help="a folder that is not there yet")
    parser.add_argument("--scheme", default="int8", metavar="NAME", help="int8, int4, int4-g32 or int4-g32-min (int8)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    from evenflow.base.logs import say
    from evenflow.base.memory_size import format_size
    from evenflow.base.progress import find_teller
    from evenflow.serving.client.environment import default_adapter_cache
    from evenflow.serving.models.quantised_folder import write_quantised
    from evenflow.serving.models.stored.gguf_folder import model_folder

    folder = model_folder(args.model, default_adapter_cache(os.environ).parent / "gguf")
    with find_teller(say) as tell:
        before, after = write_quantised(folder, args.out, args.scheme, tell)
    say(f"{args.out}: {format_size(after)} of weights, {format_size(before)} before")
    return 0
