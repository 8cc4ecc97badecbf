"""What the engine knows of an adapter without touching its weights."""

from __future__ import annotations

from dataclasses import dataclass

from evenflow.serving.core.request import AdapterDigest

SIDE_KINDS = (
    *("gain", "offset", "norm", "embed_a", "embed_b", "head_a", "head_b", "embedding", "head"),
    *("small_a", "small_b", "expert_a", "expert_b"),
)
"""What side rows can be; see ``SideRows``."""


@dataclass(frozen=True, slots=True)
class SideRows:
    """Rows of an adapter that are no factor rows of a layer's linear; all equally wide.

    gain, offset        of the output of a layer's module: y += gain * y + offset, before LoRA is added (DoRA, lora_bias)
    norm                own weight of a norm; ``layer`` is -1 for the last one
    embed_a, embed_b    LoRA of the token embedding: A transposed, one row for each token, and scaled B transposed
    head_a, head_b      LoRA of the output head; head_b is cut into column ranges, because a row must fit into a page
    small_a, small_b    LoRA of a router or a shared expert's gate: A, and scaled B transposed
    expert_a, expert_b  LoRA of a linear of all experts, one expert's rows after another's; A of "gate_up" serves two B
    embedding, head     own rows of either table, of the tokens ``token_ids``
    """

    kind: str
    count: int
    width: int
    """Elements of a row, for the whole model."""
    layer: int = -1
    module: str = ""
    first_column: int = 0
    """Of head_b: the token whose logit the first element belongs to."""
    token_ids: tuple[int, ...] = ()
    """Ascending; empty for a table of all tokens from 0 on."""
    num_experts: int = 0
    """Of expert_a and expert_b: equal runs of rows."""

    @property
    def lora_rank(self) -> int:
        """LoRA rank of what these rows are one half of; 0: they are no half of a LoRA."""
        if self.kind == "expert_a":
            return self.count // self.num_experts
        return self.count if self.kind in ("embed_b", "head_a", "small_a") else 0

    @property
    def is_of_linear(self) -> bool:
        """True for what follows a layer's linear over tensor-parallel ranks; everything else is whole on every rank."""
        return self.kind in ("gain", "offset") and self.layer >= 0


@dataclass(frozen=True, slots=True)
class AdapterSignature:
    """LoRA ranks per layer and module, and side rows: all that decides where rows lie inside the adapter's pages.

    ``lora_ranks[layer][m]`` is the LoRA rank at ``MODULES[m]`` of that layer; 0: not adapted.
    """

    lora_ranks: tuple[tuple[int, ...], ...]
    side: tuple[SideRows, ...] = ()
    vocab_size: int = 0
    """Tokens it knows, if that is not the base model's vocabulary; 0: it is."""

    @property
    def max_lora_rank(self) -> int:
        """The largest LoRA rank of any module, embedding and head included; 0 without any."""
        of_side = [rows.lora_rank for rows in self.side]
        return max((lora_rank for layer in (*self.lora_ranks, of_side) for lora_rank in layer), default=0)


@dataclass(frozen=True, slots=True)
class AdapterRecord:
    """One adapter on the host: identity, shape and size. The catalog keeps its factor rows."""

    digest: AdapterDigest
    signature: AdapterSignature
    num_pages: int
    """Arena pages it occupies when resident."""
    size_bytes: int
    """Bytes of its factor rows. In the arena they take whole pages: num_pages x page_bytes."""
