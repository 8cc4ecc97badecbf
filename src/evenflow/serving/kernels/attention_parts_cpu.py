"""Parts of decode attention (numba): scores of four tokens, their values weighed, one step of online softmax.

Knows addresses. See ``attention_cpu`` for how they are put together, and ``simd`` for ``element``.

Table of arguments (addresses and strides are integers, in bytes; sums and scores are fp32):
    element       type     what K and V are stored as
    q, out        address  scaled queries, or sums, of all query heads: [N, D]
    k, v          address  of the first of the four tokens: [K, D]
    token_stride  int      from one of the tokens to the next
    scores        address  16 for each query head, the four of these tokens first
    weights       address  the same after ``soften``
    first_head    int      the first key/value head
    last_head     int      behind the last
    group         int      query heads per key/value head
    dim           int      D
    ahead         int      from here to the same tokens of the next block, which are asked for meanwhile; 0: there is none
"""

from __future__ import annotations

import numba
import numpy as np

from evenflow.serving.kernels.simd import (
    add,
    broadcast,
    div,
    exp,
    first_lane,
    fma,
    itemsize,
    lane_max,
    lane_sum,
    load,
    load_f32,
    load_one_f32,
    minimum,
    mul,
    prefetch,
    store_f32,
    store_lane_sums,
    store_one_f32,
    sub,
    zeros,
)


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
def bound(scores, softcap):
    """16 scores s become softcap tanh(s / softcap). The error is below 1e-7 softcap; a NaN stays one."""
    one = broadcast(np.float32(1))
    s = load_f32(scores)
    x = mul(s, broadcast(np.float32(1) / softcap))
    # -|x|, kept away from 0, where tanh x / x is 1.
    below = minimum(minimum(x, sub(zeros(), x)), broadcast(np.float32(-1e-3)))
    e = exp(add(below, below))
    store_f32(scores, mul(s, div(sub(e, one), mul(add(one, e), below))))


@numba.njit(nogil=True, cache=True, error_model="numpy")
def soften(scores, largest, total, out, dim):
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
def scores_of_four(element, q, k, token_stride, scores, first_head, last_head, group, dim, ahead):
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
def mix_of_four(element, out, v, token_stride, weights, first_head, last_head, group, dim, ahead):
    """Add four tokens' V to the outputs of key/value heads first_head up to last_head. ``ahead``: see ``scores_of_four``."""
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
def one_token_score(element, q, k, dim):
    size = itemsize(element)
    a = zeros()
    for i in range(0, dim, 16):
        a = fma(load_f32(q + 4 * i), load(element, k + size * i), a)
    return lane_sum(a)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def one_token_mix(element, out, v, weight, dim):
    size = itemsize(element)
    a = broadcast(weight)
    for i in range(0, dim, 16):
        store_f32(out + 4 * i, fma(a, load(element, v + size * i), load_f32(out + 4 * i)))
