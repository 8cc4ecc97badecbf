"""POST /v1/responses as a view: OpenAI's Responses API, stateless, over the same call as a chat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgspec

from evenflow.base.errors import InvalidRequest
from evenflow.serving.client.messages import RequestOutput
from evenflow.serving.server.access.asked import Asked
from evenflow.serving.server.api.chat import ChatView
from evenflow.serving.server.api.generation import Call, RunningCall, new_response_id
from evenflow.serving.server.api.responses_items import messages_of_items
from evenflow.serving.server.api.responses_schema import (
    InputDetails,
    OutputDetails,
    OutputItem,
    ResponseBody,
    ResponsesEvent,
    ResponsesRequest,
    ResponsesUsage,
    TextContent,
    response_format_of,
)
from evenflow.serving.server.api.schema import ChatCompletionRequest
from evenflow.serving.server.api.state import ServerState
from evenflow.serving.server.api.view import Caller, Choice
from evenflow.serving.server.http.error_answers import body_of
from evenflow.serving.server.http.event_stream import event
from evenflow.serving.text.answer_reader import AnswerDelta, read_whole
from evenflow.serving.text.tools.call_scanner import CallDelta


class ResponsesView:
    """OpenAI's responses. Nothing is stored."""

    path = "/v1/responses"
    body_type = ResponsesRequest
    answer_type = ResponseBody
    event_type = ResponsesEvent

    def asked(self, body: ResponsesRequest) -> Asked:
        """Who and what the body names. Raises InvalidRequest for what would need a memory."""
        if body.store:
            raise InvalidRequest("store is true, and this server keeps no responses; allowed: false", "store")
        if body.previous_response_id is not None:
            raise InvalidRequest(
                "previous_response_id is given, and this server keeps no responses; send the conversation as input",
                "previous_response_id",
            )
        if body.background:
            raise InvalidRequest("background is true; allowed: false", "background")
        if body.truncation not in (None, "disabled"):
            raise InvalidRequest(f"truncation is {body.truncation[:40]!r}; allowed: disabled", "truncation")
        named = ("safety_identifier", body.safety_identifier) if body.safety_identifier else ("user", body.user or "")
        return Asked(body.model, None, named, bool(body.stream), body.slo_ttft)

    def call(self, state: ServerState, body: ResponsesRequest, caller: Caller) -> Call:
        """The call that ``body`` asks for. Raises InvalidRequest."""
        try:
            wanted = response_format_of(body.text.format if body.text is not None else None)
        except msgspec.ValidationError as error:
            raise InvalidRequest(f"text.format: {error}", "text.format") from None
        chat = ChatCompletionRequest(
            model=body.model,
            messages=messages_of_items(body.input, body.instructions),
            max_completion_tokens=body.max_output_tokens,
            temperature=body.temperature,
            top_p=body.top_p,
            tools=body.tools,
            tool_choice=body.tool_choice,
            parallel_tool_calls=body.parallel_tool_calls,
            response_format=wanted,
            cache_salt=body.cache_salt,
            chat_template_kwargs=body.chat_template_kwargs,
            reasoning_effort=body.reasoning.effort if body.reasoning is not None else None,
        )
        call = ChatView().call(state, chat, caller)
        return replace(call, response_id=new_response_id("resp"), prompt_param="input")

    def answer(self, running: RunningCall, body: ResponsesRequest, choices: Sequence[Choice]) -> ResponseBody:
        """The whole response."""
        whole, (choice,) = _started(running, body), choices
        said = read_whole(running.call.form.reader(), choice.text)
        running.called_tools(0, len(said.calls))
        if said.reasoning:
            whole.output.append(_item("reasoning", said.reasoning))
        if said.content or not said.calls:
            whole.output.append(_item("message", said.content))
        for one in said.calls:
            item = _item("function_call")
            item.name, item.arguments = one.name, one.arguments
            whole.output.append(item)
        _end(whole, running, choice.finish_reason)
        return whole

    def writer(self, running: RunningCall, body: ResponsesRequest) -> ResponsesWriter:
        """A writer for one stream."""
        return ResponsesWriter(running, body)


