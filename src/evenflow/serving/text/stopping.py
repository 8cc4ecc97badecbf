"""The end of an output: stop strings across token borders, stop tokens, end of sequence, length.

This is the one place that decides that a request has said enough. No torch.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from evenflow.serving.core.request import FinishReason
from evenflow.serving.core.sampling import SamplingParams
from evenflow.serving.text.tokenizer import Tokenizer


class StopChecker:
    """Watches a stream of text for stop strings and holds back what may be the start of one.

    The first stop string to be complete ends the text, and of several that end there the longest; so
    the result does not depend on how the text was cut into pieces.
    """

    def __init__(self, stop: Sequence[str], *, include_stop: bool = False) -> None:
        self._stop = tuple(stop)
        self._include_stop = include_stop
        self._held = ""
        self.matched: str | None = None
        """The stop string that ended the text."""

    def feed(self, text: str, *, may_stop: bool = True) -> str:
        """Take the next piece; return what is certain to be output. Nothing follows once ``matched`` is set.

        ``may_stop`` False: a stop string that this piece completes is ordinary text.
        """
        if not self._stop or self.matched is not None:
            return text if self.matched is None else ""
        known = len(self._held)
        text = self._held + text
        found = self._first_match(text, known) if may_stop else None
        if found is not None:
            start, end = found
            self.matched, self._held = text[start:end], ""
            return text[: end if self._include_stop else start]
        hold = max(self._overlap(text, stop) for stop in self._stop)
        self._held = text[len(text) - hold :]
        return text[: len(text) - hold]

    def finish(self) -> str:
        """What was held back, when no text follows."""
        held, self._held = self._held, ""
        return held

    def _first_match(self, text: str, known: int) -> tuple[int, int] | None:
        """(start, end) of the match with the smallest end beyond ``known``, then the smallest start."""
        best: tuple[int, int] | None = None
        for stop in self._stop:
            start = text.find(stop, max(0, known - len(stop) + 1))
            if start < 0:
                continue
            if best is None or (start + len(stop), start) < (best[1], best[0]):
                best = start, start + len(stop)
        return best

    @staticmethod
    def _overlap(text: str, stop: str) -> int:
        """Length of the longest end of ``text`` that is a beginning of ``stop``, but not the whole of it."""
        place = text.find(stop[0], max(0, len(text) - len(stop) + 1))
        while place >= 0:  # only where its first character stands can a beginning of it start
            if stop.startswith(text[place:]):
                return len(text) - place
            place = text.find(stop[0], place + 1)
        return 0


@dataclass(slots=True)
class OutputDelta:
    """What one token added. ``finish_reason`` is set on the last one."""

    text: str
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    """The stop string or stop token id that ended it; None for end of sequence and length."""


class OutputText:
    """Text of one request, token by token, and the decision that it has ended."""

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        prompt_token_ids: Sequence[int],
        sampling: SamplingParams,
        eos_token_ids: Collection[int],
        max_output_tokens: int,
    ) -> None:
        """``tokenizer`` None: token ids alone are wanted, there is no text and there are no stop strings."""
        self._detokenizer = (
            None
            if tokenizer is None
            else tokenizer.detokenizer(prompt_token_ids, skip_special_tokens=sampling.skip_special_tokens)
        )
        self._checker = StopChecker(sampling.stop, include_stop=sampling.include_stop_str_in_output)
        self._eos_token_ids = frozenset(
            # A constrained answer ends where its constraint does: nothing else may follow.
            () if sampling.ignore_eos and sampling.structured_outputs is None else eos_token_ids
        )
        self._stop_token_ids = frozenset(sampling.stop_token_ids)
        self._include_stop = sampling.include_stop_str_in_output
        self._min_tokens = sampling.min_tokens
        self._max_output_tokens = max_output_tokens
        self.num_tokens = 0

    def add(self, token_id: int) -> OutputDelta:
        """Take the next output token. Nothing may follow a delta with a ``finish_reason``."""
        self.num_tokens += 1
        may_stop = self.num_tokens >= self._min_tokens
        is_stop_token = may_stop and token_id in self._stop_token_ids
        if is_stop_token or (may_stop and token_id in self._eos_token_ids):
            # The token that ends an output is not part of its text, unless asked for.
            text = self._text_of(token_id, may_stop=False) if self._include_stop else ""
            return OutputDelta(text + self._rest(), FinishReason.STOP, token_id if is_stop_token else None)
        text = self._text_of(token_id, may_stop=may_stop)
        if self._checker.matched is not None:
            return OutputDelta(text, FinishReason.STOP, self._checker.matched)
        if self.num_tokens >= self._max_output_tokens:
            return OutputDelta(text + self._rest(), FinishReason.LENGTH)
        return OutputDelta(text)

    def finish(self) -> str:
        """What was held back, when the request is ended from outside."""
        return self._rest()

    def _text_of(self, token_id: int, *, may_stop: bool) -> str:
        if self._detokenizer is None:
            return ""
        return self._checker.feed(self._detokenizer.add(token_id), may_stop=may_stop)

    def _rest(self) -> str:
        if self._detokenizer is None:
            return ""
        return self._checker.feed(self._detokenizer.finish(), may_stop=False) + self._checker.finish()


__all__ = ["OutputDelta", "OutputText", "StopChecker"]
