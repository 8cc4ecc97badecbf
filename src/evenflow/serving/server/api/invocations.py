"""POST /invocations: SageMaker's one route for every question. What the body holds says which endpoint answers."""

from __future__ import annotations

import msgspec
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from evenflow.base.errors import InvalidRequest
from evenflow.serving.server.api.answering import REFUSALS, answer
from evenflow.serving.server.api.chat import ChatView
from evenflow.serving.server.api.completions import CompletionView
from evenflow.serving.server.api.responses import ChatCompletion, ChatCompletionChunk
from evenflow.serving.server.api.schema import ChatCompletionRequest
from evenflow.serving.server.api.state import ServerState
from evenflow.serving.server.http.body_parsing import BodyParser, read_json
from evenflow.serving.server.http.openapi import documented

ADAPTER_HEADER = "x-amzn-sagemaker-adapter-identifier"
"""SageMaker's name for the adapter; it goes before the body's ``model``."""
_keys_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])


def add_invocations_route(app: FastAPI, state: ServerState) -> None:
    """Register the route on ``app``."""
    rule = state.config.unknown_fields
    chat, completion = ChatView(), CompletionView(state)
    chat_parser = BodyParser(chat.body_type, unknown_fields=rule)
    completion_parser = BodyParser(completion.body_type, unknown_fields=rule)

    @app.post("/invocations", **documented(ChatCompletionRequest, ChatCompletion, REFUSALS, ChatCompletionChunk))
    async def invocations(request: Request) -> Response:
        """SageMaker's route: a body with messages is answered as a chat, one with a prompt as a completion."""
        state.check_open()
        state.directory.holder(request.headers)
        data = await read_json(request, state.config.max_body_bytes)
        try:
            names = _keys_decoder.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidRequest(f"the body is no JSON object: {error}") from None
        model = request.headers.get(ADAPTER_HEADER) or None
        if "messages" in names:
            return await answer(state, request, chat, chat_parser, data=data, model=model)
        if "prompt" in names:
            return await answer(state, request, completion, completion_parser, data=data, model=model)
        raise InvalidRequest(
            "the body has neither messages nor prompt; allowed: what a chat completion or a completion is asked with",
            "messages",
        )
