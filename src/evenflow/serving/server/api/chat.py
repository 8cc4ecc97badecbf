"""POST /v1/chat/completions as a view: messages in, an assistant's message out, whole or in chunks."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import UNSET

from evenflow.base.errors import InvalidRequest
from evenflow.serving.client.messages import RequestOutput
from evenflow.serving.server.access.asked import Asked
from evenflow.serving.server.api.answer_form import AnswerForm
from evenflow.serving.server.api.conversation import effort_variables, text_of_message
from evenflow.serving.server.api.generation import Call, RunningCall, new_response_id
from evenflow.serving.server.api.logprobs import chat_logprobs, prompt_logprobs
from evenflow.serving.server.api.prompts import Conversation, Prompt, Truncation
from evenflow.serving.server.api.responses import (
    AnswerMessage,
    CalledFunction,
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    Delta,
    ToolCall,
)
from evenflow.serving.server.api.schema import ChatCompletionRequest, asked_of
from evenflow.serving.server.api.state import ServerState
from evenflow.serving.server.api.structured_fields import constraint_of
from evenflow.serving.server.api.view import Caller, Choice
from evenflow.serving.server.http.error_answers import body_of
from evenflow.serving.server.http.event_stream import DONE, event
from evenflow.serving.text.answer_reader import read_whole
from evenflow.serving.text.tools.call_scanner import CallDelta
from evenflow.serving.text.tools.offered import read_tools


class ChatView:
    """OpenAI's chat completions, with vLLM's additions."""

    path = "/v1/chat/completions"
    body_type = ChatCompletionRequest
    answer_type = ChatCompletion
    event_type = ChatCompletionChunk

    def asked(self, body: ChatCompletionRequest) -> Asked:
        """Who and what the body names."""
        return asked_of(body)

    def call(self, state: ServerState, body: ChatCompletionRequest, caller: Caller) -> Call:
        """The call that ``body`` asks for. Raises InvalidRequest."""
        wants_logprobs = bool(body.logprobs)
        if body.top_logprobs is not None and not wants_logprobs:
            raise InvalidRequest("top_logprobs is given without logprobs; allowed with logprobs true", "top_logprobs")
        max_tokens = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
        offered = read_tools(body.tools or (), body.tool_choice, is_parallel=body.parallel_tool_calls is not False)
        form = state.forms.form(offered, constraint_of(body))
        turns = _conversation(body, form)
        truncation = Truncation(body.truncate_prompt_tokens, body.truncation_side or "left", max_tokens)

        async def read_prompts() -> list[Prompt]:
            prompt = await state.reader_of(caller.adapter).from_messages(
                turns, add_special_tokens=bool(body.add_special_tokens), truncation=truncation
            )
            return [prompt]

        return Call(
            response_id=new_response_id("chatcmpl"),
            client=caller.client,
            adapter=caller.adapter,
            model=caller.model,
            sampling=state.sampling_rules.sampling(
                body,
                max_tokens=max_tokens,
                logprobs=(body.top_logprobs or 0) if wants_logprobs else None,
                logprobs_param="top_logprobs",
                constraint=form.constraint,
                keeps_special_tokens=form.keeps_special_tokens,
            ),
            form=form,
            asked_max_tokens=max_tokens,
            n=body.n or 1,
            num_prompts=1,
            prompt_param="messages",
            read_prompts=read_prompts,
            arrival_s=caller.arrival_s,
            cache_salt=body.cache_salt or "",
            slo_ttft_s=caller.slo_ttft_s,
            logprobs_param="top_logprobs",
            names_tokens_by_id=state.config.names_tokens_by_id
            if body.return_tokens_as_token_ids is None
            else body.return_tokens_as_token_ids,
        )

    def answer(self, running: RunningCall, body: ChatCompletionRequest, choices: Sequence[Choice]) -> ChatCompletion:
        """All choices at once."""
        call = running.call
        echoed = _echoed(body)
        whole = ChatCompletion(call.response_id, call.created_s, call.model, [], running.usage())
        for index, choice in enumerate(choices):
            said = read_whole(call.form.reader(), choice.text)
            content = echoed + said.content
            message = AnswerMessage(content if content or not said.calls else None)
            message.reasoning_content = said.reasoning or None
            running.called_tools(index, len(said.calls))
            message.tool_calls = [
                ToolCall(CalledFunction(one.name, one.arguments), id=new_response_id("call"), type="function")
                for one in said.calls
            ]
            whole.choices.append(
                ChatChoice(
                    index,
                    message,
                    finish_reason_of(choice.finish_reason, len(said.calls)),
                    chat_logprobs(choice.logprobs, call.names_tokens_by_id) if body.logprobs else None,
                    choice.stop_reason,
                    choice.token_ids if body.return_token_ids else None,
                )
            )
        if body.prompt_logprobs is not None and choices[0].prompt_logprobs is not None:
            whole.prompt_logprobs = prompt_logprobs(choices[0].prompt_logprobs)
        if body.return_token_ids:
            whole.prompt_token_ids = running.prompts[0].token_ids
        return whole

    def writer(self, running: RunningCall, body: ChatCompletionRequest) -> ChatWriter:
        """A writer for one stream."""
        return ChatWriter(running, body)


def _conversation(body: ChatCompletionRequest, form: AnswerForm) -> Conversation:
    return Conversation(
        body.messages,
        body.add_generation_prompt,
        bool(body.continue_final_message),
        body.chat_template_kwargs,
        effort_variables(body.reasoning_effort, body.chat_template_kwargs or {}),
        [tool.for_template() for tool in form.offered.tools] if form.offered is not None else [],
        body.documents or (),
    )


def _echoed(body: ChatCompletionRequest) -> str:
    """Text of the last message, if the answer begins with it: it is the assistant's, and ``echo`` asks for it."""
    last = body.messages[-1]
    return text_of_message(last) if body.echo and last.role == "assistant" else ""


