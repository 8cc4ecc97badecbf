"""LoRA of a step's rows, each with its own adapter, read in place from arena rows (numba).

Shrink: s = A x, all A rows of a site at once, since its modules read the same x. Expand: y += s B, module by
module. Memory wants several streams: rows r, r + R/4, r + R/2 and r + 3R/4 of a run of R are read together,
four long contiguous runs. Four list entries of one adapter share each row they read. x is widened to fp32 once
and y is rounded once.

The result of a row depends on nothing but its x, y and adapter: not on threads, nor on who shares its block.
Knows addresses and row lines; not what an adapter is. See ``simd`` for ``element``.
"""

from __future__ import annotations

import numba

from evenflow.serving.kernels.simd import (
    broadcast,
    fma,
    itemsize,
    lane_sum,
    load,
    load_f32,
    load_i64,
    load_one,
    load_one_f32,
    prefetch,
    store,
    store_f32,
    store_one,
    store_one_f32,
    zeros,
)

TOKENS = 4
"""Entries of one adapter that are computed together, if they follow one another in the list."""


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _dot_4_rows(element, x, a, b, c, d, width, s, apart):
    """Four rows times x, to s, s + apart, s + 2 apart and s + 3 apart."""
    size = itemsize(element)
    p = zeros()
    q = zeros()
    u = zeros()
    v = zeros()
    for i in range(0, width, 16):
        t = load_f32(x + 4 * i)
        p = fma(t, load(element, a + size * i), p)
        q = fma(t, load(element, b + size * i), q)
        u = fma(t, load(element, c + size * i), u)
        v = fma(t, load(element, d + size * i), v)
    store_one_f32(s, lane_sum(p))
    store_one_f32(s + apart, lane_sum(q))
    store_one_f32(s + 2 * apart, lane_sum(u))
    store_one_f32(s + 3 * apart, lane_sum(v))


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _dot_4_rows_4_tokens(element, x, x_apart, a, b, c, d, width, s, apart, s_apart):
    """Four rows times four x (x_apart bytes apart); the results of a token are s_apart bytes from the one before."""
    size = itemsize(element)
    p0 = zeros()
    p1 = zeros()
    p2 = zeros()
    p3 = zeros()
    q0 = zeros()
    q1 = zeros()
    q2 = zeros()
    q3 = zeros()
    u0 = zeros()
    u1 = zeros()
    u2 = zeros()
    u3 = zeros()
    v0 = zeros()
    v1 = zeros()
    v2 = zeros()
    v3 = zeros()
    for i in range(0, width, 16):
        at = x + 4 * i
        x0 = load_f32(at)
        x1 = load_f32(at + x_apart)
        x2 = load_f32(at + 2 * x_apart)
        x3 = load_f32(at + 3 * x_apart)
        row = load(element, a + size * i)
        p0 = fma(x0, row, p0)
        p1 = fma(x1, row, p1)
        p2 = fma(x2, row, p2)
        p3 = fma(x3, row, p3)
        row = load(element, b + size * i)
        q0 = fma(x0, row, q0)
        q1 = fma(x1, row, q1)
        q2 = fma(x2, row, q2)
        q3 = fma(x3, row, q3)
        row = load(element, c + size * i)
        u0 = fma(x0, row, u0)
        u1 = fma(x1, row, u1)
        u2 = fma(x2, row, u2)
        u3 = fma(x3, row, u3)
        row = load(element, d + size * i)
        v0 = fma(x0, row, v0)
        v1 = fma(x1, row, v1)
        v2 = fma(x2, row, v2)
        v3 = fma(x3, row, v3)
    store_one_f32(s, lane_sum(p0))
    store_one_f32(s + apart, lane_sum(q0))
    store_one_f32(s + 2 * apart, lane_sum(u0))
    store_one_f32(s + 3 * apart, lane_sum(v0))
    s += s_apart
    store_one_f32(s, lane_sum(p1))
    store_one_f32(s + apart, lane_sum(q1))
    store_one_f32(s + 2 * apart, lane_sum(u1))
    store_one_f32(s + 3 * apart, lane_sum(v1))
    s += s_apart
    store_one_f32(s, lane_sum(p2))
    store_one_f32(s + apart, lane_sum(q2))
    store_one_f32(s + 2 * apart, lane_sum(u2))
    store_one_f32(s + 3 * apart, lane_sum(v2))
    s += s_apart
    store_one_f32(s, lane_sum(p3))
    store_one_f32(s + apart, lane_sum(q3))
    store_one_f32(s + 2 * apart, lane_sum(u3))
    store_one_f32(s + 3 * apart, lane_sum(v3))


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _dot_1_row(element, x, a, width):
    size = itemsize(element)
    p = zeros()
    for i in range(0, width, 16):
        p = fma(load_f32(x + 4 * i), load(element, a + size * i), p)
    return lane_sum(p)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _add_4_rows(element, y, a, b, c, d, width, s, apart):
    """Add four rows to y, times s, s + apart, s + 2 apart and s + 3 apart, in this order."""
    size = itemsize(element)
    p = broadcast(load_one_f32(s))
    q = broadcast(load_one_f32(s + apart))
    u = broadcast(load_one_f32(s + 2 * apart))
    v = broadcast(load_one_f32(s + 3 * apart))
    for i in range(0, width, 16):
        t = fma(p, load(element, a + size * i), load_f32(y + 4 * i))
        t = fma(q, load(element, b + size * i), t)
        t = fma(u, load(element, c + size * i), t)
        store_f32(y + 4 * i, fma(v, load(element, d + size * i), t))


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _add_4_rows_4_tokens(element, y, y_apart, a, b, c, d, width, s, apart, s_apart):
    """The same for four tokens, whose y and s are y_apart and s_apart bytes apart."""
    size = itemsize(element)
    p0 = broadcast(load_one_f32(s))
    q0 = broadcast(load_one_f32(s + apart))
    u0 = broadcast(load_one_f32(s + 2 * apart))
    v0 = broadcast(load_one_f32(s + 3 * apart))
    s += s_apart
    p1 = broadcast(load_one_f32(s))
    q1 = broadcast(load_one_f32(s + apart))
    u1 = broadcast(load_one_f32(s + 2 * apart))
    v1 = broadcast(load_one_f32(s + 3 * apart))
    s += s_apart
    p2 = broadcast(load_one_f32(s))
    q2 = broadcast(load_one_f32(s + apart))
    u2 = broadcast(load_one_f32(s + 2 * apart))
    v2 = broadcast(load_one_f32(s + 3 * apart))
    s += s_apart
    p3 = broadcast(load_one_f32(s))
    q3 = broadcast(load_one_f32(s + apart))
    u3 = broadcast(load_one_f32(s + 2 * apart))
    v3 = broadcast(load_one_f32(s + 3 * apart))
    for i in range(0, width, 16):
        row_a = load(element, a + size * i)
        row_b = load(element, b + size * i)
        row_c = load(element, c + size * i)
        row_d = load(element, d + size * i)
        at = y + 4 * i
        store_f32(at, fma(v0, row_d, fma(u0, row_c, fma(q0, row_b, fma(p0, row_a, load_f32(at))))))
        at += y_apart
        store_f32(at, fma(v1, row_d, fma(u1, row_c, fma(q1, row_b, fma(p1, row_a, load_f32(at))))))
        at += y_apart
        store_f32(at, fma(v2, row_d, fma(u2, row_c, fma(q2, row_b, fma(p2, row_a, load_f32(at))))))
        at += y_apart
        store_f32(at, fma(v3, row_d, fma(u3, row_c, fma(q3, row_b, fma(p3, row_a, load_f32(at))))))


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _add_1_row(element, y, a, width, s):
    size = itemsize(element)
    p = broadcast(s)
    for i in range(0, width, 16):
        store_f32(y + 4 * i, fma(p, load(element, a + size * i), load_f32(y + 4 * i)))


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _widen(element, source, target, width):
    """Elements to fp32, followed by zeros up to the next multiple of 16."""
    size = itemsize(element)
    whole = width - width % 16
    for i in range(0, whole, 16):
        store_f32(target + 4 * i, load(element, source + size * i))
    if whole < width:
        store_f32(target + 4 * whole, zeros())
        for i in range(whole, width):
            store_one_f32(target + 4 * i, load_one(element, source + size * i))


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _narrow(element, source, target, width):
    """fp32 to elements, not one more than ``width``."""
    size = itemsize(element)
    whole = width - width % 16
    for i in range(0, whole, 16):
        store(element, target + size * i, load_f32(source + 4 * i))
    for i in range(whole, width):
        store_one(element, target + size * i, load_one_f32(source + 4 * i))


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _row(arena, lines, number):
    """Address of an adapter's row."""
    return arena + 64 * load_i64(lines + 8 * number)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _shrink(element, arena, lines, first, count, x, x_apart, tokens, width, s, s_apart):
    """s[token, r] = row[first + r] . x[token] for r < count; ``tokens`` is 1 or TOKENS."""
    quarter = count // 4
    for r in range(quarter):
        a = _row(arena, lines, first + r)
        b = _row(arena, lines, first + r + quarter)
        c = _row(arena, lines, first + r + 2 * quarter)
        d = _row(arena, lines, first + r + 3 * quarter)
        if tokens == TOKENS:
            _dot_4_rows_4_tokens(element, x, x_apart, a, b, c, d, width, s + 4 * r, 4 * quarter, s_apart)
        else:
            _dot_4_rows(element, x, a, b, c, d, width, s + 4 * r, 4 * quarter)
    for r in range(4 * quarter, count):
        a = _row(arena, lines, first + r)
        for token in range(tokens):
            store_one_f32(s + s_apart * token + 4 * r, _dot_1_row(element, x + x_apart * token, a, width))


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _expand(element, arena, lines, first, count, y, y_apart, tokens, width, s, s_apart):
    """y[token] += sum_r s[token, r] row[first + r] for r < count; ``tokens`` is 1 or TOKENS."""
    quarter = count // 4
    for r in range(quarter):
        a = _row(arena, lines, first + r)
        b = _row(arena, lines, first + r + quarter)
        c = _row(arena, lines, first + r + 2 * quarter)
        d = _row(arena, lines, first + r + 3 * quarter)
        if tokens == TOKENS:
            _add_4_rows_4_tokens(element, y, y_apart, a, b, c, d, width, s + 4 * r, 4 * quarter, s_apart)
        else:
            _add_4_rows(element, y, a, b, c, d, width, s + 4 * r, 4 * quarter)
    for r in range(4 * quarter, count):
        a = _row(arena, lines, first + r)
        for token in range(tokens):
            _add_1_row(element, y + y_apart * token, a, width, load_one_f32(s + s_apart * token + 4 * r))


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
    return TOKENS * sum(-(-n // 16) * 16 for n in (max_inputs, max_outputs, max_site_rank))


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
    width = (inputs + 15) // 16 * 16
    x_apart = 4 * width
    y_apart = 4 * ((max_outputs + 15) // 16 * 16)
    s_apart = 4 * ((max_site_rank + 15) // 16 * 16)
    size = itemsize(element)
    table_address = table.ctypes.data
    for thread in numba.prange(num_threads):
        out = scratch + scratch_stride * thread
        s = out + TOKENS * y_apart
        wide = s + TOKENS * s_apart
        entry, end = cuts[thread], cuts[thread + 1]
        while entry < end:
            slot = slots[entry]
            tokens = 1
            if entry + TOKENS <= end and slots[entry + TOKENS - 1] == slot:
                tokens = TOKENS
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
                    _widen(element, x + x_stride * rows[entry + token], wide + x_apart * token, inputs)
                _shrink(element, arena, lines, first, count, wide, x_apart, tokens, width, s, s_apart)
                if after < end:
                    _ask_for_lines(lines_of_slot[slots[after]], table, slots[after], layer, modules)
                done = 0
                for m in range(len(modules)):
                    rank = table[slot, layer, modules[m], 0]
                    if rank > 0:
                        column = y + size * columns[m]
                        for token in range(tokens):
                            _widen(element, column + y_stride * rows[entry + token], out + y_apart * token, widths[m])
                        row = table[slot, layer, modules[m], 2]
                        _expand(
                            element,
                            arena,
                            lines,
                            row,
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
