"""The two halves of ``lora_cpu.add_lora_rows``, apart: what lies between is exchanged by tensor-parallel ranks (numba).

A message is flat fp32, one part per rank: each batch row has its own place in it, and each module of the site a field
there. Fields may be longer than the rows of A that this rank holds; what it does not hold stays as the caller left it.
Knows addresses, row lines and fields; not what an adapter or a rank is. See ``simd`` for ``element``.
"""

from __future__ import annotations

import numba

from evenflow.serving.kernels.lora_blocks_cpu import MAX_TOKENS, copy_padded, expand, shrink
from evenflow.serving.kernels.lora_cpu import scratch_parts, together
from evenflow.serving.kernels.simd import itemsize, load_one_f32, store_one_f32


@numba.njit(parallel=True, nogil=True, cache=True, error_model="numpy")
def shrink_lora_rows(
    element,
    num_threads,
    arena,
    x,
    x_stride,
    inputs,
    layer,
    modules,
    lines_of_slot,
    table,
    a_rows,
    fields,
    offsets,
    rows,
    slots,
    cuts,
    message,
    max_outputs,
    max_site_rank,
    scratch,
    scratch_stride,
):
    """Each listed row's rank-space vectors of one site, as far as this rank holds A.

    Semantics: message[offsets[layer, t] + field(m) + r] = sum_i A_m[r, i] x[t, i] for r < a_rows[slot, layer, m], t = rows[n].
    Arguments as of ``add_lora_rows``, and: ``a_rows`` int32 [slots, layers, modules of a layer]; ``fields`` int32
    [slots, layers, modules of the site]: floats of each field; ``offsets`` int64 [layers, T + 1]; ``message``: an address.
    """
    row_bytes = (itemsize(element) * inputs + 63) // 64 * 64
    y_bytes, s_apart = scratch_parts(max_outputs, max_site_rank)
    for thread in numba.prange(num_threads):
        s = scratch + scratch_stride * thread + y_bytes
        x_lines = s + MAX_TOKENS * s_apart
        entry, end = cuts[thread], cuts[thread + 1]
        while entry < end:
            slot = slots[entry]
            tokens = together(slots, entry, end)
            first = -1
            count = 0
            for m in range(len(modules)):
                held = a_rows[slot, layer, modules[m]]
                if held > 0 and first < 0:
                    first = table[slot, layer, modules[m], 1]
                count += held
            if count > 0:
                for token in range(tokens):
                    copy_padded(element, x + x_stride * rows[entry + token], x_lines + row_bytes * token, inputs)
                lines = lines_of_slot[slot]
                shrink(element, arena, lines, first, count, x_lines, row_bytes, tokens, row_bytes, s, s_apart)
                for token in range(tokens):
                    source = s + s_apart * token
                    target = message + 4 * offsets[layer, rows[entry + token]]
                    for m in range(len(modules)):
                        held = a_rows[slot, layer, modules[m]]
                        for r in range(held):
                            store_one_f32(target + 4 * r, load_one_f32(source + 4 * r))
                        source += 4 * held
                        target += 4 * fields[slot, layer, m]
            entry += tokens


@numba.njit(parallel=True, nogil=True, cache=True, error_model="numpy")
def expand_lora_rows(
    element,
    num_threads,
    arena,
    parts,
    part_bytes,
    num_parts,
    y,
    y_stride,
    layer,
    modules,
    columns,
    widths,
    lines_of_slot,
    table,
    fields,
    offsets,
    rows,
    slots,
    cuts,
    max_outputs,
    max_site_rank,
    scratch,
    scratch_stride,
):
    """Add to each listed row what its adapter's B makes of the exchanged parts.

    Semantics: y[t, columns[m] + o] += sum_r s[t, m, r] B_m[r, o], where s[t, m] is field m of row t in part 0, then in part 1,
    and so on. ``parts``: address of the first part; ``part_bytes``: from one to the next. Else as ``shrink_lora_rows``.
    """
    y_bytes, s_apart = scratch_parts(max_outputs, max_site_rank)
    size = itemsize(element)
    for thread in numba.prange(num_threads):
        out = scratch + scratch_stride * thread
        s = out + y_bytes
        entry, end = cuts[thread], cuts[thread + 1]
        while entry < end:
            slot = slots[entry]
            tokens = together(slots, entry, end)
            for token in range(tokens):
                source = parts + 4 * offsets[layer, rows[entry + token]]
                target = s + s_apart * token
                for m in range(len(modules)):
                    left = table[slot, layer, modules[m], 0]
                    field = fields[slot, layer, m]
                    for part in range(num_parts):
                        taken = min(left, field)
                        for r in range(taken):
                            store_one_f32(target + 4 * r, load_one_f32(source + part_bytes * part + 4 * r))
                        target += 4 * taken
                        left -= taken
                    source += 4 * field
            done = 0
            for m in range(len(modules)):
                rank = table[slot, layer, modules[m], 0]
                if rank > 0:
                    lines = lines_of_slot[slot]
                    first = table[slot, layer, modules[m], 2]
                    column = y + size * columns[m]
                    at = s + 4 * done
                    expand(
                        element, arena, lines, first, rank, column, y_stride, rows, entry, tokens, widths[m], at, s_apart, out
                    )
                    done += rank
            entry += tokens


__all__ = ["expand_lora_rows", "shrink_lora_rows"]
