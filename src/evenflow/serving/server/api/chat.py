"""POST /v1/chat/completions: from a body to a call, and from its outputs to one answer or a stream of chunks."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator

from msgspec import UNSET

from evenflow.access.identity import Client
from evenflow.base.errors import InvalidRequest
from evenflow.serving.client.messages import Logprobs, RequestOutput
from evenflow.serving.server.api.generation import Call, RunningCall, new_response_id
from evenflow.serving.server.api.logprobs import chat_logprobs, prompt_logprobs
from evenflow.serving.server.api.prompts import Prompt
from evenflow.serving.server.api.responses import (
    AnswerMessage,
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    Delta,
)
from evenflow.serving.server.api.schema import ChatCompletionRequest, sampling_of
from evenflow.serving.server.api.state import ServerState
from evenflow.serving.server.http.event_stream import DONE, event


def chat_call(state: ServerState, body: ChatCompletionRequest, client: Client, adapter: str | None, arrival_s: float) -> Call:
    """The call that ``body`` asks for. Raises InvalidRequest."""
    if body.top_logprobs is not None and not body.logprobs:
        raise InvalidRequest("top_logprobs is given without logprobs; allowed with logprobs true", "top_logprobs")
    max_tokens = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    logprobs = (body.top_logprobs or 0) if body.logprobs else None

    async def read_prompts() -> list[Prompt]:
        generation_prompt = body.add_generation_prompt is not False
        prompt = await state.reader.from_messages(
            body.messages, add_generation_prompt=generation_prompt, variables=body.chat_template_kwargs
        )
        return [prompt]

    return Call(
        response_id=new_response_id("chatcmpl"),
        client=client,
        adapter=adapter,
        model=body.model,
        sampling=sampling_of(
            body,
            vocab_size=state.engine.info.vocab_size,
            max_tokens=max_tokens,
            logprobs=logprobs,
            defaults=state.config.sampling_defaults,
        ),
        n=body.n or 1,
        num_prompts=1,
        prompt_param="messages",
        read_prompts=read_prompts,
        arrival_s=arrival_s,
        cache_salt=body.cache_salt or "",
    )


async def chat_answer(running: RunningCall, body: ChatCompletionRequest) -> ChatCompletion:
    """All choices at once."""
    call = running.call
    gathered: list[list[RequestOutput]] = [[] for _ in range(call.n)]
    async with contextlib.aclosing(running.outputs()) as outputs:
        async for index, output in outputs:
            gathered[index].append(output)
    answer = ChatCompletion(call.response_id, call.created_s, body.model, [], running.usage())
    for index, parts in enumerate(gathered):
        logprobs: list[Logprobs] = [entry for part in parts for entry in part.logprobs]
        answer.choices.append(
            ChatChoice(
                index,
                AnswerMessage("".join(part.text for part in parts)),
                parts[-1].finish_reason or "stop",
                chat_logprobs(logprobs) if body.logprobs else None,
                parts[-1].stop_reason,
                [token for part in parts for token in part.token_ids] if body.return_token_ids else UNSET,
            )
        )
    of_prompt = gathered[0][0].prompt_logprobs
    if body.prompt_logprobs is not None and of_prompt is not None:
        answer.prompt_logprobs = prompt_logprobs(of_prompt)
    if body.return_token_ids:
        answer.prompt_token_ids = running.prompts[0].token_ids
    return answer


async def chat_events(running: RunningCall, body: ChatCompletionRequest) -> AsyncGenerator[bytes, None]:
    """One event per step and choice, then the usage if it was asked for, then [DONE]."""
    call = running.call
    wants_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
    wants_tokens = bool(body.logprobs or body.return_token_ids)
    chunk = ChatCompletionChunk(call.response_id, call.created_s, body.model, [], usage=None if wants_usage else UNSET)
    begun: set[int] = set()
    async with contextlib.aclosing(running.outputs()) as outputs:
        async for index, output in outputs:
            is_first = index not in begun
            if not (is_first or output.text or output.finish_reason or (wants_tokens and output.token_ids)):
                continue  # text held back until it cannot become a stop string
            begun.add(index)
            delta = Delta(content=output.text) if output.text or is_first else Delta()
            if is_first:
                delta.role = "assistant"
            choice = ChatChunkChoice(index, delta, finish_reason=output.finish_reason)
            if body.logprobs:
                choice.logprobs = chat_logprobs(output.logprobs)
            if body.return_token_ids:
                choice.token_ids = output.token_ids
            if output.stop_reason is not None:
                choice.stop_reason = output.stop_reason
            chunk.choices = [choice]
            yield event(chunk)
    if wants_usage:
        chunk.choices, chunk.usage = [], running.usage()
        yield event(chunk)
    yield DONE
