"""Paged attention in plain torch, any device and dtype: the oracle of the other kernels.

Everything is computed in fp32 and rounded once at the end. Knows tensors, not pages' owners.
Legend: T rows, N query heads, K key/value heads, D head_dim, E = D / 2, S tokens of context.
"""

from __future__ import annotations

import torch


def rotate(x_TND: torch.Tensor, cos_TE: torch.Tensor, sin_TE: torch.Tensor) -> torch.Tensor:
    """Rotary embedding, the Llama "rotate half" convention, over the whole head_dim.

    Semantics: out[..., e] = x[e] cos[e] - x[e + E] sin[e];  out[..., e + E] = x[e + E] cos[e] + x[e] sin[e].
    """
    first, second = x_TND.float().chunk(2, dim=-1)
    cos, sin = cos_TE[:, None, :], sin_TE[:, None, :]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x_TND.dtype)


def attend(
    q_TND: torch.Tensor,
    k_SKD: torch.Tensor,
    v_SKD: torch.Tensor,
    start: int,
    sm_scale: float,
    *,
    window: int | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """Causal attention of one sequence's rows: row t is token ``start + t`` of those given. Returns [T, N, D].

    ``window``: how many tokens a row sees, its own included; None: all before it.
    Semantics: out[t, n] = sum_s softmax_s(cap(sm_scale q[t, n] . k[s, n // (N / K)])) v[s, n // (N / K)],
    start + t - window < s <= start + t, where cap(x) = softcap tanh(x / softcap), or x without a soft cap.
    """
    group = q_TND.shape[1] // k_SKD.shape[1]
    k_SND = k_SKD.float().repeat_interleave(group, dim=1)
    v_SND = v_SKD.float().repeat_interleave(group, dim=1)
    scores_NTS = torch.einsum("tnd,snd->nts", q_TND.float(), k_SND) * sm_scale
    if softcap is not None:
        scores_NTS = (scores_NTS / softcap).tanh() * softcap
    positions_T = start + torch.arange(q_TND.shape[0], device=q_TND.device)
    tokens_S = torch.arange(k_SKD.shape[0], device=q_TND.device)
    hidden_TS = tokens_S[None, :] > positions_T[:, None]
    if window is not None:
        hidden_TS |= tokens_S[None, :] <= positions_T[:, None] - window
    weights_NTS = scores_NTS.masked_fill(hidden_TS, -torch.inf).softmax(dim=-1)
    return torch.einsum("nts,snd->tnd", weights_NTS, v_SND).to(q_TND.dtype)
