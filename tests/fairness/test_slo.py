"""The S-LoRA paper's measures, each against its formula worked out by hand."""

import pytest

from evenflow.fairness.measures.runlog import RequestRecord, RunLog, ServiceLog, backlog_by_client
from evenflow.fairness.measures.slo import attainment, measure_quality, satisfaction


def served(arrival_s, ttft_s, latency_s, tokens=(10, 5)):
    first = arrival_s + ttft_s
    return RequestRecord(
        "c",
        arrival_s,
        tokens[0],
        tokens[1],
        tokens[1],
        admitted_s=arrival_s,
        first_token_s=first,
        finished_s=arrival_s + latency_s,
    )


def shed(arrival_s, waited_s):
    return RequestRecord("c", arrival_s, 10, 0, 5, is_shed=True, finished_s=arrival_s + waited_s)


def test_the_two_functions():
    assert [attainment(t) for t in (0.0, 5.999, 6.0, 60.0)] == [1, 1, 0, 0]
    assert [satisfaction(t) for t in (0.0, 3.0, 6.0, 60.0)] == [1, 0.75, 0, 0]
    assert satisfaction(1.0, slo_s=2.0) == 0.75
    assert attainment(3.0, slo_s=2.0) == 0


def test_a_run_by_hand():
    records = [
        served(0.0, 3.0, 10.0),
        served(1.0, 1.5, 4.0, (20, 10)),
        served(2.0, 8.0, 12.0),
        shed(3.0, 5.5),
        RequestRecord("c", 4.0, 10, 0, 5, is_rejected=True),
    ]
    found = measure_quality(records, 100.0, rate=0.05)
    assert (found.num_requests, found.num_completed, found.num_shed, found.num_rejected) == (5, 3, 1, 1)
    assert found.throughput_req_s == pytest.approx(3 / 100)
    assert found.strip_throughput_req_s == pytest.approx((3 - 2 * 10 * 0.05) / (100 - 20))
    assert found.slo_attainment == pytest.approx(2 / 5)
    assert found.satisfaction_mean == pytest.approx((0.75 + (1 - 0.25**2)) / 5)
    assert found.satisfaction_p50 == 0.0
    assert found.ttft_mean_s == pytest.approx((3 + 1.5 + 8) / 3)
    assert found.ttft_p50_s == 3.0
    assert found.latency_mean_s == pytest.approx(26 / 3)
    assert found.latency_per_token_s == pytest.approx((10 / 15 + 4 / 30 + 12 / 15) / 3)
    assert found.latency_per_output_token_s == pytest.approx((2 + 0.4 + 2.4) / 3)


def test_the_rate_is_read_off_the_arrivals_if_it_is_not_given():
    records = [served(float(i), 1.0, 2.0) for i in range(101)]
    given, read = measure_quality(records, 102.0, rate=1.01), measure_quality(records, 102.0)
    assert given == read
    assert given.strip_throughput_req_s == pytest.approx((101 - 20.2) / 82)


def test_nothing_completed_and_nothing_at_all():
    for records in ([], [shed(0.0, 5.5)]):
        found = measure_quality(records, 5.0)
        assert (found.slo_attainment, found.satisfaction_mean, found.throughput_req_s) == (0, 0, 0)
        assert (found.ttft_mean_s, found.strip_throughput_req_s) == (None, None)


def test_another_objective():
    found = measure_quality([served(0.0, 3.0, 10.0)], 10.0, slo_s=2.0)
    assert (found.slo_ttft_s, found.slo_attainment, found.satisfaction_mean) == (2.0, 0.0, 0.0)


def test_who_was_shed_was_backlogged_until_then():
    records = [shed(1.0, 5.5), served(20.0, 1.0, 2.0)]
    log = RunLog(records, ServiceLog(), 100.0)
    assert backlog_by_client(log) == {"c": [(1.0, 6.5)]}
