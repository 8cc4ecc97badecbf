"""The weight matrices of a model in the form they are multiplied in: plain, or in few bits, made now or kept from last time.

What is stored in few bits stays so. What is stored plain is quantised if that was asked for, and kept in a cache.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from evenflow.base.errors import ModelError
from evenflow.serving.backends.devices.quantised_products import QuantisedWeight, packed_of, quantised_weight
from evenflow.serving.backends.devices.weight_products import Weight
from evenflow.serving.models.stored.stored_weights import StoredWeights
from evenflow.serving.quant.grouped_matrix import GroupedMatrix, quantise, stack
from evenflow.serving.quant.matrix_cache import MatrixCache
from evenflow.serving.quant.schemes import Quantization, Scheme


class Matrices:
    """Reads matrices for products, rows of several stacked. ``quantization`` None: as they are stored.

    Codes are for products on the CPU: on other devices what is stored in few bits is widened.
    """

    def __init__(
        self,
        stored: StoredWeights,
        dtype: torch.dtype,
        device: torch.device,
        quantization: Quantization | None = None,
        cache: MatrixCache | None = None,
    ) -> None:
        self._stored, self._dtype, self._device = stored, dtype, device
        self._quantization, self._cache = quantization, cache

    def linear(self, names: Sequence[str], rows: Sequence[range], columns: range | None = None) -> Weight:
        """A matrix of a decoder layer: the given rows of each of the named matrices, one after another."""
        return self._read(names, rows, columns, None if self._quantization is None else self._quantization.linears)

    def vocabulary(self, name: str, rows: range) -> Weight:
        """Rows of the output head, or of what is head and embedding in one."""
        return self._read([name], [rows], None, None if self._quantization is None else self._quantization.vocabulary)

    def plain(self, names: Sequence[str], rows: Sequence[range], columns: range | None = None) -> torch.Tensor:
        """The same as a tensor, whatever is asked for."""
        shape = self._stored.shapes[names[0]][1:]
        if columns is not None:
            shape = (len(columns),)
        total = torch.empty((sum(map(len, rows)), *shape), dtype=self._dtype, device=self._device)
        start = 0
        for name, some in zip(names, rows):
            total[start : start + len(some)].copy_(self._stored.part(name, some, columns))
            start += len(some)
        return total

    def _read(self, names: Sequence[str], rows: Sequence[range], columns: range | None, scheme: Scheme | None) -> Weight:
        if self._device.type != "cpu":
            return self.plain(names, rows, columns)
        if scheme is not None:
            return self._quantised(names, rows, columns, scheme)
        stored: list[GroupedMatrix] = []
        for name, some in zip(names, rows):
            matrix = self._stored.grouped(name)
            if matrix is None:
                return self.plain(names, rows, columns)
            stored.append(matrix.part(some, columns))
        return quantised_weight(stack(stored), self._dtype)

    def _quantised(self, names: Sequence[str], rows: Sequence[range], columns: range | None, scheme: Scheme) -> QuantisedWeight:
        key = f"{scheme.name} {columns or 'all'} " + " ".join(f"{name} {some}" for name, some in zip(names, rows))
        kept = None if self._cache is None else self._cache.read(key)
        if kept is not None:
            return QuantisedWeight(tuple(packed_of(meta, data) for meta, data in kept), self._dtype)
        try:
            pieces = [quantise(self._stored.part(name, some, columns), scheme) for name, some in zip(names, rows)]
        except ModelError as error:
            raise ModelError(f"{', '.join(names)}: {error}") from None
        weight = quantised_weight(stack(pieces), self._dtype)
        if self._cache is not None:
            self._cache.add(key, [(part.meta(), part.packed) for part in weight.parts])
        return weight


__all__ = ["Matrices", "Weight"]
