"""What the engine knows of an adapter without touching its weights."""

from __future__ import annotations

from dataclasses import dataclass

from evenflow.serving.core.request import AdapterDigest


@dataclass(frozen=True, slots=True)
class AdapterSignature:
    """Ranks per layer and module; where its rows lie inside its pages depends on nothing else.

    ``lora_ranks[layer][m]`` is the LoRA rank at ``MODULES[m]`` of that layer; 0: not adapted.
    """

    lora_ranks: tuple[tuple[int, ...], ...]

    @property
    def max_lora_rank(self) -> int:
        """The largest LoRA rank of any module; 0 without any."""
        return max((lora_rank for layer in self.lora_ranks for lora_rank in layer), default=0)


@dataclass(frozen=True, slots=True)
class AdapterRecord:
    """One adapter on the host: identity, shape and size. Its rows are kept by the catalog."""

    digest: AdapterDigest
    signature: AdapterSignature
    num_pages: int
    """Arena pages it occupies when resident."""
    size_bytes: int
    """Bytes of its rows (num_pages x page_bytes is what they take in the arena)."""
