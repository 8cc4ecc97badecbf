"""What quantisation does to models, on the text of Python's language reference: perplexity, divergence, agreement.

    python benchmarks/recipes/quality.py --model DIR --json quality.json

Without --model it is the embedded model. The text is ``pydoc_data.topics``, which every Python brings along.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
from dataclasses import asdict
from pathlib import Path

from evenflow.base.openmp import share_openmp, start_numba_threads

FORMS = ("int8", "int4-g32", "int4-g32-min")


def reference_text() -> str:
    """All topics of the language reference, by name."""
    from pydoc_data.topics import topics

    return "\n\n".join(text for _, text in sorted(topics.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", type=Path, help="folder of a model; default: the embedded one")
    parser.add_argument("--length", type=int, default=512, help="tokens of a window")
    parser.add_argument("--tokens", type=int, default=4096, help="tokens, whole windows")
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    share_openmp()
    from evenflow.base.progress import find_teller
    from evenflow.bench.harness import write_result
    from evenflow.bench.quality.comparison import compare, windows_of
    from evenflow.bench.quality.scored_model import ModelChoice
    from evenflow.demo.assets import model_path
    from evenflow.serving.client.environment import default_adapter_cache
    from evenflow.serving.text import Tokenizer

    start_numba_threads()
    folder = args.model or model_path()
    text = reference_text()
    windows = windows_of(Tokenizer.from_folder(folder).encode(text, add_special_tokens=False), args.length, args.tokens)
    cache = default_adapter_cache(os.environ).parent / "quantised"
    with find_teller(print) as tell:
        forms = [ModelChoice(folder, form) for form in FORMS]
        rows = compare(ModelChoice(folder), forms, windows, cache_folder=cache, tell=tell)
    for row in rows:
        print(row)
    parameters = {
        "model": folder.name,
        "text": "pydoc_data.topics",
        "python": platform.python_version(),
        "text_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "length": args.length,
        "windows": len(windows),
    }
    write_result(args.json, "quality", parameters, {"rows": [asdict(row) for row in rows]})


if __name__ == "__main__":
    main()
