"""Rotate q and k and write K and V into their pages, in one pass over the rows of a step (numba).

Knows addresses, strides and page numbers; not what a request is. See ``simd`` for ``element``.
"""

from __future__ import annotations

import numba

from evenflow.serving.kernels.simd import add, itemsize, load, load_f32, load_one, load_one_f32, mul, store, store_one, sub


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _rotate_head(element, x, cos, sin, half):
    """Rotate one head at ``x`` in place. Written without fma: fp32 results equal those of separate operations."""
    size = itemsize(element)
    whole = half - half % 16
    for i in range(0, whole, 16):
        first, second = load(element, x + size * i), load(element, x + size * (i + half))
        c, s = load_f32(cos + 4 * i), load_f32(sin + 4 * i)
        store(element, x + size * i, sub(mul(first, c), mul(second, s)))
        store(element, x + size * (i + half), add(mul(second, c), mul(first, s)))
    for i in range(whole, half):
        a, b = load_one(element, x + size * i), load_one(element, x + size * (i + half))
        c1, s1 = load_one_f32(cos + 4 * i), load_one_f32(sin + 4 * i)
        store_one(element, x + size * i, a * c1 - b * s1)
        store_one(element, x + size * (i + half), b * c1 + a * s1)


@numba.njit(parallel=True, nogil=True, cache=True, error_model="numpy")
def rotate_and_write(
    element,
    num_threads,
    arena,
    page_bytes,
    k_offset,
    v_offset,
    qkv,
    qkv_stride,
    positions,
    page_of_row,
    slot_of_row,
    cos,
    sin,
    num_heads,
    num_kv_heads,
    head_dim,
):
    """Rotate q and k of each row in place, then copy k and v into the row's place in the arena.

    Semantics: qk[t, h] = rotate(qk[t, h], angles[positions[t]]);  K[page_of_row[t], slot_of_row[t]] = k[t];  V likewise.

    Table of arguments (T token rows; addresses are integers):
        element       type       what qkv and the arena hold: see ``simd.element_of``
        num_threads   int        parts that the rows are cut into
        arena         address    page 0
        page_bytes    int        bytes from one page to the next
        k_offset      int        bytes from the start of a page to the layer's K
        v_offset      int        bytes from the start of a page to the layer's V
        qkv           address    of row 0 [T, (num_heads + 2 num_kv_heads) head_dim]; q and k are changed in place
        qkv_stride    int        bytes from one row to the next
        positions     int64 [T]  position of each token
        page_of_row   int64 [T]  page that receives its k and v
        slot_of_row   int64 [T]  its place in that page, in tokens
        cos           address    fp32 [positions, head_dim / 2]
        sin           address    fp32 [positions, head_dim / 2]
        num_heads     int        query heads
        num_kv_heads  int        key/value heads
        head_dim      int        elements of a head, a multiple of 16
    """
    size = itemsize(element)
    half = head_dim // 2
    kv_width = num_kv_heads * head_dim
    num_rows = len(positions)
    for thread in numba.prange(num_threads):
        for t in range(num_rows * thread // num_threads, num_rows * (thread + 1) // num_threads):
            row = qkv + qkv_stride * t
            angles = 4 * half * positions[t]
            for head in range(num_heads + num_kv_heads):
                _rotate_head(element, row + size * head_dim * head, cos + angles, sin + angles, half)
            place = arena + page_bytes * page_of_row[t] + size * kv_width * slot_of_row[t]
            k = row + size * head_dim * num_heads
            v = k + size * kv_width
            for i in range(0, kv_width, 16):
                store(element, place + k_offset + size * i, load(element, k + size * i))
                store(element, place + v_offset + size * i, load(element, v + size * i))
