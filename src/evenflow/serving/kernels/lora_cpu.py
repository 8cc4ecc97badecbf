"""LoRA of a step's token rows, each with its own adapter, from factor rows read where they lie in the arena (numba).

The A rows of all modules of a site are taken at once, since these read the same x; the B rows module by module. Entries of
the list that follow one another and have the same adapter are computed together (``lora_blocks_cpu``).

The result of a token row depends on its x, its y and its adapter alone: not on the number of threads, and not on which
other token rows are computed together with it. This file knows addresses and lines of factor rows, not adapters.
"""

from __future__ import annotations

import numba

from evenflow.serving.kernels.lora_blocks_cpu import MAX_TOKENS, TOKENS, copy_padded, expand, shrink
from evenflow.serving.kernels.simd import itemsize, prefetch


@numba.njit(nogil=True, cache=True, error_model="numpy")
def together(slots, entry, end):
    """How many entries, from ``entry`` on, have the same adapter and are computed together: 1 to MAX_TOKENS."""
    tokens = 1
    while tokens < MAX_TOKENS and entry + tokens < end and slots[entry + tokens] == slots[entry]:
        tokens += 1
    return tokens


@numba.njit(nogil=True, cache=True, error_model="numpy")
def scratch_parts(max_outputs, max_site_rank):
    """Where things lie in a thread's scratch: (bytes of y, bytes from one token's s to the next one's).

    The scratch holds y of TOKENS tokens, then s of MAX_TOKENS tokens, then x of MAX_TOKENS tokens, all fp32.
    """
    return TOKENS * 4 * ((max_outputs + 15) // 16 * 16), 4 * ((max_site_rank + 15) // 16 * 16)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _ask_for_lines(lines, table, slot, layer, modules):
    """Ask the memory for the lines that an entry will need, since those of another adapter are seldom in the cache."""
    for m in range(len(modules)):
        rank = table[slot, layer, modules[m], 0]
        for which in range(1, 3):
            first = lines + 8 * table[slot, layer, modules[m], which]
            for i in range(0, 8 * rank, 64):
                prefetch(first + i)


def scratch_floats(max_inputs: int, max_outputs: int, max_site_rank: int) -> int:
    """Floats of scratch that each thread of ``add_lora_rows`` needs, for widths in elements."""
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
    """Add to the outputs of one site, for each listed token row, what its own adapter contributes.

    Semantics: y[t, columns[m] + o] += sum_r B_m[r, o] (sum_i A_m[r, i] x[t, i]) for the site's modules m, t = rows[i], and
    A, B those of slots[i].

    Table of arguments (S slots, L layers, M modules of a layer, m of the site, n listed token rows; addresses are integers):
        element         type      what x, y and factor rows are stored as: see ``simd.element_of``
        num_threads     int       parts that the work is cut into
        arena           address   page 0
        x               address   of token row 0 [T, inputs]
        x_stride        int       bytes from one token row of x to the next
        inputs          int       elements of a token row of x
        y               address   of token row 0 [T, outputs]; changed in place
        y_stride        int       bytes from one token row of y to the next
        layer           int       the layer
        modules         int64 [m] number of each module in a layer
        columns         int64 [m] first column of each module in y
        widths          int64 [m] output width of each module, in elements
        lines_of_slot   int64 [S] address of the lines (int64) of its factor rows
        table           int32 [S, L, M, 3]  LoRA rank, number of the first A row, number of the first B row
        rows            int64 [n] token rows, sorted by slot
        slots           int64 [n] slot of each of them
        cuts            int64 [num_threads + 1]  thread i computes the entries cuts[i] to cuts[i + 1] of ``rows``
        max_outputs     int       largest output width of any module, in elements
        max_site_rank   int       largest sum of the LoRA ranks of a site's modules
        scratch         address   room for ``scratch_floats`` floats per thread
        scratch_stride  int       bytes from one thread's room to the next
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
