"""Figures of a load from its replies: latencies, rates, goodput, errors, and every client's share and service.

Inter-token latency is the time between neighbouring events with text; time per output token is a request's mean, which
is what an objective on inter-token latency is held against. Service is what VTC charges, when it arrived at the client.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evenflow.bench.load.stream import StreamedReply
from evenflow.fairness.books.cost import WeightedTokens
from evenflow.fairness.measures.fairness_measures import Accounts, Windows, accumulated_difference, jain_index, shares
from evenflow.fairness.measures.runlog import RequestRecord, RunLog, ServiceLog

PERCENTILES = (50.0, 90.0, 95.0, 99.0)
OK, CUT_OFF = "ok", "cut off"
"""Outcomes beside the kinds of RequestFailed: answered to its end; still under way when the load was stopped."""


def quantile(values: Sequence[float], share: float) -> float:
    """Return the smallest of the sorted values that at least ``share`` of them do not exceed; NaN if there is none."""
    if not values:
        return float("nan")
    return values[max(0, math.ceil(share * len(values)) - 1)]


@dataclass(frozen=True, slots=True)
class Objectives:
    """What a good answer is, in seconds; None: whatever it took."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    """Mean time between output tokens of a request."""
    e2e_s: float | None = None


@dataclass(slots=True)
class SentRequest:
    """One request of a load, sent or given up. Times of the reply are of time.monotonic()."""

    client: str
    model: str
    due_s: float
    """When the plan wanted it to be sent, of time.monotonic()."""
    wanted_tokens: int
    """Output tokens asked for."""
    planned_prompt_tokens: int
    reply: StreamedReply
    outcome: str = CUT_OFF
    message: str = ""
    """What went wrong."""
    ended_s: float | None = None
    """When it was answered or failed; None: cut off."""

    @property
    def ttft_s(self) -> float | None:
        """From sending to the first text."""
        return None if self.reply.first_token_s is None else self.reply.first_token_s - self.reply.sent_s

    @property
    def e2e_s(self) -> float | None:
        """From sending to the end of the answer."""
        return None if self.reply.finished_s is None else self.reply.finished_s - self.reply.sent_s

    @property
    def output_tokens(self) -> int:
        """As the server counts them; events with text, if it does not say or was cut short."""
        return self.reply.completion_tokens or len(self.reply.token_times_s)

    @property
    def gaps_s(self) -> list[float]:
        """Times between neighbouring events with text."""
        return [b - a for a, b in itertools.pairwise(self.reply.token_times_s)]

    @property
    def tpot_s(self) -> float | None:
        """Time per output token after the first; None below two tokens."""
        first, times, tokens = self.reply.first_token_s, self.reply.token_times_s, self.output_tokens
        return None if first is None or tokens < 2 else (times[-1] - first) / (tokens - 1)

    def is_good(self, objectives: Objectives) -> bool:
        """Whether it was answered to its end within the objectives."""
        bounds = (
            (self.ttft_s, objectives.ttft_s), (self.tpot_s, objectives.tpot_s), (self.e2e_s, objectives.e2e_s),
        )  # fmt: skip
        within = all(limit is None or value is None or value <= limit for value, limit in bounds)
        return self.outcome == OK and within and not (objectives.ttft_s is not None and self.ttft_s is None)


def summarise(
    requests: Sequence[SentRequest],
    began_s: float,
    ended_s: float,
    objectives: Objectives,
    percentiles: Sequence[float] = PERCENTILES,
    weights: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """All figures of one load, ready for JSON: times in seconds, rates per second, NaN left out.

    Latencies are those of requests that were answered to their end; tokens of others count as received.
    """
    seconds = max(ended_s - began_s, 1e-9)
    done = [request for request in requests if request.outcome == OK]
    tokens_out = sum(request.output_tokens for request in requests)
    tokens_in = sum(request.reply.prompt_tokens for request in done)
    good = sum(request.is_good(objectives) for request in done)
    late = sorted(max(0.0, request.reply.sent_s - request.due_s) for request in requests)
    outcomes = Counter(request.outcome for request in requests)
    examples = {request.outcome: request.message for request in reversed(requests) if request.message}
    errors = {
        kind: {"count": count, "example": examples.get(kind, "")}
        for kind, count in sorted(outcomes.items())
        if kind not in (OK, CUT_OFF)
    }
    return {
        "seconds": seconds,
        "num_requests": len(requests),
        "num_ok": len(done),
        "errors": errors,
        "num_cut_off": outcomes[CUT_OFF],
        "requests_per_s": len(done) / seconds,
        "prompt_tokens": tokens_in,
        "output_tokens": tokens_out,
        "prompt_tokens_per_s": tokens_in / seconds,
        "output_tokens_per_s": tokens_out / seconds,
        "goodput_requests_per_s": good / seconds,
        "goodput_share": good / len(requests) if requests else 0.0,
        "ttft_s": spread((r.ttft_s for r in done), percentiles),
        "itl_s": spread((gap for r in done for gap in r.gaps_s), percentiles),
        "tpot_s": spread((r.tpot_s for r in done), percentiles),
        "e2e_s": spread((r.e2e_s for r in done), percentiles),
        "sent_late_s": spread(late, percentiles),
        "fairness": _fairness(requests, began_s, seconds, objectives, percentiles, weights or {}),
    }  # fmt: skip


def spread(values: Any, percentiles: Sequence[float] = PERCENTILES) -> dict[str, float]:
    """Mean, percentiles and the largest of what is not None; empty for nothing."""
    ordered = sorted(value for value in values if value is not None)
    if not ordered:
        return {}
    named = {f"p{percent:g}": quantile(ordered, percent / 100) for percent in percentiles}
    return {"mean": sum(ordered) / len(ordered), **named, "max": ordered[-1]}


def run_log(requests: Sequence[SentRequest], began_s: float, seconds: float, weights: Mapping[str, float]) -> RunLog:
    """The load as the fairness measures read it: a request is admitted when its first token comes."""
    cost, records, services = WeightedTokens(), [], []
    for request in requests:
        reply, tokens = request.reply, request.output_tokens
        prompt = reply.prompt_tokens or request.planned_prompt_tokens
        got_nothing = request.outcome not in (OK, CUT_OFF) and reply.first_token_s is None
        is_status = request.outcome.isdigit()
        first_s = None if reply.first_token_s is None else reply.first_token_s - began_s
        records.append(
            RequestRecord(
                client_id=request.client,
                arrival_s=reply.sent_s - began_s,
                input_tokens=prompt,
                output_tokens=tokens,
                wanted_output_tokens=tokens if request.outcome == OK else request.wanted_tokens,
                is_rejected=got_nothing and is_status,
                is_shed=got_nothing and not is_status,
                admitted_s=first_s,
                first_token_s=first_s,
                finished_s=None if request.ended_s is None else request.ended_s - began_s,
            )
        )
        if first_s is not None:
            services.append((first_s, request.client, cost(prompt, 0)))
            each = cost(0, tokens) / len(reply.token_times_s)
            services += [(time_s - began_s, request.client, each) for time_s in reply.token_times_s]
    log = ServiceLog()
    for time_s, client, price in sorted(services):
        log.add(client, time_s, price)
    return RunLog(records, log, seconds, dict(weights), cost)


def _fairness(
    requests: Sequence[SentRequest],
    began_s: float,
    seconds: float,
    objectives: Objectives,
    percentiles: Sequence[float],
    weights: Mapping[str, float],
) -> dict[str, Any]:
    log = run_log(requests, began_s, seconds, weights)
    accounts = Accounts(log, "token")
    share = shares(accounts)
    clients: dict[str, dict[str, Any]] = {}
    for client in accounts.clients:
        own = [request for request in requests if request.client == client]
        done = [request for request in own if request.outcome == OK]
        clients[client] = {
            "num_requests": len(own),
            "num_ok": len(done),
            "num_good": sum(request.is_good(objectives) for request in done),
            "output_tokens": sum(request.output_tokens for request in own),
            "service": float(accounts.service(client, [math.inf])[0]),
            "share_while_all_wait": share[client],
            "ttft_s": spread((r.ttft_s for r in done), percentiles),
            "e2e_s": spread((r.e2e_s for r in done), percentiles),
        }
    total = sum(figures["service"] for figures in clients.values())
    for figures in clients.values():
        figures["share"] = figures["service"] / total if total else 0.0
    weighted = [figures["service"] / weights.get(client, 1.0) for client, figures in clients.items()]
    return {
        "service_difference": accumulated_difference(accounts, Windows(seconds)),
        "jain": jain_index(weighted),
        "clients": clients,
    }
