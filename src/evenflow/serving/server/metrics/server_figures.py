"""Figures of the HTTP server itself: its doors, its connections and what they were closed for."""

from __future__ import annotations

from evenflow.serving.server.metrics.figure import Kind, by_label, counter, gauge

MOST_BUDGETS = 50

SERVER_FIGURES = (
    gauge("evenflow_ready", "1: new requests are taken.", lambda s: float(s.server.is_ready)),
    gauge("evenflow_http_requests_in_flight", "HTTP requests being answered by the engine.", lambda s: s.server.num_in_flight),
    gauge("evenflow_completions_waiting", "Completions let in that wait for a first token.", lambda s: s.server.num_waiting),
    gauge("evenflow_http_connections", "Connections that are open.", lambda s: s.server.connections.num_open),
    counter("evenflow_http_connections_accepted", "Connections that were taken.", lambda s: s.server.connections.num_accepted),
    gauge("evenflow_accounts_away", "1: the accounts cannot be written now.", lambda s: float(s.server.are_accounts_away)),
    gauge("evenflow_account_rows_waiting", "Rows of accounts not yet written.", lambda s: s.server.num_account_rows_waiting),
    counter(
        "evenflow_account_failures",
        "Writes of accounts that failed and were repeated.",
        lambda s: s.server.num_account_failures,
    ),
    counter(
        "evenflow_account_overflows",
        "Completions added up without their client, because the accounts were away for too long.",
        lambda s: s.server.num_account_overflows,
    ),
    by_label(
        "evenflow_client_budget_used",
        Kind.GAUGE,
        "Used part of the client's budget of the month, of the 50 clients that have used most of theirs; 1: it is spent.",
        "client",
        lambda s: s.server.budget_parts[:MOST_BUDGETS],
    ),
    gauge(
        "evenflow_clients_over_budget",
        "Clients that have used their budget of the month.",
        lambda s: sum(part >= 1 for _, part in s.server.budget_parts),
    ),
    counter("evenflow_spans_sent", "Spans of traces that the collector has taken.", lambda s: s.server.num_spans_sent),
    counter(
        "evenflow_spans_lost",
        "Spans of traces that were not sent: the collector was away, refused them, or was too slow.",
        lambda s: s.server.num_spans_lost,
    ),
    by_label(
        "evenflow_http_connections_closed",
        Kind.COUNTER,
        "Connections that the server closed because of a limit, by limit.",
        "reason",
        lambda s: s.server.connections.num_closed.items(),
    ),
)
