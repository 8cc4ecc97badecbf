"""GGUF files of small random models, written as llama.cpp's converter writes them."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.torch import load_file

from evenflow.serving.models.model_config import load_config
from evenflow.serving.text import Tokenizer

SIZES = {"hidden_size": 64, "intermediate_size": 96, "eos_token_id": 2, "bos_token_id": 1}

_MODULES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    """The name that llama.cpp gives to a tensor of a Hugging Face folder."""
    fixed = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    if name in fixed or name == "lm_head.weight":
        return fixed.get(name, "output.weight")
    _, _, layer, *module, kind = name.split(".")
    return f"blk.{layer}.{_MODULES['.'.join(module)]}.{kind}"


def turned(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """Rows of q or k as llama.cpp's converter turns them (``permute`` of convert_hf_to_gguf.py)."""
    rows = len(weight)
    return weight.reshape(num_heads, 2, rows // num_heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(
    folder: Path, path: Path, type_of, *, architecture: str = "llama", template: str | None = None, **metadata
) -> None:
    """Write the model in ``folder`` to ``path``. ``type_of``: GGUF type by the tensor's GGUF name, for matrices."""
    config, tensors = load_config(folder), load_file(folder / "model.safetensors")
    shape = config.shape
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(shape.hidden_size)
    writer.add_block_count(shape.num_layers)
    writer.add_feed_forward_length(shape.intermediate_size)
    writer.add_head_count(shape.num_heads)
    writer.add_head_count_kv(shape.num_kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    tokenizer = Tokenizer.from_folder(folder)
    model = json.loads(tokenizer.json_text())["model"]
    tokens = [token for token, _ in sorted(model["vocab"].items(), key=lambda item: item[1])]
    tokens += [f"<unused{i}>" for i in range(len(tokens), shape.vocab_size)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    special = {entry["content"] for entry in json.loads(tokenizer.json_text())["added_tokens"]}
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    writer.add_token_merges([" ".join(merge) if isinstance(merge, list) else merge for merge in model["merges"]])
    writer.add_eos_token_id(2)
    writer.add_bos_token_id(1)
    if template is not None:
        writer.add_chat_template(template)
    for name, value in metadata.items():
        getattr(writer, f"add_{name}")(value)
    for name, tensor in tensors.items():
        value = tensor.float().numpy()
        if architecture == "llama" and name.split(".")[-2] in ("q_proj", "k_proj"):
            value = turned(value, shape.num_heads if "q_proj" in name else shape.num_kv_heads)
        new = gguf_name(name)
        kind = gguf.GGMLQuantizationType[type_of(new)] if tensor.ndim == 2 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(new, gguf.quants.quantize(value, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def dequantised(path: Path, folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of the file as the gguf package takes them apart, under the names of ``folder``."""
    config = load_config(folder)
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    found = {}
    for name, shape in {n: t.shape for n, t in load_file(folder / "model.safetensors").items()}.items():
        tensor = stored[gguf_name(name)]
        value = np.array(gguf.quants.dequantize(tensor.data, tensor.tensor_type)).reshape(shape)
        if config.architecture == "LlamaForCausalLM" and name.split(".")[-2] in ("q_proj", "k_proj"):
            num_heads = config.shape.num_heads if "q_proj" in name else config.shape.num_kv_heads
            rows = len(value)
            value = value.reshape(num_heads, rows // num_heads // 2, 2, *value.shape[1:]).swapaxes(1, 2).reshape(value.shape)
        found[name] = torch.from_numpy(np.ascontiguousarray(value)).float()
    return found
