"""Paged attention for CUDA (Triton): rotate and write a step's rows, attend over pages, merge split contexts.

Work is a list of tiles made on the host. A tile is some rows of one sequence against a range of its context; the
query heads of one key/value head lie side by side in it, so that K and V are read once for the group. Long contexts
of few rows are cut at fixed positions (flash-decoding with fixed splits), which depend on nothing but the row's own
place: a row's result is the same, bit for bit, whatever else is in the step. No atomics.

Programs walk over the list with a stride, and its length is read on the device: a launch of fixed size serves a list
of any length, which is what CUDA graphs need. Page numbers are widened to 64 bits before they are multiplied. Every
load is masked to valid tokens: what lies behind them may be NaN.

Knows tensors, tiles and page numbers; not requests. ``DOT`` is the type that products are computed in: that of the
arena, or float32 under Triton's interpreter, which has no bf16 arithmetic.
Legend: T rows, C fused qkv width, Q query width, K key/value heads, G query heads per key/value head, D head_dim.
"""

from __future__ import annotations

import triton
import triton.language as tl

HEADER_FIELDS = 4
"""int64: tiles, rows that were cut, addresses of their parts' mixed values (fp32 [parts, K, ROWS, DIM_PAD]) and of the parts'
largest scores and sums of weights (fp32 [parts, K, 2, ROWS])."""

TILE_FIELDS = 8
"""int32 per tile: first row, rows, position of the first row, first token, end token, first page, part or -1, unused."""

MERGE_FIELDS = 4
"""int32 per row that was cut: row, its place in its tile, first part, parts."""

_LOWEST = tl.constexpr(-1.0e30)


