"""What was used: a client's own hours, and everybody's for administrators, as JSON or CSV."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from evenflow.accounts.account_row import HOUR_S
from evenflow.accounts.report import (
    MOST_ROWS,
    Price,
    as_csv,
    read_dimensions,
    read_moment,
    start_of_month,
    summary,
)
from evenflow.accounts.store import AccountStore, StoreAway
from evenflow.base.errors import InvalidRequest, NotAllowed, ServerFull
from evenflow.serving.server.access.budgets import BudgetState
from evenflow.serving.server.api.endpoint import json_reply, require_admin
from evenflow.serving.server.api.state import ServerState
from evenflow.serving.server.http.openapi import documented

_QUERY = ("since", "until", "by", "format", "limit", "client")


class UsageList(msgspec.Struct):
    """Answer of GET /v1/usage: one object for each group, with what it was added up by first."""

    data: list[dict[str, Any]]
    since_s: int
    until_s: int
    is_cut: bool = False
    """True: there were more groups than ``limit``."""
    budgets: list[BudgetState] = []
    """Of the clients that the answer is about and that have one: what is used of this month's."""
    object: str = "list"


def add_usage_routes(
    app: FastAPI, state: ServerState, open_to_read: Callable[[], AccountStore], prices: Mapping[str, Price] | None
) -> None:
    """Register the routes on ``app``. ``open_to_read`` opens the store for one question, in a thread beside the loop."""

    @app.get("/v1/usage", **documented(None, UsageList, (400, 401, 403, 503)))
    async def usage(request: Request) -> Response:
        """What the key's holder has used. Queries: since, until, by (adapter,day), format (json, csv), limit."""
        holder = state.directory.holder(request.headers)
        if holder is None:
            raise NotAllowed("whose usage? this needs the key of a client; administrators have /v1/admin/usage")
        return await answered(request, holder.name)

    @app.get("/v1/admin/usage", **documented(None, UsageList, (400, 401, 403, 503)))
    async def admin_usage(request: Request) -> Response:
        """What everybody has used, or with ``client`` one of them; for administrators."""
        require_admin(state, request)
        return await answered(request, request.query_params.get("client"))

    async def answered(request: Request, client: str | None) -> Response:
        query = request.query_params
        if unknown := sorted(set(query) - set(_QUERY)):
            raise InvalidRequest(f"{unknown[0][:80]!r} is unknown here; allowed: {', '.join(_QUERY)}", unknown[0][:80])
        now_s = state.unix_time()
        since_s = read_moment(query["since"], "since") if "since" in query else start_of_month(now_s)
        until_s = read_moment(query["until"], "until") if "until" in query else int(now_s) + HOUR_S
        by = read_dimensions(query.get("by", "client,adapter"))
        kind, limit = query.get("format", "json"), query.get("limit", str(MOST_ROWS))
        if kind not in ("json", "csv"):
            raise InvalidRequest(f"format is {kind[:40]!r}; allowed: json, csv", "format")
        if not limit.isdecimal() or not 1 <= int(limit) <= MOST_ROWS:
            raise InvalidRequest(f"limit is {limit[:40]!r}; allowed: 1 to {MOST_ROWS}", "limit")

        def read() -> list[dict[str, Any]]:
            store = open_to_read()
            try:
                return summary(store.read(since_s, until_s, client), by, prices)
            finally:
                store.close()

        try:
            rows = await asyncio.to_thread(read)
        except StoreAway as error:
            raise ServerFull(f"the accounts cannot be read now: {error}") from None
        shown = rows[: int(limit)]
        if kind == "csv":
            return Response(as_csv(shown), media_type="text/csv; charset=utf-8", headers={"cache-control": "no-store"})
        answer = UsageList(shown, since_s, until_s, len(rows) > len(shown), state.budgets.states(client))
        return json_reply(answer, headers={"cache-control": "no-store"})
