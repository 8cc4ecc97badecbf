"""An adapter's rows in page form: what lies on the host, and is copied into the arena page by page.

Scale times B is rounded to the serving dtype here, once. numpy only. Legend: R rank, W row width.
"""

from __future__ import annotations

import numpy as np

from evenflow.serving.adapters.peft_reader import PeftAdapter
from evenflow.serving.adapters.safetensors_arrays import round_to_bfloat16
from evenflow.serving.memory.layout import AdapterPlacement, ArenaLayout, Part, place


def page_image(adapter: PeftAdapter, layout: ArenaLayout) -> tuple[AdapterPlacement, np.ndarray]:
    """(where each row lies, uint8 [num_pages, page_bytes]): the layout's shard of it. Bytes that belong to no row are zero.

    Raises OverflowError, naming the module, if a scaled weight exceeds the serving dtype.
    """
    placement = place(layout, adapter.signature)
    image = np.zeros((placement.num_pages, layout.page_bytes), np.uint8)
    for layer, module in adapter.targets:
        a_RI, b_RO = adapter.a(layer, module), adapter.b_scaled(layer, module)
        _write(image, placement, layer, module, "A", a_RI[layout.held(module, "A", len(a_RI))])
        _write(image, placement, layer, module, "B", b_RO[layout.held(module, "B", len(b_RO))])
    for index, (rows, make) in enumerate(adapter.side):
        values = make()[:, layout.held_columns(rows)]
        if (
            rows.kind == "offset"
            and rows.is_of_linear
            and layout.shard is not None
            and not layout.shard.adds_offsets(rows.module)
        ):
            values = np.zeros_like(values)
        _write_rows(image, placement, placement.side_offsets(index), values, f"{rows.kind} of layer {rows.layer} {rows.module}")
    return placement, image


def _write(image: np.ndarray, placement: AdapterPlacement, layer: int, module: str, part: Part, rows_RW: np.ndarray) -> None:
    told = f"lora_{part} of layer {layer} {module}, times its scale,"
    _write_rows(image, placement, placement.row_offsets(layer, module, part), rows_RW, told)


def _write_rows(image: np.ndarray, placement: AdapterPlacement, offsets: np.ndarray, rows_RW: np.ndarray, told: str) -> None:
    layout, flat = placement.layout, image.reshape(-1)
    if layout.itemsize == 2:
        # Rounding up may carry the largest fp32 values to infinity.
        stored = round_to_bfloat16(rows_RW)
        is_finite = bool(((stored & 0x7F80) != 0x7F80).all())
    else:
        stored = np.ascontiguousarray(rows_RW, np.float32)
        is_finite = bool(np.isfinite(stored).all())
    if not is_finite:
        raise OverflowError(f"{told} exceeds the serving dtype")
    row_bytes = layout.row_bytes(rows_RW.shape[1])
    # Rows follow each other except where a page ends: a handful of block copies instead of one per row.
    starts = np.flatnonzero(np.diff(offsets, prepend=-row_bytes - 1) != row_bytes)
    for first, last in zip(starts, [*starts[1:], len(offsets)]):
        block = flat[offsets[first] : offsets[first] + (last - first) * row_bytes].reshape(last - first, row_bytes)
        block[:, : stored.shape[1] * layout.itemsize] = stored[first:last].view(np.uint8)


__all__ = ["page_image"]
