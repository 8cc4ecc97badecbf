"""Which tokens a request has seen and said, kept on the sampler's device and brought up to date by what is new.

Penalties look at the whole prompt and the whole output at every token. Rebuilding that view costs a step time that grows
with the prompt, and everybody in the batch waits for it; kept, a step costs a few passes over one row of logits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from evenflow.serving.core.plan import SampleSpec
from evenflow.serving.core.sampling import SamplingParams


class TokenHistory:
    """Of one request. Holds on to its list of output tokens, by which it is known."""

    def __init__(self, spec: SampleSpec, vocab_size: int, device: torch.device) -> None:
        self.output_token_ids = spec.output_token_ids
        self._num_known = 0
        self._seen_V = torch.zeros(vocab_size, dtype=torch.bool, device=device)
        """True for tokens of the prompt and of the output."""
        self._counts_V = torch.zeros(vocab_size, dtype=torch.float32, device=device)
        """How often each was said."""
        if spec.sampling.repetition_penalty != 1.0 and spec.prompt_token_ids:
            self._seen_V[torch.tensor(list(spec.prompt_token_ids), dtype=torch.int64, device=device)] = True

    def is_of(self, spec: SampleSpec, vocab_size: int, device: torch.device) -> bool:
        """True if it can be brought up to date with ``spec``."""
        return (
            self.output_token_ids is spec.output_token_ids
            and self._num_known <= len(spec.output_token_ids)
            and self._seen_V.shape[0] == vocab_size
            and self._seen_V.device == device
        )

    def update(self) -> None:
        """Take the tokens that were said since the last time."""
        new = list(self.output_token_ids[self._num_known :])
        if new:
            self._num_known += len(new)
            ids = torch.tensor(new, dtype=torch.int64, device=self._seen_V.device)
            self._seen_V[ids] = True
            self._counts_V.index_add_(0, ids, torch.ones(len(new), dtype=torch.float32, device=ids.device))

    def penalise(self, row_V: torch.Tensor, sampling: SamplingParams) -> None:
        """Apply the three penalties to one row of fp32 logits, in place."""
        penalty = sampling.repetition_penalty
        if penalty != 1.0:
            row_V.copy_(torch.where(self._seen_V, torch.where(row_V > 0, row_V / penalty, row_V * penalty), row_V))
        if self._num_known and (sampling.presence_penalty or sampling.frequency_penalty):
            row_V.sub_(self._counts_V * sampling.frequency_penalty + (self._counts_V > 0) * sampling.presence_penalty)


class TokenHistories:
    """Histories of the requests that were penalised in the last step; the others are forgotten."""

    def __init__(self) -> None:
        self._by_list: dict[int, TokenHistory] = {}

    def of(self, specs: Sequence[SampleSpec], vocab_size: int, device: torch.device) -> list[TokenHistory]:
        """One for each spec, up to date. Those of other requests are dropped."""
        kept: dict[int, TokenHistory] = {}
        histories = []
        for spec in specs:
            key = id(spec.output_token_ids)  # its own while the history holds on to the list
            history = self._by_list.get(key) or kept.get(key)
            if history is None or not history.is_of(spec, vocab_size, device):
                history = TokenHistory(spec, vocab_size, device)
            history.update()
            kept[key] = history
            histories.append(history)
        self._by_list = kept
        return histories


__all__ = ["TokenHistories", "TokenHistory"]
