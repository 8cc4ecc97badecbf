"""Transports on virtual ranks: sums, bytes, equal results on all ranks, gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from evenflow.base.errors import ConfigError, RegistryError, WireError
from evenflow.comm import (
    DEFAULT_SPECS,
    Algebra,
    Exchange,
    GradientRule,
    Ledger,
    LocalCollective,
    VirtualExchange,
    get_compressor,
    get_transport,
)
from evenflow.comm.compressor import Context
from evenflow.comm.ledger import Kind, sent_bytes
from evenflow.comm.transport import GATHER, SCATTER_SUM, SUMS, Member, drive_together

SHAPES = [(2, 3, 128), (1, 130), (7, 640), (5, 1, 96)]
CASES = [
    (spec, name)
    for spec in DEFAULT_SPECS
    for name in SUMS
    if not (name == "all-reduce" and get_compressor(spec).algebra is Algebra.NONLINEAR)
    and not (name != "all-reduce" and spec.startswith(("ae", "subspace-learned", "caat")))
]


def inputs(shape: tuple[int, ...], world_size: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(shape, generator=generator).to(dtype) for _ in range(world_size)]


def exchange_of(spec: str, transport: str | None, world_size: int, **options) -> VirtualExchange:
    compressor = get_compressor(spec)
    return VirtualExchange(
        "tp.forward", compressor, world_size, transport=get_transport(transport, compressor, world_size), **options
    )


@pytest.mark.parametrize(("spec", "transport"), CASES)
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_all_ranks_end_with_the_same_bits_and_the_ledger_agrees(spec: str, transport: str, world_size: int) -> None:
    for shape in SHAPES:
        exchange = exchange_of(spec, transport, world_size)
        xs = inputs(shape, world_size)
        for step in range(2):
            with torch.no_grad():
                results = exchange.run(exchange.transport, xs, Context("site", step))
            for result in results:
                assert result.shape == torch.Size(shape)
                if not spec.startswith("caat"):
                    assert torch.equal(result, results[0])
        exchange.ledger.check_integrity()
        assert exchange.ledger.by_site["tp.forward"].exchanges == 2


@pytest.mark.parametrize("transport", list(SUMS))
@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dense_transports_sum(transport: str, world_size: int, dtype: torch.dtype) -> None:
    xs = inputs((5, 96), world_size, dtype)
    y = exchange_of("none", transport, world_size).reduce(xs)
    expected = torch.stack([x.double() for x in xs]).sum(0)
    assert y.dtype == dtype
    assert torch.allclose(y.double(), expected, atol=1e-6 if dtype == torch.float32 else 0.05)


@pytest.mark.parametrize(
    "spec", ["int8-g32", "int4-g32", "q8", "fp8-g128", "mxfp8", "hadamard-int4", "powersgd:200", "topk:1.0"]
)
@pytest.mark.parametrize("transport", ["one-shot", "two-shot"])
def test_the_result_is_the_sum_and_not_the_mean(spec: str, transport: str) -> None:
    xs = inputs((64, 128), 4)
    y = exchange_of(spec, transport, 4).reduce(xs)
    total = torch.stack(xs).sum(0)
    scale = float((y * total).sum() / (total * total).sum())
    assert scale == pytest.approx(1.0, abs=0.02)


def test_powersgd_all_reduce_gives_the_sum_at_full_rank() -> None:
    """The authors' code returned half of it at W = 2."""
    for spec in ("powersgd:128", "paper:P2"):
        xs = inputs((1, 96, 100), 2)
        y = exchange_of(spec, None, 2).reduce(xs)
        assert torch.allclose(y, xs[0] + xs[1], atol=1e-3), spec


def test_bytes_per_element_of_the_transports() -> None:
    """8-bit one-shot stops paying at W = 4 (ratio to an fp16 ring all-reduce: W q / 32); two-shot stays at q / 16."""
    shape, dense = (64, 1024), 64 * 1024 * 2
    compressor = get_compressor("q8")
    for W in (2, 4, 8):
        ring = sent_bytes(Kind.ALL_REDUCE, dense, W)
        one = SUMS["one-shot"].planned_bytes(compressor, shape, torch.float16, W)
        two = SUMS["two-shot"].planned_bytes(get_compressor("int8-g32"), shape, torch.float16, W)
        scales = (W - 1) * 1024 * 4
        assert (one - scales) / ring == pytest.approx(W * 8 / 32)
        assert two / ring == pytest.approx(8.5 / 16)
    top = get_compressor("paper:T1").wire_plan(shape, torch.float16).payload_bytes
    auto = get_compressor("paper:A1").wire_plan(shape, torch.float16).payload_bytes
    assert sent_bytes(Kind.ALL_GATHER, top, 2) == sent_bytes(Kind.ALL_REDUCE, auto, 2)
    assert sent_bytes(Kind.ALL_GATHER, top, 8) == 4 * sent_bytes(Kind.ALL_REDUCE, auto, 8)


