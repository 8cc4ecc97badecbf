"""POST /tokenize and POST /detokenize, in vLLM's shapes."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from evenflow.access.identity import Client
from evenflow.base.errors import InvalidRequest
from evenflow.serving.server.api.endpoint import json_reply, read_request
from evenflow.serving.server.api.prompts import Conversation, PromptReader
from evenflow.serving.server.api.responses import DetokenizeResponse, TokenizeResponse, TokenizerInfo
from evenflow.serving.server.api.schema import DetokenizeRequest, TokenizeRequest
from evenflow.serving.server.api.state import ServerState
from evenflow.serving.server.http.body_parsing import BodyParser, ignored_fields_header
from evenflow.serving.server.http.openapi import documented
from evenflow.serving.text.tools.offered import read_tools

_REFUSALS = (400, 401, 404, 408, 413, 415, 503)


def add_tokenize_routes(app: FastAPI, state: ServerState) -> None:
    """Register the routes on ``app``."""
    rule = state.config.unknown_fields
    tokenize_parser = BodyParser(TokenizeRequest, unknown_fields=rule)
    detokenize_parser = BodyParser(DetokenizeRequest, unknown_fields=rule)

    @app.post("/tokenize", **documented(TokenizeRequest, TokenizeResponse, _REFUSALS))
    async def tokenize(request: Request) -> Response:
        """Token ids of a prompt or of messages."""
        state.check_open()
        body, ignored, holder = await read_request(state, request, tokenize_parser)
        reader = await _reader(state, request, holder, body.model)
        if (body.prompt is None) == (body.messages is None):
            raise InvalidRequest("one of prompt and messages is needed, and not both", "prompt")
        if body.messages is not None:
            if not body.messages:
                raise InvalidRequest("messages is empty; allowed: one message or more", "messages")
            form = state.forms.form(read_tools(body.tools or (), None), None)
            turns = Conversation(
                body.messages,
                body.add_generation_prompt,
                bool(body.continue_final_message),
                body.chat_template_kwargs,
                tools=[tool.for_template() for tool in form.offered.tools] if form.offered is not None else [],
            )
            text = await reader.render(turns)
            tokens = await reader.encode(text, "messages", add_special_tokens=bool(body.add_special_tokens))
        else:
            assert body.prompt is not None
            tokens = await reader.encode(body.prompt, "prompt", add_special_tokens=body.add_special_tokens is not False)
        texts = await reader.texts_of_tokens(tokens) if body.return_token_strs else None
        answer = TokenizeResponse(len(tokens), state.engine.info.max_model_len, tokens, texts)
        return json_reply(answer, headers=ignored_fields_header(ignored))

    if state.config.has_tokenizer_info:
        _add_tokenizer_info(app, state)

    @app.post("/detokenize", **documented(DetokenizeRequest, DetokenizeResponse, _REFUSALS))
    async def detokenize(request: Request) -> Response:
        """Text of token ids."""
        state.check_open()
        body, ignored, holder = await read_request(state, request, detokenize_parser)
        reader = await _reader(state, request, holder, body.model)
        text = await reader.decode(body.tokens, "tokens")
        return json_reply(DetokenizeResponse(text), headers=ignored_fields_header(ignored))


def _add_tokenizer_info(app: FastAPI, state: ServerState) -> None:
    @app.get("/tokenizer_info", **documented(None, TokenizerInfo, (401, 503)))
    async def tokenizer_info(request: Request) -> Response:
        """The tokenizer's configuration and the chat template."""
        state.directory.holder(request.headers)
        template = None if state.chat_template is None else state.chat_template.source
        kind = str(state.tokenizer.config.get("tokenizer_class", "PreTrainedTokenizerFast"))
        return json_reply({**state.tokenizer.config, "tokenizer_class": kind, "chat_template": template})


async def _reader(state: ServerState, request: Request, holder: Client | None, model: str | None) -> PromptReader:
    """The base model's reader, unless the model has a text side of its own; a name that nobody serves is 404 either way."""
    if model is None:
        return state.reader
    client = state.directory.client(holder, request.headers, None)
    if state.texts is not None:
        return state.reader_of(await state.names.resolve(model, client))
    await state.names.check(model, client)
    return state.reader
