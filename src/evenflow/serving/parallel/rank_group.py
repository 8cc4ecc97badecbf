"""A group of tensor-parallel ranks over ``evenflow.comm``: exact or compressed sums, with books.

The collective underneath is injected: torch.distributed, the threads of a test, a link that is shaped or timed.
"""

from __future__ import annotations

import logging

import torch

from evenflow.base.errors import ConfigError
from evenflow.comm.collectives.collective import Collective
from evenflow.comm.compressor import Algebra, Compressor
from evenflow.comm.exchange import Exchange
from evenflow.comm.factory import get_compressor
from evenflow.comm.ledger import Kind, Ledger, sent_bytes
from evenflow.comm.transport import Transport, get_transport

log = logging.getLogger("evenflow.engine")

_HEADROOM = 2.0**-8
"""How far below the largest sendable value a row must stay: a rotation may gather a whole row in one value, and the values of
a sparse message may be scaled up."""


class RankGroup:
    """``Group`` over a collective, with books. Owns the ledger.

    ``compress``: a compressor for the sums of outputs, as ``spec`` or ``spec/transport``. ``width``: of those outputs.
    Raises ConfigError for a compressor that must be trained or that remembers earlier tensors (a step's rows are
    other requests' rows than the last one's), and RegistryError for an unknown name.
    """

    def __init__(self, collective: Collective, compress: str = "none", width: int = 1) -> None:
        self._collective = collective
        self.rank, self.world_size = collective.rank, collective.world_size
        self.ledger = Ledger()
        self._exchanges: dict[str, Exchange] = {}
        self._told: set[str] = set()
        """Sites where a token row was too large to be encoded, at least once."""
        self._compressor, self._transport = serving_compressor(compress, width, self.world_size)
        self._largest = _largest_sent(self._compressor, self.world_size)

    def sum_outputs(self, y_TO: torch.Tensor, site: str) -> torch.Tensor:
        """See ``Group``."""
        if self._compressor is None:
            return self.all_reduce(y_TO, site)
        exchange = self._exchanges.get(site)
        if exchange is None:
            exchange = Exchange(site, self._compressor, self._collective, transport=self._transport, ledger=self.ledger)
            self._exchanges[site] = exchange
        # A token row that cannot be encoded must not end the step for the others. It keeps its value on this rank, whose part
        # of the logits then shows it to everybody.
        is_lost_T = ~(y_TO.abs().amax(dim=1) <= self._largest)
        if not bool(is_lost_T.any()):
            return exchange.sum(y_TO)
        self._tell(y_TO[is_lost_T], site)
        total_TO = exchange.sum(y_TO.masked_fill(is_lost_T[:, None], 0))
        return total_TO.masked_fill(is_lost_T[:, None], torch.nan)

    def _tell(self, lost_TO: torch.Tensor, site: str) -> None:
        if site in self._told or not bool(torch.isfinite(lost_TO).all()):
            return
        self._told.add(site)
        log.warning(
            "compress is %s, which carries values up to %.4g; the output of %s on rank %d reaches %.4g: such requests fail",
            self._compressor.spec if self._compressor else "none",
            self._largest,
            site,
            self.rank,
            float(lost_TO.abs().max()),
        )

    def all_reduce(self, x: torch.Tensor, site: str) -> torch.Tensor:
        """See ``Group``."""
        self._book(site, Kind.ALL_REDUCE, x)
        return self._collective.all_reduce(x)

    def all_gather(self, x: torch.Tensor, site: str) -> torch.Tensor:
        """See ``Group``."""
        self._book(site, Kind.ALL_GATHER, x)
        return self._collective.all_gather(x)

    def _book(self, site: str, kind: Kind, x: torch.Tensor) -> None:
        num_bytes = x.numel() * x.element_size()
        self.ledger.expect(site, sent_bytes(kind, num_bytes, self.world_size))
        self.ledger.count(site, kind, num_bytes, self.world_size)


def _largest_sent(compressor: Compressor | None, world_size: int) -> float:
    """The largest value of a rank's part that can be sent, summed over the ranks and sent again, wherever it stands."""
    if compressor is not None and compressor.encode(torch.ones(1, 1)).dtype == torch.float16:
        # Sums are sent as they are added: one that is too large becomes infinity, which nobody encodes again.
        return torch.finfo(torch.float16).max
    return torch.finfo(torch.float32).max * _HEADROOM / world_size


def serving_compressor(text: str, width: int, world_size: int) -> tuple[Compressor | None, Transport | None]:
    """What ``spec`` or ``spec/transport`` names, for outputs of ``width`` of so many ranks; None for ``none``.

    Raises: see RankGroup.
    """
    spec, _, transport = text.partition("/")
    compressor = get_compressor(spec)
    if spec.strip() == "none" and not transport:
        return None, None
    compressor.prepare(width)
    trial = torch.ones(2, width)
    compressor.decode(compressor.encode(trial), trial.shape, trial.dtype)
    # caat sends only some channels; each rank keeps its own values in the others, so that the ranks' tensors would differ.
    if compressor.parameters() or compressor.state_dict() or compressor.rounds > 1 or spec.startswith("caat"):
        raise ConfigError(
            f"compress is {text!r}; allowed: compressors that need no training, remember nothing and give all ranks the same, "
            "such as bf16, int8-g32, int6-g32, int4-g32, fp8-g128, mxfp8, hadamard-int4"
        )
    if compressor.algebra is Algebra.LINEAR and transport not in ("", "all-reduce"):
        raise ConfigError(f"compress is {text!r}; allowed for {spec}: {spec}/all-reduce")
    return compressor, get_transport(transport or None, compressor, world_size)


__all__ = ["RankGroup", "serving_compressor"]
