"""One HTTP request as the engine requests behind it: let in, tokenised, submitted, merged, accounted, aborted.

Everything that must be given back (the place in the queue, the engine requests) lives inside ``outputs``,
so that closing that iterator at any moment, or never starting it, leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace

from evenflow.access.identity import Client
from evenflow.accounts.account_row import Sums
from evenflow.base.errors import AdapterNotFound, InvalidRequest, Rejected, ServerFull
from evenflow.serving.client.messages import RequestOutput, Submit, SubmitAll, Usage
from evenflow.serving.core.sampling import SamplingParams
from evenflow.serving.server.access.combinations import account_name
from evenflow.serving.server.access.limits import Ticket
from evenflow.serving.server.api.answer_form import PLAIN, AnswerForm
from evenflow.serving.server.api.cut_short import CutShort
from evenflow.serving.server.api.prompts import Prompt
from evenflow.serving.server.api.responses import PromptTokensDetails, Timings, UsageBody
from evenflow.serving.server.api.schema import MAX_INT64
from evenflow.serving.server.api.state import ServerState
from evenflow.serving.server.http.error_answers import error_of
from evenflow.serving.server.observing.request_record import CallProgress, RequestRecord

TOOL_CALLS = "tool_calls"
"""OpenAI's finish reason of an answer that calls tools."""
MOST_PROMPT_SCORES = 1 << 18
MOST_ANSWER_SCORES = 1 << 24
"""Log-probabilities of one prompt's tokens: enough for 12,000 tokens with the 20 likeliest each."""


@dataclass(frozen=True, slots=True)
class Call:
    """What all completions of one HTTP request share."""

    response_id: str
    client: Client
    adapter: str | None
    model: str
    """The name that was asked for."""
    sampling: SamplingParams
    n: int
    """Completions per prompt."""
    num_prompts: int
    prompt_param: str
    """Field that holds the prompt, for error messages."""
    read_prompts: Callable[[], Awaitable[list[Prompt]]]
    """Tokenises; called once the request has been let in."""
    arrival_s: float
    """time.monotonic()."""
    cache_salt: str = ""
    slo_ttft_s: float | None = None
    """Within which the first token is wanted."""
    asked_max_tokens: int | None = None
    """What the caller asked for; the model's own default, if it applies instead, is cut to the room that is left."""
    hides_output: bool = False
    """True: the one token that has to be computed is not told, because none was asked for."""
    logprobs_param: str = "logprobs"
    """Field that says how many log-probabilities of a token are told."""
    names_tokens_by_id: bool = False
    """Log-probabilities name tokens by their ids."""
    form: AnswerForm = PLAIN
    """What its answers are made of."""
    created_s: int = field(default_factory=lambda: int(time.time()))

    @property
    def num_completions(self) -> int:
        """Engine requests."""
        return self.num_prompts * self.n


