"""The weights of a GGUF file under the names of a Hugging Face folder."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import torch

from evenflow.base.errors import ModelError
from evenflow.serving.models.stored import gguf_blocks
from evenflow.serving.models.stored.gguf_file import GGUFTensor, read_gguf
from evenflow.serving.models.stored.gguf_folder import POINTER
from evenflow.serving.quant.grouped_matrix import GroupedMatrix, quantise
from evenflow.serving.quant.schemes import INT8

_LAYER = re.compile(r"blk\.(\d+)\.(.+)")
_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LEFT_OUT = ("rope_freqs.weight",)
"""What config.json says instead: see ``gguf_folder``."""


class GGUFWeights:
    """StoredWeights of the folder that ``gguf_folder`` made for a GGUF file."""

    def __init__(self, folder: Path) -> None:
        pointer = json.loads((folder / POINTER).read_text(encoding="utf-8"))
        path = Path(pointer["gguf"])
        file = read_gguf(path)
        self._path = path
        # llama.cpp turns the rows of q and k, of Llama and Mistral alone, so that rope takes neighbours.
        self._heads = {"q_proj": pointer["num_heads"], "k_proj": pointer["num_kv_heads"]} if pointer["is_turned"] else {}
        self._tensors: dict[str, GGUFTensor] = {}
        for name, tensor in file.tensors.items():
            if name not in _LEFT_OUT:
                self._tensors[_name(name)] = tensor
        self.shapes: Mapping[str, tuple[int, ...]] = {name: tensor.shape for name, tensor in self._tensors.items()}
        matrices = Counter(tensor.type for tensor in self._tensors.values() if len(tensor.shape) == 2)
        self.is_quantised = any(name in gguf_blocks.EXACT or name == "Q6_K" for name in matrices)
        said = [f"{name}{' (requantised to int8-g32)' if name == 'Q6_K' else ''} x {n}" for name, n in sorted(matrices.items())]
        self.description = f"GGUF, matrices as stored: {', '.join(said)}"

    def tensor(self, name: str) -> torch.Tensor:
        """See ``StoredWeights.tensor``."""
        value = gguf_blocks.widened(self._tensors[name])
        order = self._order(name)
        return value if order is None else value[order]

    def part(self, name: str, rows: range, columns: range | None = None) -> torch.Tensor:
        """See ``StoredWeights.part``."""
        value = self.tensor(name)[rows.start : rows.stop]
        return value if columns is None else value[:, columns.start : columns.stop]

    def grouped(self, name: str) -> GroupedMatrix | None:
        """See ``StoredWeights.grouped``. Q6_K, whose groups are of 16, is quantised anew."""
        tensor = self._tensors[name]
        if tensor.type in gguf_blocks.EXACT:
            matrix = gguf_blocks.grouped(tensor)
        elif tensor.type == "Q6_K":
            matrix = quantise(gguf_blocks.widened(tensor), INT8)
        else:
            return None
        order = self._order(name)
        if order is None:
            return matrix
        minima = None if matrix.minima_OG is None else matrix.minima_OG[order]
        return GroupedMatrix(matrix.codes_OI[order], matrix.scales_OG[order], minima, matrix.bits)

    def close(self) -> None:
        """See ``StoredWeights.close``."""
        self._tensors = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _order(self, name: str) -> torch.Tensor | None:
        """Which row of the file is each row of a q or k that was turned."""
        num_heads = self._heads.get(name.split(".")[-2]) if "." in name else None
        if num_heads is None:
            return None
        rows = self._tensors[name].shape[0]
        return torch.from_numpy(np.arange(rows).reshape(num_heads, rows // num_heads // 2, 2).swapaxes(1, 2).reshape(-1).copy())


def _name(name: str) -> str:
    found = _LAYER.fullmatch(name)
    if found is None:
        return _NAMES.get(name, name)
    module, _, kind = found[2].rpartition(".")
    if module not in _LAYER_NAMES:
        raise ModelError(f"the GGUF file has a tensor {name}, which no part of the models served here uses")
    return f"model.layers.{found[1]}.{_LAYER_NAMES[module]}.{kind}"


__all__ = ["GGUFWeights"]
