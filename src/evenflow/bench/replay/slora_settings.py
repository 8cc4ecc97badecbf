"""S-LoRA's settings as values: which model, which LoRA ranks, how much memory (its table 1 and section 7.1).

Each has the true shape, for a machine that holds it, and ``scaled`` ones for two cores: a part of the depth, the width and
the LoRA ranks. Base weights go with width^2 and adapters with width x LoRA rank, so the share of an adapter in the traffic of
a step is the true one. S3 (a 13B with rank 16) is in the published code only and not among them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from evenflow.base.errors import ConfigError, RegistryError
from evenflow.serving.core.shape import ModelShape

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
"""The modules that S-LoRA's adapters change."""


@dataclass(frozen=True, slots=True)
class AdapterSpec:
    """One adapter of a setting."""

    name: str
    lora_rank: int


@dataclass(frozen=True, slots=True)
class SLoRASetting:
    """A model and the ranks of its adapters."""

    name: str
    model: str
    shape: ModelShape
    lora_ranks: tuple[int, ...]
    """Adapter i has rank ``lora_ranks[i % len]``."""
    targets: tuple[str, ...] = TARGETS
    lora_alpha: float = 16.0
    weight_range: float = 1e-3
    """Published dummy adapters draw their weights from U(-range, range)."""
    divisor: int = 1
    """What depth, width and ranks were divided by."""
    pool_tokens: Mapping[str, int] = field(default_factory=dict)
    """Published size of the KV and adapter pool in tokens, by GPU."""

    def adapters(self, num_adapters: int) -> tuple[AdapterSpec, ...]:
        """The first ``num_adapters`` adapters, ranks in turn; names sort in this order."""
        ranks = self.lora_ranks
        return tuple(AdapterSpec(f"{i:05d}-r{ranks[i % len(ranks)]}", ranks[i % len(ranks)]) for i in range(num_adapters))

    def scaled(self, divisor: int = 4) -> SLoRASetting:
        """The same with depth, width, vocabulary and ranks divided; heads of 64. Raises ConfigError unless 2, 4 or 8."""
        if divisor not in (2, 4, 8) or self.divisor != 1:
            raise ConfigError(f"divisor is {divisor}; allowed: 2, 4, 8, of a setting in its true size")
        true, head_dim = self.shape, 64
        hidden = true.hidden_size // divisor
        shape = ModelShape(
            num_layers=max(true.num_layers // divisor, 1),
            hidden_size=hidden,
            intermediate_size=true.intermediate_size // divisor,
            num_heads=hidden // head_dim,
            num_kv_heads=hidden // head_dim,
            head_dim=head_dim,
            vocab_size=true.vocab_size // divisor,
        )
        return SLoRASetting(
            name=f"{self.name}/{divisor}",
            model=f"{self.model} with a {_PARTS[divisor]} of the depth, width and ranks",
            shape=shape,
            lora_ranks=tuple(max(rank // divisor, 1) for rank in self.lora_ranks),
            targets=self.targets,
            lora_alpha=self.lora_alpha,
            weight_range=self.weight_range,
            divisor=divisor,
        )

    @property
    def num_parameters(self) -> int:
        """Of the base model: embedding, layers, output matrix."""
        shape = self.shape
        attention = 2 * shape.hidden_size * (shape.q_width + shape.kv_width)
        layer = attention + 3 * shape.hidden_size * shape.intermediate_size + 2 * shape.hidden_size
        return shape.num_layers * layer + (2 * shape.vocab_size + 1) * shape.hidden_size

    def adapter_elements(self, lora_rank: int) -> int:
        """Elements of A and B of one adapter, over all layers and targets."""
        return self.shape.num_layers * lora_rank * sum(sum(self.shape.module_widths(module)) for module in self.targets)


_PARTS = {2: "half", 4: "quarter", 8: "eighth"}


def _llama(num_layers: int, hidden_size: int, intermediate_size: int) -> ModelShape:
    """As in the first Llama: heads of 128, as many for K and V as for Q, 32,000 tokens."""
    heads = hidden_size // 128
    return ModelShape(num_layers, hidden_size, intermediate_size, heads, heads, 128, 32_000)


_7B, _13B = _llama(32, 4096, 11008), _llama(40, 5120, 13824)
_30B_M, _70B_M = _llama(48, 7168, 19456), _llama(80, 8192, 24576)

SETTINGS: Mapping[str, SLoRASetting] = MappingProxyType(
    {
        setting.name: setting
        for setting in (
            SLoRASetting("S1", "Llama-7B", _7B, (8,), pool_tokens={"a10g": 14_500, "a100-80": 125_000, "h100": 120_000}),
            SLoRASetting(
                "S2", "Llama-7B", _7B, (64, 32, 16, 8), pool_tokens={"a10g": 14_500, "a100-80": 125_000, "h100": 120_000}
            ),
            SLoRASetting("S4", "Llama-13B", _13B, (64, 32, 16), pool_tokens={"a100-40": 14_000, "a100-80": 65_000}),
            # shapes that the authors' kernels could launch; not those of Llama-30B and Llama-70B
            SLoRASetting("S5", "Llama-30B-m", _30B_M, (32,)),
            SLoRASetting("S6", "Llama-70B-m", _70B_M, (64,)),
        )
    }
)
"""The settings by name, in their true size."""


def setting(name: str) -> SLoRASetting:
    """``S2`` in its true size, ``S2/4`` scaled. Raises RegistryError listing the known, ConfigError for another divisor."""
    base, slash, divisor = name.partition("/")
    if base not in SETTINGS or (slash and not divisor.isdecimal()):
        raise RegistryError(f"unknown setting {name!r}; known: {', '.join(SETTINGS)}, each also with /2, /4 or /8")
    return SETTINGS[base].scaled(int(divisor)) if slash else SETTINGS[base]
