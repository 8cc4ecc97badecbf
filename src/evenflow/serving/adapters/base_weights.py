"""Weights of the base model, read tensor by tensor where an adapter's meaning depends on them: DoRA, own tables. No torch.

A tensor is read with positioned reads, never mapped, and widened to fp32. The folder is the operator's own.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np

from evenflow.serving.adapters.safetensors_arrays import widened
from evenflow.serving.adapters.tensor_names import EMBEDDING, FUSED, HEAD, USUAL_NORMS, parse_name

_LONGEST_HEADER = 100 << 20


class BaseWeights:
    """The safetensors files in a model's ``folder``, whose headers are read when a tensor is first asked for.

    ``is_tied``: embedding and head are one tensor; None: what config.json and the names of the tensors say.
    """

    def __init__(self, folder: Path, is_tied: bool | None = None) -> None:
        self._folder = folder
        self._is_tied = is_tied
        self._tensors: dict[str, tuple[Path, int, int, str, tuple[int, ...]]] | None = None
        self.was_asked = False
        """True once something was made of a weight: what was made is of this base model only."""

    @property
    def folder(self) -> Path:
        """Where the files lie."""
        return self._folder

    def for_one_read(self) -> BaseWeights:
        """The same weights, for reading one adapter: ``was_asked`` is about that one alone."""
        return BaseWeights(self._folder, self._is_tied)

    @property
    def identity(self) -> str:
        """Changes whenever the files may hold other weights: 16 hex digits."""
        states = []
        for path in self._files():
            status = path.stat()
            states.append([path.name, status.st_size, status.st_mtime_ns])
        return hashlib.sha256(json.dumps([str(self._folder.resolve()), states]).encode()).hexdigest()[:16]

    @property
    def is_tied(self) -> bool:
        """True if embedding and head are one tensor."""
        if self._is_tied is not None:
            return self._is_tied
        try:
            config = json.loads((self._folder / "config.json").read_bytes())
        except (OSError, ValueError):
            config = {}
        return bool(config.get("tie_word_embeddings", False)) or f"{HEAD}.weight" not in self._index()

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(path.stat().st_size for path in self._files())

    @property
    def largest_bytes(self) -> int:
        """Bytes of the largest tensor as stored."""
        return max((size for _, _, size, _, _ in self._index().values()), default=0)

    def weight(self, path: str) -> np.ndarray | None:
        """fp32 weight [output, input] of the module at ``path``; None if the files hold none that is a plain float matrix.

        The head of a model with tied embeddings is its embedding, and a fused linear may be asked for that the files hold
        in pieces. Raises OSError and ValueError for files that cannot be read.
        """
        return self._read(path, "weight")

    def _read(self, path: str, part: str) -> np.ndarray | None:
        self.was_asked = True
        index = self._index()
        entry = index.get(f"{path}.{part}")
        if entry is None:
            block, _, module = path.rpartition(".")
            if module in FUSED:
                pieces = [self._read(f"{block}.{piece}", part) for piece in FUSED[module]]
                return None if any(piece is None for piece in pieces) else np.concatenate([p for p in pieces if p is not None])
            return self._read(EMBEDDING, part) if path == HEAD and part == "weight" else self._piece_of_fused(path, part)
        file, begin, size, dtype, shape = entry
        with file.open("rb") as opened:
            data = os.pread(opened.fileno(), size, begin)
            while len(data) < size:
                more = os.pread(opened.fileno(), size - len(data), begin + len(data))
                if not more:
                    raise ValueError(f"{file.name} is shorter than its header says")
                data += more
        return widened(data, dtype, shape)

    def has_norm(self, layer: int, name: str) -> bool:
        """True if layer ``layer`` has a norm of this name; where no file says so, if it is one of the usual."""
        index = self._index()
        return f"model.layers.{layer}.{name}.weight" in index if index else name in USUAL_NORMS

    def bias(self, path: str) -> np.ndarray | None:
        """fp32 bias [output] of the module at ``path``; None if it has none."""
        return self._read(path, "bias")

    def _piece_of_fused(self, path: str, part: str) -> np.ndarray | None:
        """A linear's part that lies in a fused one, whose pieces are equally high: gate and up."""
        block, _, module = path.rpartition(".")
        if module not in FUSED["gate_up_proj"] or f"{block}.gate_up_proj.{part}" not in self._index():
            return None
        whole = self._read(f"{block}.gate_up_proj", part)
        if whole is None:
            return None
        half = len(whole) // 2
        return whole[:half] if module == "gate_proj" else whole[half:]

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob("*.safetensors"))

    def _index(self) -> dict[str, tuple[Path, int, int, str, tuple[int, ...]]]:
        if self._tensors is None:
            self._tensors = {}
            for file in self._files():
                with file.open("rb") as opened:
                    length = int.from_bytes(opened.read(8), "little")
                    if length > _LONGEST_HEADER:
                        raise ValueError(f"the header of {file.name} has {length} bytes")
                    header = json.loads(opened.read(length))
                for name, entry in header.items():
                    if name == "__metadata__" or entry["dtype"] not in ("F32", "F16", "BF16"):
                        continue
                    is_bias = name.endswith(".bias")
                    parsed = parse_name(name.removesuffix(".bias") + ".weight" if is_bias else name)
                    if parsed is not None:
                        begin, end = entry["data_offsets"]
                        key = f"{parsed.path}.{'bias' if is_bias else 'weight'}"
                        self._tensors[key] = (file, 8 + length + begin, end - begin, entry["dtype"], tuple(entry["shape"]))
        return self._tensors


__all__ = ["BaseWeights"]