@pytest.mark.parametrize("spec", ["none", "int8-g32", "q4", "srht:0.5", "powersgd:4"])
@pytest.mark.parametrize("world_size", [2, 4])
def test_scatter_and_gather_are_the_halves(spec: str, world_size: int) -> None:
    compressor = get_compressor(spec)
    xs = inputs((8, 3, 64), world_size)
    members = [Member(rank, world_size) for rank in range(world_size)]

    def run(transport, tensors):
        return drive_together(
            [transport.steps(x, compressor.replica(), member, Context("sp", 1)) for x, member in zip(tensors, members)]
        )

    parts = run(SCATTER_SUM, xs)
    assert all(part.shape == (8 // world_size, 3, 64) for part in parts)
    whole = run(GATHER, parts)
    assert all(torch.equal(result, whole[0]) for result in whole)
    if spec in ("none", "int8-g32"):
        assert torch.allclose(whole[0], torch.stack(xs).sum(0), atol=1e-5 if spec == "none" else 0.2)
    with pytest.raises(ConfigError, match="not divisible"):
        run(SCATTER_SUM, [x[:7] for x in xs])


def test_default_transports_follow_from_the_algebra_and_the_number_of_ranks() -> None:
    def default(spec: str, world_size: int) -> str:
        return get_transport(None, get_compressor(spec), world_size).name

    assert [default("ae:4", W) for W in (2, 4)] == ["all-reduce", "all-reduce"]
    assert [default("q8", W) for W in (2, 3, 4)] == ["one-shot", "two-shot", "two-shot"]
    for spec in ("topk:0.1", "topk-bitmap:0.1", "randomk:0.1", "ef(topk:0.1)", "paper:T1", "paper:R1", "paper:Q2"):
        assert [default(spec, W) for W in (2, 4)] == ["one-shot", "one-shot"], spec
    assert default("ef(int4-g32)", 4) == "two-shot"


def test_gathered_sparse_messages_keep_every_entry() -> None:
    """Entries that different ranks send all arrive, which a sum that is made sparse again cannot hold."""
    xs = [torch.zeros(4, 64) for _ in range(4)]
    for rank, x in enumerate(xs):
        x.view(-1)[rank * 26 : rank * 26 + 25] = 1.0 + rank
    exchange = exchange_of("topk:0.1", None, 4)
    result = exchange.run(exchange.transport, xs, Context((), 1))[0]
    assert torch.equal(result, torch.stack(xs).sum(0))


@pytest.mark.parametrize("is_below", [True, False])
def test_small_tensors_are_sent_as_they_are(is_below: bool) -> None:
    xs = [x.requires_grad_() for x in inputs((8, 64), 2)]
    size = xs[0].numel() * 4
    exchange = exchange_of("q2", None, 2, dense_below=size + 1 if is_below else size)
    total = exchange.reduce(xs)
    assert torch.equal(total, xs[0] + xs[1]) == is_below
    total.sum().backward()
    assert all(torch.equal(x.grad, torch.ones(8, 64)) for x in xs)
    exchange.ledger.check_integrity()
    counted = exchange.ledger.by_site["tp.forward"].counted
    assert (counted == sent_bytes(Kind.ALL_REDUCE, size, 2)) == is_below


def test_transport_names() -> None:
    with pytest.raises(RegistryError, match="known: all-reduce, one-shot, two-shot"):
        get_transport("ring", get_compressor("q8"), 2)
    with pytest.raises(ConfigError, match="cannot be summed"):
        get_transport("all-reduce", get_compressor("int8-g32"), 2)
    with pytest.raises(ConfigError, match="needs all-reduce"):
        get_transport("two-shot", get_compressor("ae:4"), 2)


DIFFERENTIABLE = ["none", "ae:3", "randomk-shared:0.3", "srht:0.5", "subspace:4", "subspace-learned:4"]


@pytest.mark.parametrize("spec", DIFFERENTIABLE)
def test_gradcheck_through_a_reduce_of_two_ranks(spec: str) -> None:
    compressor = get_compressor(spec)
    compressor.prepare(8, seed=1, dtype=torch.float64)
    parameters = compressor.parameters()
    exchange = VirtualExchange("tp.forward", compressor, 2, rule=GradientRule.AUTOGRAD)

    def function(x: Tensor, y: Tensor, *_: Tensor) -> Tensor:
        exchange.step = 0  # the same shared seed in every evaluation
        return exchange.reduce([x, y])

    xs = [torch.randn(3, 8, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(function, (*xs, *parameters))


@pytest.mark.parametrize("spec", ["powersgd:3", "ef(powersgd:3)"])
def test_powersgd_gradient_is_the_projection(spec: str) -> None:
    exchange = exchange_of(spec, None, 2)
    xs = [x.requires_grad_() for x in inputs((6, 8), 2)]
    y = exchange.reduce(xs)
    g = torch.randn(6, 8)
    y.backward(g)
    basis = torch.linalg.qr(y.detach()[:, :3]).Q  # the columns of y span those of P
    for x in xs:
        assert torch.allclose(x.grad, basis @ (basis.T @ g), atol=1e-4)
    zeros = [torch.zeros(6, 8, requires_grad=True) for _ in range(2)]
    exchange.reduce(zeros).sum().backward()
    assert torch.isfinite(zeros[0].grad).all()


def test_straight_through_masked_and_same_rules_are_their_definitions() -> None:
    g = torch.randn(4, 64)
    xs = [x.requires_grad_() for x in inputs((4, 64), 2)]
    exchange_of("int4-g32", None, 2).reduce(xs).backward(g)
    assert all(torch.equal(x.grad, g) for x in xs)

    xs = [x.detach().requires_grad_() for x in xs]
    exchange_of("topk:0.25", "one-shot", 2, rule=GradientRule.MASKED).reduce(xs).backward(g)
    for x in xs:
        kept = torch.zeros(256).index_fill_(0, torch.topk(x.detach().abs().view(-1), 64).indices, 1.0).view(4, 64)
        assert torch.equal(x.grad, g * kept)

    xs = [x.detach().requires_grad_() for x in xs]
    exchange_of("q4", None, 2, rule=GradientRule.SAME).reduce(xs).backward(g)
    once = get_compressor("q4")
    assert all(torch.equal(x.grad, once.decode(once.encode(g), g.shape, g.dtype)) for x in xs)


def test_copy_sums_gradients_through_the_exchange() -> None:
    exchange = exchange_of("int8-g32", None, 2)
    x = torch.randn(4, 64, requires_grad=True)
    first, second = exchange.copy(x)
    g0, g1 = torch.randn(4, 64), torch.randn(4, 64)
    torch.autograd.backward([first, second], [g0, g1])
    assert torch.allclose(x.grad, g0 + g1, atol=0.06)
    assert not torch.equal(x.grad, g0 + g1)
    exchange.ledger.check_integrity()


def test_an_inactive_exchange_is_dense() -> None:
    exchange = exchange_of("int4-g32", None, 2)
    exchange.switch.is_on = False
    xs = inputs((4, 64), 2)
    assert torch.equal(exchange.reduce(xs), xs[0] + xs[1])
    exchange.ledger.check_integrity()


def test_a_world_of_one_compresses_like_any_other() -> None:
    ledger = Ledger()
    x = torch.randn(4, 64)
    for spec in ("none", "int8-g32", "topk:0.5"):
        compressor = get_compressor(spec)
        y = Exchange("tp.forward", compressor, LocalCollective(), ledger=ledger).sum(x)
        assert y.shape == x.shape
        if spec == "none":
            assert torch.equal(y, x)
        else:
            assert not torch.equal(y, x)
    assert ledger.by_site["tp.forward"].counted == 0
    ledger.check_integrity()
    with pytest.raises(WireError, match="nobody"):
        Exchange("pp.forward", get_compressor("none"), LocalCollective()).send(x, 0)


def test_error_feedback_in_a_two_shot_exchange_stays_bounded() -> None:
    """The same tensors again and again: what plain 2-bit codes lose adds up, what feedback still owes does not."""
    xs = inputs((8, 64), 2)
    owed = {}
    for spec in ("q2", "ef(q2)"):
        exchange = exchange_of(spec, "two-shot", 2)
        received = torch.stack([exchange.reduce(xs) for _ in range(20)]).sum(0)
        owed[spec] = float((received - 20 * (xs[0] + xs[1])).abs().max())
    assert owed["q2"] > 10.0
    assert owed["ef(q2)"] < 0.4 * owed["q2"]
