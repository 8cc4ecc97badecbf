"""POST /v1/messages as a view: Anthropic's Messages API, over the same call as a chat; and its count of tokens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import msgspec
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from evenflow.base.errors import InvalidRequest
from evenflow.serving.client.messages import RequestOutput
from evenflow.serving.server.access.asked import Asked
from evenflow.serving.server.api.chat import ChatView
from evenflow.serving.server.api.conversation import effort_variables
from evenflow.serving.server.api.endpoint import json_reply, read_request
from evenflow.serving.server.api.generation import Call, RunningCall, new_response_id
from evenflow.serving.server.api.messages_items import (
    chat_messages,
    chat_tools,
    effort_of,
    format_of,
    is_prefilled,
)
from evenflow.serving.server.api.messages_schema import (
    Block,
    MessageBody,
    MessageDelta,
    MessagesError,
    MessagesEvent,
    MessagesRequest,
    MessagesUsage,
    TokenCount,
)
from evenflow.serving.server.api.prompts import Conversation
from evenflow.serving.server.api.schema import ChatCompletionRequest
from evenflow.serving.server.api.state import ServerState
from evenflow.serving.server.api.view import Caller, Choice
from evenflow.serving.server.http.body_parsing import BodyParser
from evenflow.serving.server.http.error_answers import body_of
from evenflow.serving.server.http.event_stream import event
from evenflow.serving.server.http.openapi import documented
from evenflow.serving.text.answer_reader import AnswerDelta, read_whole
from evenflow.serving.text.tools.call_scanner import CallDelta
from evenflow.serving.text.tools.offered import read_tools

COUNT_PATH = "/v1/messages/count_tokens"


class MessagesView:
    """Anthropic's messages."""

    path = "/v1/messages"
    body_type = MessagesRequest
    answer_type = MessageBody
    event_type = MessagesEvent

    def asked(self, body: MessagesRequest) -> Asked:
        """Who and what the body names."""
        user = None if body.metadata is None else body.metadata.user_id
        return Asked(body.model, None, ("metadata.user_id", user or ""), bool(body.stream))

    def call(self, state: ServerState, body: MessagesRequest, caller: Caller) -> Call:
        """The call that ``body`` asks for. Raises InvalidRequest."""
        if body.max_tokens is None:
            raise InvalidRequest("max_tokens is missing; it is required", "max_tokens")
        tools, choice, is_parallel = chat_tools(body)
        messages = chat_messages(body)
        chat = ChatCompletionRequest(
            model=body.model,
            messages=messages,
            continue_final_message=is_prefilled(messages),
            max_tokens=body.max_tokens,
            temperature=body.temperature,
            top_p=body.top_p,
            top_k=body.top_k,
            stop=list(body.stop_sequences or ()) or None,
            tools=tools,
            tool_choice=choice,
            parallel_tool_calls=is_parallel,
            reasoning_effort=effort_of(body),
            response_format=format_of(body),
        )
        return replace(ChatView().call(state, chat, caller), response_id=new_response_id("msg"))

    def answer(self, running: RunningCall, body: MessagesRequest, choices: Sequence[Choice]) -> MessageBody:
        """The whole message."""
        (choice,) = choices
        said = read_whole(running.call.form.reader(), choice.text)
        running.called_tools(0, len(said.calls))
        blocks = [Block("thinking", thinking=said.reasoning, signature="")] if said.reasoning else []
        if said.content or not said.calls:
            blocks.append(Block("text", text=said.content))
        for one in said.calls:
            blocks.append(Block("tool_use", id=new_response_id("toolu"), name=one.name, input=_object(one.arguments)))
        whole = MessageBody(running.call.response_id, running.call.model, blocks, _usage(running))
        whole.stop_reason, whole.stop_sequence = _stop(choice.finish_reason, choice.stop_reason, len(said.calls))
        return whole

    def writer(self, running: RunningCall, body: MessagesRequest) -> MessagesWriter:
        """A writer for one stream."""
        return MessagesWriter(running)