class ResponsesWriter:
    """OpenAI's events, in their order, numbered."""

    wants_tokens = False

    def __init__(self, running: RunningCall, body: ResponsesRequest) -> None:
        self._running = running
        self._whole = _started(running, body)
        self._reader = running.call.form.reader()
        self._number = 0
        self._item: OutputItem | None = None
        """What is being written."""
        self._pieces: list[str] = []
        self._reason = "stop"

    def begin(self) -> bytes:
        """The response exists."""
        return self._event("response.created", response=self._whole) + self._event("response.in_progress", response=self._whole)

    def gained(self, index: int, output: RequestOutput, is_first: bool) -> bytes:
        """The deltas of what was said."""
        gained = self._reader.feed(output.text)
        if output.finish_reason is not None:
            self._reason = output.finish_reason
            gained.add(self._reader.finish())
            self._running.called_tools(0, self._reader.num_calls)
        return self._told(gained)

    def end(self) -> bytes:
        """The last item's end and the whole response."""
        said = b"" if self._whole.output or self._item is not None else self._open("message")
        said += self._close()
        _end(self._whole, self._running, self._reason)
        return said + self._event(f"response.{self._whole.status}", response=self._whole)

    def failed(self, error: Exception) -> bytes:
        """OpenAI's event for an error."""
        told = body_of(error).error
        return self._event("error", message=told.message, code=told.code, param=told.param)

    def _told(self, gained: AnswerDelta) -> bytes:
        events = b""
        if gained.reasoning:
            events += self._piece("reasoning", gained.reasoning)
        if gained.content and (gained.content.strip() or not gained.calls):
            events += self._piece("message", gained.content)
        for call in gained.calls:
            events += self._call(call)
        return events

    def _piece(self, kind: str, text: str) -> bytes:
        events = b""
        if self._item is None or self._item.type != kind:
            events = self._close() + self._open(kind)
        assert self._item is not None
        self._pieces.append(text)
        name = "response.output_text.delta" if kind == "message" else "response.reasoning_text.delta"
        fields: dict[str, Any] = {"logprobs": []} if kind == "message" else {}
        return events + self._event(
            name, item_id=self._item.id, output_index=len(self._whole.output), content_index=0, delta=text, **fields
        )

    def _call(self, call: CallDelta) -> bytes:
        events = b""
        if call.name is not None:
            events = self._close() + self._open("function_call", call.name)
        assert self._item is not None
        if not call.arguments:
            return events
        self._pieces.append(call.arguments)
        return events + self._event(
            "response.function_call_arguments.delta",
            item_id=self._item.id,
            output_index=len(self._whole.output),
            delta=call.arguments,
        )

    def _open(self, kind: str, name: str = "") -> bytes:
        self._item, self._pieces = _item(kind, ""), []
        item = self._item
        item.status = "in_progress"
        index = len(self._whole.output)
        if kind == "function_call":
            item.name = name
            return self._event("response.output_item.added", output_index=index, item=item)
        content, item.content = item.content, []
        added = self._event("response.output_item.added", output_index=index, item=item)
        item.content = content
        if kind == "reasoning":
            return added
        assert isinstance(content, list)
        return added + self._event(
            "response.content_part.added", item_id=item.id, output_index=index, content_index=0, part=content[0]
        )

    def _close(self) -> bytes:
        item, index = self._item, len(self._whole.output)
        if item is None:
            return b""
        text = "".join(self._pieces)
        item.status = "completed"
        at: dict[str, Any] = {"item_id": item.id, "output_index": index}
        if item.type == "function_call":
            item.arguments = text
            assert isinstance(item.name, str)
            events = self._event("response.function_call_arguments.done", name=item.name, arguments=text, **at)
        else:
            assert isinstance(item.content, list)
            item.content[0].text = text
            if item.type == "message":
                events = self._event("response.output_text.done", content_index=0, text=text, logprobs=[], **at)
                events += self._event("response.content_part.done", content_index=0, part=item.content[0], **at)
            else:
                events = self._event("response.reasoning_text.done", content_index=0, text=text, **at)
        events += self._event("response.output_item.done", output_index=index, item=item)
        self._whole.output.append(item)
        self._item = None
        return events

    def _event(self, kind: str, **fields: Any) -> bytes:
        number, self._number = self._number, self._number + 1
        return event(ResponsesEvent(kind, number, **fields), kind)


def _started(running: RunningCall, body: ResponsesRequest) -> ResponseBody:
    call = running.call
    return ResponseBody(
        call.response_id,
        call.created_s,
        call.model,
        output=[],
        instructions=body.instructions,
        max_output_tokens=body.max_output_tokens,
        metadata=body.metadata,
        parallel_tool_calls=body.parallel_tool_calls is not False,
        temperature=body.temperature,
        top_p=body.top_p,
        text={"format": (body.text.format if body.text is not None else None) or {"type": "text"}},
        tool_choice=body.tool_choice or "auto",
        tools=body.tools or [],
        user=body.user,
    )


def _item(kind: Any, text: str = "") -> OutputItem:
    if kind == "function_call":
        return OutputItem(kind, new_response_id("fc"), call_id=new_response_id("call"), name="", arguments="")
    if kind == "reasoning":
        return OutputItem(kind, new_response_id("rs"), content=[TextContent(text, "reasoning_text")], summary=[])
    content = TextContent(text, annotations=[], logprobs=[])
    return OutputItem(kind, new_response_id("msg"), role="assistant", content=[content])


def _end(whole: ResponseBody, running: RunningCall, reason: str) -> None:
    usage = running.usage()
    whole.status = "incomplete" if reason == "length" else "completed"
    if reason == "length":
        whole.incomplete_details = {"reason": "max_output_tokens"}
        whole.output[-1].status = "incomplete"
    whole.usage = ResponsesUsage(
        usage.prompt_tokens,
        usage.completion_tokens,
        usage.total_tokens,
        InputDetails(usage.prompt_tokens_details.cached_tokens),
        OutputDetails(),
    )
