"""The rows of a trace as requests for a simulated server."""

from __future__ import annotations

from collections.abc import Iterator

from evenflow.bench.replay.trace import Trace
from evenflow.serving.core.request import AdapterDigest, ClientId, Request, RequestId
from evenflow.serving.core.sampling import GREEDY


def requests_of(trace: Trace, max_output_tokens: int, serves_adapters: bool) -> Iterator[Request]:
    """Requests in order of arrival. Prompts of one length are one list: nobody writes to it."""
    prompts: dict[int, list[int]] = {}
    for i, row in enumerate(trace):
        prompt = prompts.setdefault(row.input_len, [0] * row.input_len)
        yield Request(
            RequestId(str(i)),
            ClientId(row.client),
            prompt,
            GREEDY,
            row.arrival_s,
            adapter=AdapterDigest(row.adapter) if row.adapter is not None and serves_adapters else None,
            max_output_tokens=max_output_tokens,
            known_output_tokens=row.output_len,
        )
