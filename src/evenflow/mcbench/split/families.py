"""How each family of transformers models is divided over tensor-parallel ranks: patterns of module names.

Families without a plan of their own, or whose plan does not divide anything (Phi-3 gathers its packed products), are
described here; all others are read from the plan they bring (``base_model_tp_plan``): Llama, Mistral, Qwen2, Qwen3, Gemma 3.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from evenflow.base.errors import ModelError

Segments = tuple[int, ...]
"""Output widths of the products that a packed one holds side by side, such as (q, k, v)."""


@dataclass(frozen=True, slots=True)
class Family:
    """Regular expressions over module names; each must match up to the end of a name."""

    columns: str
    """Linear layers that are divided by output features."""
    rows: str
    """Linear layers that are divided by input features; their sum over ranks is an exchange."""
    head_counts: tuple[str, ...] = ()
    """Attributes of the attention modules that count heads, or widths of heads, and are divided by the number of ranks.
    ``config.NAME`` is divided in a copy of the configuration that only this module sees."""
    head_tables: str = ""
    """Embeddings whose last dimension counts heads."""
    partial: str = ""
    """Modules that every rank holds whole but applies to its own heads alone: their gradients are summed over ranks."""
    packed: Callable[[Any], dict[str, Segments]] | None = None
    """From the configuration: the last part of a packed column layer's name -> its segments."""


def _phi3_segments(config: Any) -> dict[str, Segments]:
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    key = config.num_key_value_heads * head
    wide = config.intermediate_size
    return {"qkv_proj": (config.num_attention_heads * head, key, key), "gate_up_proj": (wide, wide)}


_BERT = Family(
    r"attention\.self\.(query|key|value)|intermediate\.dense",
    r"(attention\.output|layer\.\d+\.output)\.dense",
)

FAMILIES: dict[str, Family] = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "vit": Family(r"attention\.(q_proj|k_proj|v_proj)|mlp\.fc1", r"attention\.o_proj|mlp\.fc2"),
    "opt": Family(r"self_attn\.(q_proj|k_proj|v_proj)|\d+\.fc1", r"self_attn\.out_proj|\d+\.fc2", ("num_heads",)),
    "t5": Family(
        r"SelfAttention\.(q|k|v)|DenseReluDense\.(wi|wi_0|wi_1)",
        r"SelfAttention\.o|DenseReluDense\.wo",
        ("n_heads", "inner_dim"),
        r"SelfAttention\.relative_attention_bias",
    ),
    "gpt2": Family(
        r"attn\.c_attn|mlp\.c_fc",
        r"attn\.c_proj|mlp\.c_proj",
        ("num_heads", "split_size"),
        packed=lambda config: {"c_attn": (config.hidden_size,) * 3},
    ),
    "phi3": Family(
        r"self_attn\.qkv_proj|mlp\.gate_up_proj",
        r"self_attn\.o_proj|mlp\.down_proj",
        ("num_key_value_heads", "config.num_attention_heads"),
        packed=_phi3_segments,
    ),
}
"""model_type -> family."""

_STYLES = {"colwise": "columns", "rowwise": "rows", "replicated_with_grad_allreduce": "partial"}


def family_of(model: nn.Module) -> Family:
    """Return the family of a transformers model. Raises ModelError if it is not known and brings no plain plan."""
    config = getattr(model, "config", None)
    name = getattr(config, "model_type", None)
    if name in FAMILIES:
        return FAMILIES[name]
    plan: dict[str, str] = getattr(config, "base_model_tp_plan", None) or {}
    patterns = {
        field: "|".join(re.escape(key).replace(r"\*", r"\d+") for key, value in plan.items() if value == style)
        for style, field in _STYLES.items()
    }
    others = sorted(set(plan.values()) - set(_STYLES))
    if not patterns["columns"] or not patterns["rows"] or others:
        reason = f"its plan has the styles {', '.join(others)}" if others else "it has no tensor-parallel plan"
        raise ModelError(
            f"{name or type(model).__name__} cannot be split: {reason}; known: {', '.join(sorted(FAMILIES))}, and models with "
            "a plain plan (Llama, Mistral, Qwen2, Qwen3, Gemma 3 and others)"
        )
    return Family(patterns["columns"], patterns["rows"], partial=patterns["partial"])


def make_linear(model: nn.Module) -> nn.Module:
    """Replace GPT-2's ``Conv1D`` layers, which hold transposed weights, by equal linear layers; return the same model."""
    from transformers.pytorch_utils import Conv1D

    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Conv1D):
                linear = nn.Linear(child.weight.shape[0], child.weight.shape[1], device="meta")
                linear.weight = nn.Parameter(child.weight.detach().t().contiguous(), child.weight.requires_grad)
                linear.bias = child.bias
                setattr(module, name, linear)
    return model
