"""Training one adapter with peft: a few dozen steps on lessons made from the standard library, on the processor."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from real_model.lessons import LESSONS, Lesson, functions

KINDS: dict[str, dict[str, Any]] = {
    "glossary": {"r": 8, "lora_alpha": 16, "target_modules": "all-linear"},
    "extract": {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj", "o_proj"], "use_dora": True},
    "sailor": {"r": 16, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj", "lm_head"], "use_rslora": True},
}
"""Three kinds of adapter: plain LoRA, DoRA, and LoRA on the output head."""
STEPS, BATCH, RATE, SEED = 40, 4, 2e-3, 7
_MOST_TOKENS = 160
_IGNORED = -100
"""Label of tokens that are not learned: those of the question, and padding."""


def train(model_folder: Path, name: str, folder: Path, steps: int = STEPS) -> dict[str, float]:
    """Train the adapter ``name`` and save it as peft does. Returns seconds, and the mean loss of the first and last steps."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(SEED)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    base = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.bfloat16)
    model = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", **KINDS[name]))
    lessons = [LESSONS[name](function) for function in functions()[0]]
    order = random.Random(SEED)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RATE)
    losses: list[float] = []
    began = time.monotonic()
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / 5) * (1 - step / steps)
        ids, labels = _batch(tokenizer, order.sample(lessons, BATCH))
        loss = model(input_ids=torch.tensor(ids), labels=torch.tensor(labels)).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
        if step % 10 == 0:
            print(f"{name}: step {step + 1} of {steps}, loss {losses[-1]:.2f}", flush=True)
    # The head is the base model's own: saving it again would make the file thirty times as large.
    model.save_pretrained(folder, save_embedding_layers=False)
    few = max(1, len(losses) // 6)
    return {"seconds": time.monotonic() - began, "first_loss": _mean(losses[:few]), "last_loss": _mean(losses[-few:])}


def _batch(tokenizer: Any, lessons: Sequence[Lesson]) -> tuple[list[list[int]], list[list[int]]]:
    """Token ids and labels, padded at the end: the answer alone is learned."""
    rows = []
    for lesson in lessons:
        question = tokenizer.apply_chat_template(
            [{"role": "user", "content": lesson.question}], add_generation_prompt=True, tokenize=False
        )
        asked = tokenizer(question, add_special_tokens=False)["input_ids"]
        answer = tokenizer(lesson.answer + "<|im_end|>", add_special_tokens=False)["input_ids"]
        rows.append(((asked + answer)[:_MOST_TOKENS], ([_IGNORED] * len(asked) + answer)[:_MOST_TOKENS]))
    width = max(len(ids) for ids, _ in rows)
    ids = [row + [tokenizer.eos_token_id] * (width - len(row)) for row, _ in rows]
    return ids, [labels + [_IGNORED] * (width - len(labels)) for _, labels in rows]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


__all__ = ["KINDS", "STEPS", "train"]
