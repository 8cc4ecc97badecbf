"""Which tokens a request may get at all, and what is added to the others: everything between logits and temperature.

Order, as in vLLM: allowed_token_ids, bad_words, logit_bias, min_tokens, repetition, then frequency and presence penalty.
What a grammar forbids is ruled out last, for all constrained rows at once. Legend: L rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from evenflow.serving.core.plan import SampleSpec
from evenflow.serving.runner.kept import Kept
from evenflow.serving.runner.token_history import TokenHistories
from evenflow.serving.runner.token_masks import forbidden_tokens

_NOTHING = float("-inf")


class BadWords:
    """Token sequences, found by the token before their last one."""

    def __init__(self, sequences: Sequence[tuple[int, ...]]) -> None:
        self._always = [sequence[0] for sequence in sequences if len(sequence) == 1]
        self._by_token_before: dict[int, list[tuple[int, ...]]] = {}
        for sequence in sequences:
            if len(sequence) > 1:
                self._by_token_before.setdefault(sequence[-2], []).append(sequence)

    def next_of(self, output_token_ids: Sequence[int]) -> list[int]:
        """Tokens that would complete a word behind this output."""
        if not output_token_ids or not self._by_token_before:
            return self._always
        completed = [
            sequence[-1]
            for sequence in self._by_token_before.get(output_token_ids[-1], ())
            if tuple(output_token_ids[-(len(sequence) - 1) :]) == sequence[:-1]
        ]
        return self._always + completed


class TokenRules:
    """Applies the rules of a batch. A row's outcome depends on its logits and its spec alone; what is kept saves time only.

    ``eos_token_ids``: end-of-sequence tokens of the model, banned until a request's min_tokens are reached.
    """

    def __init__(self, eos_token_ids: Sequence[int]) -> None:
        self._eos_token_ids = tuple(eos_token_ids)
        self._histories = TokenHistories()
        self._biases: Kept[tuple[torch.Tensor, torch.Tensor]] = Kept()
        self._ids: Kept[torch.Tensor] = Kept()
        self._bad_words: Kept[BadWords] = Kept()

    @staticmethod
    def concern(spec: SampleSpec) -> bool:
        """True unless the row's logits stay as they are."""
        return spec.mask is not None or _changes(spec)

    def apply(self, logits_LV: torch.Tensor, specs: Sequence[SampleSpec]) -> tuple[torch.Tensor, dict[int, str]]:
        """Return the logits by the rules, ``logits_LV`` left as they are, and by row why nothing can be drawn from it.

        The result is fp32 if a rule computes with them. Ids beyond the vocabulary are ignored. Where min_tokens has banned all
        that the other rules allow, which is the end of the answer, it gives way.
        """
        for kept in (self._biases, self._ids, self._bad_words):
            kept.next_step()
        changed = [i for i, spec in enumerate(specs) if _changes(spec)]
        values_LV = logits_LV.to(torch.float32, copy=True) if changed else logits_LV
        for i in changed:
            self._restrict(values_LV[i], specs[i])
            self._bias(values_LV[i], specs[i])
        penalised = [i for i in changed if specs[i].sampling.has_penalties]
        if penalised:
            histories = self._histories.of([specs[i] for i in penalised], values_LV.shape[1], values_LV.device)
            for i, history in zip(penalised, histories, strict=True):
                history.penalise(values_LV[i], specs[i].sampling)
        forbidden = forbidden_tokens(specs, values_LV.shape[1], values_LV.device)
        if forbidden.tokens_LV is not None:
            # One pass over all rows: copying the logits first, and then each row apart, took longer than all else here.
            fill = torch.Tensor.masked_fill_ if changed else torch.Tensor.masked_fill
            values_LV = fill(values_LV, forbidden.tokens_LV, _NOTHING)
        refused = forbidden.failed
        bounded = [i for i in changed if i not in refused and _may_be_empty(specs[i])]
        if bounded:
            highest = values_LV[bounded].amax(-1).tolist()
            for i in (i for i, value in zip(bounded, highest, strict=True) if value == _NOTHING):
                if not self._give_way(values_LV[i], specs[i]):
                    refused[i] = "the constraint, allowed_token_ids and bad_words together allow no further token"
        return values_LV, refused

    def _restrict(self, row_V: torch.Tensor, spec: SampleSpec) -> None:
        sampling = spec.sampling
        if sampling.allowed_token_ids is not None:
            ids = self._tensor(sampling.allowed_token_ids, row_V)
            kept = row_V.index_select(0, ids)
            row_V.fill_(_NOTHING)
            row_V.index_copy_(0, ids, kept)
        if sampling.bad_word_ids:
            words = self._bad_words.of(sampling.bad_word_ids, partial(BadWords, sampling.bad_word_ids))
            banned = words.next_of(spec.output_token_ids)
            if banned:
                row_V.index_fill_(0, _ids(banned, row_V), _NOTHING)

    def _bias(self, row_V: torch.Tensor, spec: SampleSpec) -> None:
        sampling = spec.sampling
        if sampling.logit_bias:
            ids, biases = self._biases.of(sampling.logit_bias, partial(_biases, sampling.logit_bias, row_V))
            row_V.index_add_(0, ids, biases)
        if len(spec.output_token_ids) < sampling.min_tokens:
            if sampling.stop_token_ids:
                row_V.index_fill_(0, self._tensor(sampling.stop_token_ids, row_V), _NOTHING)
            if not sampling.ignore_eos:
                row_V.index_fill_(0, self._tensor(self._eos_token_ids, row_V), _NOTHING)

    def _give_way(self, row_V: torch.Tensor, spec: SampleSpec) -> bool:
        """Make all tokens equal that every rule but min_tokens allows; False if there are none."""
        row_V.zero_()
        self._restrict(row_V, spec)
        forbidden = forbidden_tokens([spec], row_V.shape[0], row_V.device)
        if forbidden.tokens_LV is not None:
            row_V.masked_fill_(forbidden.tokens_LV[0], _NOTHING)
        return not bool(torch.isneginf(row_V.amax()))

    def _tensor(self, token_ids: tuple[int, ...], row_V: torch.Tensor) -> torch.Tensor:
        return self._ids.of(token_ids, partial(_ids, token_ids, row_V))