class MessagesWriter:
    """Anthropic's events, in their order."""

    wants_tokens = False

    def __init__(self, running: RunningCall) -> None:
        self._running = running
        self._reader = running.call.form.reader()
        self._kind = ""
        """Type of the block that is open."""
        self._index = -1
        self._end: tuple[str, str | None] = ("end_turn", None)

    def begin(self) -> bytes:
        """The message exists."""
        call = self._running.call
        usage = MessagesUsage(sum(len(prompt.token_ids) for prompt in self._running.prompts), 0)
        message = MessageBody(call.response_id, call.model, [], usage)
        return _event(MessagesEvent("message_start", message=message)) + _event(MessagesEvent("ping"))

    def gained(self, index: int, output: RequestOutput, is_first: bool) -> bytes:
        """The deltas of what was said."""
        gained = self._reader.feed(output.text)
        if output.finish_reason is not None:
            gained.add(self._reader.finish())
            self._running.called_tools(0, self._reader.num_calls)
            self._end = _stop(output.finish_reason, output.stop_reason, self._reader.num_calls)
        return self._told(gained)

    def end(self) -> bytes:
        """The last block's end, the reason and the usage."""
        said = b"" if self._index >= 0 else self._open("text", Block("text", text=""))
        said += self._close()
        delta = MessageDelta(stop_reason=self._end[0], stop_sequence=self._end[1])
        said += _event(MessagesEvent("message_delta", delta=delta, usage=_usage(self._running)))
        return said + _event(MessagesEvent("message_stop"))

    def failed(self, error: Exception) -> bytes:
        """Anthropic's event for an error."""
        told = body_of(error).error
        return _event(MessagesEvent("error", error=MessagesError(told.type, told.message)))

    def _told(self, gained: AnswerDelta) -> bytes:
        events = b""
        if gained.reasoning:
            events += self._within("thinking", Block("thinking", thinking="", signature=""))
            events += self._delta(MessageDelta("thinking_delta", thinking=gained.reasoning))
        if gained.content and (gained.content.strip() or not gained.calls):
            events += self._within("text", Block("text", text=""))
            events += self._delta(MessageDelta("text_delta", text=gained.content))
        for call in gained.calls:
            events += self._call(call)
        return events

    def _call(self, call: CallDelta) -> bytes:
        events = b""
        if call.name is not None:
            block = Block("tool_use", id=new_response_id("toolu"), name=call.name, input={})
            events = self._close() + self._open("tool_use", block)
        if call.arguments:
            events += self._delta(MessageDelta("input_json_delta", partial_json=call.arguments))
        return events

    def _within(self, kind: str, block: Block) -> bytes:
        return b"" if self._kind == kind else self._close() + self._open(kind, block)

    def _open(self, kind: str, block: Block) -> bytes:
        self._kind = kind
        self._index += 1
        return _event(MessagesEvent("content_block_start", index=self._index, content_block=block))

    def _delta(self, delta: MessageDelta) -> bytes:
        return _event(MessagesEvent("content_block_delta", index=self._index, delta=delta))

    def _close(self) -> bytes:
        if not self._kind:
            return b""
        self._kind = ""
        return _event(MessagesEvent("content_block_stop", index=self._index))


def add_count_route(app: FastAPI, state: ServerState) -> None:
    """Register the count of a message's tokens on ``app``."""
    parser = BodyParser(MessagesRequest, unknown_fields=state.config.unknown_fields)

    async def count_tokens(request: Request) -> Response:
        """Count the tokens of a conversation, as its template writes it."""
        state.check_open()
        body, _, holder = await read_request(state, request, parser)
        asked = MessagesView().asked(body)
        client = state.directory.client(holder, request.headers, asked.user)
        await state.names.check(state.names.named(asked), client)
        tools, choice, _ = chat_tools(body)
        form = state.forms.form(read_tools(tools or (), choice), None)
        offered = [tool.for_template() for tool in form.offered.tools] if form.offered is not None else []
        messages = chat_messages(body)
        turns = Conversation(
            messages, is_continued=is_prefilled(messages), hints=effort_variables(effort_of(body), {}), tools=offered
        )
        text = await state.reader.render(turns)
        tokens = await state.reader.encode(text, "messages", add_special_tokens=False)
        return json_reply(TokenCount(len(tokens)))

    app.post(COUNT_PATH, **documented(MessagesRequest, TokenCount, (400, 401, 404, 413, 415, 503)))(count_tokens)


def _event(body: MessagesEvent) -> bytes:
    return event(body, body.type)


def _usage(running: RunningCall) -> MessagesUsage:
    usage = running.usage()
    cached = usage.prompt_tokens_details.cached_tokens
    return MessagesUsage(usage.prompt_tokens - cached, usage.completion_tokens, cached)


def _stop(reason: str, stop: str | int | None, num_calls: int) -> tuple[str, str | None]:
    if reason == "length":
        return "max_tokens", None
    if isinstance(stop, str):
        return "stop_sequence", stop
    return ("tool_use" if num_calls else "end_turn"), None


def _object(arguments: str) -> object:
    """The arguments as an object; what a call that was cut short holds as text."""
    try:
        return msgspec.json.decode(arguments.encode()) if arguments else {}
    except msgspec.DecodeError:
        return {"partial_json": json.loads(json.dumps(arguments))}
