"""LoRA of a step's rows, each with its own adapter, from factor rows read where they lie in the arena (numba).

All A rows of a site are taken at once, since its modules read the same x; B module by module. List entries of one adapter
that follow one another are computed together (``lora_blocks_cpu``).

The result of a row depends on nothing but its x, y and adapter: not on threads, nor on who shares its block.
Knows addresses and row lines; not what an adapter is. See ``simd`` for ``element``.
"""

from __future__ import annotations

import numba

from evenflow.serving.kernels.lora_blocks_cpu import MAX_TOKENS, TOKENS, copy_padded, expand, shrink
from evenflow.serving.kernels.simd import itemsize, prefetch


@numba.njit(nogil=True, cache=True, error_model="numpy")
def together(slots, entry, end):
    """How many entries, from ``entry`` on, have one adapter and are computed together."""
    tokens = 1
    while tokens < MAX_TOKENS and entry + tokens < end and slots[entry + tokens] == slots[entry]:
        tokens += 1
    return tokens


@numba.njit(nogil=True, cache=True, error_model="numpy")
def scratch_parts(max_outputs, max_site_rank):
    """(bytes of y, bytes from token to token of s) in a thread's scratch: y of TOKENS tokens, then s and x of all."""
    return TOKENS * 4 * ((max_outputs + 15) // 16 * 16), 4 * ((max_site_rank + 15) // 16 * 16)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _ask_for_lines(lines, table, slot, layer, modules):
    """Ask for the row lines that an entry will need: each adapter's lie in cold memory of their own."""
    for m in range(len(modules)):
        rank = table[slot, layer, modules[m], 0]
        for which in range(1, 3):
            first = lines + 8 * table[slot, layer, modules[m], which]
            for i in range(0, 8 * rank, 64):
                prefetch(first + i)


def scratch_floats(max_inputs: int, max_outputs: int, max_site_rank: int) -> int:
    """Floats of scratch that each thread of ``add_lora_rows`` needs: widths of x and y, ranks of a site's modules together."""
    x, y, s = (-(-n // 16) * 16 for n in (max_inputs, max_outputs, max_site_rank))
    return TOKENS * y + MAX_TOKENS * (s + x)


@numba.njit(parallel=True, nogil=True, cache=True, error_model="numpy")
def add_lora_rows(
    element,
    num_threads,
    arena,
    x,
    x_stride,
    inputs,
    y,
    y_stride,
    layer,
    modules,
    columns,
    widths,
    lines_of_slot,
    table,
    rows,
    slots,
    cuts,
    max_outputs,
    max_site_rank,
    scratch,
    scratch_stride,
):
    """Add each listed row's own adapter to the outputs of one site.

    Semantics: y[t, columns[m] + o] += sum_r B_m[r, o] (sum_i A_m[r, i] x[t, i]) for the site's modules m, t = rows[i], and
    A, B those of slots[i]. Addresses are integers, strides bytes; ``layer`` and the arrays of modules (int64: number in the
    model, first column of y, output width) name the site. ``lines_of_slot`` int64 [slots]: address of the slot's row lines;
    ``table`` int32 [slots, layers, modules of a layer, 3]: rank, first A row, first B row. ``rows``, ``slots`` int64 [n],
    sorted by slot; thread i computes the entries from cuts[i] to cuts[i + 1].
    """
    size = itemsize(element)
    row_bytes = (size * inputs + 63) // 64 * 64
    y_bytes, s_apart = scratch_parts(max_outputs, max_site_rank)
    table_address = table.ctypes.data
    for thread in numba.prange(num_threads):
        out = scratch + scratch_stride * thread
        s = out + y_bytes
        x_lines = s + MAX_TOKENS * s_apart
        entry, end = cuts[thread], cuts[thread + 1]
        while entry < end:
            slot = slots[entry]
            tokens = together(slots, entry, end)
            lines = lines_of_slot[slot]
            after = entry + tokens
            if after < end:
                row_of_table = (slots[after] * table.shape[1] + layer) * table.shape[2]
                prefetch(table_address + 12 * row_of_table)
                prefetch(table_address + 12 * row_of_table + 64)
            first = -1
            count = 0
            for m in range(len(modules)):
                rank = table[slot, layer, modules[m], 0]
                if rank > 0 and first < 0:
                    first = table[slot, layer, modules[m], 1]
                count += rank
            if count > 0:
                for token in range(tokens):
                    copy_padded(element, x + x_stride * rows[entry + token], x_lines + row_bytes * token, inputs)
                shrink(element, arena, lines, first, count, x_lines, row_bytes, tokens, row_bytes, s, s_apart)
                if after < end:
                    _ask_for_lines(lines_of_slot[slots[after]], table, slots[after], layer, modules)
                done = 0
                for m in range(len(modules)):
                    rank = table[slot, layer, modules[m], 0]
                    if rank > 0:
                        first_b = table[slot, layer, modules[m], 2]
                        column = y + size * columns[m]
                        at = s + 4 * done
                        expand(
                            element,
                            arena,
                            lines,
                            first_b,
                            rank,
                            column,
                            y_stride,
                            rows,
                            entry,
                            tokens,
                            widths[m],
                            at,
                            s_apart,
                            out,
                        )
                        done += rank
            entry += tokens


__all__ = ["add_lora_rows", "scratch_floats", "scratch_parts", "together"]
