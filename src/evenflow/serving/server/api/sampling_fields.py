"""From the fields of a body to SamplingParams, by the rules of one model and one server."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evenflow.base.errors import InvalidRequest
from evenflow.serving.core.sampling import WHOLE_VOCABULARY, SamplingParams
from evenflow.serving.core.structured import StructuredOutputs
from evenflow.serving.server.api.schema import MAX_INT64, SamplingFields
from evenflow.serving.text.bad_words import bad_word_ids

_AS_THEY_ARE = (
    "min_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "ignore_eos",
    "include_stop_str_in_output",
    "skip_special_tokens",
)


@dataclass(frozen=True, slots=True)
class SamplingRules:
    """What a body's fields are checked and completed by."""

    vocab_size: int
    encode: Callable[[str], list[int]]
    """A text to its token ids, without special tokens."""
    max_logprobs: int
    """Log-probabilities that may be asked for at one token; -1: all."""
    defaults: Mapping[str, float]
    """For what a body does not say."""

    def sampling(
        self,
        body: SamplingFields,
        *,
        max_tokens: int | None,
        logprobs: int | None,
        logprobs_param: str = "logprobs",
        scores_prompt: bool = False,
        constraint: StructuredOutputs | None = None,
        keeps_special_tokens: bool = False,
    ) -> SamplingParams:
        """SamplingParams for one completion of ``body`` (n is the caller's business). Raises InvalidRequest, naming the field.

        ``logprobs_param``: field that says how many. ``scores_prompt``: the prompt's tokens get as many log-probabilities as
        the answer's. ``keeps_special_tokens``: they are needed in the text, whatever the body says.
        """
        check_token_ids(body.stop_token_ids or (), self.vocab_size, "stop_token_ids")
        check_token_ids(body.allowed_token_ids or (), self.vocab_size, "allowed_token_ids")
        logprobs = self._num_logprobs(logprobs, logprobs_param)
        prompt_logprobs = self._num_logprobs(body.prompt_logprobs, "prompt_logprobs")
        if scores_prompt and logprobs is not None:
            prompt_logprobs = logprobs
        if max_tokens is None and (limit := self.defaults.get("max_tokens")) is not None:
            max_tokens = int(limit)
        given: dict[str, Any] = {name: value for name, value in self.defaults.items() if name != "max_tokens"}
        given |= {name: value for name in _AS_THEY_ARE if (value := getattr(body, name)) is not None}
        if keeps_special_tokens:
            given["skip_special_tokens"] = False
        allowed = body.allowed_token_ids
        return SamplingParams(
            structured_outputs=constraint,
            max_tokens=max_tokens,
            seed=None if body.seed is None else body.seed & MAX_INT64,
            stop=(body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ()),
            stop_token_ids=tuple(sorted(set(body.stop_token_ids or ()))),
            logit_bias=self._logit_bias(body.logit_bias or {}),
            allowed_token_ids=None if allowed is None else tuple(sorted(set(allowed))),
            bad_words=tuple(body.bad_words or ()),
            bad_word_ids=bad_word_ids(body.bad_words or (), self.encode),
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            **given,
        )

    def _num_logprobs(self, asked: int | None, param: str) -> int | None:
        """How many log-probabilities of one token that are; those of all tokens are as many as the vocabulary has."""
        if asked is None:
            return None
        most = self.vocab_size if self.max_logprobs == WHOLE_VOCABULARY else self.max_logprobs
        count = min(asked, self.vocab_size) if asked != WHOLE_VOCABULARY else self.vocab_size
        if count > most:
            named = f"-1, all {count} tokens" if asked == WHOLE_VOCABULARY else str(asked)
            raise InvalidRequest(f"{param} is {named}; allowed: 0 to {most} (--max-logprobs of the server)", param)
        return count

    def _logit_bias(self, bias: Mapping[str, float]) -> tuple[tuple[int, float], ...]:
        """Pairs in the order of their ids, each id once: "7", "07" and "007" are one token."""
        value_by_id: dict[int, float] = {}
        for key, value in bias.items():
            if not (key.isascii() and key.isdigit() and len(key) <= 10):
                raise InvalidRequest(f"logit_bias has the key {key[:40]!r}; allowed: token ids", "logit_bias")
            token_id = int(key)
            if token_id in value_by_id:
                raise InvalidRequest(f"logit_bias names token {token_id} twice; allowed: each token once", "logit_bias")
            value_by_id[token_id] = float(value)
        check_token_ids(list(value_by_id), self.vocab_size, "logit_bias")
        return tuple(sorted(value_by_id.items()))


def check_token_ids(token_ids: Sequence[int], vocab_size: int, param: str) -> None:
    """Raise InvalidRequest unless the model has all these tokens."""
    if token_ids and not (min(token_ids) >= 0 and max(token_ids) < vocab_size):
        wrong = next(token for token in token_ids if not 0 <= token < vocab_size)
        raise InvalidRequest(f"{param} holds token id {wrong}; allowed: 0 to {vocab_size - 1}", param)
