"""From logits to the next tokens of a batch, each request by its own rules.

First the rules of ``token_rules``; then, as in vLLM, temperature, min_p, top_k, top_p (of what top_k left).
Log-probabilities are those of the model's own distribution, before any of this (vLLM's default, ``raw_logprobs``).

A draw is the inverse of the cumulative distribution at one uniform number that depends on (seed, index
of the token) alone, so a request gets the same tokens whatever else is in the batch. It knows no
requests' lives and ends none. Legend: L rows, R rows drawn at random, V vocabulary, K candidates.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from evenflow.serving.core.plan import SampledToken, SampleSpec, TokenLogprobs
from evenflow.serving.core.sampling import WHOLE_VOCABULARY
from evenflow.serving.runner.token_rules import TokenRules

NOT_FINITE = "the model's logits are not finite (NaN or infinity); the adapter or the model is broken"

_CANDIDATES = 1024
"""How many of the likeliest tokens are looked at first. The nucleus of top_p is nearly always among them; where it is not, the
whole row is sorted."""
_SLICE_ELEMENTS = 1 << 24
"""Log-probabilities of long prompts are computed in slices of so many fp32 values (64 MiB)."""
_MASK = (1 << 64) - 1


class Sampler:
    """Chooses tokens. A row's choice depends on its logits and its spec alone; what is kept between steps saves time only.

    ``eos_token_ids``: end-of-sequence tokens of the model, banned until a request's min_tokens are reached.
    """

    def __init__(self, eos_token_ids: Sequence[int] = ()) -> None:
        self._rules = TokenRules(eos_token_ids)

    @torch.inference_mode()
    def __call__(self, logits_LV: torch.Tensor, specs: Sequence[SampleSpec]) -> list[SampledToken]:
        """One token per row; ``logits_LV`` (any floating dtype) is left as it is.

        A row with NaN or infinite logits gets ``error``; the others are not affected.
        """
        # A sum is finite only if every term is: this takes one pass, a test of every element would take several.
        finite_L = torch.isfinite(logits_LV.sum(-1, dtype=torch.float32))
        values_LV = logits_LV
        refused: dict[int, str] = {}
        if any(map(self._rules.concern, specs)):
            values_LV, refused = self._rules.apply(logits_LV, specs)
            for i in refused:
                values_LV[i].zero_()
        ids_L = values_LV.argmax(-1)
        drawn = [i for i, spec in enumerate(specs) if not spec.sampling.is_greedy]
        if drawn:
            rows_RV = values_LV[drawn] if len(drawn) < len(specs) else values_LV
            ids_L[drawn] = _draw(rows_RV.float(), [specs[i] for i in drawn])
        # In one transfer, because each transfer from the device to the host waits for everything that was launched before it.
        ids, finite = torch.stack((ids_L, finite_L.to(torch.int64))).tolist()
        scored = [i for i, spec in enumerate(specs) if spec.sampling.logprobs is not None and finite[i]]
        logprobs: dict[int, TokenLogprobs] = {}
        if scored:
            counts = [specs[i].sampling.logprobs or 0 for i in scored]
            logprobs = dict(zip(scored, token_logprobs(logits_LV[scored], [ids[i] for i in scored], counts)))
        return [
            SampledToken(0, error=NOT_FINITE)
            if not finite[i]
            else SampledToken(0, error=refused[i], error_type="ConstraintFailed")
            if i in refused
            else SampledToken(token_id, logprobs.get(i))
            for i, token_id in enumerate(ids)
        ]


@torch.inference_mode()
def token_logprobs(logits_LV: torch.Tensor, token_ids: Sequence[int], num_top: int | Sequence[int]) -> list[TokenLogprobs]:
    """Log-probability of ``token_ids[l]`` under row l of the raw logits, and of the likeliest tokens.

    ``num_top``: how many of those, for all rows or for each; -1: all tokens of the vocabulary.
    """
    tops = [num_top] * len(token_ids) if isinstance(num_top, int) else list(num_top)
    tops = [logits_LV.shape[-1] if top == WHOLE_VOCABULARY else top for top in tops]
    step = max(1, _SLICE_ELEMENTS // logits_LV.shape[-1])
    results: list[TokenLogprobs] = []
    for first in range(0, len(token_ids), step):
        part = slice(first, first + step)
        results += _token_logprobs(logits_LV[part], token_ids[part], tops[part])
    return results


def _token_logprobs(logits_LV: torch.Tensor, token_ids: Sequence[int], tops: Sequence[int]) -> list[TokenLogprobs]:
    logprobs_LV = logits_LV.float().log_softmax(-1)
    chosen_L1 = torch.tensor(list(token_ids), dtype=torch.int64, device=logits_LV.device)[:, None]
    chosen_logprobs_L1 = logprobs_LV.gather(1, chosen_L1)
    ranks = (logprobs_LV > chosen_logprobs_L1).sum(-1).add_(1).tolist()
    chosen = chosen_logprobs_L1[:, 0].tolist()
    top_values, top_ids = logprobs_LV.topk(min(max(tops, default=0), logprobs_LV.shape[-1]))
    return [
        TokenLogprobs(token_id, logprob, tuple(zip(ids[:count], values[:count])), rank)
        for token_id, logprob, rank, ids, values, count in zip(
            token_ids, chosen, ranks, top_ids.tolist(), top_values.tolist(), tops
        )
    ]


def uniform(seed: int, index: int) -> float:
    """A number in [0, 1) that depends on (seed, index) alone: two rounds of SplitMix64 (Steele et al. 2014)."""
    state = _mix(seed & _MASK)
    state = _mix(state ^ _mix((seed >> 64) & _MASK))
    return (_mix((state + index * 0x9E3779B97F4A7C15) & _MASK) >> 11) / (1 << 53)


def _mix(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def _draw(logits_RV: torch.Tensor, specs: Sequence[SampleSpec]) -> torch.Tensor:
    """int64 [R]: one token per row of fp32 ``logits_RV``."""
    device = logits_RV.device
    params = [spec.sampling for spec in specs]

    def column(values: list[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float32, device=device)[:, None]

    probs_RV = (logits_RV / column([p.temperature for p in params])).softmax(-1)
    if any(p.min_p > 0 for p in params):
        least_R1 = probs_RV.amax(-1, keepdim=True) * column([p.min_p for p in params])
        probs_RV = probs_RV.masked_fill(probs_RV < least_R1, 0.0)
    uniforms_R = torch.tensor(
        [
            uniform(spec.salt if spec.sampling.seed is None else spec.sampling.seed, len(spec.output_token_ids))
            for spec in specs
        ],
        dtype=torch.float64,
        device=device,
    )
    ids_R = torch.empty(len(specs), dtype=torch.int64, device=device)
    open_rows = [i for i, p in enumerate(params) if p.top_k < 1 and p.top_p >= 1]
    filtered = [i for i, p in enumerate(params) if p.top_k >= 1 or p.top_p < 1]
    if open_rows:
        ids_R[open_rows] = _invert(probs_RV[open_rows], uniforms_R[open_rows])
    if filtered:
        vocab_size = probs_RV.shape[-1]
        top_k = [p.top_k if 1 <= p.top_k < vocab_size else vocab_size for p in (params[i] for i in filtered)]
        top_p = [params[i].top_p for i in filtered]
        ids_R[filtered] = _draw_filtered(probs_RV[filtered], uniforms_R[filtered], top_k, top_p)
    return ids_R


def _draw_filtered(probs_RV: torch.Tensor, uniforms_R: torch.Tensor, top_k: list[int], top_p: list[float]) -> torch.Tensor:
    """Draw from the ``top_k`` likeliest tokens, of those from the fewest whose share reaches ``top_p``."""
    vocab_size, device = probs_RV.shape[-1], probs_RV.device
    width = min(vocab_size, max([_CANDIDATES, *(k for k in top_k if k < vocab_size)]))
    probs_RK, order_RK = probs_RV.topk(width)
    probs_RK = probs_RK.double()
    k_R1 = torch.tensor(top_k, device=device)[:, None]
    p_R1 = torch.tensor(top_p, dtype=torch.float64, device=device)[:, None]
    probs_RK = probs_RK.masked_fill(torch.arange(width, device=device)[None] >= k_R1, 0.0)
    whole_R1 = probs_RV.sum(-1, keepdim=True, dtype=torch.float64)
    total_R1 = torch.where(k_R1 < vocab_size, probs_RK.sum(-1, keepdim=True), whole_R1)
    cumulative_RK = probs_RK.cumsum(-1)
    if width < vocab_size:
        # k_R1 == vocab_size here means no top_k: the nucleus may reach beyond the candidates.
        short = ((k_R1 == vocab_size) & (cumulative_RK[:, -1:] < p_R1 * total_R1))[:, 0].nonzero()[:, 0].tolist()
    else:
        short = []
    kept_RK = probs_RK.masked_fill(cumulative_RK - probs_RK >= p_R1 * total_R1, 0.0)
    ids_R = order_RK.gather(1, _invert(kept_RK, uniforms_R)[:, None])[:, 0]
    for row in short:
        sorted_V, order_V = probs_RV[row].sort(descending=True)
        kept_V = sorted_V.double()
        kept_V = kept_V.masked_fill(kept_V.cumsum(-1) - kept_V >= p_R1[row] * total_R1[row], 0.0)
        ids_R[row] = order_V[_invert(kept_V[None], uniforms_R[row : row + 1])[0]]
    return ids_R


def _invert(weights_RK: torch.Tensor, uniforms_R: torch.Tensor) -> torch.Tensor:
    """int64 [R]: index where the cumulative share of the row's weights passes its uniform number; never a zero weight."""
    cumulative_RK = weights_RK.double().cumsum(-1)
    target_R1 = uniforms_R[:, None] * cumulative_RK[:, -1:]
    index_R = torch.searchsorted(cumulative_RK, target_R1, right=True)[:, 0]
    # Rounding may put the target at the very end, behind the last token that has any weight.
    last_R = weights_RK.shape[-1] - 1 - (weights_RK > 0).flip(-1).int().argmax(-1)
    return torch.minimum(index_R, last_R)


__all__ = ["NOT_FINITE", "Sampler", "token_logprobs", "uniform"]
