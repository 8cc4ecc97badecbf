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
    """Price of a request that has received so much. Monotone in every argument (VTC paper, section 4.4)."""

    def __call__(self, input_tokens: int, output_tokens: int, cached_tokens: int = 0) -> float:
        """Total cost of ``input_tokens`` of prompt computed, ``cached_tokens`` more of it found in a prefix cache, and
        ``output_tokens`` of output; the unit is the function's own.
        """
        ...


@dataclass(frozen=True, slots=True)
class WeightedTokens:
    """h(x, y) = input_price x + output_price y (VTC paper, equation 1; prices 1 and 2 as in its experiments).

    ``cached_price`` is for prompt tokens that a prefix cache saved from being computed.
    """

    input_price: float = 1.0
    output_price: float = 2.0
    cached_price: float = 0.1

    def __call__(self, input_tokens: int, output_tokens: int, cached_tokens: int = 0) -> float:
        return self.input_price * input_tokens + self.output_price * output_tokens + self.cached_price * cached_tokens


@dataclass(frozen=True, slots=True)
class ProfiledQuadratic:
    """h(x, y) = a x + b y + c x y + d y^2 + e: time that a request takes on one server, fitted to measurements.

    VTC paper, appendix. The defaults are the published fit for Llama-7B on an A10G, in milliseconds. Only 10 % of a
    256/256 request is due at admission (33 % with WeightedTokens), so predict output lengths when you use it.
    """

    input_ms: float = 0.21001891
    output_ms: float = 0.10075395
    product_ms: float = 0.0039868
    output_squared_ms: float = 0.00324733
    constant_ms: float = 1.14601454

    def __call__(self, input_tokens: int, output_tokens: int, cached_tokens: int = 0) -> float:
        x, y = input_tokens + cached_tokens, output_tokens
        # cached tokens are not computed again, but every output token attends to them
        return (
            self.input_ms * input_tokens
            + self.output_ms * y
            + self.product_ms * x * y
            + self.output_squared_ms * y * y
            + self.constant_ms
        )


@dataclass(frozen=True, slots=True)
class KVBytesTime:
    """Memory held times time held, in byte-seconds: what a request keeps others from using (Justitia, 2025).

    One step for the prompt, then one per output token with one token more each: bytes x step (x + x y + y (y + 1) / 2).
    ``step_s`` is nominal, so that the price depends on the request alone and not on who runs beside it.
    """

    kv_bytes_per_token: float = 1.0
    step_s: float = 1.0

    def __call__(self, input_tokens: int, output_tokens: int, cached_tokens: int = 0) -> float:
        x, y = input_tokens + cached_tokens, output_tokens
        return self.kv_bytes_per_token * self.step_s * (x + x * y + y * (y + 1) / 2)
