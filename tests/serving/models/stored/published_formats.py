"""Folders in the published quantised forms, written from the descriptions of their makers, with what they mean.

Each writer takes a plain matrix, stores something near it, and returns the tensors and the exact meaning of what it stored:
w = scale (code - zero), or a table's number times a scale. GPTQ: AutoGPTQ's ``pack``; AWQ: llm-awq's ``gemm_pack`` order;
compressed-tensors: its ``pack_to_int32``; FP8: DeepSeek-V3's weight_scale_inv; NF4: QLoRA's appendix E, and
bitsandbytes' QuantState.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from evenflow.serving.models.random.random_model import make_model

Stored = tuple[dict[str, torch.Tensor], torch.Tensor]


def pack_words(codes: torch.Tensor, bits: int, dim: int, order=None) -> torch.Tensor:
    """Whole numbers into int32, along ``dim``; ``order``: number of the entry that the i-th field of a word holds."""
    per_word = 32 // bits
    moved = codes.movedim(dim, -1).to(torch.int64)
    moved = torch.nn.functional.pad(moved, (0, -moved.shape[-1] % per_word)).unflatten(-1, (-1, per_word))
    words = torch.zeros(moved.shape[:-1], dtype=torch.int64)
    for field in range(per_word):
        words |= moved[..., order[field] if order else field] << (bits * field)
    words = torch.where(words >= 1 << 31, words - (1 << 32), words)
    return words.to(torch.int32).movedim(-1, dim).contiguous()


def affine(weight: torch.Tensor, bits: int, group: int, symmetric: bool, g_idx=None):
    """Codes [O, I], scales [O, G] in half precision, zeros [O, G], and what they mean."""
    outputs, inputs = weight.shape
    size = inputs if group == -1 else group
    g_idx = torch.arange(inputs) // size if g_idx is None else g_idx
    num_groups, top = inputs // size, (1 << bits) - 1
    scales, zeros = torch.empty(outputs, num_groups), torch.empty(outputs, num_groups, dtype=torch.int64)
    for g in range(num_groups):
        part = weight[:, g_idx == g]
        low, high = part.amin(1).clamp_max(0), part.amax(1).clamp_min(0)
        scales[:, g] = (2 * part.abs().amax(1) if symmetric else high - low) / top
        zeros[:, g] = (top + 1) // 2 if symmetric else (-low / scales[:, g]).round().clamp(1, top)
    scales = scales.half().float()
    codes = (weight / scales[:, g_idx] + zeros[:, g_idx]).round().clamp(0, top).long()
    return codes, scales, zeros, g_idx, (codes - zeros[:, g_idx]) * scales[:, g_idx]


def gptq(weight, bits=4, group=32, symmetric=True, act_order=False, v2=False) -> Stored:
    g_idx = None
    if act_order:
        g_idx = torch.randperm(weight.shape[1], generator=torch.Generator().manual_seed(1)) // group
    codes, scales, zeros, g_idx, meaning = affine(weight, bits, group, symmetric, g_idx)
    tensors = {
        "qweight": pack_words(codes.T, bits, 0),
        "qzeros": pack_words(zeros.T - (0 if v2 else 1), bits, 1),
        "scales": scales.T.half().contiguous(),
        "g_idx": g_idx.to(torch.int32),
    }
    return tensors, meaning


def awq(weight, group=32) -> Stored:
    codes, scales, zeros, _, meaning = affine(weight, 4, group, False)
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    tensors = {
        "qweight": pack_words(codes.T, 4, 1, order),
        "qzeros": pack_words(zeros.T, 4, 1, order),
        "scales": scales.T.half().contiguous(),
    }
    return tensors, meaning


def packed_compressed(weight, bits=4, group=32, symmetric=True) -> Stored:
    codes, scales, zeros, _, _ = affine(weight, bits, group, symmetric)
    tensors = {
        "weight_packed": pack_words(codes, bits, 1),
        "weight_scale": scales.bfloat16(),
        "weight_shape": torch.tensor(weight.shape),
    }
    exact = scales.bfloat16().float().repeat_interleave(weight.shape[1] // scales.shape[1], 1)
    offsets = zeros.repeat_interleave(weight.shape[1] // scales.shape[1], 1)
    if not symmetric:
        tensors["weight_zero_point"] = pack_words(zeros, bits, 0)
    return tensors, (codes - offsets) * exact


def int_compressed(weight) -> Stored:
    scale = weight.abs().amax(1, keepdim=True) / 127
    codes = (weight / scale).round().to(torch.int8)
    return {"weight": codes, "weight_scale": scale}, codes.float() * scale


def float_compressed(weight) -> Stored:
    scale = weight.abs().amax(1, keepdim=True) / 448
    codes = (weight / scale).to(torch.float8_e4m3fn)
    return {"weight": codes, "weight_scale": scale, "input_scale": torch.tensor(1.0)}, codes.float() * scale


def fp8_blocks(weight, block=128) -> Stored:
    outputs, inputs = weight.shape
    scale = torch.empty(-(-outputs // block), -(-inputs // block))
    meaning, codes = torch.empty_like(weight), torch.empty(weight.shape, dtype=torch.float8_e4m3fn)
    for i in range(scale.shape[0]):
        for j in range(scale.shape[1]):
            at = slice(i * block, (i + 1) * block), slice(j * block, (j + 1) * block)
            scale[i, j] = weight[at].abs().max() / 448
            codes[at] = (weight[at] / scale[i, j]).to(torch.float8_e4m3fn)
            meaning[at] = codes[at].float() * scale[i, j]
    return {"weight": codes, "weight_scale_inv": scale}, meaning


def fp8_tensor(weight) -> Stored:
    scale = weight.abs().max() / 448
    codes = (weight / scale).to(torch.float8_e4m3fn)
    return {"weight": codes, "weight_scale": scale}, codes.float() * scale


NF4 = [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334]
NF4 += [-0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224]
NF4 += [0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0]


def nf4(weight, nested=True, blocksize=64) -> Stored:
    table, flat = torch.tensor(NF4), weight.flatten()
    blocks = torch.nn.functional.pad(flat, (0, -len(flat) % blocksize)).view(-1, blocksize)
    absmax = blocks.abs().amax(1)
    state = {"quant_type": "nf4", "blocksize": blocksize, "dtype": "bfloat16", "shape": list(weight.shape)}
    tensors = {"weight.quant_map": table}
    if nested:
        nested_table, offset = torch.linspace(-1, 1, 256), absmax.mean()
        of_blocks = torch.nn.functional.pad(absmax - offset, (0, -len(absmax) % 256)).view(-1, 256)
        largest = of_blocks.abs().amax(1)
        codes = ((of_blocks / largest[:, None]).unsqueeze(-1) - nested_table).abs().argmin(-1).flatten()[: len(absmax)]
        absmax = nested_table[codes] * largest.repeat_interleave(256)[: len(absmax)] + offset
        tensors |= {"weight.absmax": codes.to(torch.uint8), "weight.nested_absmax": largest}
        tensors["weight.nested_quant_map"] = nested_table
        state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": float(offset)}
        absmax = nested_table[codes] * largest.repeat_interleave(256)[: len(absmax)] + float(offset)
    else:
        tensors["weight.absmax"] = absmax
    codes = ((blocks / absmax[:, None]).unsqueeze(-1) - table).abs().argmin(-1).flatten()[: len(flat)]
    tensors["weight"] = ((codes[::2] << 4) | codes[1::2]).to(torch.uint8).unsqueeze(1)
    text = json.dumps(state).encode()
    tensors["weight.quant_state.bitsandbytes__nf4"] = torch.tensor(list(text), dtype=torch.uint8)
    return tensors, (table[codes] * absmax.repeat_interleave(blocksize)[: len(flat)]).view(weight.shape)


def int8_rows(weight) -> Stored:
    largest = weight.abs().amax(1)
    codes = (weight * 127 / largest[:, None]).round().to(torch.int8)
    return {"weight": codes, "SCB": largest, "weight_format": torch.tensor(0, dtype=torch.uint8)}, codes.float() * (
        largest / 127
    )[:, None]


def write_folder(folder: Path, store, quantization_config, **changes) -> dict[str, torch.Tensor]:
    """A small model whose linears are stored by ``store``; returns what every tensor means."""
    make_model(folder, hidden_size=128, intermediate_size=192, **changes)
    tensors, meaning, written = load_file(folder / "model.safetensors"), {}, {}
    for name, value in tensors.items():
        if name.endswith("_proj.weight"):
            parts, meaning[name] = store(value.float())
            written |= {f"{name.removesuffix('.weight')}.{kind}": part.contiguous() for kind, part in parts.items()}
        else:
            written[name] = meaning[name] = value
    save_file(written, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": quantization_config}))
    return meaning
