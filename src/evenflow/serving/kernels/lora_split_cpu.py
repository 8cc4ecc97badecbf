"""The two halves of ``lora_cpu.add_lora_rows``, apart: what lies between is exchanged by tensor-parallel ranks (numba).

A message is flat fp32, one part per rank: each batch row has its own place in it, and each module of the site a field
there. Fields may be longer than the rows of A that this rank holds; what it does not hold stays as the caller left it.
Knows addresses, row lines and fields; not what an adapter or a rank is. See ``simd`` for ``element``.
"""

from __future__ import annotations

import numba

from evenflow.serving.kernels.lora_cpu import TOKENS, _expand, _narrow, _shrink, _widen
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
    width = (inputs + 15) // 16 * 16
    x_apart = 4 * width
    s_apart = 4 * ((max_site_rank + 15) // 16 * 16)
    y_apart = 4 * ((max_outputs + 15) // 16 * 16)
    for thread in numba.prange(num_threads):
        s = scratch + scratch_stride * thread + TOKENS * y_apart
        wide = s + TOKENS * s_apart
        entry, end = cuts[thread], cuts[thread + 1]
        while entry < end:
            slot = slots[entry]
            tokens = 1
            if entry + TOKENS <= end and slots[entry + TOKENS - 1] == slot:
                tokens = TOKENS
            first = -1
            count = 0
            for m in range(len(modules)):
                held = a_rows[slot, layer, modules[m]]
                if held > 0 and first < 0:
                    first = table[slot, layer, modules[m], 1]
                count += held
            if count > 0:
                for token in range(tokens):
                    _widen(element, x + x_stride * rows[entry + token], wide + x_apart * token, inputs)
                _shrink(element, arena, lines_of_slot[slot], first, count, wide, x_apart, tokens, width, s, s_apart)
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
    y_apart = 4 * ((max_outputs + 15) // 16 * 16)
    s_apart = 4 * ((max_site_rank + 15) // 16 * 16)
    size = itemsize(element)
    for thread in numba.prange(num_threads):
        out = scratch + scratch_stride * thread
        s = out + TOKENS * y_apart
        entry, end = cuts[thread], cuts[thread + 1]
        while entry < end:
            slot = slots[entry]
            tokens = 1
            if entry + TOKENS <= end and slots[entry + TOKENS - 1] == slot:
                tokens = TOKENS
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
                    column = y + size * columns[m]
                    for token in range(tokens):
                        _widen(element, column + y_stride * rows[entry + token], out + y_apart * token, widths[m])
                    _expand(
                        element,
                        arena,
                        lines_of_slot[slot],
                        table[slot, layer, modules[m], 2],
                        rank,
                        out,
                        y_apart,
                        tokens,
                        (widths[m] + 15) // 16 * 16,
                        s + 4 * done,
                        s_apart,
                    )
                    for token in range(tokens):
                        _narrow(element, out + y_apart * token, column + y_stride * rows[entry + token], widths[m])
                    done += rank
            entry += tokens


__all__ = ["expand_lora_rows", "shrink_lora_rows"]