@triton.jit(do_not_specialize=["num_rows"])
def rotate_and_write(
    qkv,
    arena,
    positions,
    write_rows,
    cos,
    sin,
    num_rows,
    k_row,
    v_row,
    qkv_stride,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    GROUP_PAD: tl.constexpr,
    HALF_PAD: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Rotate q in place; write rotated k, and v, into the arena. Grid: (T / ROWS, K).

    Semantics: q[t, h] = rotate(q[t, h], positions[t]);  arena[write_rows[t] + k_row, h] = rotate(k[t, h], positions[t]);
    arena[write_rows[t] + v_row, h] = v[t, h].  Rows with write_rows[t] < 0 are left alone.

    Table of arguments:
        qkv         [T, C]      in the arena's dtype; q is changed in place
        arena       [n, K * D]  all pages, as a matrix of rows of one token's K or V
        positions   int64 [T]   position of each token
        write_rows  int64 [T]   row of the arena for its K of layer 0; below 0: nothing is written
        cos         fp32 [positions, D / 2]
        sin         fp32 [positions, D / 2]
        num_rows    int         T
        k_row       int         rows from ``write_rows`` to the layer's K
        v_row       int         rows from ``write_rows`` to the layer's V
        qkv_stride  int         elements from one row of qkv to the next
        HEADS       int         K
        GROUP       int         G
        DIM         int         D
        GROUP_PAD   int         G rounded up to a power of 2
        HALF_PAD    int         D / 2 rounded up to a power of 2
        ROWS        int         rows that one program takes
    """
    half = DIM // 2
    head = tl.program_id(1)
    first = tl.program_id(0) * ROWS
    e = tl.arange(0, HALF_PAD)

    # Query heads: ROWS x GROUP_PAD of them in one tile.
    i = tl.arange(0, ROWS * GROUP_PAD)
    row = first + i // GROUP_PAD
    group = i % GROUP_PAD
    ok = (row < num_rows) & (group < GROUP)
    place = tl.load(write_rows + row, mask=ok, other=-1)
    ok = ok & (place >= 0)
    position = tl.load(positions + row, mask=ok, other=0)
    mask = ok[:, None] & (e[None, :] < half)
    c = tl.load(cos + position[:, None] * half + e[None, :], mask=mask, other=0.0)
    s = tl.load(sin + position[:, None] * half + e[None, :], mask=mask, other=0.0)
    q = qkv + row.to(tl.int64)[:, None] * qkv_stride + ((head * GROUP + group) * DIM)[:, None] + e[None, :]
    a = tl.load(q, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(q + half, mask=mask, other=0.0).to(tl.float32)
    tl.store(q, (a * c - b * s).to(qkv.dtype.element_ty), mask=mask)
    tl.store(q + half, (b * c + a * s).to(qkv.dtype.element_ty), mask=mask)

    # The key and the value head.
    row = first + tl.arange(0, ROWS)
    place = tl.load(write_rows + row, mask=row < num_rows, other=-1)
    ok = place >= 0
    position = tl.load(positions + row, mask=ok, other=0)
    mask = ok[:, None] & (e[None, :] < half)
    c = tl.load(cos + position[:, None] * half + e[None, :], mask=mask, other=0.0)
    s = tl.load(sin + position[:, None] * half + e[None, :], mask=mask, other=0.0)
    k = qkv + row.to(tl.int64)[:, None] * qkv_stride + (HEADS * GROUP + head) * DIM + e[None, :]
    v = k + HEADS * DIM
    a = tl.load(k, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(k + half, mask=mask, other=0.0).to(tl.float32)
    to_k = arena + (place + k_row)[:, None] * (HEADS * DIM) + head * DIM + e[None, :]
    to_v = arena + (place + v_row)[:, None] * (HEADS * DIM) + head * DIM + e[None, :]
    tl.store(to_k, (a * c - b * s).to(arena.dtype.element_ty), mask=mask)
    tl.store(to_k + half, (b * c + a * s).to(arena.dtype.element_ty), mask=mask)
    tl.store(to_v, tl.load(v, mask=mask, other=0.0), mask=mask)
    tl.store(to_v + half, tl.load(v + half, mask=mask, other=0.0), mask=mask)


@triton.jit
def _load_tokens(base, at, valid, d, DIM: tl.constexpr, DIM_PAD: tl.constexpr, MASKED: tl.constexpr):
    """K or V of one head: [TOKENS, DIM_PAD], with zeros where there is no valid token or no dimension."""
    if MASKED:
        return tl.load(base + at, mask=valid[:, None] & (d < DIM)[None, :], other=0.0)
    elif DIM < DIM_PAD:
        return tl.load(base + at, mask=(d < DIM)[None, :], other=0.0)
    else:
        return tl.load(base + at)


@triton.jit
def _attend_tokens(
    q,
    largest,
    total,
    mixed,
    keys,
    values,
    pages,
    page_stride,
    first,
    end,
    lowest,
    limit,
    scale,
    softcap,
    WIDTH: tl.constexpr,
    DIM: tl.constexpr,
    DIM_PAD: tl.constexpr,
    PAGE_TOKENS: tl.constexpr,
    TOKENS: tl.constexpr,
    WINDOW: tl.constexpr,
    CAPPED: tl.constexpr,
    DOT: tl.constexpr,
    MASKED: tl.constexpr,
):
    """One step of online softmax over tokens [first, first + TOKENS). Not MASKED: all of them are seen by all rows."""
    t = first + tl.arange(0, TOKENS)
    d = tl.arange(0, DIM_PAD)
    if MASKED:
        page = tl.load(pages + t // PAGE_TOKENS, mask=t < end, other=0)
    else:
        page = tl.load(pages + t // PAGE_TOKENS)
    at = (page.to(tl.int64) * page_stride + (t % PAGE_TOKENS) * WIDTH)[:, None] + d[None, :]
    k = _load_tokens(keys, at, t < end, d, DIM, DIM_PAD, MASKED)
    scores = tl.dot(q, tl.trans(k.to(DOT)), input_precision="ieee") * scale
    if CAPPED:
        # softcap tanh(x), where the scores are 2 x log2(e).
        scores = softcap - 2 * softcap / (tl.exp2(scores) + 1)
    if MASKED:
        seen = t[None, :] < limit[:, None]
        if WINDOW > 0:
            seen = seen & (t[None, :] >= lowest[:, None])
        scores = tl.where(seen, scores, _LOWEST)
    new = tl.maximum(largest, tl.max(scores, 1))
    weights = tl.exp2(scores - new[:, None])
    if MASKED:
        weights = tl.where(seen, weights, 0.0)
    factor = tl.exp2(largest - new)
    v = _load_tokens(values, at, t < end, d, DIM, DIM_PAD, MASKED)
    mixed = mixed * factor[:, None] + tl.dot(weights.to(DOT), v.to(DOT), input_precision="ieee")
    return new, total * factor + tl.sum(weights, 1), mixed


@triton.jit
def attend_tiles(
    qkv,
    arena,
    out,
    header,
    tiles,
    pages,
    page_stride,
    k_offset,
    v_offset,
    qkv_stride,
    out_stride,
    scale,
    softcap,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    DIM_PAD: tl.constexpr,
    PAGE_TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
    WINDOW: tl.constexpr,
    CAPPED: tl.constexpr,
    DOT: tl.constexpr,
):
    """Attention of each tile's rows over its range of tokens. Grid: any number of programs.

    Semantics: out[t, h] = sum_s softmax_s(x / log2(e)) V[s, h // G],  first <= s < end and s <= position of t, and
    s > position of t - WINDOW if there is one,  where x = scale q[t, h] . K[s, h // G], and CAPPED
    x = softcap tanh(scale / (2 log2(e)) q[t, h] . K[s, h // G]).
    A tile with a part leaves there the sum before its division, the largest score and the sum of weights.

    Table of arguments:
        qkv          [T, C]                   q is rotated already
        arena        flat                     all pages, in elements
        out          [T, Q]                   receives the result of tiles without a part
        header       int64 [HEADER_FIELDS]
        tiles        int32 [n, TILE_FIELDS]
        pages        int32                    page tables, one after another; a tile names its first entry
        page_stride  int                      elements from one page to the next
        k_offset     int                      elements from the start of a page to the layer's K
        v_offset     int                      elements from the start of a page to the layer's V
        qkv_stride   int                      elements from one row of qkv to the next
        out_stride   int                      elements from one row of out to the next
        scale        float                    factor of the scores, times log2(e); CAPPED: times 2 log2(e) / bound of the scores
        softcap      float                    bound of the scores, times log2(e); not read unless CAPPED
        HEADS        int                      K
        GROUP        int                      G
        DIM          int                      D
        DIM_PAD      int                      D rounded up to a power of 2
        PAGE_TOKENS  int                      tokens of a page
        ROWS         int                      (row, query head) pairs of a tile: it holds up to ROWS // G rows
        TOKENS       int                      tokens of the context that one round of the loop takes
        WINDOW       int                      tokens that a row sees, its own included; 0: all before it
        CAPPED       bool                     whether the scores have a soft cap
        DOT          dtype                    that products are computed in
    """
    m = tl.arange(0, ROWS)
    d = tl.arange(0, DIM_PAD)
    for work in range(tl.program_id(0), tl.load(header).to(tl.int32) * HEADS, tl.num_programs(0)):
        tile = tiles + (work // HEADS) * 8
        head = work % HEADS
        first_row = tl.load(tile)
        rows = tl.load(tile + 1)
        position = tl.load(tile + 2)
        begin = tl.load(tile + 3)
        end = tl.load(tile + 4)
        first_page = tl.load(tile + 5)
        part = tl.load(tile + 6).to(tl.int64)

        row = m // GROUP
        used = row < rows
        mask = used[:, None] & (d < DIM)[None, :]
        column = ((head * GROUP + m % GROUP) * DIM)[:, None] + d[None, :]
        at = (first_row + row).to(tl.int64)[:, None]
        q = tl.load(qkv + at * qkv_stride + column, mask=mask, other=0.0).to(DOT)
        limit = tl.minimum(position + row + 1, end)
        lowest = limit
        if WINDOW > 0:
            lowest = position + row + 1 - WINDOW

        largest = tl.full((ROWS,), _LOWEST, tl.float32)
        total = tl.zeros((ROWS,), tl.float32)
        mixed = tl.zeros((ROWS, DIM_PAD), tl.float32)
        keys = arena + k_offset + head * DIM
        values = arena + v_offset + head * DIM
        left = begin
        if WINDOW > 0:
            # Tokens that the last row sees no longer: a mask for every block of them.
            unseen = tl.maximum(position + rows - WINDOW - begin, 0)
            left = tl.minimum(begin + (unseen + TOKENS - 1) // TOKENS * TOKENS, end)
            for first in range(begin, left, TOKENS):
                largest, total, mixed = _attend_tokens(
                    q, largest, total, mixed, keys, values, pages + first_page, page_stride, first, end, lowest, limit, scale,
                    softcap, HEADS * DIM, DIM, DIM_PAD, PAGE_TOKENS, TOKENS, WINDOW, CAPPED, DOT, True,
                )  # fmt: skip
        # Tokens from there to the first row's own are seen by every row: no mask for whole blocks of them.
        whole = tl.maximum(tl.minimum(position + 1, end) - left, 0) // TOKENS * TOKENS
        for first in range(left, left + whole, TOKENS):
            largest, total, mixed = _attend_tokens(
                q, largest, total, mixed, keys, values, pages + first_page, page_stride, first, end, lowest, limit, scale,
                softcap, HEADS * DIM, DIM, DIM_PAD, PAGE_TOKENS, TOKENS, WINDOW, CAPPED, DOT, False,
            )  # fmt: skip
        for first in range(left + whole, end, TOKENS):
            largest, total, mixed = _attend_tokens(
                q, largest, total, mixed, keys, values, pages + first_page, page_stride, first, end, lowest, limit, scale,
                softcap, HEADS * DIM, DIM, DIM_PAD, PAGE_TOKENS, TOKENS, WINDOW, CAPPED, DOT, True,
            )  # fmt: skip

        if part < 0:
            mixed = mixed / tl.where(used, total, 1.0)[:, None]
            tl.store(out + at * out_stride + column, mixed.to(out.dtype.element_ty), mask=mask)
        else:
            part_mixed = tl.load(header + 2).to(tl.pointer_type(tl.float32))
            part_total = tl.load(header + 3).to(tl.pointer_type(tl.float32))
            place = (part * HEADS + head) * ROWS
            tl.store(part_mixed + (place + m)[:, None] * DIM_PAD + d[None, :], mixed, mask=mask)
            tl.store(part_total + 2 * place + m, largest, mask=used)
            tl.store(part_total + 2 * place + ROWS + m, total, mask=used)


@triton.jit
def merge_parts(
    out,
    header,
    merges,
    out_stride,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    GROUP_PAD: tl.constexpr,
    DIM_PAD: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Put the parts of a cut row together, in order of position. Grid: any number of programs.

    Semantics: out[t, h] = sum_p 2^(max_p - max) mixed_p[t, h] / sum_p 2^(max_p - max) total_p[t, h].

    Table of arguments (the parts lie where ``header`` says, as ``attend_tiles`` leaves them):
        out         [T, Q]                   receives the result of rows that were cut
        header      int64 [HEADER_FIELDS]
        merges      int32 [n, MERGE_FIELDS]
        out_stride  int                      elements from one row of out to the next
        HEADS       int                      K
        GROUP       int                      G
        DIM         int                      D
        GROUP_PAD   int                      G rounded up to a power of 2
        DIM_PAD     int                      D rounded up to a power of 2
        ROWS        int                      as of ``attend_tiles``
    """
    g = tl.arange(0, GROUP_PAD)
    d = tl.arange(0, DIM_PAD)
    mask = (g < GROUP)[:, None] & (d < DIM)[None, :]
    part_mixed = tl.load(header + 2).to(tl.pointer_type(tl.float32))
    part_total = tl.load(header + 3).to(tl.pointer_type(tl.float32))
    for work in range(tl.program_id(0), tl.load(header + 1).to(tl.int32) * HEADS, tl.num_programs(0)):
        merge = merges + (work // HEADS) * 4
        head = work % HEADS
        row = tl.load(merge).to(tl.int64)
        inside = tl.load(merge + 1) * GROUP
        first = tl.load(merge + 2).to(tl.int64)
        count = tl.load(merge + 3)
        largest = tl.full((GROUP_PAD,), _LOWEST, tl.float32)
        total = tl.zeros((GROUP_PAD,), tl.float32)
        mixed = tl.zeros((GROUP_PAD, DIM_PAD), tl.float32)
        for part in range(count):
            place = ((first + part) * HEADS + head) * ROWS
            its_largest = tl.load(part_total + 2 * place + inside + g, mask=g < GROUP, other=_LOWEST)
            its_total = tl.load(part_total + 2 * place + ROWS + inside + g, mask=g < GROUP, other=0.0)
            its_mixed = tl.load(part_mixed + (place + inside + g)[:, None] * DIM_PAD + d[None, :], mask=mask, other=0.0)
            new = tl.maximum(largest, its_largest)
            before = tl.exp2(largest - new)
            now = tl.exp2(its_largest - new)
            mixed = mixed * before[:, None] + its_mixed * now[:, None]
            total = total * before + its_total * now
            largest = new
        column = ((head * GROUP + g) * DIM)[:, None] + d[None, :]
        mixed = mixed / tl.where(g < GROUP, total, 1.0)[:, None]
        tl.store(out + row * out_stride + column, mixed.to(out.dtype.element_ty), mask=mask)
