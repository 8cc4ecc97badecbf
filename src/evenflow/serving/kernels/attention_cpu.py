"""Decode attention over pages (numba): one query row against the K and V of its context.

A processor reads faster from several places at once than from one. Of a block of 16 tokens, tokens j, j + 4, j + 8 and
j + 12 are therefore read together, all heads of each, so that K (and then V) is read as four contiguous runs. Each block
ends in one step of online softmax per head, over its 16 scores. The scores of a block stay in the order in which they are
computed (that of token j + 4 i has place 4 j + i), since softmax does not depend on their order. While a block is computed,
the next block's K and V are asked for: pages lie anywhere, so the processor cannot guess what is read next. In the last
block of a context, which may be partial, only valid tokens are read: the bytes behind them may be NaN. A row that does not
see the beginning of its context starts at the block of the first token that it sees, and blocks before are never touched.

The result of a row depends on nothing but that row's q, K and V: not on threads, nor on other rows.
Knows addresses and page numbers. See ``simd`` for ``element``. Legend: N query heads, K key/value heads,
D head_dim (a multiple of 16).
"""

from __future__ import annotations

import numba
import numpy as np

from evenflow.serving.kernels.attention_parts_cpu import (
    bound,
    mix_of_four,
    one_token_mix,
    one_token_score,
    scores_of_four,
    soften,
)
from evenflow.serving.kernels.simd import (
    broadcast,
    itemsize,
    load,
    load_f32,
    load_i64,
    load_one_f32,
    mul,
    store,
    store_f32,
    store_one_f32,
    zeros,
)

_LOWEST = np.float32(-1e30)


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
    begin,
    context,
    sm_scale,
    softcap,
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
    for block in range(begin // 16, blocks):
        page = block // page_blocks
        at = arena + page_bytes * load_i64(pages + 8 * page) + 16 * token * (block - page * page_blocks)
        ahead = 0
        if 16 * (block + 1) < context:
            page = (block + 1) // page_blocks
            ahead = arena + page_bytes * load_i64(pages + 8 * page) + 16 * token * (block + 1 - page * page_blocks) - at
        for j in range(4):
            k = at + k_offset + token * j
            scores_of_four(element, x, k, 4 * token, scores + 16 * j, first, last, group, dim, ahead)
        if softcap > 0:
            for n in range(first * group, last * group):
                bound(scores + 64 * n, softcap)
        for t in range(begin - 16 * block):
            for n in range(first * group, last * group):
                store_one_f32(scores + 64 * n + 16 * (t % 4) + 4 * (t // 4), _LOWEST)
        for n in range(first * group, last * group):
            soften(scores + 64 * n, largest + 4 * n, total + 4 * n, y + 4 * dim * n, dim)
        for j in range(4):
            v = at + v_offset + token * j
            mix_of_four(element, y, v, 4 * token, scores + 16 * j, first, last, group, dim, ahead)
    rest = context - 16 * blocks
    if rest > 0:
        page = blocks // page_blocks
        at = arena + page_bytes * load_i64(pages + 8 * page) + 16 * token * (blocks - page * page_blocks)
        quads = rest - rest % 4
        for j in range(0, quads, 4):
            scores_of_four(element, x, at + k_offset + token * j, token, scores + 4 * j, first, last, group, dim, 0)
        for n in range(first * group, last * group):
            k = at + k_offset + size * dim * (n // group)
            for j in range(quads, rest):
                store_one_f32(scores + 64 * n + 4 * j, one_token_score(element, x + 4 * dim * n, k + token * j, dim))
            if softcap > 0:
                bound(scores + 64 * n, softcap)
            for j in range(begin - 16 * blocks):
                store_one_f32(scores + 64 * n + 4 * j, _LOWEST)
            for j in range(rest, 16):
                store_one_f32(scores + 64 * n + 4 * j, _LOWEST)
            soften(scores + 64 * n, largest + 4 * n, total + 4 * n, y + 4 * dim * n, dim)
        for j in range(0, quads, 4):
            mix_of_four(element, y, at + v_offset + token * j, token, scores + 4 * j, first, last, group, dim, 0)
        for n in range(first * group, last * group):
            v = at + v_offset + size * dim * (n // group)
            for j in range(quads, rest):
                weight = load_one_f32(scores + 64 * n + 4 * j)
                one_token_mix(element, y + 4 * dim * n, v + token * j, weight, dim)
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
    begins,
    contexts,
    cut_tasks,
    cut_heads,
    sm_scale,
    softcap,
    num_kv_heads,
    group,
    head_dim,
    scratch,
    scratch_stride,
):
    """Attend from the given rows of q, each over its own pages and context; write the same rows of out.

    Semantics: out[t, n] = sum_s softmax_s(cap(sm_scale q[t, n] . K[s, n // group])) V[s, n // group],
    begins[i] <= s < contexts[i], t = rows[i], where cap(x) = softcap tanh(x / softcap), or x if softcap is 0.

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
        begins          int64 [n]  position of the first token that the row sees; below contexts
        contexts        int64 [n]  tokens of the row's context: it sees positions up to, not including, this one
        cut_tasks       int64 [num_threads + 1]  task where each thread begins
        cut_heads       int64 [num_threads + 1]  key/value head of that task where the thread begins
        sm_scale        float32    factor of the scores
        softcap         float32    bound of the scores; 0: none
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
                    begins[task],
                    contexts[task],
                    sm_scale,
                    softcap,
                    first,
                    last,
                    group,
                    num_kv_heads,
                    head_dim,
                    space,
                )
