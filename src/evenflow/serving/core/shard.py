"""Which part of a model, and of its adapters, one tensor-parallel rank holds. Numbers only, no torch.

Megatron's division: query heads, KV heads and the MLP's inner width are cut into N equal runs, so that qkv and gate_up
are column-parallel and o and down row-parallel. Fewer KV heads than ranks: each is held by N / kv_heads ranks.

An adapter follows its modules. What is left open is the half of it that does not shrink with the base weight, A of the
column-parallel sites and B of the row-parallel ones (S-LoRA, section 6):

* a site in ``exchanged`` divides that half too and exchanges vectors in rank space: rank k holds rows
  [k c, (k + 1) c) of A with c = ceil(r / N) (qkv, gate_up), or the k-th part of the columns of B (o, down);
* any other site keeps it whole on every rank and exchanges nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from evenflow.base.errors import ConfigError
from evenflow.serving.core.shape import SITES, ModelShape

COLUMN_SITES, ROW_SITES = ("qkv", "gate_up"), ("o", "down")

_SITE_OF = {module: site for site, modules in SITES.items() for module in modules}


@dataclass(frozen=True, slots=True)
class Shard:
    """Rank ``rank`` of ``world_size``. Raises ConfigError, saying what is allowed, if ``whole`` cannot be divided so."""

    whole: ModelShape
    rank: int
    world_size: int
    exchanged: tuple[str, ...] = ()
    """Sites whose LoRA is divided over the ranks, in the order of SITES."""

    def __post_init__(self) -> None:
        check_divisible(self.whole, self.world_size)
        if not 0 <= self.rank < self.world_size:
            raise ConfigError(f"rank is {self.rank}; allowed: 0 to {self.world_size - 1}")
        if any(site not in SITES for site in self.exchanged):
            raise ConfigError(f"exchanged sites are {', '.join(self.exchanged)}; allowed: {', '.join(SITES)}")

    @property
    def shape(self) -> ModelShape:
        """The sizes of the rank's own decoder: all layers, the whole hidden size, its part of the heads and of the MLP."""
        n, whole = self.world_size, self.whole
        return replace(
            whole,
            num_heads=whole.num_heads // n,
            num_kv_heads=max(1, whole.num_kv_heads // n),
            intermediate_size=whole.intermediate_size // n,
            experts=None
            if whole.experts is None
            else replace(whole.experts, width=whole.experts.width // n, shared_width=whole.experts.shared_width // n),
        )

    def of_rank(self, rank: int) -> Shard:
        """The same division, seen by another rank."""
        return replace(self, rank=rank)

    def is_exchanged(self, module: str) -> bool:
        """True if the LoRA of ``module`` is divided over the ranks."""
        return _SITE_OF[module] in self.exchanged

    def inputs(self, module: str) -> range:
        """Input columns of ``module`` that this rank multiplies with."""
        whole = self.whole.module_widths(module)[0]
        return self._run(whole) if _SITE_OF[module] in ROW_SITES else range(whole)

    def outputs(self, module: str) -> range:
        """Output columns of ``module`` that this rank computes (row-parallel: all, as partial sums)."""
        whole = self.whole.module_widths(module)[1]
        if _SITE_OF[module] in ROW_SITES:
            return range(whole)
        if module in ("k_proj", "v_proj"):
            heads, dim = self.whole.num_kv_heads, self.whole.head_dim
            first = self.rank * heads // self.world_size
            return range(first * dim, (first + max(1, heads // self.world_size)) * dim)
        return self._run(whole)

    def adds_offsets(self, module: str) -> bool:
        """True if this rank adds what is added to the output of ``module``: where partial sums are added up, one rank does."""
        return self.rank == 0 or _SITE_OF[module] in COLUMN_SITES

    def a_rows(self, module: str, lora_rank: int) -> range:
        """Rows of A, of ``lora_rank``, that this rank holds. May be empty."""
        if not self.is_exchanged(module) or _SITE_OF[module] in ROW_SITES:
            return range(lora_rank)
        share = -(-lora_rank // self.world_size)
        return range(min(lora_rank, self.rank * share), min(lora_rank, (self.rank + 1) * share))

    def b_columns(self, module: str) -> range:
        """Output columns that this rank's rows of B cover. Inside ``outputs``."""
        outputs = self.outputs(module)
        if not self.is_exchanged(module) or _SITE_OF[module] in COLUMN_SITES:
            return outputs
        # Divided as evenly as possible instead of rounding up: else the last rank might get no column, and so B rows of width
        # 0.
        n = len(outputs)
        return range(n * self.rank // self.world_size, n * (self.rank + 1) // self.world_size)

    def vocabulary(self) -> range:
        """Rows of the embedding and of the output head that this rank holds. May be empty."""
        share = -(-self.whole.vocab_size // self.world_size)
        last = min(self.whole.vocab_size, (self.rank + 1) * share)
        return range(min(last, self.rank * share), last)

    def _run(self, width: int) -> range:
        part = width // self.world_size
        return range(self.rank * part, (self.rank + 1) * part)


def check_divisible(whole: ModelShape, world_size: int) -> None:
    """Raise ConfigError, naming the sizes that work, unless ``world_size`` ranks can share a model of this shape."""
    widths = [whole.intermediate_size]
    if whole.experts is not None:
        widths += [whole.experts.width, whole.experts.shared_width]

    def works(n: int) -> bool:
        heads, kv_heads = whole.num_heads, whole.num_kv_heads
        return not (heads % n or any(width % n for width in widths) or (kv_heads % n and n % kv_heads))

    if world_size < 1 or not works(world_size):
        allowed = ", ".join(str(n) for n in range(1, whole.num_heads + 1) if works(n))
        inner = " and ".join(str(width) for width in dict.fromkeys(widths) if width)
        raise ConfigError(
            f"tensor_parallel is {world_size}; this model has {whole.num_heads} query heads, {whole.num_kv_heads} KV heads and "
            f"an inner width of {inner}: heads and width must be divisible by it, and KV heads divisible by it or a divisor of "
            f"it; allowed: {allowed}"
        )


__all__ = ["COLUMN_SITES", "ROW_SITES", "Shard", "check_divisible"]
