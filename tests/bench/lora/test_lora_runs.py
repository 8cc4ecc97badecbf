"""Every variant of the LoRA benchmark says the same, token for token, in fp32: they differ in how, not in what."""

from __future__ import annotations

import itertools

import pytest
import torch

from evenflow.bench.lora.load import endless, trace_of
from evenflow.bench.lora.run import Run
from evenflow.bench.lora.testbed import RandomTestbed
from evenflow.bench.lora.variants import variant
from evenflow.bench.replay.slora_suites import SuitePoint
from evenflow.bench.replay.trace import TraceRow
from evenflow.serving.memory.layout import place

NAMES = ["unified", "partitioned:0.4", "slots:6", "padded", "gather", "loop", "merged:9"]
ROWS = [TraceRow(0.0, "c", 5 + 7 * i % 40, 3 + i % 9, None if i % 5 == 4 else str(i % 7)) for i in range(14)]


@pytest.fixture(scope="module")
def testbed(tmp_path_factory):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield RandomTestbed(
        "tiny",
        tmp_path_factory.mktemp("testbed"),
        num_adapters=9,
        dtype="float32",
        lora_ranks=(8, 3, 1, 6),
        max_num_seqs=5,
        max_batch_tokens=24,
        weight_range=0.7,
    )
    torch.set_num_threads(before)


def outputs(testbed, name, memory_pages=60):
    run = Run(testbed, variant(name), memory_pages * testbed.layout.page_bytes, 128)
    run.keep_outputs = True
    counts = run.drain(ROWS)
    run.scheduler.check_integrity()
    assert counts.finished == len(ROWS)
    return run.outputs, counts, run


@pytest.fixture(scope="module")
def expected(testbed):
    return outputs(testbed, "loop")[0]


@pytest.mark.parametrize("name", NAMES)
def test_tokens_are_equal(testbed, expected, name):
    got, counts, _ = outputs(testbed, name)
    assert got == expected
    assert counts.output_tokens == sum(row.output_len for row in ROWS)
    assert counts.rows >= sum(row.input_len + row.output_len - 1 for row in ROWS)


def test_adapters_matter_here(testbed, expected):
    """Otherwise equality says nothing."""
    assert outputs(testbed, "none")[0] != expected


def test_tokens_are_equal_when_memory_is_short(testbed, expected):
    """Adapters are evicted and loaded again, and requests preempted, on both sides of every comparison."""
    for name in ("unified", "partitioned:0.5", "padded"):
        got, counts, run = outputs(testbed, name, memory_pages=13)
        assert got == expected
        assert counts.loads > 7
        assert run.residency.num_evictions > 0


def test_slots_take_the_room_of_the_largest_rank(testbed):
    _, counts, run = outputs(testbed, "slots:6")
    own = {testbed.adapters.record(str(i)).size_bytes for i in range(7)}
    padded = run._adapters.record("1")
    assert padded.size_bytes == max(own)
    assert padded.num_pages == place(testbed.layout, testbed.adapters.record("0").signature).num_pages
    assert run.arena.num_pages_for("adapter") == 6 * padded.num_pages
    assert counts.loaded_bytes == counts.loads * max(own)


def test_traffic_is_counted_by_distinct_adapter_and_step(testbed):
    run = Run(testbed, variant("unified"), 60 * testbed.layout.page_bytes, 128)
    size = [testbed.adapters.record(str(i)).size_bytes for i in range(4)]
    rows = [TraceRow(0.0, "c", 4, 3, adapter) for adapter in ("0", "0", "1", None)]
    counts = run.drain(rows)
    assert counts.steps == 3
    assert counts.distinct == 3 * 2
    assert counts.adapter_bytes == 3 * (size[0] + size[1])
    assert (counts.loads, counts.loaded_bytes) == (2, size[0] + size[1])


def test_by_the_clock_every_request_is_answered_in_its_time(testbed):
    run = Run(testbed, variant("unified"), 60 * testbed.layout.page_bytes, 128)
    point = SuitePoint(9, rate=60.0, duration_s=0.4, input_range=(4, 12), output_range=(2, 5))
    records, counts = run.serve(trace_of(point, 0))
    assert len(records) == 24
    assert counts.finished == 24
    for record in records:
        assert not record.is_refused
        assert record.arrival_s <= record.admitted_s <= record.first_token_s <= record.finished_s <= counts.seconds
        assert record.output_tokens == record.wanted_output_tokens


def test_lanes_differ_in_their_adapters_alone():
    """The same lengths in the same order for any number of adapters and any popularity."""
    base = SuitePoint(2000, rate=1.0)
    lengths = []
    for point in (base, SuitePoint(5, rate=9.0), SuitePoint(0, rate=1.0), SuitePoint(200, rate=1.0, alpha=0.1)):
        rows = list(itertools.islice(endless(point, 0), 3000))
        lengths.append([(row.input_len, row.output_len) for row in rows])
    assert all(other == lengths[0] for other in lengths)
    assert rows[0].adapter is not None
