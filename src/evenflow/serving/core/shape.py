"""The sizes of a decoder that memory, kernels and schedulers need to know. No torch."""

from __future__ import annotations

from dataclasses import dataclass

MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The seven linears of a Llama layer that may carry LoRA, in the order they are computed."""

SITES: dict[str, tuple[str, ...]] = {
    "qkv": ("q_proj", "k_proj", "v_proj"),
    "o": ("o_proj",),
    "gate_up": ("gate_proj", "up_proj"),
    "down": ("down_proj",),
}
"""Sites of a layer: modules that read the same input. The base weights of a site are one matrix, its LoRA is one call."""

BLOCK_OF = {module: "mlp" if module in ("gate_proj", "up_proj", "down_proj") else "self_attn" for module in MODULES}
"""The block of a decoder layer that holds a module, by its name in checkpoints."""


@dataclass(frozen=True, slots=True)
class ExpertsShape:
    """Sizes of the mixtures of experts of a model."""

    num_experts: int
    width: int
    """Intermediate width of each."""
    shared_width: int = 0
    """Intermediate width of the shared expert; 0: there is none."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of a Llama-shaped decoder (elements, not bytes)."""

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    mlp_blocks: tuple[str, ...] = ()
    """By layer: the block with the MLP that adapters may name, as checkpoints name it, or "" where there is none; (): "mlp"
    in all layers."""
    experts: ExpertsShape | None = None
    """Where layers have mixtures of experts."""

    def mlp_block(self, layer: int) -> str:
        """The block of ``layer`` with the MLP that adapters may name; "" where there is none."""
        return self.mlp_blocks[layer] if self.mlp_blocks else "mlp"

    def is_sparse(self, layer: int) -> bool:
        """True if ``layer`` has a mixture of experts."""
        return self.experts is not None and self.mlp_block(layer) != "mlp"

    @property
    def q_width(self) -> int:
        """Width of all query heads together."""
        return self.num_heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Width of all key (or value) heads together."""
        return self.num_kv_heads * self.head_dim

    def module_widths(self, module: str) -> tuple[int, int]:
        """(input width, output width) of one of MODULES."""
        hidden, inter, q, kv = self.hidden_size, self.intermediate_size, self.q_width, self.kv_width
        return {
            "q_proj": (hidden, q),
            "k_proj": (hidden, kv),
            "v_proj": (hidden, kv),
            "o_proj": (q, hidden),
            "gate_proj": (hidden, inter),
            "up_proj": (hidden, inter),
            "down_proj": (inter, hidden),
        }[module]
