"""One base model, several adapters, one batch, no server: ``evenflow.LLM``.

    python examples/offline.py

Uses the embedded model; give it any Hugging Face folder and PEFT adapters instead.
"""

from __future__ import annotations

from evenflow import LLM, SamplingParams
from evenflow.demo.assets import adapter_paths, model_path


def main() -> dict[str, str]:
    """Ask every adapter the same question; returns the answer by adapter."""
    adapters = adapter_paths()
    with LLM(model_path(), adapters=adapters, memory="64MiB") as llm:
        names: list[str | None] = [None, *adapters]
        question = "<|user|>How much do 3 honey cakes cost?<|end|><|assistant|>"
        sampling = SamplingParams(max_tokens=48, temperature=0.0)
        outputs = llm.generate([question] * len(names), sampling, adapters=names)
    answers = {name or "base": output.text for name, output in zip(names, outputs, strict=True)}
    for name, text in answers.items():
        print(f"{name:<7} {text!r}")
    return answers


if __name__ == "__main__":
    main()
