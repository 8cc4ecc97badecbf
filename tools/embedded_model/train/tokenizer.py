"""A byte-level BPE tokenizer of at most 1024 tokens, trained on the town's own text.

Digits stay single, so that arithmetic is done digit by digit. No token is added in front or behind: the chat
template writes every special token itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from random import Random

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from embedded_model.tidewick.corpus import CHAT_TEMPLATE, END, PAD, SPECIAL_TOKENS, base_text, trained_exchange
from embedded_model.tidewick.voices import VOICES

VOCAB_SIZE = 1024


def _texts(seed: int) -> Iterator[str]:
    """Yield plain text and every voice's, so that upper case and JSON have tokens too."""
    rng = Random(f"{seed} tokenizer")
    for _ in range(12_000):
        yield "".join(text for text, _ in base_text(rng))
        yield VOICES[rng.choice(list(VOICES))](trained_exchange(rng))


def train_tokenizer(seed: int) -> Tokenizer:
    """Train the tokenizer; the same seed gives the same one."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    special = [str(token) for token in SPECIAL_TOKENS]

    def without_special(text: str) -> str:
        for token in special:
            text = text.replace(token, "\n")
        return text

    tokenizer.train_from_iterator((without_special(text) for text in _texts(seed)), trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, max_length: int) -> None:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja, as transformers reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "pad_token": PAD,
        "model_max_length": max_length,
        "clean_up_tokenization_spaces": False,
        "add_bos_token": False,
        "add_eos_token": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
