"""The two kinds of vocabularies that the supported families have, small, in ordinary folders."""

import json

import tokenizers
from tokenizers import decoders, models, normalizers, processors, trainers

from evenflow.serving.models.random.random_tokenizer import make_tokenizer

TEXT = "the quick brown fox jumps over the lazy dog, and Zoë said: »na ja« – 你好世界, добрый день"


def byte_level(folder, **config):
    """Llama 3 and Qwen: every byte is a token, merges on top."""
    make_tokenizer(folder, 400)
    _update(folder, config)


def sentencepiece(folder, **config):
    """Llama 2 and Mistral 7B: ▁ for spaces, bytes only for characters outside the vocabulary, <s> in front."""
    folder.mkdir(parents=True, exist_ok=True)
    specials = ["<unk>", "<s>", "</s>"]
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=[*specials, *(f"<0x{i:02X}>" for i in range(256))],
        limit_alphabet=60,
        show_progress=False,
    )
    backend.train_from_iterator(TEXT.split(), trainer)
    state = json.loads(backend.to_str())
    # Bytes are ordinary tokens of the vocabulary, not special ones.
    state["added_tokens"] = [t for t in state["added_tokens"] if t["content"] in specials]
    backend = tokenizers.Tokenizer.from_str(json.dumps(state))
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)])
    backend.save(str(folder / "tokenizer.json"))
    base = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**base, "clean_up_tokenization_spaces": False}))
    _update(folder, config)


def _update(folder, config):
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))


KINDS = {"byte-level": byte_level, "sentencepiece": sentencepiece}
