"""The small functions between a decoder's matrix products, one pass each (numba): norms and the gated activation.

In torch each of them is three to eight operations. Matrix products leave nothing of theirs in the caches, so that between
two products an operation costs several times what it costs when it is measured alone. Results do not depend on the number of
threads. Knows addresses and strides. See ``simd`` for ``element``. Legend: T rows, W width, N heads, D head_dim.
"""

from __future__ import annotations

import math

import numba
import numpy as np

from evenflow.serving.kernels.simd import (
    add,
    broadcast,
    div,
    exp,
    fma,
    itemsize,
    lane_sum,
    load,
    load_one,
    minimum,
    mul,
    store,
    store_one,
    sub,
    zeros,
)

_ONE = np.float32(1.0)
_ZERO = np.float32(0.0)
_GELU_LINEAR = np.float32(2 * math.sqrt(2 / math.pi))
_GELU_CUBIC = np.float32(0.044715 * 2 * math.sqrt(2 / math.pi))


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _norm_row(element, weight_element, x, out, weight, eps, width):
    """out[W] = x[W] / sqrt(mean(x^2) + eps) * weight[W]; ``out`` may be ``x``."""
    size, of_weight = itemsize(element), itemsize(weight_element)
    whole = width - width % 16
    squares = zeros()
    for i in range(0, whole, 16):
        v = load(element, x + size * i)
        squares = fma(v, v, squares)
    total = lane_sum(squares)
    for i in range(whole, width):
        one = load_one(element, x + size * i)
        total += one * one
    scale = np.float32(_ONE / math.sqrt(total / np.float32(width) + eps))
    scales = broadcast(scale)
    for i in range(0, whole, 16):
        w = load(weight_element, weight + of_weight * i)
        store(element, out + size * i, mul(mul(load(element, x + size * i), scales), w))
    for i in range(whole, width):
        one_w = load_one(weight_element, weight + of_weight * i)
        store_one(element, out + size * i, load_one(element, x + size * i) * scale * one_w)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _add_row(element, x, y, width):
    """x[W] += y[W], rounded to the element."""
    size = itemsize(element)
    whole = width - width % 16
    for i in range(0, whole, 16):
        store(element, x + size * i, add(load(element, x + size * i), load(element, y + size * i)))
    for i in range(whole, width):
        store_one(element, x + size * i, load_one(element, x + size * i) + load_one(element, y + size * i))


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _gate_row(element, gate, up, out, width):
    """out[W] = gate / (1 + exp(-gate)) * up."""
    size = itemsize(element)
    whole = width - width % 16
    one, zero = broadcast(_ONE), zeros()
    for i in range(0, whole, 16):
        g = load(element, gate + size * i)
        # ``exp`` is defined for numbers up to 0 only, hence this form: sigmoid(g) = exp(min(g, 0)) / (1 + exp(-|g|)).
        sigmoid = div(exp(minimum(g, zero)), add(one, exp(minimum(g, sub(zero, g)))))
        store(element, out + size * i, mul(mul(g, sigmoid), load(element, up + size * i)))
    for i in range(whole, width):
        x = load_one(element, gate + size * i)
        store_one(element, out + size * i, np.float32(x / (_ONE + math.exp(-x))) * load_one(element, up + size * i))


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _gelu_row(element, gate, up, out, width):
    """out[W] = gate / (1 + exp(-2 u)) * up with u = sqrt(2 / pi) (gate + 0.044715 gate^3): gelu by tanh."""
    size = itemsize(element)
    whole = width - width % 16
    one, zero = broadcast(_ONE), zeros()
    linear, cubic = broadcast(_GELU_LINEAR), broadcast(_GELU_CUBIC)
    for i in range(0, whole, 16):
        g = load(element, gate + size * i)
        z = mul(g, fma(mul(g, g), cubic, linear))
        sigmoid = div(exp(minimum(z, zero)), add(one, exp(minimum(z, sub(zero, z)))))
        store(element, out + size * i, mul(mul(g, sigmoid), load(element, up + size * i)))
    for i in range(whole, width):
        x = load_one(element, gate + size * i)
        y = x * (_GELU_LINEAR + _GELU_CUBIC * x * x)
        store_one(element, out + size * i, np.float32(x / (_ONE + math.exp(-y))) * load_one(element, up + size * i))


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _add_and_norm_rows(element, weight_element, first, last, x, y, out, weight, eps, width):
    stride = itemsize(element) * width
    for t in range(first, last):
        if y != 0:
            _add_row(element, x + stride * t, y + stride * t, width)
        _norm_row(element, weight_element, x + stride * t, out + stride * t, weight, eps, width)


