"""POST /v1/completions as a view: texts or token ids in, batches, echo; one answer or a stream of chunks."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import UNSET

from evenflow.base.errors import InvalidRequest
from evenflow.serving.client.messages import Logprobs, RequestOutput
from evenflow.serving.server.access.asked import Asked
from evenflow.serving.server.api.generation import Call, RunningCall, new_response_id
from evenflow.serving.server.api.logprobs import TextOffsets, completion_logprobs, prompt_logprobs
from evenflow.serving.server.api.prompts import Prompt, Truncation, split_prompt
from evenflow.serving.server.api.responses import Completion, CompletionChoice
from evenflow.serving.server.api.schema import CompletionRequest, asked_of
from evenflow.serving.server.api.state import ServerState
from evenflow.serving.server.api.structured_fields import constraint_of
from evenflow.serving.server.api.view import Caller, Choice
from evenflow.serving.server.http.error_answers import body_of
from evenflow.serving.server.http.event_stream import DONE, event

DEFAULT_MAX_TOKENS = 16
"""OpenAI's, for this endpoint only."""


class CompletionView:
    """OpenAI's text completions, with vLLM's additions."""

    path = "/v1/completions"
    body_type = CompletionRequest
    answer_type = Completion
    event_type = Completion

    def __init__(self, state: ServerState) -> None:
        self._state = state

    def asked(self, body: CompletionRequest) -> Asked:
        """Who and what the body names."""
        return asked_of(body)

    def call(self, state: ServerState, body: CompletionRequest, caller: Caller) -> Call:
        """The call that ``body`` asks for. Raises InvalidRequest."""
        state.reader.check_size(body.prompt, state.config.max_choices)
        prompts = split_prompt(body.prompt)

        max_tokens = body.max_tokens if body.max_tokens is not None else DEFAULT_MAX_TOKENS
        truncation = Truncation(body.truncate_prompt_tokens, body.truncation_side or "left", max_tokens)

        async def read_prompts() -> list[Prompt]:
            return await state.reader_of(caller.adapter).from_completion(
                prompts, add_special_tokens=body.add_special_tokens is not False, truncation=truncation
            )

        if max_tokens == 0 and not body.echo:
            raise InvalidRequest("max_tokens is 0; allowed: 1 or more, or 0 together with echo", "max_tokens")
        return Call(
            response_id=new_response_id("cmpl"),
            client=caller.client,
            adapter=caller.adapter,
            model=caller.model,
            sampling=state.sampling_rules.sampling(
                body,
                max_tokens=max(1, max_tokens),
                logprobs=body.logprobs,
                scores_prompt=bool(body.echo),
                constraint=constraint_of(body),
            ),
            asked_max_tokens=max_tokens,
            n=body.n or 1,
            num_prompts=len(prompts),
            prompt_param="prompt",
            read_prompts=read_prompts,
            arrival_s=caller.arrival_s,
            cache_salt=body.cache_salt or "",
            slo_ttft_s=caller.slo_ttft_s,
            names_tokens_by_id=state.config.names_tokens_by_id
            if body.return_tokens_as_token_ids is None
            else body.return_tokens_as_token_ids,
            hides_output=max_tokens == 0,
        )

    def answer(self, running: RunningCall, body: CompletionRequest, choices: Sequence[Choice]) -> Completion:
        """All choices at once, in the order of the prompts."""
        call, reader = running.call, self._state.reader_of(running.call.adapter)
        whole = Completion(call.response_id, call.created_s, call.model, [], usage=running.usage())
        whole.service_tier = whole.system_fingerprint = None
        for index, said in enumerate(choices):
            prompt = running.prompts[index // call.n]
            entries: list[Logprobs | None] = list(said.logprobs)
            text = said.text
            if body.echo:
                text = reader.text_of(prompt) + text
                entries = [*(said.prompt_logprobs or ()), *entries]
            choice = CompletionChoice(index, text, None, said.finish_reason, said.stop_reason, None, None, None)
            if body.logprobs is not None:
                choice.logprobs = completion_logprobs(
                    entries, reader.first_token(prompt) if body.echo else None, as_ids=call.names_tokens_by_id
                )
            if body.prompt_logprobs is not None and said.prompt_logprobs is not None:
                choice.prompt_logprobs = prompt_logprobs(said.prompt_logprobs)
            if body.return_token_ids:
                choice.token_ids = said.token_ids
                choice.prompt_token_ids = prompt.token_ids
            whole.choices.append(choice)
        return whole

    def writer(self, running: RunningCall, body: CompletionRequest) -> CompletionWriter:
        """A writer for one stream."""
        return CompletionWriter(self._state, running, body)


class CompletionWriter:
    """One event per step and choice, the prompt before the first with ``echo``; then the usage, then [DONE]."""

    def __init__(self, state: ServerState, running: RunningCall, body: CompletionRequest) -> None:
        self._reader = state.reader_of(running.call.adapter)
        self._running = running
        self._body = body
        options = body.stream_options
        self._is_continuous = options is not None and bool(options.continuous_usage_stats)
        self._wants_usage = options is not None and bool(options.include_usage)
        self.wants_tokens = body.logprobs is not None or bool(body.return_token_ids)
        call = running.call
        self._chunk = Completion(call.response_id, call.created_s, call.model, [], usage=None if self._wants_usage else UNSET)
        self._offsets: dict[int, TextOffsets] = {}
        """By choice that has begun: where its next token begins."""

    def begin(self) -> bytes:
        """Nothing."""
        return b""

    def gained(self, index: int, output: RequestOutput, is_first: bool) -> bytes:
        """One chunk."""
        body, running, chunk = self._body, self._running, self._chunk
        offsets = self._offsets.setdefault(index, TextOffsets())
        choice = CompletionChoice(index, output.text, None, output.finish_reason)
        entries: list[Logprobs | None] = list(output.logprobs)
        prompt = running.prompts[index // running.call.n]
        if is_first and body.echo:
            choice.text = self._reader.text_of(prompt) + output.text
            entries = [*(output.prompt_logprobs or ()), *entries]
        if body.logprobs is not None:
            choice.logprobs = completion_logprobs(
                entries,
                self._reader.first_token(prompt) if body.echo else None,
                offsets,
                as_ids=running.call.names_tokens_by_id,
            )
        if output.stop_reason is not None:
            choice.stop_reason = output.stop_reason
        if body.return_token_ids:
            choice.token_ids = output.token_ids
            if is_first:
                choice.prompt_token_ids = prompt.token_ids
        if self._is_continuous:
            chunk.usage = running.usage()
        chunk.choices = [choice]
        return event(chunk)

    def end(self) -> bytes:
        """The usage, and the mark of the end."""
        if not self._wants_usage:
            return DONE
        self._chunk.choices, self._chunk.usage = [], self._running.usage()
        return event(self._chunk) + DONE

    def failed(self, error: Exception) -> bytes:
        """OpenAI's error as an event."""
        return event(body_of(error))
