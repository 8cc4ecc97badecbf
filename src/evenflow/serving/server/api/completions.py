"""POST /v1/completions: texts or token ids in, batches, echo; one answer or a stream of chunks."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator

from msgspec import UNSET

from evenflow.access.identity import Client
from evenflow.serving.client.messages import Logprobs, RequestOutput
from evenflow.serving.server.api.generation import Call, RunningCall, new_response_id
from evenflow.serving.server.api.logprobs import completion_logprobs, prompt_logprobs
from evenflow.serving.server.api.prompts import Prompt, split_prompt
from evenflow.serving.server.api.responses import Completion, CompletionChoice
from evenflow.serving.server.api.schema import CompletionRequest, sampling_of
from evenflow.serving.server.api.state import ServerState
from evenflow.serving.server.http.event_stream import DONE, event

DEFAULT_MAX_TOKENS = 16
"""OpenAI's, for this endpoint only."""


def completion_call(state: ServerState, body: CompletionRequest, client: Client, adapter: str | None, arrival_s: float) -> Call:
    """The call that ``body`` asks for. Raises InvalidRequest."""

    async def read_prompts() -> list[Prompt]:
        return await state.reader.from_completion(body.prompt, add_special_tokens=body.add_special_tokens is not False)

    max_tokens = body.max_tokens if body.max_tokens is not None else DEFAULT_MAX_TOKENS
    return Call(
        response_id=new_response_id("cmpl"),
        client=client,
        adapter=adapter,
        model=body.model,
        sampling=sampling_of(
            body,
            vocab_size=state.engine.info.vocab_size,
            max_tokens=max_tokens,
            logprobs=body.logprobs,
            echo=bool(body.echo),
            defaults=state.config.sampling_defaults,
        ),
        n=body.n or 1,
        num_prompts=len(split_prompt(body.prompt)),
        prompt_param="prompt",
        read_prompts=read_prompts,
        arrival_s=arrival_s,
        cache_salt=body.cache_salt or "",
    )


async def completion_answer(state: ServerState, running: RunningCall, body: CompletionRequest) -> Completion:
    """All choices at once, in the order of the prompts."""
    call = running.call
    gathered: list[list[RequestOutput]] = [[] for _ in range(call.num_completions)]
    async with contextlib.aclosing(running.outputs()) as outputs:
        async for index, output in outputs:
            gathered[index].append(output)
    answer = Completion(call.response_id, call.created_s, body.model, [], usage=running.usage())
    for index, parts in enumerate(gathered):
        prompt = running.prompts[index // call.n]
        entries: list[Logprobs | None] = [entry for part in parts for entry in part.logprobs]
        text = "".join(part.text for part in parts)
        of_prompt = parts[0].prompt_logprobs
        if body.echo:
            text = state.reader.text_of(prompt) + text
            entries = [*(of_prompt or ()), *entries]
        choice = CompletionChoice(index, text, None, parts[-1].finish_reason, parts[-1].stop_reason)
        if body.logprobs is not None:
            choice.logprobs = completion_logprobs(entries, state.reader.first_token(prompt) if body.echo else "")
        if body.prompt_logprobs is not None and of_prompt is not None:
            choice.prompt_logprobs = prompt_logprobs(of_prompt)
        if body.return_token_ids:
            choice.token_ids = [token for part in parts for token in part.token_ids]
            choice.prompt_token_ids = prompt.token_ids
        answer.choices.append(choice)
    return answer


async def completion_events(state: ServerState, running: RunningCall, body: CompletionRequest) -> AsyncGenerator[bytes, None]:
    """One event per step and choice, the prompt before the first with ``echo``; then the usage, then [DONE]."""
    call = running.call
    wants_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
    wants_tokens = body.logprobs is not None or bool(body.return_token_ids)
    chunk = Completion(call.response_id, call.created_s, body.model, [], usage=None if wants_usage else UNSET)
    offsets: dict[int, int] = {}
    """By choice that has begun: characters of its tokens so far."""
    async with contextlib.aclosing(running.outputs()) as outputs:
        async for index, output in outputs:
            is_first = index not in offsets
            if not (is_first or output.text or output.finish_reason or (wants_tokens and output.token_ids)):
                continue  # text held back until it cannot become a stop string
            offset = offsets.setdefault(index, 0)
            choice = CompletionChoice(index, output.text, None, output.finish_reason)
            entries: list[Logprobs | None] = list(output.logprobs)
            prompt = running.prompts[index // call.n]
            if is_first and body.echo:
                choice.text = state.reader.text_of(prompt) + output.text
                entries = [*(output.prompt_logprobs or ()), *entries]
            if body.logprobs is not None:
                choice.logprobs = completion_logprobs(entries, state.reader.first_token(prompt) if body.echo else "", offset)
                offsets[index] = offset + sum(len(token) for token in choice.logprobs.tokens)
            if output.stop_reason is not None:
                choice.stop_reason = output.stop_reason
            if body.return_token_ids:
                choice.token_ids = output.token_ids
                if is_first:
                    choice.prompt_token_ids = prompt.token_ids
            chunk.choices = [choice]
            yield event(chunk)
    if wants_usage:
        chunk.choices, chunk.usage = [], running.usage()
        yield event(chunk)
    yield DONE
