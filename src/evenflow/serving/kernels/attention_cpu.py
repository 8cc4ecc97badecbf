"""Decode attention over pages (numba): one query row against the K and V of its context.

A processor reads faster from several places at once than from one. Of a block of 16 tokens, tokens j, j + 4, j + 8 and
j + 12 are therefore read together, all heads of each, so that K (and then V) is read as four contiguous runs. Each block
ends in one step of online softmax per head, over its 16 scores. The scores of a block stay in the order in which they are
computed (that of token j + 4 i has place 4 j + i), since softmax does not depend on their order. While a block is computed,
the next block's K and V are asked for: pages lie anywhere, so the processor cannot guess what is read next. In the last
block of a context, which may be partial, only valid tokens are read: the bytes behind them may be NaN.

The result of a row depends on nothing but that row's q, K and V: not on threads, nor on other rows.
Knows addresses and page numbers. See ``simd`` for ``element``. Legend: N query heads, K key/value heads,
D head_dim (a multiple of 16).
"""

from __future__ import annotations

import numba
import numpy as np

from evenflow.serving.kernels.simd import (
    broadcast,
    exp,
    first_lane,
    fma,
    itemsize,
    lane_max,
    lane_sum,
    load,
    load_f32,
    load_i64,
    load_one_f32,
    mul,
    prefetch,
    store,
    store_f32,
    store_lane_sums,
    store_one_f32,
    sub,
    zeros,
)

