"""What service costs: from tokens computed to the number that a policy charges.

Cost functions are the only place that prices tokens. They are pure and know no policy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Service:
    """What one request received, in one step or summed over several.

    ``recomputed_tokens`` (after a preemption) are counted here and charged to nobody.
    """

    prefill_tokens: int = 0
    decode_tokens: int = 0
    """Output tokens produced, the first one included."""
    recomputed_tokens: int = 0
    cached_tokens: int = 0
    """Prompt tokens found in a prefix cache instead of computed."""
    adapter_bytes: int = 0
    """Adapter weights loaded into the arena because of this request."""

    def __add__(self, other: Service) -> Service:
        return Service(
            self.prefill_tokens + other.prefill_tokens,
            self.decode_tokens + other.decode_tokens,
            self.recomputed_tokens + other.recomputed_tokens,
            self.cached_tokens + other.cached_tokens,
            self.adapter_bytes + other.adapter_bytes,
        )


class CostFunction(Protocol):
    """Price of a request that has received so much. Monotone in both arguments (VTC paper, section 4.4)."""

    def __call__(self, input_tokens: int, output_tokens: int) -> float:
        """Total cost of ``input_tokens`` of prompt and ``output_tokens`` of output; the unit is the function's own."""
        ...


@dataclass(frozen=True, slots=True)
class WeightedTokens:
    """h(x, y) = input_price x + output_price y (VTC paper, equation 1; prices 1 and 2 as in its experiments)."""

    input_price: float = 1.0
    output_price: float = 2.0

    def __call__(self, input_tokens: int, output_tokens: int) -> float:
        return self.input_price * input_tokens + self.output_price * output_tokens
