"""What the engine knows of an adapter without touching its weights."""

from __future__ import annotations

from dataclasses import dataclass

from evenflow.serving.core.request import AdapterDigest


@dataclass(frozen=True, slots=True)
class AdapterSignature:
    """LoRA ranks per layer and module: all that decides where the factor rows lie inside the adapter's pages.

    ``lora_ranks[layer][m]`` is the LoRA rank at ``MODULES[m]`` of that layer; 0: not adapted.
    """

    lora_ranks: tuple[tuple[int, ...], ...]

    @property
    def max_lora_rank(self) -> int:
        """The largest LoRA rank of any module; 0 without any."""
        return max((lora_rank for layer in self.lora_ranks for lora_rank in layer), default=0)


@dataclass(frozen=True, slots=True)
class AdapterRecord:
    """One adapter on the host: identity, shape and size. The catalog keeps its factor rows."""

    digest: AdapterDigest
    signature: AdapterSignature
    num_pages: int
    """Arena pages it occupies when resident."""
    size_bytes: int
    """Bytes of its factor rows. In the arena they take whole pages: num_pages x page_bytes."""
