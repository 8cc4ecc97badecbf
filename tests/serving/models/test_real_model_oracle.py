"""SmolLM2-135M-Instruct and three adapters trained on it, as `make demo-real` leaves them, against transformers and peft.

Run with ``pytest -m slow``; skipped where the model has not been made. EVENFLOW_REAL_MODEL names another folder.
"""

import os
import warnings
from pathlib import Path

import pytest
import torch
from model_harness import Harness

from evenflow.serving.adapters.base_weights import BaseWeights
from evenflow.serving.adapters.catalog import Catalog
from evenflow.serving.models.model_config import load_config

FOLDER = Path(os.environ.get("EVENFLOW_REAL_MODEL", Path.home() / ".cache" / "evenflow" / "real-demo"))
ADAPTERS = ("glossary", "extract", "sailor")
QUESTION = "What does textwrap.dedent do?"
NUM_TOKENS = 12
FP32 = 1e-3
"""Largest difference of a logit: 30 layers, and logits up to 41 (measured: 1.0e-4)."""
BF16 = 1.5
"""The same for bf16 against fp32 (measured: 0.74; the base model alone 0.69)."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (FOLDER / "stage.json").exists(), reason="make demo-real has not been run"),
]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, FP32), (torch.bfloat16, BF16)])
def test_logits_of_a_real_model_and_its_adapters_equal_peft(dtype, tolerance):
    import peft
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, config = FOLDER / "model", load_config(FOLDER / "model")
    harness = Harness(model, config, dtype, num_pages=96)
    catalog = Catalog(harness.layout, base=BaseWeights(model))
    for slot, name in enumerate(ADAPTERS):
        harness.load(slot, *catalog.host_image(catalog.register(name, FOLDER / "adapters" / name)))
    chat = AutoTokenizer.from_pretrained(model).apply_chat_template(
        [{"role": "user", "content": QUESTION}], add_generation_prompt=True, return_dict=True
    )
    assert not isinstance(chat, str)
    prompt = list(chat["input_ids"])
    slots = [*range(len(ADAPTERS)), -1]
    outputs, logits = harness.generate([prompt] * len(slots), NUM_TOKENS, slots)
    for slot, name in enumerate([*ADAPTERS, None]):
        base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            served = base if name is None else peft.PeftModel.from_pretrained(base, FOLDER / "adapters" / name)
            expected = served(torch.tensor([prompt + outputs[slot]])).logits.float()[0, len(prompt) - 1 : -1]
        worst = float((expected - logits[slot]).abs().max())
        print(f"{name or 'base'} in {dtype}: largest difference {worst:.2e} of logits up to {float(expected.abs().max()):.0f}")
        assert worst < tolerance, name
        if dtype == torch.float32:
            assert expected.argmax(-1).tolist() == outputs[slot]
    assert len({tuple(output) for output in outputs}) == len(outputs), "each adapter must change the answer"
