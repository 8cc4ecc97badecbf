"""GET /v1/models: what a caller may name as ``model``."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from evenflow.access.identity import Client
from evenflow.base.errors import AdapterNotFound
from evenflow.serving.server.access.model_names import NamedAdapter, no_such_model
from evenflow.serving.server.api.endpoint import json_reply
from evenflow.serving.server.api.responses import ModelCard, ModelList
from evenflow.serving.server.api.state import ServerState
from evenflow.serving.server.http.openapi import documented


def add_model_routes(app: FastAPI, state: ServerState) -> None:
    """Register the routes on ``app``."""

    @app.get("/v1/models", **documented(None, ModelList, (400, 401, 503)))
    async def list_models(request: Request) -> Response:
        """The base model and the adapters that the caller may use, loaded or waiting in the adapter folder."""
        state.check_open()
        client = _caller(state, request)
        available = await state.names.available()
        cards = [_base_card(state, name) for name in state.names.base_names]
        cards += [_adapter_card(state, a) for name, a in sorted(state.names.adapters.items()) if client.may_use(name)]
        cards += [_unread_card(state, name, seen_s) for name, seen_s in sorted(available.items()) if client.may_use(name)]
        return json_reply(ModelList(cards))

    @app.get("/v1/models/{model:path}", **documented(None, ModelCard, (400, 401, 404, 503)))
    async def retrieve_model(request: Request, model: str) -> Response:
        """One model."""
        state.check_open()
        client = _caller(state, request)
        if model in state.names.base_names:
            return json_reply(_base_card(state, model))
        adapter = state.names.adapters.get(model)
        available = await state.names.available() if adapter is None else {}
        if model in available and client.may_use(model):
            return json_reply(_unread_card(state, model, available[model]))
        if adapter is None or not client.may_use(model):
            raise AdapterNotFound(no_such_model(model))
        return json_reply(_adapter_card(state, adapter))


def _caller(state: ServerState, request: Request) -> Client:
    holder = state.directory.holder(request.headers)
    return state.directory.client(holder, request.headers, None)


def _base_card(state: ServerState, name: str) -> ModelCard:
    return ModelCard(name, state.started_s, root=state.names.base_names[0], max_model_len=state.engine.info.max_model_len)


def _adapter_card(state: ServerState, adapter: NamedAdapter) -> ModelCard:
    return ModelCard(adapter.info.name, adapter.created_s, root=adapter.info.digest, parent=state.names.base_names[0])


def _unread_card(state: ServerState, name: str, seen_s: int) -> ModelCard:
    return ModelCard(name, seen_s, root=name, parent=state.names.base_names[0])