def _changes(spec: SampleSpec) -> bool:
    """True if rules other than its grammar's change the row."""
    sampling = spec.sampling
    return (
        bool(sampling.logit_bias)
        or sampling.has_penalties
        or len(spec.output_token_ids) < sampling.min_tokens
        or sampling.allowed_token_ids is not None
        or bool(sampling.bad_word_ids)
    )


def _may_be_empty(spec: SampleSpec) -> bool:
    """True if the rules of the row can forbid every token."""
    sampling = spec.sampling
    return sampling.allowed_token_ids is not None or (
        spec.mask is not None and (bool(sampling.bad_word_ids) or len(spec.output_token_ids) < sampling.min_tokens)
    )


def _biases(pairs: Sequence[tuple[int, float]], row_V: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids (int64) and what is added to their logits (fp32)."""
    known = [(token_id, bias) for token_id, bias in pairs if 0 <= token_id < row_V.shape[0]]
    ids, biases = [token_id for token_id, _ in known], [bias for _, bias in known]
    return (
        torch.tensor(ids, dtype=torch.int64, device=row_V.device),
        torch.tensor(biases, dtype=torch.float32, device=row_V.device),
    )


def _ids(token_ids: Sequence[int], row_V: torch.Tensor) -> torch.Tensor:
    """Those that the vocabulary has (int64)."""
    known = [token_id for token_id in token_ids if 0 <= token_id < row_V.shape[0]]
    return torch.tensor(known, dtype=torch.int64, device=row_V.device)


__all__ = ["BadWords", "TokenRules"]
