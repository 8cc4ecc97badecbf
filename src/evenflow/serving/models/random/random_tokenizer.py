"""A small byte-level tokenizer with a chat template, beside the random models of ``random_model``.

Every text can be encoded: 256 bytes, two special tokens, and as many merges of common English pairs
as the vocabulary has room for. Id 0 ends a text, id 1 begins one.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

END, START = "<|end|>", "<|start|>"

CHAT_TEMPLATE = (
    "{% for message in messages %}<|start|>{{ message.role }}\n{{ message.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)

_TEXT = (
    "the quick brown fox jumps over the lazy dog and then the other animals of the forest came to see what had happened "
    "there; they were all in good spirits, for it was the first day of the year on which the sun had been seen again "
)


def make_tokenizer(path: str | Path, vocab_size: int = 320) -> Tokenizer:
    """Write tokenizer.json and tokenizer_config.json into folder ``path``. At least 258 tokens."""
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END, START],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([_TEXT], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "bos_token": START,
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    return tokenizer


__all__ = ["CHAT_TEMPLATE", "END", "START", "make_tokenizer"]
