"""Names, refusals, formats and the properties that single compressors have on their own."""

from __future__ import annotations

import math

import pytest
import torch

from evenflow.base.errors import ConfigError, NonFiniteInput, RegistryError, WireError
from evenflow.comm import Algebra, Context, GradientRule, get_compressor, wire
from evenflow.comm.catalogue import COMPRESSORS
from evenflow.comm.compressors.floats import E2M1_VALUES
from evenflow.comm.compressors.quantise import GroupInt
from evenflow.comm.compressors.rotate import hadamard, transform
from evenflow.comm.kernels import quantise_cpu
from evenflow.comm.kernels.sparsify_cpu import largest


@pytest.fixture(autouse=True)
def same_numbers_every_time() -> None:
    """A random matrix may be badly conditioned, and a tolerance is stated for those that are not."""
    torch.manual_seed(0)


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(RegistryError, match=r"unknown compressor 'int9'; known: .*int8-g32.*topk"):
        get_compressor("int9")
    with pytest.raises(RegistryError, match="unknown paper setting 'Z9'; known: A1"):
        get_compressor("paper:Z9")
    with pytest.raises(RegistryError, match="unknown compressor 'foo'"):
        get_compressor("ef(foo)")


@pytest.mark.parametrize(
    "spec",
    [
        "topk:0",
        "topk:2.0",
        "topk:x",
        "topk:",
        "ae:0",
        "ae:-3",
        "q8:3",
        "powersgd:4:int8",
        "srht:0",
        "aqsgd:5",
        "caat:1.5",
        "none:1",
    ],
)
def test_arguments_that_cannot_work_are_refused(spec: str) -> None:
    with pytest.raises(ConfigError, match=spec.split(":")[0]):
        get_compressor(spec)


def test_every_registered_name_can_be_made_without_arguments() -> None:
    for name in COMPRESSORS:
        compressor = get_compressor(name)
        assert compressor.spec == name
        assert isinstance(compressor.algebra, Algebra)
        assert isinstance(compressor.gradient, GradientRule)


@pytest.mark.parametrize("spec", ["topk:300", "topk-bitmap:300", "randomk:300", "randomk-shared:300", "paper:T4"])
def test_k_larger_than_the_tensor_is_refused(spec: str) -> None:
    with pytest.raises(ConfigError, match="larger than the tensor"):
        get_compressor(spec).encode(torch.ones(4, 64))


def test_messages_of_another_size_are_refused() -> None:
    for spec in ("int8-g32", "int6-g32", "q4", "topk:0.1", "mxfp4"):
        compressor = get_compressor(spec)
        message = compressor.encode(torch.randn(4, 64))
        with pytest.raises(WireError, match="bytes were expected"):
            compressor.decode(message, (4, 96), torch.float32)


def test_empty_tensors_are_refused() -> None:
    with pytest.raises(ConfigError, match="empty"):
        get_compressor("int8-g32").encode(torch.empty(0, 64))


def test_joining_takes_any_strides() -> None:
    x = torch.arange(6.0).view(2, 3)
    for part in (x.t(), x[:, ::2], x[:1, 1:2], x.view(-1)[:1][::2], x.view(-1)[5:][::2]):
        assert torch.equal(wire.join(part, part), torch.cat([part.flatten(), part.flatten()]).clone().view(torch.uint8))


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8])
def test_packing_inverts(bits: int) -> None:
    codes = torch.randint(0, 2**bits, (7, 32), dtype=torch.uint8)
    packed = wire.pack(codes, bits)
    assert packed.shape == (7, 4 * bits)
    assert torch.equal(wire.unpack(packed, bits, 32), codes)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n", [1, 31, 32, 33, 512, 2729, 4100])