def finish_reason_of(reason: str, num_calls: int) -> str:
    """The reason in OpenAI's words: an answer that ended by itself with a call ended for the call."""
    return "tool_calls" if num_calls and reason == "stop" else reason


def _call_delta(gained: CallDelta) -> ToolCall:
    call = ToolCall(CalledFunction(arguments=gained.arguments), index=gained.index)
    if gained.name is not None:
        call.function.name, call.id, call.type = gained.name, new_response_id("call"), "function"
    return call


class ChatWriter:
    """One event per step and choice, then the usage if it was asked for, then [DONE]."""

    def __init__(self, running: RunningCall, body: ChatCompletionRequest) -> None:
        self._running = running
        self._body = body
        options = body.stream_options
        self._is_continuous = options is not None and bool(options.continuous_usage_stats)
        self._wants_usage = options is not None and bool(options.include_usage)
        self.wants_tokens = bool(body.logprobs or body.return_token_ids)
        call = running.call
        usage = None if self._wants_usage else UNSET
        self._chunk = ChatCompletionChunk(call.response_id, call.created_s, call.model, [], usage=usage)
        self._readers = [call.form.reader() for _ in range(call.num_completions)]

    def begin(self) -> bytes:
        """Nothing: the first chunk carries the role."""
        return b""

    def gained(self, index: int, output: RequestOutput, is_first: bool) -> bytes:
        """One chunk."""
        body, chunk = self._body, self._chunk
        reader = self._readers[index]
        gained = reader.feed(output.text)
        if output.finish_reason is not None:
            gained.add(reader.finish())
            self._running.called_tools(index, reader.num_calls)
        is_told = is_first or output.finish_reason or self.wants_tokens or self._is_continuous
        if gained.is_empty and not is_told:
            return b""
        content = _echoed(body) + gained.content if is_first else gained.content
        delta = Delta(content=content) if content or is_first else Delta()
        if gained.reasoning:
            delta.reasoning_content = gained.reasoning
        if gained.calls:
            delta.tool_calls = [_call_delta(one) for one in gained.calls]
        if is_first:
            delta.role = "assistant"
        finish_reason = None if output.finish_reason is None else finish_reason_of(output.finish_reason, reader.num_calls)
        choice = ChatChunkChoice(index, delta, finish_reason=finish_reason)
        if body.logprobs:
            choice.logprobs = chat_logprobs(output.logprobs, self._running.call.names_tokens_by_id)
        if body.return_token_ids:
            choice.token_ids = output.token_ids
        chunk.prompt_token_ids = self._running.prompts[0].token_ids if body.return_token_ids and is_first else UNSET
        if output.stop_reason is not None:
            choice.stop_reason = output.stop_reason
        if self._is_continuous:
            chunk.usage = self._running.usage()
        chunk.choices = [choice]
        return event(chunk)

    def end(self) -> bytes:
        """The usage, and the mark of the end."""
        if not self._wants_usage:
            return DONE
        chunk = self._chunk
        chunk.choices, chunk.usage, chunk.prompt_token_ids = [], self._running.usage(), UNSET
        return event(chunk) + DONE

    def failed(self, error: Exception) -> bytes:
        """OpenAI's error as an event."""
        return event(body_of(error))
