"""Write the questions that the demo's clients ask: ``python -m embedded_model.train.question_file FILE``.

The demo ships a file of questions, not the corpus they are drawn from. Every question was free to be trained on, and
kinds of questions come as often as the corpus draws them, so some questions are in the file more than once.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from random import Random

from embedded_model.tidewick.corpus import trained_exchange

NUM_QUESTIONS = 2000
SEED = 7


def question_file() -> str:
    """Return the text of ``demo/assets/questions.json``: seed and questions, equal on every machine."""
    rng = Random(f"{SEED} questions")
    questions = [trained_exchange(rng).question for _ in range(NUM_QUESTIONS)]
    return json.dumps({"seed": SEED, "questions": questions}, indent=0) + "\n"


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path, metavar="FILE")
    parser.parse_args().path.write_text(question_file())


if __name__ == "__main__":
    main()