_LOWEST = np.float32(-1e30)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _scores_1_head(element, q, k, stride, scores, dim):
    """Scores of four tokens (``stride`` bytes apart) for one query head: scores[0:4]."""
    size = itemsize(element)
    a = zeros()
    b = zeros()
    c = zeros()
    d = zeros()
    for i in range(0, dim, 16):
        x = load_f32(q + 4 * i)
        p = k + size * i
        a = fma(x, load(element, p), a)
        b = fma(x, load(element, p + stride), b)
        c = fma(x, load(element, p + 2 * stride), c)
        d = fma(x, load(element, p + 3 * stride), d)
    store_lane_sums(scores, a, b, c, d)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _scores_2_heads(element, q, k, stride, scores, dim):
    """Scores of four tokens for two query heads that share K, so that each K is widened once: scores[0:4], scores[16:20]."""
    size = itemsize(element)
    r = q + 4 * dim
    a0 = zeros()
    b0 = zeros()
    c0 = zeros()
    d0 = zeros()
    a1 = zeros()
    b1 = zeros()
    c1 = zeros()
    d1 = zeros()
    for i in range(0, dim, 16):
        x = load_f32(q + 4 * i)
        y = load_f32(r + 4 * i)
        p = k + size * i
        u = load(element, p)
        a0 = fma(x, u, a0)
        a1 = fma(y, u, a1)
        u = load(element, p + stride)
        b0 = fma(x, u, b0)
        b1 = fma(y, u, b1)
        u = load(element, p + 2 * stride)
        c0 = fma(x, u, c0)
        c1 = fma(y, u, c1)
        u = load(element, p + 3 * stride)
        d0 = fma(x, u, d0)
        d1 = fma(y, u, d1)
    store_lane_sums(scores, a0, b0, c0, d0)
    store_lane_sums(scores + 64, a1, b1, c1, d1)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _mix_1_head(element, out, v, stride, weights, dim):
    """Add four tokens' V, times their weights[0:4], to one head's output."""
    size = itemsize(element)
    a = broadcast(load_one_f32(weights))
    b = broadcast(load_one_f32(weights + 4))
    c = broadcast(load_one_f32(weights + 8))
    d = broadcast(load_one_f32(weights + 12))
    for i in range(0, dim, 16):
        p = v + size * i
        y = fma(a, load(element, p), load_f32(out + 4 * i))
        y = fma(b, load(element, p + stride), y)
        y = fma(c, load(element, p + 2 * stride), y)
        store_f32(out + 4 * i, fma(d, load(element, p + 3 * stride), y))


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _mix_2_heads(element, out, v, stride, weights, dim):
    """Add four tokens' V to the outputs of two query heads that share V: weights[0:4] and weights[16:20]."""
    size = itemsize(element)
    out1 = out + 4 * dim
    a0 = broadcast(load_one_f32(weights))
    b0 = broadcast(load_one_f32(weights + 4))
    c0 = broadcast(load_one_f32(weights + 8))
    d0 = broadcast(load_one_f32(weights + 12))
    a1 = broadcast(load_one_f32(weights + 64))
    b1 = broadcast(load_one_f32(weights + 68))
    c1 = broadcast(load_one_f32(weights + 72))
    d1 = broadcast(load_one_f32(weights + 76))
    for i in range(0, dim, 16):
        p = v + size * i
        u = load(element, p)
        y = fma(a0, u, load_f32(out + 4 * i))
        z = fma(a1, u, load_f32(out1 + 4 * i))
        u = load(element, p + stride)
        y = fma(b0, u, y)
        z = fma(b1, u, z)
        u = load(element, p + 2 * stride)
        y = fma(c0, u, y)
        z = fma(c1, u, z)
        u = load(element, p + 3 * stride)
        store_f32(out + 4 * i, fma(d0, u, y))
        store_f32(out1 + 4 * i, fma(d1, u, z))


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _soften(scores, largest, total, out, dim):
    """One step of online softmax: 16 scores become weights; what was summed before is rescaled to the new maximum."""
    s = load_f32(scores)
    old = load_one_f32(largest)
    new = lane_max(s)
    if new > old:
        factor = exp(broadcast(old - new))
        store_one_f32(largest, new)
        for i in range(0, dim, 16):
            store_f32(out + 4 * i, mul(load_f32(out + 4 * i), factor))
        store_one_f32(total, load_one_f32(total) * first_lane(factor))
    else:
        new = old
    weights = exp(sub(s, broadcast(new)))
    store_f32(scores, weights)
    store_one_f32(total, load_one_f32(total) + lane_sum(weights))


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _ask_ahead(start, width, stride):
    """Ask the memory for ``width`` bytes of each of four tokens that lie ``stride`` bytes apart."""
    for i in range(0, width, 64):
        prefetch(start + i)
        prefetch(start + stride + i)
        prefetch(start + 2 * stride + i)
        prefetch(start + 3 * stride + i)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _scores_of_four(element, q, k, token_stride, scores, first_head, last_head, group, dim, ahead):
    """Scores of four tokens for key/value heads first_head up to last_head.

    ``ahead``: bytes from here to the same tokens of the next block, whose K is asked for meanwhile; 0: there is none.
    """
    size = itemsize(element)
    for head in range(first_head, last_head):
        n = head * group
        k_head = k + size * dim * head
        if ahead != 0:
            _ask_ahead(k_head + ahead, size * dim, token_stride)
        pairs = group - group % 2
        for g in range(0, pairs, 2):
            _scores_2_heads(element, q + 4 * dim * (n + g), k_head, token_stride, scores + 64 * (n + g), dim)
        if group > pairs:
            g = pairs
            _scores_1_head(element, q + 4 * dim * (n + g), k_head, token_stride, scores + 64 * (n + g), dim)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _mix_of_four(element, out, v, token_stride, weights, first_head, last_head, group, dim, ahead):
    """Add four tokens' V to the outputs of key/value heads first_head up to last_head. ``ahead``: see ``_scores_of_four``."""
    size = itemsize(element)
    for head in range(first_head, last_head):
        n = head * group
        v_head = v + size * dim * head
        if ahead != 0:
            _ask_ahead(v_head + ahead, size * dim, token_stride)
        pairs = group - group % 2
        for g in range(0, pairs, 2):
            _mix_2_heads(element, out + 4 * dim * (n + g), v_head, token_stride, weights + 64 * (n + g), dim)
        if group > pairs:
            g = pairs
            _mix_1_head(element, out + 4 * dim * (n + g), v_head, token_stride, weights + 64 * (n + g), dim)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _one_token_score(element, q, k, dim):
    size = itemsize(element)
    a = zeros()
    for i in range(0, dim, 16):
        a = fma(load_f32(q + 4 * i), load(element, k + size * i), a)
    return lane_sum(a)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _one_token_mix(element, out, v, weight, dim):
    size = itemsize(element)
    a = broadcast(weight)
    for i in range(0, dim, 16):
        store_f32(out + 4 * i, fma(a, load(element, v + size * i), load_f32(out + 4 * i)))


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _attend_row(
    element,
    arena,
    page_bytes,
    page_blocks,
    k_offset,
    v_offset,
    q,
    out,
    pages,
    context,
    sm_scale,
    first,
    last,
    group,
    heads,
    dim,
    scratch,
):
    """One row and the key/value heads [first, last): scratch holds scaled q, the sums, the scores, maxima and totals."""
    size = itemsize(element)
    queries = heads * group
    token = size * dim * heads
    x = scratch
    y = x + 4 * queries * dim
    scores = y + 4 * queries * dim
    largest = scores + 64 * queries
    total = largest + 4 * queries
    scale = broadcast(sm_scale)
    for i in range(first * group * dim, last * group * dim, 16):
        store_f32(x + 4 * i, mul(load(element, q + size * i), scale))
        store_f32(y + 4 * i, zeros())
    for n in range(first * group, last * group):
        store_one_f32(largest + 4 * n, _LOWEST)
        store_one_f32(total + 4 * n, np.float32(0))
    blocks = context // 16
    for block in range(blocks):
        page = block // page_blocks
        at = arena + page_bytes * load_i64(pages + 8 * page) + 16 * token * (block - page * page_blocks)
        ahead = 0
        if 16 * (block + 1) < context:
            page = (block + 1) // page_blocks
            ahead = arena + page_bytes * load_i64(pages + 8 * page) + 16 * token * (block + 1 - page * page_blocks) - at
        for j in range(4):
            k = at + k_offset + token * j
            _scores_of_four(element, x, k, 4 * token, scores + 16 * j, first, last, group, dim, ahead)
        for n in range(first * group, last * group):
            _soften(scores + 64 * n, largest + 4 * n, total + 4 * n, y + 4 * dim * n, dim)
        for j in range(4):
            v = at + v_offset + token * j
            _mix_of_four(element, y, v, 4 * token, scores + 16 * j, first, last, group, dim, ahead)
    rest = context - 16 * blocks
    if rest > 0:
        page = blocks // page_blocks
        at = arena + page_bytes * load_i64(pages + 8 * page) + 16 * token * (blocks - page * page_blocks)
        quads = rest - rest % 4
        for j in range(0, quads, 4):
            _scores_of_four(element, x, at + k_offset + token * j, token, scores + 4 * j, first, last, group, dim, 0)
        for n in range(first * group, last * group):
            k = at + k_offset + size * dim * (n // group)
            for j in range(quads, rest):
                store_one_f32(scores + 64 * n + 4 * j, _one_token_score(element, x + 4 * dim * n, k + token * j, dim))
            for j in range(rest, 16):
                store_one_f32(scores + 64 * n + 4 * j, _LOWEST)
            _soften(scores + 64 * n, largest + 4 * n, total + 4 * n, y + 4 * dim * n, dim)
        for j in range(0, quads, 4):
            _mix_of_four(element, y, at + v_offset + token * j, token, scores + 4 * j, first, last, group, dim, 0)
        for n in range(first * group, last * group):
            v = at + v_offset + size * dim * (n // group)
            for j in range(quads, rest):
                weight = load_one_f32(scores + 64 * n + 4 * j)
                _one_token_mix(element, y + 4 * dim * n, v + token * j, weight, dim)
    for n in range(first * group, last * group):
        inverse = broadcast(np.float32(1) / load_one_f32(total + 4 * n))
        for i in range(n * dim, (n + 1) * dim, 16):
            store(element, out + size * i, mul(load_f32(y + 4 * i), inverse))


def scratch_floats(num_heads: int, head_dim: int) -> int:
    """Floats of scratch that each thread of ``attend`` needs."""
    return num_heads * (2 * head_dim + 16 + 2)


@numba.njit(parallel=True, nogil=True, cache=True, error_model="numpy")
def attend(
    element,
    num_threads,
    arena,
    page_bytes,
    page_blocks,
    k_offset,
    v_offset,
    q,
    q_stride,
    out,
    out_stride,
    rows,
    page_tables,
    contexts,
    cut_tasks,
    cut_heads,
    sm_scale,
    num_kv_heads,
    group,
    head_dim,
    scratch,
    scratch_stride,
):
    """Attend from the given rows of q, each over its own pages and context; write the same rows of out.

    Semantics: out[t, n] = sum_s softmax_s(sm_scale q[t, n] . K[s, n // group]) V[s, n // group],  s < contexts[i], t = rows[i].

    Table of arguments (n tasks, one per row of q; addresses are integers):
        element         type       what q, K, V and out are stored as: see ``simd.element_of``
        num_threads     int        parts that the work is cut into
        arena           address    page 0
        page_bytes      int        bytes from one page to the next
        page_blocks     int        blocks of 16 tokens in a page
        k_offset        int        bytes from the start of a page to the layer's K
        v_offset        int        bytes from the start of a page to the layer's V
        q               address    of row 0 [T, N, D]
        q_stride        int        bytes from one row of q to the next
        out             address    of row 0 [T, N, D]
        out_stride      int        bytes from one row of out to the next
        rows            int64 [n]  row of q of each task
        page_tables     int64 [n]  address of the task's page numbers (int64), in order of position
        contexts        int64 [n]  tokens that the row sees: positions 0 up to, not including, this one
        cut_tasks       int64 [num_threads + 1]  task where each thread begins
        cut_heads       int64 [num_threads + 1]  key/value head of that task where the thread begins
        sm_scale        float32    factor of the scores
        num_kv_heads    int        K
        group           int        query heads per key/value head
        head_dim        int        D
        scratch         address    room for ``scratch_floats`` floats per thread
        scratch_stride  int        bytes from one thread's room to the next

    Thread i computes from its own beginning up to that of thread i + 1. Of a task that lies between two cuts it computes
    all key/value heads; a task that a cut divides is shared by two threads, head by head.
    """
    for thread in numba.prange(num_threads):
        space = scratch + scratch_stride * thread
        begin, end = cut_tasks[thread], cut_tasks[thread + 1]
        for task in range(begin, min(end + 1, len(rows))):
            first = cut_heads[thread] if task == begin else 0
            last = cut_heads[thread + 1] if task == end else num_kv_heads
            if first < last:
                _attend_row(
                    element,
                    arena,
                    page_bytes,
                    page_blocks,
                    k_offset,
                    v_offset,
                    q + q_stride * rows[task],
                    out + out_stride * rows[task],
                    page_tables[task],
                    contexts[task],
                    sm_scale,
                    first,
                    last,
                    group,
                    num_kv_heads,
                    head_dim,
                    space,
                )