@numba.njit(parallel=True, nogil=True, cache=True, error_model="numpy")
def _add_and_norm_parallel(element, weight_element, num_threads, num_rows, x, y, out, weight, eps, width):
    for i in numba.prange(num_threads):
        first, last = num_rows * i // num_threads, num_rows * (i + 1) // num_threads
        _add_and_norm_rows(element, weight_element, first, last, x, y, out, weight, eps, width)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def add_and_norm(element, weight_element, num_threads, num_rows, x, y, out, weight, eps, width):
    """Add to the residual stream and normalise what is there.

    Semantics: x[t] += y[t] (unless the address ``y`` is 0);  out[t] = x[t] / sqrt(mean(x[t]^2) + eps) * weight.

    Table of arguments (addresses are integers; x, y and out are [T, W] without gaps):
        element         type     what x, y and out are stored as: see ``simd.element_of``
        weight_element  type     what the weight is stored as
        num_threads     int      parts that the rows are cut into; 1 starts no parallel region
        num_rows        int      T
        x               address  the residual stream; changed in place
        y               address  what is added to it; 0: nothing
        out             address  receives the norm
        weight          address  [W]
        eps             float32  added to the mean of squares
        width           int      W
    """
    if num_threads == 1:
        _add_and_norm_rows(element, weight_element, 0, num_rows, x, y, out, weight, eps, width)
    else:
        _add_and_norm_parallel(element, weight_element, num_threads, num_rows, x, y, out, weight, eps, width)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _norm_heads_rows(
    element, weight_element, first, last, qkv, width, num_heads, num_kv_heads, head_dim, q_weight, k_weight, eps
):
    size = itemsize(element)
    for t in range(first, last):
        row = qkv + size * width * t
        for head in range(num_heads + num_kv_heads):
            x = row + size * head_dim * head
            _norm_row(element, weight_element, x, x, q_weight if head < num_heads else k_weight, eps, head_dim)


@numba.njit(parallel=True, nogil=True, cache=True, error_model="numpy")
def _norm_heads_parallel(
    element, weight_element, num_threads, num_rows, qkv, width, num_heads, num_kv_heads, head_dim, q_weight, k_weight, eps
):
    for i in numba.prange(num_threads):
        first, last = num_rows * i // num_threads, num_rows * (i + 1) // num_threads
        _norm_heads_rows(
            element, weight_element, first, last, qkv, width, num_heads, num_kv_heads, head_dim, q_weight, k_weight, eps
        )


@numba.njit(nogil=True, cache=True, error_model="numpy")
def norm_heads(
    element, weight_element, num_threads, num_rows, qkv, width, num_heads, num_kv_heads, head_dim, q_weight, k_weight, eps
):
    """Normalise every query head and every key head of a fused qkv, in place.

    Semantics: qkv[t, n] = qkv[t, n] / sqrt(mean(qkv[t, n]^2) + eps) * weight, for the first N_q + N_kv heads of
    each row [W]; the weight is q_weight or k_weight.

    Table of arguments (addresses are integers):
        element       type     what qkv is stored as: see ``simd.element_of``
        weight_element  type   what the weights are stored as
        num_threads   int      parts that the rows are cut into; 1 starts no parallel region
        num_rows      int      T
        qkv           address  [T, W] without gaps; changed in place
        width         int      W, elements of a row: query, key and value heads
        num_heads     int      N_q, query heads
        num_kv_heads  int      N_kv, key/value heads
        head_dim      int      D
        q_weight      address  [D]
        k_weight      address  [D]
        eps           float32  added to the mean of squares
    """
    if num_threads == 1:
        _norm_heads_rows(
            element, weight_element, 0, num_rows, qkv, width, num_heads, num_kv_heads, head_dim, q_weight, k_weight, eps
        )
    else:
        _norm_heads_parallel(
            element,
            weight_element,
            num_threads,
            num_rows,
            qkv,
            width,
            num_heads,
            num_kv_heads,
            head_dim,
            q_weight,
            k_weight,
            eps,
        )


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _silu_and_multiply_rows(element, first, last, gate_up, out, width):
    stride = itemsize(element) * width
    for t in range(first, last):
        gate = gate_up + 2 * stride * t
        _gate_row(element, gate, gate + stride, out + stride * t, width)


@numba.njit(parallel=True, nogil=True, cache=True, error_model="numpy")
def _silu_and_multiply_parallel(element, num_threads, num_rows, gate_up, out, width):
    for i in numba.prange(num_threads):
        first, last = num_rows * i // num_threads, num_rows * (i + 1) // num_threads
        _silu_and_multiply_rows(element, first, last, gate_up, out, width)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def silu_and_multiply(element, num_threads, num_rows, gate_up, out, width):
    """out[t] = silu(gate[t]) * up[t] of rows [gate | up], [T, 2W] to [T, W] without gaps."""
    if num_threads == 1:
        _silu_and_multiply_rows(element, 0, num_rows, gate_up, out, width)
    else:
        _silu_and_multiply_parallel(element, num_threads, num_rows, gate_up, out, width)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _gelu_and_multiply_rows(element, first, last, gate_up, out, width):
    stride = itemsize(element) * width
    for t in range(first, last):
        gate = gate_up + 2 * stride * t
        _gelu_row(element, gate, gate + stride, out + stride * t, width)


@numba.njit(parallel=True, nogil=True, cache=True, error_model="numpy")
def _gelu_and_multiply_parallel(element, num_threads, num_rows, gate_up, out, width):
    for i in numba.prange(num_threads):
        first, last = num_rows * i // num_threads, num_rows * (i + 1) // num_threads
        _gelu_and_multiply_rows(element, first, last, gate_up, out, width)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def gelu_and_multiply(element, num_threads, num_rows, gate_up, out, width):
    """out[t] = gelu(gate[t]) * up[t], gelu by tanh, of rows [gate | up], [T, 2W] to [T, W] without gaps."""
    if num_threads == 1:
        _gelu_and_multiply_rows(element, 0, num_rows, gate_up, out, width)
    else:
        _gelu_and_multiply_parallel(element, num_threads, num_rows, gate_up, out, width)
