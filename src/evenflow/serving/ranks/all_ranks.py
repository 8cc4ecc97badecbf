"""Steps and adapters on all tensor-parallel ranks: what rank 0's engine uses in place of one worker and one catalog."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from evenflow.serving.adapters.base_weights import BaseWeights
from evenflow.serving.adapters.catalog import Catalog, PreparedAdapter
from evenflow.serving.adapters.row_store import RowStore
from evenflow.serving.core.plan import StepPlan, StepResult
from evenflow.serving.core.request import AdapterDigest
from evenflow.serving.memory.layout import ArenaLayout
from evenflow.serving.ranks.rank_processes import RankProcesses
from evenflow.serving.runner.membership import Membership
from evenflow.serving.runner.worker import Worker


class AllRanksExecutor:
    """Executor: the other ranks are told the plan, rank 0 computes it here and samples."""

    def __init__(self, worker: Worker, ranks: RankProcesses, membership: Membership) -> None:
        self._worker = worker
        self._ranks = ranks
        self._membership = membership

    def run(self, plan: StepPlan) -> StepResult:
        """See Executor. A load that failed on any rank has failed. Raises EngineDead if a rank is gone."""
        self._ranks.check()
        self._ranks.run_step(plan)
        with self._ranks.explained():
            result = self._worker.run(plan)
            if plan.loads:
                failed = {**self._ranks.failed_loads(), **result.failed_loads}
                result = dataclasses.replace(result, failed_loads=failed)
        return result

    def close(self) -> None:
        """End the other ranks."""
        self._worker.close()
        self._ranks.close()
        self._membership.leave()


class AllRanksCatalog(Catalog):
    """A catalog whose adapters are prepared on every rank, each its own shard, before they are known at all."""

    def __init__(
        self,
        layout: ArenaLayout,
        ranks: RankProcesses,
        *,
        max_lora_rank: int | None,
        on_freed: Callable[[AdapterDigest], object],
        store: RowStore | None,
        base: BaseWeights | None = None,
    ) -> None:
        def freed_on_all_ranks(digest: AdapterDigest) -> None:
            on_freed(digest)
            ranks.forget(digest)

        super().__init__(layout, max_lora_rank=max_lora_rank, on_freed=freed_on_all_ranks, store=store, base=base)
        self._ranks = ranks

    def prepare(
        self, path: str | Path, *, boundary: Path | None = None, must_read: bool = False, displaces: bool = False
    ) -> PreparedAdapter:
        """See Catalog. Also raises AdapterError if the ranks do not find the same weights."""
        prepared = super().prepare(path, boundary=boundary, must_read=must_read, displaces=displaces)
        self._ranks.prepare(Path(path), prepared.record, boundary=boundary, must_read=must_read)
        return prepared

    def discard_rows(self, digest: AdapterDigest) -> None:
        """See Catalog."""
        super().discard_rows(digest)
        self._ranks.discard(digest)


__all__ = ["AllRanksCatalog", "AllRanksExecutor"]
