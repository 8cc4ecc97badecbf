"""What every compressor promises, checked over the whole registry."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from evenflow.base.errors import ConfigError, NonFiniteInput
from evenflow.comm import DEFAULT_SPECS, Algebra, Compressor, Context, get_compressor
from evenflow.comm.catalogue import PAPER_SETTINGS

ALL_SPECS = (
    *DEFAULT_SPECS,
    "fp16",
    "spike-int3",
    "powersgd:8:fp16",
    "ef(topk:0.1)",
    "ef(q2)",
    "ef(powersgd:4)",
    "ef(srht:0.25)",
    *(f"paper:{setting}" for setting in PAPER_SETTINGS),
)
SHAPES = [(1, 128), (2, 31, 128), (33, 130), (3, 5, 257), (4, 1, 640)]
LINEAR = [spec for spec in ALL_SPECS if get_compressor(spec).algebra is Algebra.LINEAR]

# Largest error as a share of the largest entry of the group (or channel, or tensor), for a single encoding.
# Half a step of the level grid, plus the rounding of the scale; MX formats add saturation (see floats.py).
ERROR_BOUNDS = {
    "none": 0.0,
    "bf16": 2.0**-8,
    "fp16": 2.0**-11,
    "q8": 0.5 / 127 * 1.001,
    "q4": 0.5 / 7 * 1.001,
    "q2": 1 / 3 * 1.001,
    "paper:Q3": 1 / 128 * 1.01,
    "paper:Q2": 1 / 8 * 1.01,
    "paper:Q1": 1 / 2 * 1.01,
    "int8-g32": 0.5 / 127 * (1 + 2.0**-8),
    "int6-g32": 0.5 / 31 * (1 + 2.0**-8),
    "int4-g32": 0.5 / 7 * (1 + 2.0**-8),
    "aqsgd:4": 0.5 / 7 * (1 + 2.0**-8),
    "fp8-g128": 2.0**-4 * (1 + 2.0**-7),
    "mxfp8": 1 / 8 + 2.0**-10,
    "mxfp4": 1 / 4 + 2.0**-10,
    "spike-int2": 2 / 3 * 0.5 * (1 + 2.0**-5) + 2.0**-7,
    "spike-int3": 2 / 7 * 0.5 * (1 + 2.0**-5) + 2.0**-7,
    "outlier-int4": 0.5 / 7 * (1 + 2.0**-8),
}


def sample(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def round_trip(compressor: Compressor, x: Tensor, context: Context = Context()) -> Tensor:  # noqa: B008
    with torch.no_grad():
        return compressor.decode(compressor.encode(x, context), x.shape, x.dtype, context)


def exchange(compressors: list[Compressor], xs: list[Tensor], step: int = 0) -> list[Tensor]:
    """Sum the messages of several ranks as an all-reduce would."""
    generators = [c.reduce(x, Context(rank, step)) for rank, (c, x) in enumerate(zip(compressors, xs))]
    messages = [next(g) for g in generators]
    while True:
        total = torch.stack(messages).sum(0)
        results, messages = [], []
        for g in generators:
            try:
                messages.append(g.send(total))
            except StopIteration as done:
                results.append(done.value)
        if results:
            return results


@pytest.mark.parametrize("spec", ALL_SPECS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_plan_is_the_size_of_the_message_and_shapes_come_back(spec: str, dtype: torch.dtype) -> None:
    for shape in SHAPES:
        compressor = get_compressor(spec)
        x = sample(shape, dtype)
        with torch.no_grad():
            message = compressor.encode(x)
            plan = compressor.wire_plan(x.shape, x.dtype)
            y = compressor.decode(message, x.shape, x.dtype)
        assert message.numel() * message.element_size() == plan.payload_bytes
        assert message.is_contiguous()
        assert 0 <= plan.meta_bytes <= plan.payload_bytes
        assert (message.dtype == torch.uint8) == (compressor.algebra is Algebra.NONLINEAR)
        assert y.shape == x.shape
        assert y.dtype == x.dtype
        assert y.data_ptr() != x.data_ptr()
        assert torch.isfinite(y).all()


TOO_MANY = {f"paper:{family}{n}": size for family in "TR" for n, size in zip((1, 2, 3, 4), (9, 19, 49, 99))}
"""They send 10 to 100 entries a row: the size of vectors that are too short."""


@pytest.mark.parametrize("spec", ALL_SPECS)
@pytest.mark.parametrize("shape", [(), (1,), (7,), (33,), (0,), (3, 0), (0, 8)])
def test_small_shapes_work_or_are_refused_with_a_reason(spec: str, shape: tuple[int, ...]) -> None:
    compressor, x = get_compressor(spec), sample(shape)
    if x.numel() == 0:
        with pytest.raises(ConfigError, match="empty"):
            compressor.wire_plan(x.shape, x.dtype)
        return
    if spec in TOO_MANY and x.numel() <= TOO_MANY[spec]:
        with pytest.raises(ConfigError, match="larger than the tensor"):
            compressor.encode(x)
        return
    with torch.no_grad():
        message, plan = compressor.encode(x), compressor.wire_plan(x.shape, x.dtype)
        y = compressor.decode(message, x.shape, x.dtype)
    assert message.nbytes == plan.payload_bytes
    assert y.shape == x.shape
    assert torch.isfinite(y).all()
    assert compressor.support(x).shape == x.shape


@pytest.mark.parametrize("spec", [spec for spec in ALL_SPECS if "powersgd" not in spec and ":P" not in spec])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strides_do_not_change_the_message(spec: str, dtype: torch.dtype) -> None:
    x = sample((128, 260), dtype)
    for view in (x.t(), x[:, ::2], x.flip(0), x[::3, 2:], x[:1].expand(40, 260), x.view(4, 32, 260).transpose(0, 1)):
        with torch.no_grad():
            message = get_compressor(spec).encode(view)
            assert torch.equal(message, get_compressor(spec).encode(view.contiguous()))
            out, expected = torch.empty(view.shape, dtype=dtype), get_compressor(spec)
            get_compressor(spec).decode_into(message, out)
            assert torch.equal(out, expected.decode(message, view.shape, dtype))


HAS_BF16_VALUES = ("spike-int2", "spike-int3", "outlier-int4")
LARGEST = {
    torch.float16: 65504.0,
    torch.bfloat16: 3.3e38,  # within a rounding of the scale of its largest number, decoding may give infinity
    torch.float32: torch.finfo(torch.float32).max,
}


@pytest.mark.parametrize("spec", [spec for spec in sorted(ERROR_BOUNDS) if get_compressor(spec).algebra is Algebra.NONLINEAR])
@pytest.mark.parametrize("dtype", list(LARGEST), ids=str)
def test_the_largest_and_the_smallest_numbers_stay_finite(spec: str, dtype: torch.dtype) -> None:
    signs = torch.where(sample((8, 128)) > 0, 1.0, -1.0)
    for size in (LARGEST[dtype], LARGEST[dtype] / 3, torch.finfo(dtype).tiny * 8, torch.finfo(dtype).smallest_normal / 8):
        x = (signs * size).to(dtype)
        # The paper's scales are fp16, and spikes are bf16, whose largest number is a little below that of fp32.
        largest = LARGEST[torch.float16 if "paper" in spec else torch.bfloat16 if spec in HAS_BF16_VALUES else torch.float32]
        if size > largest:
            with pytest.raises(NonFiniteInput, match="range"):
                get_compressor(spec).encode(x)
            continue
        y = round_trip(get_compressor(spec), x)
        error = float((y.double() - x.double()).abs().max())
        if size > 1e-30:
            bound = ERROR_BOUNDS[spec] * 1.01 + torch.finfo(dtype).eps
            assert error <= bound * size + (1e-6 if "paper" in spec else 0.0)
        else:
            assert error <= 2 * size  # sent as zero, or (spikes) as the least of the group


@pytest.mark.parametrize("spec", ALL_SPECS)
def test_zeros_stay_zeros(spec: str) -> None:
    for shape in SHAPES:
        assert torch.count_nonzero(round_trip(get_compressor(spec), torch.zeros(shape))) == 0


@pytest.mark.parametrize("spec", ALL_SPECS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_entries_are_reported(spec: str, bad: float) -> None:
    compressor = get_compressor(spec)
    for place in (0, 137, 255):
        x = sample((2, 128))
        x.view(-1)[place] = bad
        if spec.startswith("caat"):
            with torch.no_grad():
                (y,) = exchange([compressor], [x])
            assert not torch.isfinite(y).all()
            continue
        try:
            y = round_trip(compressor, x)
        except NonFiniteInput:
            continue
        assert not torch.isfinite(y).all()


@pytest.mark.parametrize("spec", sorted(ERROR_BOUNDS))
@pytest.mark.parametrize("shape", SHAPES)
def test_error_is_within_the_bound_of_the_bit_width(spec: str, shape: tuple[int, ...]) -> None:
    compressor = get_compressor(spec)
    for seed, size in enumerate((1.0, 1e-5, 3e4)):
        x = sample(shape, seed=seed)
        x = x / x.abs().max() * size
        error = (round_trip(compressor, x, Context(key=seed)) - x).abs().max()
        # fp16 scales and values cannot be finer than 2^-24.
        assert float(error) <= ERROR_BOUNDS[spec] * size * (1 + 1e-6) + (1e-6 if "fp16" in spec or "paper" in spec else 0.0)


@pytest.mark.parametrize(
    "spec", ["q8", "q4", "q2", "int8-g32", "int6-g32", "int4-g32", "fp8-g128", "spike-int2", "outlier-int4"]
)
def test_the_largest_entry_is_preserved_with_both_signs(spec: str) -> None:
    for sign in (1.0, -1.0):
        x = sample((64, 128)) * 0.1
        x[5, 7] = sign * 3.0
        y = round_trip(get_compressor(spec), x)
        assert float(y[5, 7]) == pytest.approx(sign * 3.0, rel=2.0**-8)


@pytest.mark.parametrize("spec", [spec for spec in LINEAR if not spec.startswith(("ef", "caat"))])
def test_linear_messages_add_up(spec: str) -> None:
    x, y = sample((6, 128), seed=1), sample((6, 128), seed=2)
    compressors = [get_compressor(spec) for _ in range(3)]
    with torch.no_grad():
        both = exchange(compressors[:2], [x, y])
        (alone,) = exchange(compressors[2:], [x + y])
    tolerance = {"bf16": 2.0**-7, "fp16": 2.0**-10, "powersgd:8:fp16": 2e-2}.get(spec, 1e-5)
    assert torch.equal(both[0], both[1])
    assert torch.allclose(both[0], alone, atol=tolerance * float(alone.abs().max()), rtol=0)


@pytest.mark.parametrize(
    "spec", [spec for spec in LINEAR if not spec.startswith(("ef", "caat")) and "powersgd" not in spec and ":P" not in spec]
)
def test_encoding_is_homogeneous(spec: str) -> None:
    compressor, x = get_compressor(spec), sample((4, 128))
    with torch.no_grad():
        assert torch.allclose(compressor.encode(4.0 * x), 4.0 * compressor.encode(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("spec", ["randomk-shared:0.1", "randomk-shared:7", "srht:0.25"])
def test_random_projections_are_unbiased(spec: str) -> None:
    compressor, x = get_compressor(spec), sample((3, 65), seed=5)
    draws = torch.stack([round_trip(compressor, x, Context(step=step)) for step in range(1500)])
    mean, standard_error = draws.mean(0), draws.std(0) / math.sqrt(len(draws))
    z = ((mean - x) / standard_error).abs()
    # 195 entries: the largest of as many normal deviates stays below 4.5 in all but one of a thousand draws.
    assert float(z.max()) < 4.5
    assert float((z > 1.96).float().mean()) < 0.12


def test_paper_random_k_is_biased_towards_zero() -> None:
    compressor, x = get_compressor("randomk:0.1"), torch.ones(10, 100)
    draws = torch.stack([round_trip(compressor, x, Context(step=step)) for step in range(200)])
    assert float(draws.mean()) == pytest.approx(0.1)


@pytest.mark.parametrize("spec", ["topk:0.1", "topk-bitmap:0.1", "paper:T3"])
def test_top_k_keeps_the_largest_exactly(spec: str) -> None:
    compressor, x = get_compressor(spec), sample((8, 256)).half().float()
    y = round_trip(compressor, x)
    k = int(torch.count_nonzero(y))
    kept = torch.zeros(x.numel()).index_fill_(0, torch.topk(x.abs().view(-1), k).indices, 1.0).view(x.shape).bool()
    assert torch.equal(y, torch.where(kept, x, 0.0))
    assert torch.equal(compressor.support(x), kept)


@pytest.mark.parametrize("spec", ALL_SPECS)
def test_equal_histories_give_equal_bytes(spec: str) -> None:
    first, second = get_compressor(spec), get_compressor(spec)
    for step in range(3):
        x = sample((5, 128), seed=step)
        with torch.no_grad():
            a, b = first.encode(x, Context(step=step)), second.encode(x, Context(step=step))
        assert torch.equal(a, b)


@pytest.mark.parametrize("spec", ["ef(topk:0.1)", "ef(powersgd:4)", "powersgd:4", "aqsgd:4", "ae:16", "subspace-learned:8"])
def test_state_carries_over(spec: str) -> None:
    first, second = get_compressor(spec), get_compressor(spec)
    x, y = sample((5, 128), seed=1), sample((5, 128), seed=2)
    first.prepare(128, seed=9)
    round_trip(first, x)
    second.load_state_dict(first.state_dict())
    assert torch.equal(round_trip(first, y), round_trip(second, y))
