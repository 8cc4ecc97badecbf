"""The application: routes, the one way errors are answered, and the request id. No torch is imported here.

``create_app`` needs an engine that has been started, not one that is warm: the probes answer at once, and
everything else says 503 until it is.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import msgspec
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from evenflow.accounts.account_book import AccountBook
from evenflow.accounts.open_store import open_store
from evenflow.base.errors import EvenFlowError
from evenflow.base.version import __version__
from evenflow.serving.server.api import messages_schema, responses, responses_schema, schema
from evenflow.serving.server.api.adapter_routes import add_adapter_routes
from evenflow.serving.server.api.answering import GONE, add_view
from evenflow.serving.server.api.chat import ChatView
from evenflow.serving.server.api.completions import CompletionView
from evenflow.serving.server.api.endpoint import json_reply
from evenflow.serving.server.api.invocations import add_invocations_route
from evenflow.serving.server.api.messages_view import MessagesView, add_count_route
from evenflow.serving.server.api.models import add_model_routes
from evenflow.serving.server.api.probes import add_probe_routes
from evenflow.serving.server.api.refused_routes import add_refused_routes
from evenflow.serving.server.api.responses_view import ResponsesView
from evenflow.serving.server.api.state import ServerState
from evenflow.serving.server.api.tokenize import add_tokenize_routes
from evenflow.serving.server.api.usage_routes import UsageList, add_usage_routes
from evenflow.serving.server.console.console_routes import add_console_routes
from evenflow.serving.server.http.api_page import add_api_page
from evenflow.serving.server.http.error_answers import (
    ErrorDetail,
    ErrorResponse,
    error_response,
    messages_error_response,
)
from evenflow.serving.server.http.openapi import install_openapi
from evenflow.serving.server.http.origins import OriginCheck
from evenflow.serving.server.interfaces import ChatTemplate, Engine, Tokenizer
from evenflow.serving.server.observing.request_ids import RequestIds
from evenflow.serving.server.observing.request_lines import RequestLines
from evenflow.serving.server.observing.request_record import RequestObserver, record_of
from evenflow.serving.server.observing.trace_sender import TraceSender
from evenflow.serving.server.server_config import ServerConfig


def create_app(
    engine: Engine,
    tokenizer: Tokenizer,
    chat_template: ChatTemplate | None,
    config: ServerConfig,
    adapters: Mapping[str, str | Path] | None = None,
) -> FastAPI:
    """The application over a started engine. ``adapters``: registered as soon as the engine is warm.

    ``app.state.server`` is its ServerState. Raises ConfigError for a broken clients.toml.
    """
    return build_app(ServerState(engine, tokenizer, chat_template, config), adapters or {})


def build_app(state: ServerState, adapters: Mapping[str, str | Path]) -> FastAPI:
    """The application over ``state``; it opens when the app starts up."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        opening = asyncio.create_task(state.open_or_fail(adapters))
        watching = asyncio.create_task(state.watch_budgets())
        yield
        opening.cancel()
        watching.cancel()
        if state.accounts is not None:
            await asyncio.to_thread(state.accounts.close)
        for observer in state.observers:
            await asyncio.to_thread(observer.close)
        await asyncio.gather(opening, watching, return_exceptions=True)

    app = FastAPI(
        title="EvenFlow",
        version=__version__,
        description="One base model, many LoRA adapters, many clients, served fairly. OpenAI-compatible.",
        lifespan=lifespan,
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
    )
    app.state.server = state
    add_view(app, state, ChatView(), "Continue a conversation.")
    add_view(app, state, CompletionView(state), "Continue texts or token ids.")
    add_view(app, state, ResponsesView(), "Continue a conversation, as OpenAI's Responses API has it; nothing is stored.")
    add_view(app, state, MessagesView(), "Continue a conversation, as Anthropic's Messages API has it.")
    add_count_route(app, state)
    add_tokenize_routes(app, state)
    add_model_routes(app, state)
    add_adapter_routes(app, state)
    add_probe_routes(app, state)
    add_invocations_route(app, state)
    add_refused_routes(app)
    install_openapi(app, _documented_types())
    add_api_page(app)
    if state.config.accounts:
        _keep_accounts(app, state)
    if state.config.console:
        add_console_routes(app, state)
    app.add_exception_handler(EvenFlowError, _answer_error)
    app.add_exception_handler(HTTPException, _answer_http_error)
    app.add_exception_handler(RequestValidationError, _answer_bad_path)
    app.add_exception_handler(ClientDisconnect, _answer_nobody)
    app.add_middleware(OriginCheck, bound_to=state.config.host, allowed_origins=state.config.allowed_origins)
    if state.config.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(state.config.allowed_origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after", "retry-after-ms", "x-evenflow-ignored-fields"],
        )
    app.add_middleware(RequestIds, clock=state.clock, unix_time=state.unix_time, observers=_observers(state))
    return app


def _observers(state: ServerState) -> tuple[RequestObserver, ...]:
    """Who is told of each request, as the options say. Raises ConfigError."""
    config = state.config
    found: list[RequestObserver] = []
    if config.otlp_endpoint:  # first: the lines name the trace
        state.traces = TraceSender(config.otlp_endpoint, config.served_model_names[0])
        found.append(state.traces)
    if config.log_requests:
        found.append(RequestLines())
    state.observers = tuple(found)
    return state.observers


def _keep_accounts(app: FastAPI, state: ServerState) -> None:
    """Keep accounts where the options say. Raises ConfigError."""
    config = state.config
    state.accounts = AccountBook(
        lambda: open_store(config.accounts),
        state.unix_time,
        retention_days=config.accounts_days or None,
        spending=state.spending,
    )
    state.accounts.start()
    state.cut_short.accounts = state.accounts
    state.engine.hear_aborted(state.cut_short.heard)
    add_usage_routes(app, state, lambda: open_store(config.accounts), state.prices)


async def _answer_error(request: Request, error: Exception) -> Response:
    record_of(request.scope).error = error
    is_anthropic = request.url.path.startswith(MessagesView.path)
    return messages_error_response(error) if is_anthropic else error_response(error)


async def _answer_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        message = f"there is no {request.method} {request.url.path[:200]} here; /docs lists what there is"
    else:
        message = str(error.detail)
    body = ErrorResponse(ErrorDetail(message, "invalid_request_error"))
    return json_reply(body, error.status_code, error.headers)


async def _answer_bad_path(request: Request, error: Exception) -> Response:
    return json_reply(ErrorResponse(ErrorDetail("the path or the query is wrong", "invalid_request_error")), 400)


async def _answer_nobody(request: Request, error: Exception) -> Response:
    return Response(status_code=GONE)


def _documented_types() -> list[type[msgspec.Struct]]:
    return [
        schema.ChatCompletionRequest,
        schema.CompletionRequest,
        schema.TokenizeRequest,
        schema.DetokenizeRequest,
        schema.LoadLoraAdapterRequest,
        schema.UnloadLoraAdapterRequest,
        schema.CreateAdapterRequest,
        messages_schema.MessagesRequest,
        messages_schema.MessageBody,
        messages_schema.MessagesEvent,
        messages_schema.TokenCount,
        responses_schema.ResponsesRequest,
        responses_schema.ResponseBody,
        responses_schema.ResponsesEvent,
        responses.ChatCompletion,
        responses.ChatCompletionChunk,
        responses.Completion,
        responses.ModelList,
        responses.AdapterList,
        responses.SGLangAnswer,
        responses.TokenizeResponse,
        responses.DetokenizeResponse,
        UsageList,
        responses.Health,
        responses.Version,
        responses.Load,
        responses.TokenizerInfo,
    ]
