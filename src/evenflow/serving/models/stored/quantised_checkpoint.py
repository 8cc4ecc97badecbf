"""The safetensors of a folder whose config has a ``quantization_config``, as if its matrices were ordinary tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from evenflow.base.errors import ModelError
from evenflow.serving.models.checkpoint import Checkpoint
from evenflow.serving.models.stored import affine_formats, float_formats
from evenflow.serving.models.stored.quantization_config import QuantizationConfig
from evenflow.serving.quant.grouped_matrix import GroupedMatrix

_MARKS = {
    "gptq": ("qweight",),
    "awq": ("qweight",),
    "compressed-tensors": ("weight_packed", "weight_scale"),
    "fp8": ("weight_scale_inv", "weight_scale"),
    "bitsandbytes": ("weight.absmax", "SCB"),
    "evenflow": ("codes4", "codes8"),
}
"""Names of which one says that a module is quantised."""

_BELONGINGS = (
    *("qweight", "qzeros", "scales", "g_idx", "weight_packed", "weight_scale", "weight_zero_point", "weight_shape"),
    *("weight_g_idx", "weight_scale_inv", "input_scale", "SCB", "weight_format", "codes4", "codes8", "minima"),
    *("weight.absmax", "weight.quant_map", "weight.nested_absmax", "weight.nested_quant_map"),
    *("weight.quant_state.bitsandbytes__nf4", "weight.quant_state.bitsandbytes__fp4"),
)
"""What a quantised module may have beside ``weight`` and ``bias``."""


class QuantisedCheckpoint:
    """StoredWeights of such a folder."""

    is_quantised = True

    def __init__(self, folder: Path, config: QuantizationConfig) -> None:
        self._config = config
        self._files = Checkpoint(folder)
        try:
            self._modules = self._find_modules()
            self.shapes: Mapping[str, tuple[int, ...]] = self._find_shapes()
            self.description = self._describe()
        except BaseException:
            self.close()
            raise

    def _find_modules(self) -> set[str]:
        marks = _MARKS[self._config.method]
        found = {name.removesuffix(f".{mark}") for name in self._files.shapes for mark in marks if name.endswith(f".{mark}")}
        if not found:
            raise ModelError(f"the config says {self._config.method}, and no tensor is quantised so")
        return found

    def _find_shapes(self) -> dict[str, tuple[int, ...]]:
        belongings = {f"{module}.{kind}" for module in self._modules for kind in _BELONGINGS}
        shapes = {name: shape for name, shape in self._files.shapes.items() if name not in belongings}
        for module in self._modules:
            shapes[f"{module}.weight"] = self._shape(module)
        return shapes

    def _shape(self, module: str) -> tuple[int, ...]:
        method, found = self._config.method, self._files.shapes
        if method == "gptq":
            words, outputs = found[f"{module}.qweight"]
            return outputs, words * 32 // self._config.bits
        if method == "awq":
            inputs, words = found[f"{module}.qweight"]
            return words * 8, inputs
        if method == "evenflow":
            name = "codes4" if f"{module}.codes4" in found else "codes8"
            outputs, width = found[f"{module}.{name}"]
            return outputs, width * (2 if name == "codes4" else 1)
        if f"{module}.weight_packed" in found:
            outputs, inputs = (int(n) for n in self._files.raw(f"{module}.weight_shape"))
            return outputs, inputs
        if method == "bitsandbytes" and self._config.kind != "int8":
            return float_formats.four_bits_shape(self._files, f"{module}.weight", self._config.kind)
        return found[f"{module}.weight"]

    def _describe(self) -> str:
        """For the log: what is kept as stored, and what is widened."""
        config = self._config
        name = " ".join(part for part in (config.method, config.kind) if part)
        first = min(self._modules)
        if self.grouped(f"{first}.weight") is not None:
            return f"{name}, matrices as stored"
        width = sum(self.shapes[f"{m}.weight"][0] * self.shapes[f"{m}.weight"][1] for m in self._modules)
        return f"{name}, {width / 1e6:.0f} M weights widened to the type of the model, since no form of ours holds them"

    def _module(self, name: str) -> str | None:
        module = name.removesuffix(".weight")
        return module if name.endswith(".weight") and module in self._modules else None

    def _is_float(self, module: str) -> bool:
        if self._config.method == "bitsandbytes":
            return self._config.kind != "int8"
        if self._config.method == "fp8":
            return True
        name = f"{module}.weight"
        return name in self._files.shapes and self._files.raw(name).is_floating_point()

    def grouped(self, name: str) -> GroupedMatrix | None:
        """See ``StoredWeights.grouped``."""
        module = self._module(name)
        if module is None:
            return None
        if self._config.method == "evenflow":
            return self._own(module)
        if self._is_float(module):
            return None
        return affine_formats.grouped(module, self._affine(module), self._config.bits)

    def _affine(self, module: str) -> affine_formats.Affine:
        try:
            return affine_formats.READERS[self._config.method](self._files, module, self._config)
        except KeyError as error:
            raise ModelError(f"{module} is quantised, and {error.args[0]} is missing") from None

    def _own(self, module: str) -> GroupedMatrix:
        files = self._files
        if f"{module}.codes4" in files.shapes:
            pairs = files.raw(f"{module}.codes4")
            codes, bits = torch.stack([pairs & 15, pairs >> 4], dim=-1).flatten(1), 4
        else:
            codes, bits = files.raw(f"{module}.codes8"), 8
        minima = files.raw(f"{module}.minima") if f"{module}.minima" in files.shapes else None
        return GroupedMatrix(codes, files.raw(f"{module}.scales"), minima, bits)

    def tensor(self, name: str) -> torch.Tensor:
        """See ``StoredWeights.tensor``."""
        module = self._module(name)
        if module is None:
            return self._files.tensor(name)
        if self._config.method == "evenflow":
            return self._own(module).dequantise()
        if not self._is_float(module):
            return affine_formats.widened(module, self._affine(module), self._config.bits)
        if self._config.method == "bitsandbytes":
            return float_formats.four_bits(self._files, name, self._config.kind)
        return float_formats.fp8(self._files, module, self._config.block)

    def part(self, name: str, rows: range, columns: range | None = None) -> torch.Tensor:
        """See ``StoredWeights.part``."""
        if self._module(name) is None:
            return self._files.part(name, rows, columns)
        value = self.tensor(name)[rows.start : rows.stop]
        return value if columns is None else value[:, columns.start : columns.stop]

    def close(self) -> None:
        """See ``StoredWeights.close``."""
        self._files.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


__all__ = ["QuantisedCheckpoint"]
