"""Weights and tiers of clients that change while the engine runs; its policy reads the same mappings."""

from __future__ import annotations

from collections.abc import Mapping

from evenflow.fairness.books.weights import tiered


class LiveShares:
    """Owner of the three mappings: their objects stay, their content changes. Raises ConfigError for what makes no sense."""

    def __init__(
        self, weight_by_client: dict[str, float], tier_by_client: dict[str, str], weight_by_tier: dict[str, float]
    ) -> None:
        self.weight_by_client = weight_by_client
        """A client's own, without its tier's."""
        self.tier_by_client = tier_by_client
        self.weight_by_tier = weight_by_tier
        self.weight = tiered(weight_by_client, tier_by_client, weight_by_tier)
        """A client's own weight times its tier's."""

    def replace(
        self, weight_by_client: Mapping[str, float], tier_by_client: Mapping[str, str], weight_by_tier: Mapping[str, float]
    ) -> None:
        """Take over all three; nothing changes if one of them makes no sense. Raises ConfigError."""
        tiered(weight_by_client, tier_by_client, weight_by_tier)
        for mine, given in (
            (self.weight_by_client, weight_by_client),
            (self.tier_by_client, tier_by_client),
            (self.weight_by_tier, weight_by_tier),
        ):
            content = dict(given)
            mine.clear()
            mine.update(content)  # type: ignore[arg-type]