class RunningCall:
    """The completions of one call. Iterate ``outputs`` once; then ``usage`` is complete."""

    def __init__(self, state: ServerState, call: Call, record: RequestRecord) -> None:
        if call.num_completions > state.config.max_choices:
            raise InvalidRequest(
                f"{call.num_prompts} prompts with n={call.n} are {call.num_completions} completions; "
                f"allowed in one request: {state.config.max_choices}",
                call.prompt_param,
            )
        self.call = call
        self.prompts: list[Prompt] = []
        self._state = state
        self._record = record
        self._progress = CallProgress(call.response_id, call.sampling, call.num_completions, call.arrival_s)
        self._task: asyncio.Task[object] | None = None
        self._is_cut_off = False
        record.call = self._progress

    async def outputs(self) -> AsyncGenerator[tuple[int, RequestOutput], None]:
        """(completion index, what it gained). Completion i belongs to prompt i // n.

        Raises ClientOverLimit, ServerFull, InvalidRequest and whatever ends a completion in the engine.
        """
        state, call = self._state, self.call
        self._task = asyncio.current_task()
        state.generations.add(self)
        outcome, num_submitted = "abort", 0
        try:
            state.budgets.admit(call.client)
            with state.limits.admit(call.client, call.num_completions) as ticket:
                self.prompts = await self._read_prompts()
                for prompt in self.prompts:
                    state.reader.check_fits(len(prompt.token_ids), call.asked_max_tokens, call.prompt_param)
                    _check_scores(len(prompt.token_ids), state.reader.room_behind(prompt), call)
                ticket.charge_prompt(sum(len(prompt.token_ids) for prompt in self.prompts))
                num_submitted = call.num_completions
                self._progress.submitted_s = state.clock()
                merged = _merge(self._start())
                try:
                    async for index, output in merged:
                        self._account(index, output, ticket)
                        yield index, _without_token(output) if call.hides_output else output
                finally:
                    await merged.aclose()
        except asyncio.CancelledError:
            if not self._is_cut_off:
                raise
            self._record.error = ServerFull("the server is shutting down, and this request did not finish in time")
            raise self._record.error from None
        except Rejected as error:
            self._record.error = error
            state.metrics.rejected(call.client.name, error)
            raise
        except Exception as error:
            outcome, self._record.error = "error", error
            if isinstance(error, AdapterNotFound) and call.adapter is not None:
                state.names.forget(call.adapter)
            raise
        finally:
            state.generations.discard(self)
            if num_cut_short := num_submitted - len(self._progress.usages) if num_submitted else 0:
                self._record.outcome = outcome
                state.metrics.cut_short(outcome, num_cut_short)
                self._note_cut_short(outcome, num_cut_short)

    def cut_off(self) -> None:
        """The server ends: raise ServerFull from ``outputs``, wherever it waits."""
        self._is_cut_off = True
        if self._task is not None:
            self._task.cancel()

    def called_tools(self, index: int, num_calls: int) -> None:
        """A view has read so many calls of tools in a completion that has ended: whoever tells of the request says so."""
        if num_calls and self._progress.outcomes.get(index) == "stop":
            self._progress.outcomes[index] = TOOL_CALLS

    def usage(self) -> UsageBody:
        """Tokens and time so far."""
        usages = self._progress.usages.values()
        prompt_tokens = self._progress.num_prompt_tokens
        completion_tokens = 0 if self.call.hides_output else self._progress.completion_tokens
        cached = sum(usage.cached_tokens for index, usage in self._progress.usages.items() if index % self.call.n == 0)
        return UsageBody(
            prompt_tokens,
            completion_tokens,
            prompt_tokens + completion_tokens,
            PromptTokensDetails(cached),
            Timings(*(max((getattr(u, name) for u in usages), default=0.0) for name in ("queue_s", "prefill_s", "decode_s"))),
        )

    async def _read_prompts(self) -> list[Prompt]:
        began_s = self._state.clock()
        prompts = await self.call.read_prompts()
        self._record.tokenized_s = began_s, self._state.clock()
        self._progress.num_prompt_tokens = sum(len(prompt.token_ids) for prompt in prompts)
        if self._state.config.records_texts:
            decode = self._state.tokenizer.decode
            self._progress.prompts += [
                prompt.text if prompt.text is not None else decode(prompt.token_ids, skip_special_tokens=False)
                for prompt in prompts
            ]
        return prompts

    def _start(self) -> list[AsyncIterator[RequestOutput]]:
        """Outputs of every completion, in their order; those of one prompt are submitted together."""
        call, engine = self.call, self._state.engine
        own = self._state.own_text(call.adapter)
        sampling = call.sampling
        if own is not None and own.end_token_ids:
            sampling = replace(sampling, stop_token_ids=(*sampling.stop_token_ids, *own.end_token_ids))
        streams: list[AsyncIterator[RequestOutput]] = []
        for prompt in self.prompts:
            first, *others = (f"{call.response_id}-{len(streams) + i}" for i in range(call.n))
            submit = Submit(
                request_id=first,
                client_id=call.client.name,
                prompt_token_ids=prompt.token_ids,
                sampling=sampling,
                adapter=call.adapter,
                arrival_s=call.arrival_s,
                cache_salt=self._state.cache_namespace(call.client, call.cache_salt),
                slo_ttft_s=call.slo_ttft_s,
                added_tokens=[] if own is None else list(own.added_tokens),
                traceparent="" if self._record.trace is None else self._record.trace.traceparent,
            )
            seed = call.sampling.seed
            if others:
                seeds = [None if seed is None else (seed + i) & MAX_INT64 for i in range(1, call.n)]
                streams += engine.submit_all(SubmitAll(submit, list(zip(others, seeds, strict=True))))
            else:
                streams.append(engine.submit(submit))
        return streams

    def _account(self, index: int, output: RequestOutput, ticket: Ticket) -> None:
        if output.error_type is not None:
            raise error_of(output)
        metrics, progress, now_s = self._state.metrics, self._progress, self._state.clock()
        if output.token_ids:
            progress.num_output_tokens[index] = progress.num_output_tokens.get(index, 0) + len(output.token_ids)
            ticket.charge_output(len(output.token_ids))
            if index in progress.last_output_s:
                metrics.token_gap((now_s - progress.last_output_s[index]) / len(output.token_ids))
            else:
                ticket.started()
                progress.first_output_s[index] = now_s
                if output.usage is not None:
                    progress.usages_so_far[index] = output.usage
                metrics.first_token(self.call.client.name, self.call.adapter, now_s - self.call.arrival_s)
            progress.last_output_s[index] = now_s
        if self._state.config.records_texts and not self.call.hides_output:
            progress.texts.setdefault(index, []).append(output.text)
        if output.finish_reason is not None:
            if index not in progress.last_output_s:
                ticket.started()
                progress.last_output_s[index] = now_s
            usage = output.usage if output.usage is not None else Usage(0, 0)
            progress.usages[index], progress.outcomes[index] = usage, output.finish_reason
            self._state.limits.completed(usage.completion_tokens)
            self._note_end(index, usage, output.finish_reason, now_s)
            metrics.finished(
                usage, output.finish_reason, now_s - self.call.arrival_s, self.call.sampling.max_tokens, self.call.n
            )

    def _note_end(self, index: int, usage: Usage, outcome: str, now_s: float) -> None:
        """Put a completion that ended by itself into the accounts."""
        if self._state.accounts is None:
            return
        # A prompt with several completions is counted once, as in the usage that the caller is told.
        is_first = index % self.call.n == 0
        sums = Sums(
            1,
            usage.prompt_tokens if is_first else 0,
            usage.cached_tokens if is_first else 0,
            usage.completion_tokens,
            usage.service,
            usage.queue_s,
            self._progress.first_output_s.get(index, now_s) - self.call.arrival_s,
            now_s - self.call.arrival_s,
        )
        self._state.accounts.add(self.call.client.name, account_name(self.call.adapter, self.call.model), outcome, sums)

    def _note_cut_short(self, outcome: str, num_completions: int) -> None:
        """Put completions that did not come to their end into the accounts: their tokens so far; their service follows."""
        if self._state.accounts is None:
            return
        cut = [index for index in range(self.call.num_completions) if index not in self._progress.usages]
        firsts = [index for index in cut if index % self.call.n == 0]
        prompt_tokens = sum(len(self.prompts[index // self.call.n].token_ids) for index in firsts)
        completion_tokens = sum(self._progress.num_output_tokens.get(index, 0) for index in cut)
        total_s = (self._state.clock() - self.call.arrival_s) * num_completions
        sums = Sums(num_completions, prompt_tokens, 0, completion_tokens, total_s=total_s)
        client, adapter = self.call.client.name, account_name(self.call.adapter, self.call.model)
        self._state.accounts.add(client, adapter, outcome, sums)
        for index in cut:
            num_tokens = self._progress.num_output_tokens.get(index, 0)
            completion = CutShort(client, adapter, outcome, num_tokens, is_first=index % self.call.n == 0)
            self._state.cut_short.add(f"{self.call.response_id}-{index}", completion)


def new_response_id(prefix: str) -> str:
    """A fresh id for a response, e.g. chatcmpl-...; also the stem of its engine requests' ids."""
    return f"{prefix}-{uuid.uuid4().hex}"


async def _merge(iterators: Sequence[AsyncIterator[RequestOutput]]) -> AsyncGenerator[tuple[int, RequestOutput], None]:
    """Outputs of all iterators as they come. Closing it closes, and so aborts, all of them; one error ends all."""
    if len(iterators) == 1:
        try:
            async for output in iterators[0]:
                yield 0, output
        finally:
            await _close(iterators[0])
        return
    queue: asyncio.Queue[tuple[int, RequestOutput | Exception | None]] = asyncio.Queue()

    async def pump(index: int, iterator: AsyncIterator[RequestOutput]) -> None:
        try:
            async for output in iterator:
                queue.put_nowait((index, output))
            queue.put_nowait((index, None))
        except Exception as error:
            queue.put_nowait((index, error))
        finally:
            await _close(iterator)

    tasks = [asyncio.create_task(pump(index, iterator)) for index, iterator in enumerate(iterators)]
    try:
        num_running = len(tasks)
        while num_running:
            index, item = await queue.get()
            if item is None:
                num_running -= 1
            elif isinstance(item, Exception):
                raise item
            else:
                yield index, item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for iterator in iterators:  # a task that was cancelled before it began has closed nothing
            await _close(iterator)


def _check_scores(num_prompt_tokens: int, room: int, call: Call) -> None:
    """Raise InvalidRequest for more log-probabilities than one answer may hold. ``room``: tokens behind the prompt."""
    if call.sampling.logprobs is not None:
        num_tokens = min(call.sampling.max_tokens or room, room) * call.num_completions
        num_scores = num_tokens * (call.sampling.logprobs + 1)
        if num_scores > MOST_ANSWER_SCORES:
            raise InvalidRequest(
                f"log-probabilities of up to {num_tokens} tokens, {call.sampling.logprobs + 1} each, are {num_scores}; "
                f"allowed: {MOST_ANSWER_SCORES}, so ask for fewer tokens or fewer of them",
                call.logprobs_param,
            )
    if call.sampling.prompt_logprobs is None:
        return
    num_scores = num_prompt_tokens * (call.sampling.prompt_logprobs + 1) * call.n
    if num_scores > MOST_PROMPT_SCORES:
        raise InvalidRequest(
            f"log-probabilities of {num_prompt_tokens} prompt tokens, {call.sampling.prompt_logprobs + 1} each and "
            f"{call.n} times, are {num_scores}; allowed: {MOST_PROMPT_SCORES}",
            "prompt_logprobs",
        )


def _without_token(output: RequestOutput) -> RequestOutput:
    output.text, output.token_ids, output.logprobs, output.stop_reason = "", [], [], None
    if output.finish_reason is not None:
        output.finish_reason = "length"
    return output


async def _close(iterator: AsyncIterator[RequestOutput]) -> None:
    aclose = getattr(iterator, "aclose", None)
    if aclose is not None:
        await aclose()
