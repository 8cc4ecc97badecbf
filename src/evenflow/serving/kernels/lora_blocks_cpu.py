"""Shrink and expand of a few tokens that share one adapter, whose factor rows lie anywhere in the arena (numba).

Shrink: s = x A^T by dot products along whole lines. Expand: y += s B. A processor reads faster from several places at once:
factor rows r, r + R/4, r + R/2 and r + 3R/4 of a run of R are read together, as four contiguous runs. Four tokens share each
factor row: in shrink a block of 4 factor rows x 4 tokens stays in registers. In expand the first four tokens take four factor
rows at a time, as they come from memory; for later tokens, which find them in the second-level cache, 4 tokens x 64 columns
stay in registers, so that y is read and written once. Tokens that are left over take four factor rows at a time.

A token's result does not depend on which tokens share its block: its products are always added in the same order.
Arguments of ``shrink`` and ``expand`` (addresses are integers, s is fp32; x_apart, y_stride and s_apart: bytes from one
token to the next): element (see ``simd``); arena: address of page 0; lines: address of the adapter's lines (int64); first,
count: number of the first factor row, and how many; x, y, s: addresses; tokens: 1 to MAX_TOKENS; row_bytes: bytes of a
factor row, whole lines; rows, entry: token i is rows[entry + i] of y; width: columns of y; out: scratch of ``expand``.
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
    store,
    store_f32,
    store_one,
    store_one_f32,
    zeros,
)
from evenflow.serving.kernels.simd_lines import dot_line, load_line, scatter_lane_sums, store_line

TOKENS = 4
"""Tokens that share the rows they read."""

MAX_TOKENS = 16
"""Tokens of one ``shrink`` and ``expand``: as many as have their x in the first-level cache, more or less."""


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _row(arena, lines, number):
    """Address of an adapter's row."""
    return arena + 64 * load_i64(lines + 8 * number)


# ---- shrink


@numba.njit(nogil=True, cache=True, error_model="numpy")
def copy_padded(element, source, target, width):
    """Elements, followed by zeros up to the end of their last line."""
    size = itemsize(element)
    whole = size * width // 64 * 64
    for i in range(0, whole, 64):
        store_line(target + i, load_line(element, source + i))
    if whole < size * width:
        store_f32(target + whole, zeros())
        for i in range(whole, size * width, size):
            store_one(element, target + i, load_one(element, source + i))


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _dot_4_rows(element, x, a, b, c, d, row_bytes, s, apart):
    """Four rows times x, to s, s + apart, s + 2 apart and s + 3 apart."""
    p = zeros()
    q = zeros()
    u = zeros()
    v = zeros()
    for i in range(0, row_bytes, 64):
        t = load_line(element, x + i)
        p = dot_line(t, load_line(element, a + i), p)
        q = dot_line(t, load_line(element, b + i), q)
        u = dot_line(t, load_line(element, c + i), u)
        v = dot_line(t, load_line(element, d + i), v)
    scatter_lane_sums(s, apart, p, q, u, v)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _dot_4_rows_4_tokens(element, x, x_apart, a, b, c, d, row_bytes, s, apart, s_apart):
    """Four rows times four x (x_apart bytes apart); the results of a token are s_apart bytes from the one before."""
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
    for i in range(0, row_bytes, 64):
        at = x + i
        x0 = load_line(element, at)
        x1 = load_line(element, at + x_apart)
        x2 = load_line(element, at + 2 * x_apart)
        x3 = load_line(element, at + 3 * x_apart)
        row = load_line(element, a + i)
        p0 = dot_line(x0, row, p0)
        p1 = dot_line(x1, row, p1)
        p2 = dot_line(x2, row, p2)
        p3 = dot_line(x3, row, p3)
        row = load_line(element, b + i)
        q0 = dot_line(x0, row, q0)
        q1 = dot_line(x1, row, q1)
        q2 = dot_line(x2, row, q2)
        q3 = dot_line(x3, row, q3)
        row = load_line(element, c + i)
        u0 = dot_line(x0, row, u0)
        u1 = dot_line(x1, row, u1)
        u2 = dot_line(x2, row, u2)
        u3 = dot_line(x3, row, u3)
        row = load_line(element, d + i)
        v0 = dot_line(x0, row, v0)
        v1 = dot_line(x1, row, v1)
        v2 = dot_line(x2, row, v2)
        v3 = dot_line(x3, row, v3)
    scatter_lane_sums(s, apart, p0, q0, u0, v0)
    scatter_lane_sums(s + s_apart, apart, p1, q1, u1, v1)
    scatter_lane_sums(s + 2 * s_apart, apart, p2, q2, u2, v2)
    scatter_lane_sums(s + 3 * s_apart, apart, p3, q3, u3, v3)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _dot_1_row(element, x, a, row_bytes, s):
    p = zeros()
    for i in range(0, row_bytes, 64):
        p = dot_line(load_line(element, x + i), load_line(element, a + i), p)
    store_one_f32(s, lane_sum(p))


