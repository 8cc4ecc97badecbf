"""What one request has said so far and how it is told: tokens in, RequestOutputs out."""

from __future__ import annotations

from collections.abc import Sequence

from evenflow.serving.client.messages import Logprobs, RequestOutput, Usage
from evenflow.serving.core.plan import SampledToken, TokenLogprobs
from evenflow.serving.core.request import FinishReason, Request
from evenflow.serving.text import OutputText, Tokenizer


class Reply:
    """Text side of one request. Reads the request, never changes it."""

    def __init__(self, request: Request, tokenizer: Tokenizer, eos_token_ids: Sequence[int], traceparent: str = "") -> None:
        self.request = request
        self.traceparent = traceparent
        """Of the trace that it belongs to; empty: of none."""
        self.finish_reason: FinishReason | None = None
        self._tokenizer = tokenizer
        self._text = OutputText(tokenizer, request.prompt_token_ids, request.sampling, eos_token_ids, request.max_output_tokens)
        self._prompt_scores: list[Logprobs] = []
        """As they are told: made chunk by chunk, so that the first token of a long prompt does not wait for all."""

    def add_prompt_logprobs(self, start: int, scores: Sequence[TokenLogprobs]) -> None:
        """Keep the scores of prompt tokens: ``scores[i]`` is that of the token at position ``start + i + 1``.

        A token whose score is known already, because it is computed again after a preemption, is passed over.
        """
        self._prompt_scores += map(self._told, scores[max(0, len(self._prompt_scores) - start) :])

    def push(self, token: SampledToken) -> RequestOutput:
        """Take the next token; sets ``finish_reason`` if it is the last."""
        delta = self._text.add(token.token_id)
        self.finish_reason = delta.finish_reason
        output = RequestOutput(self.request.request_id, delta.text, [token.token_id])
        if token.logprobs is not None:
            output.logprobs.append(self._told(token.logprobs))
        if self.request.sampling.prompt_logprobs is not None and self._text.num_tokens == 1:
            output.prompt_logprobs = [None, *self._prompt_scores]
        if delta.finish_reason is not None:
            output.finish_reason, output.stop_reason = delta.finish_reason.value, delta.stop_reason
        return output

    def cut(self) -> RequestOutput:
        """The last output of a request that the scheduler had to end early."""
        self.finish_reason = FinishReason.LENGTH
        return RequestOutput(self.request.request_id, self._text.finish(), finish_reason=FinishReason.LENGTH.value)

    def usage(self, now_s: float, service: float, adapter_load: tuple[float, float] = (0.0, 0.0)) -> Usage:
        """What the request took, up to ``now_s``, and what it was charged for it.

        ``adapter_load``: seconds from its arrival to the load of its adapter, and those that it took.
        """
        request = self.request
        admitted_s = now_s if request.admitted_s is None else request.admitted_s
        first_token_s = now_s if request.first_token_s is None else request.first_token_s
        return Usage(
            prompt_tokens=request.num_prompt_tokens,
            completion_tokens=request.num_output_tokens,
            cached_tokens=request.num_cached_tokens,
            recomputed_tokens=request.num_recomputed_tokens,
            queue_s=max(0.0, admitted_s - request.arrival_s),
            prefill_s=max(0.0, first_token_s - admitted_s),
            decode_s=max(0.0, now_s - first_token_s),
            service=service,
            num_preemptions=request.num_preemptions,
            adapter_load_at_s=adapter_load[0],
            adapter_load_s=adapter_load[1],
        )

    def _told(self, scored: TokenLogprobs) -> Logprobs:
        text = self._tokenizer.token_text
        top = [(token_id, text(token_id), logprob) for token_id, logprob in scored.top]
        told = Logprobs(scored.token_id, scored.logprob, text(scored.token_id), top, scored.token_rank)
        partial = {token_id for token_id, token, _ in top if "\ufffd" in token}
        if "\ufffd" in told.token:
            partial.add(scored.token_id)
        if partial:
            told.bytes_by_id = {token_id: self._tokenizer.token_bytes(token_id) for token_id in partial}
        return told
