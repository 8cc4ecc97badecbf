"""The two halves of ``lora_cpu.add_lora_rows``, apart: what lies between is exchanged by tensor-parallel ranks (numba).

A message is flat fp32, one part per rank: each token row has its own place in it, and each module of the site a field
there. A field may be longer than the rows of A that this rank holds; the floats for the others stay as the caller left
them. This file knows addresses, lines of factor rows and fields; not adapters, and not ranks.
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
    """Write into the message what the A rows held here make of each listed token row, for one site.

    Semantics: message[offsets[layer, t] + field(m) + r] = sum_i A_m[r, i] x[t, i] for r < a_rows[slot, layer, m], t = rows[n].

    Table of arguments (letters and what is not said here: see ``add_lora_rows``):
        element, num_threads, arena, x, x_stride, inputs, layer, modules, lines_of_slot, table, rows, slots, cuts,
        max_outputs, max_site_rank, scratch, scratch_stride: as there
        a_rows   int32 [S, L, M]      A rows that this rank holds
        fields   int32 [S, L, m]      floats of each module's field in a part
        offsets  int64 [L, T + 1]     first float of each token row in a part
        message  address              of the part, fp32
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
    """Add to each listed token row what its adapter's B makes of the exchanged parts, for one site.

    Semantics: y[t, columns[m] + o] += sum_r s[t, m, r] B_m[r, o], where s[t, m] is field m of token row t in part 0, followed
    by that in part 1, and so on.

    Table of arguments (what is not said here: see ``add_lora_rows`` and ``shrink_lora_rows``):
        element, num_threads, arena, y, y_stride, layer, modules, columns, widths, lines_of_slot, table, fields, offsets,
        rows, slots, cuts, max_outputs, max_site_rank, scratch, scratch_stride: as there
        parts       address  of the first part, fp32
        part_bytes  int      bytes from one part to the next
        num_parts   int      parts
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
