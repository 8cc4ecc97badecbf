"""How the next token of a request is chosen: the values, validated where they are made.

Field names and defaults are those of the OpenAI API and of vLLM's SamplingParams.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from evenflow.base.errors import InvalidRequest
from evenflow.serving.core.structured import StructuredOutputs

MAX_LOGPROBS = 1 << 18
"""Log-probabilities of one token: any vocabulary; a server allows fewer unless it is told otherwise."""
WHOLE_VOCABULARY = -1
"""As a number of log-probabilities: of all tokens."""
MOST_STOPS = 16
"""Stop strings of one request."""
MOST_ALLOWED_TOKENS = 65_536
MOST_BAD_WORDS = 128
"""As text, and as token sequences."""
LONGEST_BAD_WORD = 256
"""Characters, and tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How to sample, and when to stop, for one prompt.

    Raises InvalidRequest, naming the field, for a value outside its range.
    """

    n: int = 1
    """How many independent completions of the prompt."""
    max_tokens: int | None = 16
    """At most this many output tokens; None: up to the model's context."""
    min_tokens: int = 0
    """No end-of-sequence or stop token before this many output tokens."""
    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0 or -1: off."""
    min_p: float = 0.0
    """Drop tokens less likely than min_p times the likeliest."""
    repetition_penalty: float = 1.0
    """Divides positive, multiplies negative logits of tokens in prompt or output (CTRL, 2019)."""
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    """(token id, added to its logit) pairs."""
    allowed_token_ids: tuple[int, ...] | None = None
    """No other tokens are chosen; None: all are allowed."""
    bad_words: tuple[str, ...] = ()
    """Texts that the output will not hold as the tokenizer writes them, at the beginning of a word or inside one."""
    bad_word_ids: tuple[tuple[int, ...], ...] = ()
    """``bad_words`` as token sequences, whose last token is not chosen behind the others. Made by ``text.bad_words``."""
    seed: int | None = None
    """The same seed gives the same text, whatever else is in the batch."""
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    logprobs: int | None = None
    """None: none. k: the log-probability of each output token and of the k likeliest tokens; -1: of all tokens."""
    prompt_logprobs: int | None = None
    """The same for the prompt's tokens."""
    skip_special_tokens: bool = True
    structured_outputs: StructuredOutputs | None = None
    """What the answer must look like; None: anything."""

    def __post_init__(self) -> None:
        def check(ok: bool, name: str, allowed: str) -> None:
            if not ok:
                raise InvalidRequest(f"{name} is {getattr(self, name)!r}; allowed: {allowed}", name)

        object.__setattr__(self, "stop", (self.stop,) if isinstance(self.stop, str) else tuple(self.stop))
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
        object.__setattr__(self, "bad_words", (self.bad_words,) if isinstance(self.bad_words, str) else tuple(self.bad_words))
        object.__setattr__(self, "bad_word_ids", tuple(map(tuple, self.bad_word_ids)))
        if self.allowed_token_ids is not None:
            object.__setattr__(self, "allowed_token_ids", tuple(self.allowed_token_ids))
            _check_count("allowed_token_ids", len(self.allowed_token_ids), 1, MOST_ALLOWED_TOKENS)
        _check_count("bad_words", max(len(self.bad_words), len(self.bad_word_ids)), 0, MOST_BAD_WORDS)
        lengths = [len(word) for word in (*self.bad_words, *self.bad_word_ids)]
        if lengths and not (min(lengths) >= 1 and max(lengths) <= LONGEST_BAD_WORD):
            raise InvalidRequest(
                f"bad_words holds a word of {max(lengths) if min(lengths) else 0} characters; allowed: 1 to {LONGEST_BAD_WORD}",
                "bad_words",
            )
        bias = self.logit_bias
        if isinstance(bias, dict):
            object.__setattr__(self, "logit_bias", tuple((int(k), float(v)) for k, v in bias.items()))
        for name in ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"):
            check(math.isfinite(getattr(self, name)), name, "a finite number")
        check(1 <= self.n <= 128, "n", "1 to 128")
        check(self.max_tokens is None or self.max_tokens >= 1, "max_tokens", "1 or more")
        check(self.min_tokens >= 0, "min_tokens", "0 or more")
        check(
            self.max_tokens is None or self.min_tokens <= self.max_tokens,
            "min_tokens",
            f"at most max_tokens ({self.max_tokens})",
        )
        check(0 <= self.temperature <= 100, "temperature", "0 to 100")
        check(0 < self.top_p <= 1, "top_p", "above 0, at most 1")
        check(self.top_k >= -1, "top_k", "-1 or 0 (off), or 1 and more")
        check(0 <= self.min_p <= 1, "min_p", "0 to 1")
        check(0 < self.repetition_penalty <= 100, "repetition_penalty", "above 0, at most 100")
        check(-2 <= self.presence_penalty <= 2, "presence_penalty", "-2 to 2")
        check(-2 <= self.frequency_penalty <= 2, "frequency_penalty", "-2 to 2")
        check(all(math.isfinite(v) and -100 <= v <= 100 for _, v in self.logit_bias), "logit_bias", "values from -100 to 100")
        check(len(self.stop) <= MOST_STOPS and all(self.stop), "stop", f"at most {MOST_STOPS} strings, none of them empty")
        for name in ("logprobs", "prompt_logprobs"):
            value = getattr(self, name)
            check(value is None or value == WHOLE_VOCABULARY or 0 <= value <= MAX_LOGPROBS, name, f"-1, or 0 to {MAX_LOGPROBS}")

    @property
    def is_greedy(self) -> bool:
        """True if the likeliest token is always taken."""
        return self.temperature == 0.0 or self.top_k == 1

    @property
    def has_penalties(self) -> bool:
        """True if the choice depends on the tokens so far."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0


def _check_count(name: str, count: int, least: int, most: int) -> None:
    if not least <= count <= most:
        raise InvalidRequest(f"{name} has {count} entries; allowed: {least} to {most}", name)


GREEDY = SamplingParams(temperature=0.0)

__all__ = [
    "GREEDY",
    "LONGEST_BAD_WORD",
    "MAX_LOGPROBS",
    "MOST_ALLOWED_TOKENS",
    "MOST_BAD_WORDS",
    "MOST_STOPS",
    "WHOLE_VOCABULARY",
    "SamplingParams",
]
