"""The models of the benchmark: small ones made from a configuration, any other from a local folder. Never a download."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from evenflow.base.errors import ModelError, RegistryError
from evenflow.mcbench.names import MODELS
from evenflow.mcbench.tasks.model_folder import model_folder


def make_model(name: str, seed: int, **sizes: int) -> nn.Module:
    """Return a built-in model with a head for its task, without dropout.

    Without labels, BERT and T5 get a head for masked words.
    ``sizes``: num_labels, vocab_size, hidden_size, num_layers, num_heads, max_length. Raises RegistryError.
    """
    if name not in MODELS:
        raise RegistryError(f"unknown model {name!r}; known: {', '.join(MODELS)}, or a folder with config.json")
    torch.manual_seed(seed)
    hidden, layers, heads = sizes.get("hidden_size", 64), sizes.get("num_layers", 4), sizes.get("num_heads", 4)
    vocab, length, labels = sizes.get("vocab_size", 256), sizes.get("max_length", 128), sizes.get("num_labels", 10)
    return _MAKERS[name](hidden, layers, heads, vocab, length, labels)


def load_model(folder: str | Path, kind: str, num_labels: int) -> nn.Module:
    """Return a model of a local folder: ``kind`` is "image", "sentences", "language" or "masked". Raises ModelError."""
    import transformers

    path = model_folder(folder)
    transformers.utils.logging.disable_progress_bar()
    auto: Any = {
        "image": transformers.AutoModelForImageClassification,
        "sentences": transformers.AutoModelForSequenceClassification,
        "language": transformers.AutoModelForCausalLM,
        "masked": transformers.AutoModelForMaskedLM,
    }[kind]
    options: dict[str, Any] = {} if kind in ("language", "masked") else {"num_labels": num_labels}
    try:
        return auto.from_pretrained(path, local_files_only=True, **options)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be loaded: {str(error).splitlines()[0]}") from error


def hidden_of(model: str) -> int:
    """Return the hidden size of a built-in model or a model folder. Raises ModelError."""
    if model in MODELS:
        config: Any = make_model(model, 0).config
        return getattr(config, "hidden_size", None) or config.d_model
    try:
        values = json.loads((Path(model) / "config.json").read_text())
        return int(values.get("hidden_size") or values["d_model"])
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{model} is no model folder with a hidden size in its config.json: {error}") from error


def _spread(hidden: int) -> float:
    """Return the standard deviation of initial weights: 0.025 at width 1024, and the same size of products at any other."""
    return 0.8 / hidden**0.5


def _vit(hidden: int, layers: int, heads: int, vocab: int, length: int, labels: int) -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=2 * hidden,
        image_size=8,
        patch_size=2,
        num_channels=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=_spread(hidden),
    )
    config.num_labels = labels
    return ViTForImageClassification(config)


def _bert(hidden: int, layers: int, heads: int, vocab: int, length: int, labels: int) -> nn.Module:
    from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification

    config = BertConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        max_position_embeddings=length,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=0,
        initializer_range=_spread(hidden),
    )
    if labels == 0:
        return BertForMaskedLM(config)
    config.num_labels = labels
    return BertForSequenceClassification(config)


def _opt(hidden: int, layers: int, heads: int, vocab: int, length: int, labels: int) -> nn.Module:
    from transformers import OPTConfig, OPTForCausalLM

    config = OPTConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        ffn_dim=4 * hidden,
        max_position_embeddings=length,
        word_embed_proj_dim=hidden,
        dropout=0.0,
        attention_dropout=0.0,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        init_std=_spread(hidden),
    )
    return OPTForCausalLM(config)


def _llama(hidden: int, layers: int, heads: int, vocab: int, length: int, labels: int) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**_decoder_sizes(hidden, layers, heads, vocab, length)))


def _qwen(hidden: int, layers: int, heads: int, vocab: int, length: int, labels: int) -> nn.Module:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    return Qwen2ForCausalLM(Qwen2Config(**_decoder_sizes(hidden, layers, heads, vocab, length)))


def _decoder_sizes(hidden: int, layers: int, heads: int, vocab: int, length: int) -> dict[str, Any]:
    return {
        "vocab_size": vocab,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": max(1, heads // 2),
        "intermediate_size": 2 * hidden,
        "max_position_embeddings": length,
        "attention_dropout": 0.0,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "initializer_range": _spread(hidden),
    }


def _t5(hidden: int, layers: int, heads: int, vocab: int, length: int, labels: int) -> nn.Module:
    from transformers import T5Config, T5EncoderModel, T5ForTokenClassification

    config = T5Config(
        vocab_size=vocab,
        d_model=hidden,
        d_kv=hidden // heads,
        d_ff=2 * hidden,
        num_layers=layers,
        num_heads=heads,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        pad_token_id=0,
        eos_token_id=1,
    )
    if labels == 0:
        config.num_labels = vocab
        return T5ForTokenClassification(config)
    return T5EncoderModel(config)


_MAKERS = {"vit-tiny": _vit, "bert-tiny": _bert, "opt-tiny": _opt, "llama-tiny": _llama, "qwen-tiny": _qwen, "t5-tiny": _t5}
