"""What data-parallel training sends, as compressed exchanges: the books and the switch that all of them share.

Two sites: ``dp.gradients``, the mean of gradients over ranks, and ``dp.weights``, the shards of weights that FSDP gathers.
"""

from __future__ import annotations

from typing import Any

import torch.distributed as dist

from evenflow.base.errors import ConfigError
from evenflow.comm.collectives.collective import Collective, TorchCollective
from evenflow.comm.collectives.links import Link, shaped
from evenflow.comm.collectives.stopwatch import Stopwatch, TimedCollective, TimedCompressor
from evenflow.comm.compressor import Compressor
from evenflow.comm.exchange import Exchange
from evenflow.comm.factory import get_compressor
from evenflow.comm.ledger import Ledger
from evenflow.comm.switch import Switch
from evenflow.comm.transport import get_transport

GRADIENTS, WEIGHTS = "dp.gradients", "dp.weights"


class DataParallelTraffic:
    """The exchanges of one data-parallel model. Whoever trains it owns the switch: off, everything travels dense.

    ``ledger`` counts the bytes of this rank by site, planned and sent. ``link`` makes the group as slow as a link of that rate,
    by a token bucket. ``stopwatch`` is told the time of encoding, decoding and sending.
    """

    def __init__(
        self,
        group: dist.ProcessGroup | None,
        link: Link | None = None,
        ledger: Ledger | None = None,
        switch: Switch | None = None,
        stopwatch: Stopwatch | None = None,
    ) -> None:
        collective: Collective = TorchCollective(group)
        collective = shaped(collective, link) if link is not None else collective
        self.collective = TimedCollective(collective, stopwatch, "dp communication") if stopwatch else collective
        self.stopwatch = stopwatch
        self.ledger = ledger if ledger is not None else Ledger()
        self.switch = switch or Switch()

    def exchange(self, site: str, spec: str) -> Exchange:
        """Return an exchange for SPEC, ``compressor[/transport]``. Raises RegistryError, ConfigError.

        Compressors that are trained with a model, or that leave ranks with different sums, are refused: nothing would train
        them here, and the replicas of the weights would drift apart.
        """
        compressor, transport = make_rule(spec)
        if compressor.is_learned or compressor.spec.startswith("caat"):
            raise ConfigError(f"{site}={spec}; allowed: a compressor that is not trained and sums all channels")
        books: dict[str, Any] = {"ledger": self.ledger, "switch": self.switch}
        chosen = get_transport(transport, compressor, self.collective.world_size)
        if self.stopwatch is not None:
            compressor = TimedCompressor(compressor, self.stopwatch)
        return Exchange(site, compressor, self.collective, transport=chosen, **books)


def make_rule(spec: str) -> tuple[Compressor, str | None]:
    """Return the compressor of ``compressor[/transport]``, and the transport's name if there is one."""
    name, slash, transport = spec.rpartition("/")
    return get_compressor(name if slash else spec), transport if slash else None
