"""What every inference endpoint does: from a request to an answer or a stream, in the shape of a View."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import replace

import msgspec
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from evenflow.access.identity import Client
from evenflow.serving.server.access.combinations import account_name
from evenflow.serving.server.api.endpoint import json_reply, read_request
from evenflow.serving.server.api.generation import RunningCall
from evenflow.serving.server.api.schema import CompletionRequest, slo_of_headers
from evenflow.serving.server.api.state import ServerState
from evenflow.serving.server.api.view import B, Caller, Choice, EventWriter, View
from evenflow.serving.server.http.body_parsing import BodyParser, ignored_fields_header
from evenflow.serving.server.http.event_stream import ClientGone, EventStream, while_connected
from evenflow.serving.server.http.openapi import documented
from evenflow.serving.server.observing.request_record import record_of

GONE = 499
"""nginx's status for a client that left; nobody sees it but a log."""
FOUND_AT_ONCE_S = 0.001
"""Looking up a model's name takes longer only if its adapter has to be registered first."""
REFUSALS = (400, 401, 403, 404, 408, 413, 415, 429, 503)


def add_view(app: FastAPI, state: ServerState, view: View[B], summary: str) -> None:
    """Register the route of ``view`` on ``app``."""
    parser = BodyParser(view.body_type, unknown_fields=state.config.unknown_fields)

    async def endpoint(request: Request) -> Response:
        return await answer(state, request, view, parser)

    endpoint.__name__ = view.path.strip("/").replace("/", "_").replace("v1_", "")
    endpoint.__doc__ = summary
    app.post(view.path, **documented(view.body_type, view.answer_type, REFUSALS, view.event_type))(endpoint)


async def answer(
    state: ServerState,
    request: Request,
    view: View[B],
    parser: BodyParser[B],
    *,
    data: bytes | None = None,
    model: str | None = None,
) -> Response:
    """Answer one request. Raises EvenFlowError for everything that ends it before its first token.

    ``data``: the bytes of the body, if they have been read. ``model``: what is asked for, whatever the body says.
    """
    arrival_s = state.clock()
    record = record_of(request.scope)
    record.operation = "text_completion" if view.body_type is CompletionRequest else "chat"
    state.check_open()
    body, ignored, holder = await read_request(state, request, parser, data)
    asked = view.asked(body) if model is None else replace(view.asked(body), model=model)
    client = state.directory.client(holder, request.headers, asked.user)
    name = state.names.named(asked)
    record.client, record.model, record.is_streamed = client.name, name, asked.is_streamed
    resolving_s = state.clock()
    adapter = await state.names.resolve(name, client)
    record.adapter = account_name(adapter, name)
    if (resolved_s := state.clock()) - resolving_s > FOUND_AT_ONCE_S:
        record.resolved_s = resolving_s, resolved_s
    slo_ttft_s = asked.slo_ttft_s if asked.slo_ttft_s is not None else slo_of_headers(request.headers)
    caller = Caller(client, adapter, name, arrival_s, slo_ttft_s)
    running = RunningCall(state, view.call(state, body, caller), record)
    headers = _headers(state, client, ignored)
    if asked.is_streamed:
        writer = view.writer(running, body)
        return EventStream(
            events(running, writer),
            headers,
            keepalive_s=state.config.keepalive_s,
            max_unread_bytes=state.config.max_unread_bytes,
            on_error=lambda error: _broken_off(state, writer, error),
            on_unread=lambda: state.connections.closed("unread"),
        )
    try:
        whole = await while_connected(request.receive, _whole(running, view, body))
    except ClientGone:
        return Response(status_code=GONE)
    return json_reply(whole, headers=headers())


async def gather(running: RunningCall) -> list[Choice]:
    """Every completion's whole text, in their order."""
    choices = [Choice() for _ in range(running.call.num_completions)]
    texts: list[list[str]] = [[] for _ in choices]
    async with contextlib.aclosing(running.outputs()) as outputs:
        async for index, output in outputs:
            choice = choices[index]
            texts[index].append(output.text)
            choice.token_ids += output.token_ids
            choice.logprobs += output.logprobs
            if output.prompt_logprobs is not None:
                choice.prompt_logprobs = output.prompt_logprobs
            if output.finish_reason is not None:
                choice.finish_reason, choice.stop_reason = output.finish_reason, output.stop_reason
    for choice, parts in zip(choices, texts, strict=True):
        choice.text = "".join(parts)
    return choices


async def events(running: RunningCall, writer: EventWriter) -> AsyncGenerator[bytes, None]:
    """The stream's events as they come; text that is held back, because it may become a stop string, has none yet."""
    begun: set[int] = set()
    async with contextlib.aclosing(running.outputs()) as outputs:
        async for index, output in outputs:
            is_first = index not in begun
            if not (is_first or output.text or output.finish_reason or (writer.wants_tokens and output.token_ids)):
                continue
            start = writer.begin() if not begun else b""
            begun.add(index)
            chunk = start + writer.gained(index, output, is_first)
            if chunk:
                yield chunk
    yield writer.end()


async def _whole(running: RunningCall, view: View[B], body: B) -> msgspec.Struct:
    choices: Sequence[Choice] = await gather(running)
    return view.answer(running, body, choices)


def _broken_off(state: ServerState, writer: EventWriter, error: Exception) -> bytes:
    state.log_stream_error(error)
    return writer.failed(error)


def _headers(state: ServerState, client: Client, ignored: tuple[str, ...]) -> Callable[[], dict[str, str]]:
    return lambda: {**state.limits.headers(client), **ignored_fields_header(ignored)}
