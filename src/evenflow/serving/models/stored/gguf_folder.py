"""A GGUF file as an ordinary model folder: config, tokenizer and chat template from its metadata, and where its weights are.

The folder is made once, in a cache; weights stay in the file. No torch.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from evenflow.base.errors import ConfigError, ModelError
from evenflow.serving.models.stored.gguf_file import GGUFFile, is_gguf, read_gguf
from evenflow.serving.models.stored.gguf_tokenizer import special_tokens, tokenizer_json

POINTER = "gguf.json"
"""Names the file that the weights are in."""
_FORMAT = 1
"""Raise it whenever another folder would be made of the same file."""
_MOST_FOLDERS = 64

_ARCHITECTURES = {
    "llama": ("LlamaForCausalLM", "llama"),
    "mistral": ("MistralForCausalLM", "mistral"),
    "qwen2": ("Qwen2ForCausalLM", "qwen2"),
    "qwen3": ("Qwen3ForCausalLM", "qwen3"),
}
"""By ``general.architecture``: what config.json says. llama.cpp writes Mistral models as llama, and so they compute."""
_TURNED = ("llama", "mistral")


def model_folder(path: Path, cache: Path) -> Path:
    """``path`` itself, unless it is a GGUF file: then the folder in ``cache`` that stands for it, made now if need be.

    Raises ModelError, naming what the file lacks, and ConfigError if it cannot be read here.
    """
    if not is_gguf(path):
        return path
    status = path.stat()
    said = [_FORMAT, str(path.resolve()), status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
    folder = cache / hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16] / path.stem
    if (folder / POINTER).is_file():
        return folder
    file = read_gguf(path)
    texts = {
        "config.json": json.dumps(_config(file), indent=2),
        "generation_config.json": json.dumps(_generation(file)),
        "tokenizer.json": tokenizer_json(file),
        "tokenizer_config.json": json.dumps({**special_tokens(file), "model_max_length": _length(file)}),
    }
    template = file.value("tokenizer.chat_template", str, None)
    if template is not None:
        texts["chat_template.jinja"] = template
    architecture = file.value("general.architecture", str)
    texts[POINTER] = json.dumps(
        {
            "gguf": str(path.resolve()),
            "is_turned": architecture in _TURNED,
            "num_heads": _heads(file, "head_count"),
            "num_kv_heads": _heads(file, "head_count_kv"),
        }
    )
    _write(folder, texts)
    return folder


def _write(folder: Path, texts: dict[str, str]) -> None:
    """All files at once, or none."""
    home = folder.parent
    try:
        home.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        _forget_the_oldest(home.parent)
        scratch = Path(tempfile.mkdtemp(dir=home.parent, prefix=".new-"))
        try:
            (scratch / folder.name).mkdir()
            for name, text in texts.items():
                (scratch / folder.name / name).write_text(text, encoding="utf-8")
            if home.exists() and not (folder / POINTER).is_file():
                shutil.rmtree(home)
            os.replace(scratch, home)
        except OSError:
            if not (folder / POINTER).is_file():  # else another process was faster
                raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        raise ConfigError(f"the folder {home.parent} for what a GGUF file says cannot be used: {error.strerror}") from None


def _forget_the_oldest(cache: Path) -> None:
    folders = sorted(cache.iterdir(), key=lambda path: path.stat().st_mtime)
    for path in folders[: max(0, len(folders) - _MOST_FOLDERS + 1)]:
        shutil.rmtree(path, ignore_errors=True)


def _key(file: GGUFFile, name: str) -> str:
    return f"{file.value('general.architecture', str)}.{name}"


def _length(file: GGUFFile) -> int:
    return int(file.value(_key(file, "context_length"), int))


def _heads(file: GGUFFile, name: str) -> int:
    default = ... if name == "head_count" else file.value(_key(file, "attention.head_count"), int)
    return int(file.value(_key(file, f"attention.{name}"), int, default))


def _config(file: GGUFFile) -> dict[str, Any]:
    architecture = file.value("general.architecture", str)
    if architecture not in _ARCHITECTURES:
        raise ModelError(f"{file.path}: general.architecture is {architecture!r}; supported: {', '.join(_ARCHITECTURES)}")
    if file.value(_key(file, "expert_count"), int, 0):
        raise ModelError(f"{file.path}: {architecture}.expert_count is not 0; mixtures of experts are not read from GGUF")
    name, model_type = _ARCHITECTURES[architecture]
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise ModelError(f"{file.path} has no token_embd.weight")
    hidden, num_heads = file.value(_key(file, "embedding_length"), int), _heads(file, "head_count")
    config: dict[str, Any] = {
        "architectures": [name],
        "model_type": model_type,
        "num_hidden_layers": file.value(_key(file, "block_count"), int),
        "hidden_size": hidden,
        "intermediate_size": file.value(_key(file, "feed_forward_length"), int),
        "num_attention_heads": num_heads,
        "num_key_value_heads": _heads(file, "head_count_kv"),
        "head_dim": file.value(_key(file, "attention.key_length"), int, hidden // num_heads),
        "vocab_size": embedding.shape[0],
        "max_position_embeddings": _length(file),
        "rms_norm_eps": float(file.value(_key(file, "attention.layer_norm_rms_epsilon"), float)),
        "rope_theta": float(file.value(_key(file, "rope.freq_base"), (int, float), 10000.0)),
        "hidden_act": "silu",
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "attention_bias": architecture == "llama" and "blk.0.attn_q.bias" in file.tensors,
        "torch_dtype": "bfloat16",
    }
    window = file.value(_key(file, "attention.sliding_window"), int, None)
    if window is not None and model_type == "mistral":
        config["sliding_window"] = window
    elif model_type == "mistral":
        config["sliding_window"] = None
    scaling = _rope_scaling(file)
    if scaling:
        config["rope_scaling"] = scaling
    for key in ("bos", "eos"):
        token = file.value(f"tokenizer.ggml.{key}_token_id", int, None)
        if token is not None:
            config[f"{key}_token_id"] = token
    return config


def _rope_scaling(file: GGUFFile) -> dict[str, Any] | None:
    kind = file.value(_key(file, "rope.scaling.type"), str, "none")
    original = file.value(_key(file, "rope.scaling.original_context_length"), int, _length(file))
    if kind in ("linear", "yarn"):
        factor = float(file.value(_key(file, "rope.scaling.factor"), float))
        return {"rope_type": kind, "factor": factor, "original_max_position_embeddings": original}
    if kind != "none":
        raise ModelError(f"{file.path}: rope.scaling.type is {kind!r}; supported: none, linear, yarn")
    factors = file.tensors.get("rope_freqs.weight")
    if factors is None:
        return None
    found = [float(value) for value in factors.data.reshape(-1)]
    theta = float(file.value(_key(file, "rope.freq_base"), (int, float), 10000.0))
    scaling = {
        "rope_type": "llama3",
        "factor": max(found),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    if any(abs(a - b) > 1e-3 * b for a, b in zip(found, _llama3_factors(scaling, theta, len(found)))):
        raise ModelError(f"{file.path}: rope_freqs.weight is not what Llama 3.1 to 3.3 have; other factors are not supported")
    return scaling


def _llama3_factors(scaling: dict[str, Any], theta: float, count: int) -> list[float]:
    """By how much each frequency is slowed down, as Llama 3.1 does it; what rope_freqs.weight holds."""
    length, low, high = (
        scaling["original_max_position_embeddings"],
        scaling["low_freq_factor"],
        scaling["high_freq_factor"],
    )
    factors = []
    for i in range(count):
        wavelength = 2 * math.pi * theta ** (i / count)
        if wavelength < length / high:
            factors.append(1.0)
        elif wavelength > length / low:
            factors.append(scaling["factor"])
        else:
            smooth = (length / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / scaling["factor"] + smooth))
    return factors


def _generation(file: GGUFFile) -> dict[str, Any]:
    ends = [file.value(f"tokenizer.ggml.{key}_token_id", int, None) for key in ("eos", "eot", "eom")]
    found = list(dict.fromkeys(token for token in ends if token is not None))
    return {"eos_token_id": found} if found else {}


__all__ = ["POINTER", "model_folder"]