def test_kernels_give_the_bytes_of_the_torch_code(bits: int, dtype: torch.dtype, n: int) -> None:
    x = torch.randn(n, generator=torch.Generator().manual_seed(n)) * torch.logspace(-12, 6, n)
    x[n // 2] = 0.0
    x = x.to(dtype)
    fast, plain = GroupInt(bits), GroupInt(bits, use_kernels=False)
    message = fast.encode(x)
    assert torch.equal(message, plain.encode(x))
    assert torch.equal(fast.decode(message, (n,), dtype), plain.decode(message, (n,), dtype))
    total = torch.linspace(-1, 1, n)
    expected = total + plain.decode(message, (n,), torch.float32)
    fast.add_decoded(message, total, dtype)
    if dtype == torch.float32:
        assert torch.allclose(total, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_threads_give_the_bytes_of_one(bits: int, dtype: torch.dtype) -> None:
    n = 32 * (2 * quantise_cpu.PIECE + 5) + 3
    x = torch.randn(n, generator=torch.Generator().manual_seed(0)).to(dtype)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            message = GroupInt(bits).encode(x)
            results.append((message, GroupInt(bits).decode(message, (n,), dtype)))
            with pytest.raises(NonFiniteInput):
                GroupInt(bits).encode(x.clone().index_fill_(0, torch.tensor([n // 3]), math.nan))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("bits", [8, 4])
def test_kernels_report_nan_and_infinity_and_take_unaligned_messages(bits: int) -> None:
    compressor = GroupInt(bits)
    for bad in (math.nan, math.inf, -math.inf):
        x = torch.randn(100)
        x[99] = bad
        with pytest.raises(NonFiniteInput):
            compressor.encode(x)
    x = torch.randn(100)
    message = compressor.encode(x)
    shifted = torch.cat([message.new_zeros(1), message])[1:]
    assert torch.equal(compressor.decode(shifted, (100,), torch.float32), compressor.decode(message, (100,), torch.float32))


def test_group_scales_neither_overflow_nor_vanish() -> None:
    for size in (1e36, 1e-30):
        x = torch.randn(64) * size
        for spec in ("int8-g32", "int4-g32", "q8"):
            compressor = get_compressor(spec)
            y = compressor.decode(compressor.encode(x), x.shape, x.dtype)
            assert torch.allclose(y, x, rtol=0, atol=0.08 * float(x.abs().max()))


def test_fp16_overflow_is_reported() -> None:
    x = torch.full((4, 64), 1e5)
    for spec in ("fp16", "paper:Q3", "paper:T3", "powersgd:4:fp16"):
        with pytest.raises(NonFiniteInput, match="range"):
            get_compressor(spec).encode(x if "T3" not in spec else torch.full((4, 640), 1e5))


def test_paper_quantiser_halves_a_positive_maximum_and_the_corrected_one_does_not() -> None:
    x = torch.tensor([[1.0], [-1.0], [0.0]]).repeat(1, 8)
    paper, corrected = get_compressor("paper:Q1"), get_compressor("q2")
    decoded = paper.decode(paper.encode(x), x.shape, x.dtype)
    assert float(decoded[0, 0]) == pytest.approx(0.5, abs=0.01)
    assert torch.equal(corrected.decode(corrected.encode(x), x.shape, x.dtype)[:2], x[:2])


def test_paper_settings_have_the_script_sizes() -> None:
    """BERT-base, micro-batch 32, sequence 128: k = 40k, 80k, 200k, 400k (4096 x 10, 20, 50, 100)."""
    shape = (128, 32, 768)
    for family in "TR":
        for number, k in zip("1234", (40960, 81920, 204800, 409600)):
            assert get_compressor(f"paper:{family}{number}").wire_plan(shape, torch.float16).payload_bytes == 10 * k
    vit = (50, 512, 768)
    assert get_compressor("paper:T3").wire_plan(vit, torch.float16).payload_bytes == 10 * 1_280_000
    assert get_compressor("paper:A1").wire_plan(shape, torch.float16).payload_bytes == 4096 * 50 * 2
    assert get_compressor("paper:A1").wire_plan(shape, torch.float16).payload_bytes == 10 * 40960


def test_paper_powersgd_expands_the_message() -> None:
    """At s = 128, h = 768 the fp64 wire of rank 50 is 1.82 times the dense fp16 tensor; fp16 would be 0.46."""
    shape = (1, 128, 768)
    dense = 128 * 768 * 2
    paper = get_compressor("paper:P1").wire_plan(shape, torch.float16).payload_bytes
    corrected = get_compressor("powersgd:50:fp16").wire_plan(shape, torch.float16).payload_bytes
    assert paper / dense == pytest.approx(1.82, abs=0.01)
    assert corrected / dense == pytest.approx(0.456, abs=0.01)
    two = get_compressor("paper:P2").wire_plan(shape, torch.float16).payload_bytes
    assert two / dense == pytest.approx(3.65, abs=0.01)


def test_mxfp4_rounds_to_the_nearest_value_ties_to_even() -> None:
    x = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0, 0.26, 0.24, -5.1, 4.9])
    compressor = get_compressor("mxfp4")
    y = compressor.decode(compressor.encode(x), x.shape, x.dtype)
    assert y.tolist() == [0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0, 6.0, 0.5, 0.0, -6.0, 4.0]
    assert set(y.abs().tolist()) <= set(E2M1_VALUES)


def test_hadamard_matrices_are_orthonormal_and_the_transform_uses_them() -> None:
    for size in (1, 2, 32, 128, 512):
        x = torch.randn(3, size)
        H = hadamard(size)
        assert torch.allclose(H @ H.T, torch.eye(size), atol=1e-5)
        assert torch.allclose(transform(x), x @ H, atol=1e-4)


def test_rotation_helps_where_outliers_are() -> None:
    x = torch.randn(256, 128) * 0.05
    x[:, 3] = 20.0
    plain, rotated = get_compressor("int4-g32"), get_compressor("hadamard-int4")

    def error(c) -> float:
        y = c.decode(c.encode(x), x.shape, x.dtype)
        return float((y - x).abs().max())

    assert error(get_compressor("outlier-int4")) < error(plain)
    assert error(rotated) < 40 * 0.5 / 7


def test_spikes_come_back_as_bf16() -> None:
    x = torch.randn(4, 32) * 0.1
    x[:, 9], x[:, 20] = 50.0, -30.0
    compressor = get_compressor("spike-int2")
    y = compressor.decode(compressor.encode(x), x.shape, x.dtype)
    assert torch.equal(y[:, 9], x[:, 9])
    assert torch.equal(y[:, 20], x[:, 20])
    assert float((y - x).abs().max()) < 0.15


def test_top_k_selection_takes_ties_from_the_front() -> None:
    x = torch.tensor([1.0, -2.0, 2.0, 2.0, 0.5, -2.0])
    assert largest(x, 3).tolist() == [1, 2, 3]
    assert largest(x, 6).tolist() == list(range(6))
    assert largest(torch.zeros(5), 2).tolist() == [0, 1]


def test_powersgd_is_exact_for_matrices_of_its_rank_and_warm_starts() -> None:
    left, right = torch.randn(40, 3), torch.randn(3, 64)
    compressor = get_compressor("powersgd:3")
    x = left @ right
    y = compressor.decode(compressor.encode(x), x.shape, x.dtype)
    assert torch.allclose(y, x, atol=1e-4)
    full = torch.randn(40, 64) + 5 * x
    errors = []
    for _ in range(6):
        y = compressor.decode(compressor.encode(full), full.shape, full.dtype)
        errors.append(float((y - full).norm()))
    best = float(torch.linalg.svdvals(full)[3:].norm())
    assert errors[-1] <= errors[0]
    assert errors[-1] == pytest.approx(best, rel=1e-2)


def test_error_feedback_carries_everything_that_was_not_sent() -> None:
    """The sum of all decoded messages plus the carried error is the sum of all inputs."""
    for spec in ("ef(topk:0.05)", "ef(q2)", "ef(int4-g32)", "ef(powersgd:2)", "ef(randomk:0.1)"):
        compressor = get_compressor(spec)
        sent, given = torch.zeros(8, 64), torch.zeros(8, 64)
        for step in range(5):
            x = torch.randn(8, 64)
            given += x
            sent += compressor.decode(compressor.encode(x, Context("site", step)), x.shape, x.dtype, Context("site", step))
        error = compressor.error((8, 64), Context("site"))  # type: ignore[attr-defined]
        assert torch.allclose(sent + error, given, atol=1e-4), spec


def test_error_feedback_keeps_keys_and_shapes_apart() -> None:
    compressor = get_compressor("ef(topk:1)")
    compressor.encode(torch.tensor([1.0, 3.0]), Context("a"))
    assert compressor.error((2,), Context("a")).tolist() == [1.0, 0.0]  # type: ignore[attr-defined]
    assert compressor.error((2,), Context("b")) is None  # type: ignore[attr-defined]
    compressor.encode(torch.tensor([1.0, 3.0, 5.0]), Context("a"))
    assert compressor.error((2,), Context("a")).tolist() == [1.0, 0.0]  # type: ignore[attr-defined]
    assert compressor.error((3,), Context("a")).tolist() == [1.0, 3.0, 0.0]  # type: ignore[attr-defined]


def test_error_feedback_around_a_memory_is_refused() -> None:
    with pytest.raises(ConfigError, match="memory"):
        get_compressor("ef(aqsgd:4)")
    with pytest.raises(ConfigError, match="memory"):
        get_compressor("ef(ef(q8))")


def test_aqsgd_converges_on_a_sample_that_comes_again() -> None:
    sender, receiver = get_compressor("aqsgd:4"), get_compressor("aqsgd:4")
    x = torch.randn(16, 64)
    errors = []
    for _ in range(4):
        y = receiver.decode(sender.encode(x, Context(key=7)), x.shape, x.dtype, Context(key=7))
        errors.append(float((y - x).abs().max()))
    assert errors[1] < errors[0] / 4
    assert errors[3] < errors[0] / 200
    fresh = receiver.decode(sender.encode(x, Context(key=8)), x.shape, x.dtype, Context(key=8))
    assert float((fresh - x).abs().max()) == pytest.approx(errors[0])


def test_learned_compressors_are_made_for_one_width() -> None:
    for spec in ("ae:4", "subspace:4", "subspace-learned:4"):
        compressor = get_compressor(spec)
        compressor.prepare(32, seed=3)
        twin = get_compressor(spec)
        twin.prepare(32, seed=3)
        x = torch.randn(2, 32)
        assert torch.equal(compressor.encode(x), twin.encode(x))
        with pytest.raises(ConfigError, match="made for 32 channels"):
            compressor.encode(torch.randn(2, 48))


def test_subspaces_are_projections() -> None:
    for spec in ("subspace:8", "subspace-learned:8", "subspace:64"):
        compressor, x = get_compressor(spec), torch.randn(5, 32)
        with torch.no_grad():
            once = compressor.decode(compressor.encode(x), x.shape, x.dtype)
            twice = compressor.decode(compressor.encode(once), x.shape, x.dtype)
        assert torch.allclose(once, twice, atol=1e-5)
