"""The routes that ask the model: chat and text completions, tokenize and detokenize."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Coroutine
from dataclasses import replace
from typing import Any

import msgspec
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from evenflow.access.identity import Client
from evenflow.base.errors import InvalidRequest
from evenflow.serving.server.api.chat import chat_answer, chat_call, chat_events
from evenflow.serving.server.api.completions import completion_answer, completion_call, completion_events
from evenflow.serving.server.api.endpoint import json_reply, read_request
from evenflow.serving.server.api.generation import RunningCall
from evenflow.serving.server.api.responses import (
    ChatCompletion,
    ChatCompletionChunk,
    Completion,
    DetokenizeResponse,
    TokenizeResponse,
)
from evenflow.serving.server.api.schema import (
    ChatCompletionRequest,
    CompletionRequest,
    DetokenizeRequest,
    SamplingFields,
    TokenizeRequest,
    slo_of,
)
from evenflow.serving.server.api.state import ServerState
from evenflow.serving.server.http.body_parsing import BodyParser, ignored_fields_header
from evenflow.serving.server.http.event_stream import ClientGone, EventStream, while_connected
from evenflow.serving.server.http.openapi import documented

GONE = 499
"""nginx's status for a client that left; nobody sees it but a log."""


def add_inference_routes(app: FastAPI, state: ServerState) -> None:
    """Register the routes on ``app``."""
    chat_parser, completion_parser = BodyParser(ChatCompletionRequest), BodyParser(CompletionRequest)
    tokenize_parser, detokenize_parser = BodyParser(TokenizeRequest), BodyParser(DetokenizeRequest)
    refusals = (400, 401, 403, 404, 429, 503)

    @app.post("/v1/chat/completions", **documented(ChatCompletionRequest, ChatCompletion, refusals, ChatCompletionChunk))
    async def chat_completions(request: Request) -> Response:
        """Continue a conversation."""
        arrival_s = state.clock()
        state.check_open()
        body, ignored, holder = await read_request(state, request, chat_parser)
        client, adapter = await _who_and_what(state, request, body, holder)
        call = replace(chat_call(state, body, client, adapter, arrival_s), slo_ttft_s=slo_of(body, request.headers))
        running = RunningCall(state, call)
        if body.stream:
            return _stream(state, client, ignored, chat_events(running, body))
        return await _answer(state, request, client, ignored, chat_answer(running, body))

    @app.post("/v1/completions", **documented(CompletionRequest, Completion, refusals, Completion))
    async def completions(request: Request) -> Response:
        """Continue texts or token ids."""
        arrival_s = state.clock()
        state.check_open()
        body, ignored, holder = await read_request(state, request, completion_parser)
        client, adapter = await _who_and_what(state, request, body, holder)
        call = replace(completion_call(state, body, client, adapter, arrival_s), slo_ttft_s=slo_of(body, request.headers))
        running = RunningCall(state, call)
        if body.stream:
            return _stream(state, client, ignored, completion_events(state, running, body))
        return await _answer(state, request, client, ignored, completion_answer(state, running, body))

    @app.post("/tokenize", **documented(TokenizeRequest, TokenizeResponse, (400, 401, 404, 503)))
    async def tokenize(request: Request) -> Response:
        """Token ids of a prompt or of messages."""
        state.check_open()
        body, ignored, _ = await read_request(state, request, tokenize_parser)
        if (body.prompt is None) == (body.messages is None):
            raise InvalidRequest("one of prompt and messages is needed, and not both", "prompt")
        if body.messages is not None:
            if not body.messages:
                raise InvalidRequest("messages is empty; allowed: one message or more", "messages")
            text = await state.reader.render(
                body.messages,
                add_generation_prompt=body.add_generation_prompt is not False,
                variables=body.chat_template_kwargs,
            )
            tokens = await state.reader.encode(text, "messages", add_special_tokens=bool(body.add_special_tokens))
        else:
            assert body.prompt is not None
            tokens = await state.reader.encode(body.prompt, "prompt", add_special_tokens=body.add_special_tokens is not False)
        texts = await state.reader.texts_of_tokens(tokens) if body.return_token_strs else None
        answer = TokenizeResponse(len(tokens), state.engine.info.max_model_len, tokens, texts)
        return json_reply(answer, headers=ignored_fields_header(ignored))

    @app.post("/detokenize", **documented(DetokenizeRequest, DetokenizeResponse, (400, 401, 404, 503)))
    async def detokenize(request: Request) -> Response:
        """Text of token ids."""
        state.check_open()
        body, ignored, _ = await read_request(state, request, detokenize_parser)
        text = await state.reader.decode(body.tokens, "tokens")
        return json_reply(DetokenizeResponse(text), headers=ignored_fields_header(ignored))


async def _who_and_what(
    state: ServerState, request: Request, body: SamplingFields, holder: Client | None
) -> tuple[Client, str | None]:
    if body.stream_options is not None:
        if not body.stream:
            raise InvalidRequest("stream_options is given without stream; allowed with stream true", "stream_options")
        if body.stream_options.continuous_usage_stats:
            raise InvalidRequest("stream_options.continuous_usage_stats is not implemented by this server", "stream_options")
    if body.stream and body.prompt_logprobs is not None:
        raise InvalidRequest("prompt_logprobs is given with stream; allowed without stream", "prompt_logprobs")
    named = ("safety_identifier", body.safety_identifier) if body.safety_identifier else ("user", body.user or "")
    client = state.directory.client(holder, request.headers, named)
    return client, await state.names.resolve(body.model, client)


def _stream(state: ServerState, client: Client, ignored: tuple[str, ...], events: AsyncGenerator[bytes, None]) -> Response:
    return EventStream(events, _headers(state, client, ignored), state.config.keepalive_s, state.log_stream_error)


async def _answer(
    state: ServerState, request: Request, client: Client, ignored: tuple[str, ...], work: Coroutine[Any, Any, msgspec.Struct]
) -> Response:
    try:
        answer = await while_connected(request.receive, work)
    except ClientGone:
        return Response(status_code=GONE)
    return json_reply(answer, headers=_headers(state, client, ignored)())


def _headers(state: ServerState, client: Client, ignored: tuple[str, ...]) -> Callable[[], dict[str, str]]:
    return lambda: {**state.limits.headers(client), **ignored_fields_header(ignored)}