@numba.njit(nogil=True, cache=True, error_model="numpy")
def shrink(element, arena, lines, first, count, x, x_apart, tokens, row_bytes, s, s_apart):
    """s[token, r] = row[first + r] . x[token] for r < count, as fp32. ``x``: whole lines, x_apart bytes from token to token."""
    quarter = count // 4
    shared = tokens - tokens % TOKENS
    for r in range(quarter):
        a = _row(arena, lines, first + r)
        b = _row(arena, lines, first + r + quarter)
        c = _row(arena, lines, first + r + 2 * quarter)
        d = _row(arena, lines, first + r + 3 * quarter)
        at = s + 4 * r
        for token in range(0, shared, TOKENS):
            here = x + x_apart * token
            _dot_4_rows_4_tokens(element, here, x_apart, a, b, c, d, row_bytes, at + s_apart * token, 4 * quarter, s_apart)
        for token in range(shared, tokens):
            _dot_4_rows(element, x + x_apart * token, a, b, c, d, row_bytes, at + s_apart * token, 4 * quarter)
    for r in range(4 * quarter, count):
        a = _row(arena, lines, first + r)
        for token in range(tokens):
            _dot_1_row(element, x + x_apart * token, a, row_bytes, s + s_apart * token + 4 * r)


# ---- expand


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _in_order(i, count):
    """The i-th row to be added: those that are read together follow one another."""
    quarter = count // 4
    return i // 4 + i % 4 * quarter if i < 4 * quarter else i


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _add_rows_to_4_tokens(element, arena, lines, first, count, offset, y0, y1, y2, y3, s, s_apart):
    """64 columns, from byte ``offset`` of the rows on, of four tokens."""
    size = itemsize(element)
    step = 16 * size
    a0 = load(element, y0)
    a1 = load(element, y0 + step)
    a2 = load(element, y0 + 2 * step)
    a3 = load(element, y0 + 3 * step)
    b0 = load(element, y1)
    b1 = load(element, y1 + step)
    b2 = load(element, y1 + 2 * step)
    b3 = load(element, y1 + 3 * step)
    c0 = load(element, y2)
    c1 = load(element, y2 + step)
    c2 = load(element, y2 + 2 * step)
    c3 = load(element, y2 + 3 * step)
    d0 = load(element, y3)
    d1 = load(element, y3 + step)
    d2 = load(element, y3 + 2 * step)
    d3 = load(element, y3 + 3 * step)
    for i in range(count):
        r = _in_order(i, count)
        row = _row(arena, lines, first + r) + offset
        row0 = load(element, row)
        row1 = load(element, row + step)
        row2 = load(element, row + 2 * step)
        row3 = load(element, row + 3 * step)
        at = s + 4 * r
        t = broadcast(load_one_f32(at))
        a0 = fma(t, row0, a0)
        a1 = fma(t, row1, a1)
        a2 = fma(t, row2, a2)
        a3 = fma(t, row3, a3)
        t = broadcast(load_one_f32(at + s_apart))
        b0 = fma(t, row0, b0)
        b1 = fma(t, row1, b1)
        b2 = fma(t, row2, b2)
        b3 = fma(t, row3, b3)
        t = broadcast(load_one_f32(at + 2 * s_apart))
        c0 = fma(t, row0, c0)
        c1 = fma(t, row1, c1)
        c2 = fma(t, row2, c2)
        c3 = fma(t, row3, c3)
        t = broadcast(load_one_f32(at + 3 * s_apart))
        d0 = fma(t, row0, d0)
        d1 = fma(t, row1, d1)
        d2 = fma(t, row2, d2)
        d3 = fma(t, row3, d3)
    store(element, y0, a0)
    store(element, y0 + step, a1)
    store(element, y0 + 2 * step, a2)
    store(element, y0 + 3 * step, a3)
    store(element, y1, b0)
    store(element, y1 + step, b1)
    store(element, y1 + 2 * step, b2)
    store(element, y1 + 3 * step, b3)
    store(element, y2, c0)
    store(element, y2 + step, c1)
    store(element, y2 + 2 * step, c2)
    store(element, y2 + 3 * step, c3)
    store(element, y3, d0)
    store(element, y3 + step, d1)
    store(element, y3 + 2 * step, d2)
    store(element, y3 + 3 * step, d3)


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
def _add_rows(element, arena, lines, first, count, start, width, y, y_stride, rows, entry, tokens, s, s_apart, out):
    """Columns from ``start`` to ``width`` of TOKENS entries, or one. ``out``: room for them as fp32."""
    size = itemsize(element)
    offset = size * start
    columns = width - start
    padded = (columns + 15) // 16 * 16
    for token in range(tokens):
        _widen(element, y + y_stride * rows[entry + token] + offset, out + 4 * padded * token, columns)
    quarter = count // 4
    for r in range(quarter):
        a = _row(arena, lines, first + r) + offset
        b = _row(arena, lines, first + r + quarter) + offset
        c = _row(arena, lines, first + r + 2 * quarter) + offset
        d = _row(arena, lines, first + r + 3 * quarter) + offset
        if tokens == TOKENS:
            _add_4_rows_4_tokens(element, out, 4 * padded, a, b, c, d, padded, s + 4 * r, 4 * quarter, s_apart)
        else:
            _add_4_rows(element, out, a, b, c, d, padded, s + 4 * r, 4 * quarter)
    for r in range(4 * quarter, count):
        a = _row(arena, lines, first + r) + offset
        for token in range(tokens):
            _add_1_row(element, out + 4 * padded * token, a, padded, load_one_f32(s + s_apart * token + 4 * r))
    for token in range(tokens):
        _narrow(element, out + 4 * padded * token, y + y_stride * rows[entry + token] + offset, columns)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def expand(element, arena, lines, first, count, y, y_stride, rows, entry, tokens, width, s, s_apart, out):
    """y[rows[entry + token]] += sum_r s[token, r] row[first + r] for r < count, over ``width`` columns.

    ``y``: address of row 0; ``out``: room for TOKENS times ``width`` floats, rounded up to 16.
    """
    size = itemsize(element)
    shared = tokens - tokens % TOKENS
    whole = width - width % 64
    if shared:
        _add_rows(element, arena, lines, first, count, 0, width, y, y_stride, rows, entry, TOKENS, s, s_apart, out)
    for start in range(0, whole, 64):
        offset = size * start
        for token in range(TOKENS, shared, TOKENS):
            at = entry + token
            _add_rows_to_4_tokens(
                element,
                arena,
                lines,
                first,
                count,
                offset,
                y + y_stride * rows[at] + offset,
                y + y_stride * rows[at + 1] + offset,
                y + y_stride * rows[at + 2] + offset,
                y + y_stride * rows[at + 3] + offset,
                s + s_apart * token,
                s_apart,
            )
    if whole < width:
        for token in range(TOKENS, shared, TOKENS):
            at = s + s_apart * token
            _add_rows(
                element, arena, lines, first, count, whole, width, y, y_stride, rows, entry + token, TOKENS, at, s_apart, out
            )
    for token in range(shared, tokens):
        at = s + s_apart * token
        _add_rows(element, arena, lines, first, count, 0, width, y, y_stride, rows, entry + token, 1, at, s_apart, out)


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


__all__ = ["MAX_TOKENS", "TOKENS", "copy_padded", "expand", "shrink"]
