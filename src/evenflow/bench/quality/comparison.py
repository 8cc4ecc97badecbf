"""Models beside a reference on the same windows of text: perplexity, Kullback-Leibler divergence, greedy agreement.

Every window is seen by all models, so that differences are paired. Perplexity is exp of the mean negative log-likelihood of the
next token; divergence is KL(reference || model) in nats a token; agreement is how often both think the same token likeliest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from evenflow.base.errors import ConfigError
from evenflow.base.progress import Tell, tell_nobody
from evenflow.bench.quality.scored_model import ModelChoice, ScoredModel


@dataclass(frozen=True, slots=True)
class Quality:
    """How one model did."""

    label: str
    perplexity: float
    perplexity_ratio: float
    """To the reference."""
    kl: float
    """Nats a token; 0 for the reference."""
    kl_99: float
    """Below which 99 % of the tokens are."""
    agreement: float
    """Share of tokens, 0 to 1."""
    num_tokens: int
    """Predictions that were scored."""


def windows_of(token_ids: Sequence[int], length: int, most_tokens: int) -> list[list[int]]:
    """Whole windows that follow one another. Raises ConfigError for a text that has not one."""
    count = min(len(token_ids), most_tokens) // length
    if count < 1:
        raise ConfigError(f"the text has {len(token_ids)} tokens; a window of {length} is the least")
    return [list(token_ids[length * i : length * (i + 1)]) for i in range(count)]


def compare(
    reference: ModelChoice,
    others: Sequence[ModelChoice],
    windows: Sequence[Sequence[int]],
    *,
    cache_folder: Path | None = None,
    tell: Tell = tell_nobody,
) -> list[Quality]:
    """The reference first, then the others. Raises ConfigError for models of another vocabulary."""
    length = len(windows[0])
    models = [ScoredModel(choice, length, cache_folder) for choice in (reference, *others)]
    for choice, model in zip(others, models[1:]):
        if model.vocab_size != models[0].vocab_size:
            raise ConfigError(f"{choice.label} has {model.vocab_size} tokens, {reference.label} has {models[0].vocab_size}")
    losses: list[list[torch.Tensor]] = [[] for _ in models]
    divergences: list[list[torch.Tensor]] = [[] for _ in models]
    agreements: list[list[torch.Tensor]] = [[] for _ in models]
    for number, window in enumerate(windows):
        targets = torch.tensor(window[1:]).unsqueeze(1)
        base = models[0].log_probs(list(window))[:-1]
        best, probs = base.argmax(-1), base.exp()
        for i, model in enumerate(models):
            found = base if i == 0 else model.log_probs(list(window))[:-1]
            losses[i].append(-found.gather(1, targets)[:, 0])
            divergences[i].append((probs * (base - found)).sum(-1))
            agreements[i].append(found.argmax(-1) == best)
        tell("comparing, by windows", number + 1, len(windows))
    first = math.exp(float(torch.cat(losses[0]).double().mean()))
    rows = []
    for i, choice in enumerate((reference, *others)):
        perplexity, kl = math.exp(float(torch.cat(losses[i]).double().mean())), torch.cat(divergences[i]).double()
        rows.append(
            Quality(
                label=choice.label,
                perplexity=perplexity,
                perplexity_ratio=perplexity / first,
                kl=float(kl.mean()),
                kl_99=float(kl.quantile(0.99)),
                agreement=float(torch.cat(agreements[i]).double().mean()),
                num_tokens=len(kl),
            )
        )
    return rows


__all__ = ["Quality", "compare", "windows_of"]
