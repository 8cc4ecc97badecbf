"""Several engines as one: what a front holds instead of an engine. Routes, retries once, and keeps adapters everywhere alike.

A request goes to the replica that the router chooses. If that one is lost before the request had any output, it is sent to
another one, once; a request that had begun ends in ReplicaLost, because what its caller has seen cannot be taken back. Members
come from the directory, which is asked a few times a second and may be away.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import replace as replace_fields

from evenflow.base.errors import (
    AdapterExists,
    AdapterNotFound,
    EngineDead,
    EvenFlowError,
    ReplicaLost,
    ServerFull,
)
from evenflow.cluster.adapter_table import AdapterEntry, AdapterTable
from evenflow.cluster.directory import FrontWord, Member
from evenflow.cluster.frames import Report
from evenflow.cluster.front_directory import FrontDirectory
from evenflow.cluster.merged_stats import merge_adapters, merge_stats
from evenflow.cluster.minute_log import Charges
from evenflow.cluster.replica_door import expected_service
from evenflow.cluster.replica_link import ReplicaLink
from evenflow.routing.prefixes import prefix_blocks
from evenflow.routing.router import RoutedRequest, Router
from evenflow.routing.table import RoutingTable
from evenflow.serving.client.messages import (
    AdapterInfo,
    EngineStats,
    Ready,
    RequestOutput,
    SetWeights,
    Submit,
    SubmitAll,
    Usage,
)

log = logging.getLogger("evenflow.cluster")

SPEAK_S = 0.2
"""How often a front speaks to the directory."""
RECONNECT_S = 1.0
"""A replica that could not be reached is tried again after so long, if the directory still names it."""


class Fleet:
    """Implements serving.server.interfaces.Engine. Create and use inside one running event loop; ``start`` it once.

    ``on_table``: called when another front has changed which adapters there are. ``take_charges`` and ``hear_charges``: what
    this front has charged to clients' minutes since the last call, and what others have.
    """

    def __init__(self, directory: FrontDirectory, router: Router) -> None:
        self._directory = directory
        self._routes = RoutingTable(router)
        self._links: dict[str, ReplicaLink] = {}
        self._draining: set[ReplicaLink] = set()
        self._connecting: dict[str, asyncio.Task[None]] = {}
        self._unreachable: set[str] = set()
        self._table = AdapterTable()
        self._weights = SetWeights({})
        self._info: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
        self._end: asyncio.Future[EvenFlowError | None] = asyncio.get_running_loop().create_future()
        self._speaker: asyncio.Task[None] | None = None
        self.on_table: Callable[[], Awaitable[object]] | None = None
        self.take_charges: Callable[[], Charges] = dict
        self.hear_charges: Callable[[Charges], object] = lambda charges: None
        self._on_aborted: Callable[[str, Usage], object] = lambda request_id, usage: None
        self.num_retried = 0
        """Requests that were sent to a second replica because the first was lost."""

    def start(self) -> None:
        """Begin to look for replicas."""
        self._speaker = asyncio.create_task(self._speak())

    @property
    def is_alive(self) -> bool:
        """True until ``close``, or until the directory refuses this front: replicas come and go."""
        return not self._end.done()

    @property
    def trouble(self) -> str | None:
        """Why nothing can be served now; None: all is well."""
        if self._end.done():
            return str(self._end.result() or "the front is shutting down")
        return None if self._links else "no replica takes requests now"

    @property
    def is_ready(self) -> bool:
        """True once a replica was warm, until ``close``."""
        return self.is_alive and self._info.done()

    @property
    def info(self) -> Ready:
        """What the first replica said; all have the same settings."""
        return self._info.result()

    @property
    def stats(self) -> EngineStats:
        """All replicas' latest snapshots, added up."""
        return merge_stats([link.talk.stats for link in (*self._links.values(), *self._draining)])

    @property
    def replicas(self) -> tuple[str, ...]:
        """Names of those that take requests."""
        return tuple(self._links)

    async def wait_until_ready(self) -> Ready:
        """Wait for the first replica. Raises what ended the front before."""
        waiting: set[asyncio.Future[object]] = {self._info, self._end}  # type: ignore[arg-type]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if not self._info.done():
            raise self._end.result() or EngineDead("the front is shutting down")
        return self._info.result()

    async def wait_until_dead(self) -> EvenFlowError | None:
        """Wait for the end of this front; the reason, or None after ``close``."""
        return await asyncio.shield(self._end)

    def submit(self, submit: Submit) -> AsyncIterator[RequestOutput]:
        """Run one request somewhere; sent when the iterator is first read."""
        return self._outputs(submit)

    def submit_all(self, group: SubmitAll) -> list[AsyncIterator[RequestOutput]]:
        """Run several completions of one prompt; the router sees what they have in common."""
        return [self._outputs(submit) for submit in group.submits()]

    def hear_aborted(self, listener: Callable[[str, Usage], object]) -> None:
        """From now on, tell ``listener`` what each aborted request took, wherever it ran."""
        self._on_aborted = listener

    async def _outputs(self, submit: Submit) -> AsyncGenerator[RequestOutput, None]:
        blocks = prefix_blocks(submit.prompt_token_ids, submit.adapter, submit.cache_salt)
        routed = RoutedRequest(submit.adapter, expected_service(submit), blocks)
        tried: list[str] = []
        while True:
            link = self._choose(routed, tried)
            has_begun = False
            try:
                async with contextlib.aclosing(self._outputs_at(link, submit)) as outputs:
                    async for output in outputs:
                        has_begun = True
                        yield output
                return
            except ReplicaLost:
                if has_begun:
                    raise ReplicaLost("the replica that answered this request has ended; what came so far is not all") from None
                if tried:
                    raise
                tried.append(link.name)
                self.num_retried += 1
            finally:
                self._routes.ended(link.name, routed)

    async def _outputs_at(self, link: ReplicaLink, submit: Submit) -> AsyncGenerator[RequestOutput, None]:
        """Outputs at one replica. One that lacks an adapter of the table, because it has just come, is given it."""
        stream = link.talk.streams(submit)[0]
        try:
            async for output in stream:
                entry = self._table.entries.get(submit.adapter or "")
                if output.error_type != AdapterNotFound.__name__ or entry is None:
                    yield output
                    continue
                await self._load_at(link, submit.adapter or "", entry)
                stream = link.talk.streams(submit)[0]
                async for second in stream:
                    yield second
                return
        finally:
            await stream.aclose()

    def _choose(self, routed: RoutedRequest, tried: list[str]) -> ReplicaLink:
        name = self._routes.route(routed, tried)
        if name is None:
            raise ServerFull("no replica takes requests now", 1.0)
        return self._links[name]

    async def load_adapter(
        self,
        name: str,
        path: str,
        replace: bool = False,
        *,
        must_read: bool = False,
        boundary: str = "",
        client_id: str = "",
    ) -> list[AdapterInfo]:
        """Register the adapter at every replica; if one refuses it, at none. Raises what the first one refused it for."""
        before = self._table.entries.get(name)
        found = await self._everywhere(
            lambda link: link.talk.load_adapter(
                name, path, replace, must_read=must_read, boundary=boundary, client_id=client_id
            )
        )
        errors = [result for result in found.values() if isinstance(result, EvenFlowError)]
        refusals = [error for error in errors if not isinstance(error, ReplicaLost)]
        if refusals:
            if not replace and not any(isinstance(error, AdapterExists) for error in refusals):
                for link, result in found.items():
                    if not isinstance(result, EvenFlowError):
                        with contextlib.suppress(EvenFlowError):
                            await link.talk.unload_adapter(name)
            raise refusals[0]
        revision = 0 if before is None else before.revision + replace
        await self._change(name, AdapterEntry(path, boundary, revision=revision))
        return self._merged(found)

    async def combine_adapters(self, name: str, parts: Sequence[tuple[str, float]]) -> list[AdapterInfo]:
        """Register the weighted sum of registered adapters everywhere. Raises what the first replica refused it for."""
        found = await self._everywhere(lambda link: link.talk.combine_adapters(name, parts))
        refused = next((e for e in found.values() if isinstance(e, EvenFlowError) and not isinstance(e, ReplicaLost)), None)
        if refused is not None:
            raise refused
        await self._change(name, AdapterEntry("", parts=tuple((part, weight) for part, weight in parts)))
        return self._merged(found)

    async def unload_adapter(self, name: str, purge: bool = False) -> list[AdapterInfo]:
        """Forget it everywhere. Raises AdapterNotFound if no replica has it."""
        found = await self._everywhere(lambda link: link.talk.unload_adapter(name, purge))
        await self._change(name, None)
        return self._merged(found)

    async def pin_adapter(self, name: str, is_pinned: bool) -> list[AdapterInfo]:
        """Keep it in every arena, or let it be evicted again. Raises what a replica refused it for."""
        found = await self._everywhere(lambda link: link.talk.pin_adapter(name, is_pinned))
        refused = next((e for e in found.values() if isinstance(e, EvenFlowError) and not isinstance(e, ReplicaLost)), None)
        if refused is not None:
            raise refused
        entry = self._table.entries.get(name)
        if entry is not None:
            await self._change(name, replace_fields(entry, is_pinned=is_pinned))
        return self._merged(found)

    async def list_adapters(self) -> list[AdapterInfo]:
        """Every registered adapter, and those that still drain anywhere."""
        return self._merged(await self._everywhere(lambda link: link.talk.list_adapters()))

    async def set_weights(
        self,
        weight_by_client: Mapping[str, float],
        tier_by_client: Mapping[str, str] | None = None,
        weight_by_tier: Mapping[str, float] | None = None,
    ) -> None:
        """Replace own weights and tiers everywhere, also at replicas that come later."""
        self._weights = SetWeights(dict(weight_by_client), dict(tier_by_client or {}), dict(weight_by_tier or {}))
        for link in list(self._links.values()):
            with contextlib.suppress(ReplicaLost):
                await link.set_weights(self._weights)

    async def close(self) -> None:
        """Leave the replicas; what runs for this front ends. Idempotent."""
        if not self._end.done():
            self._end.set_result(None)
        tasks = [*self._connecting.values(), *([self._speaker] if self._speaker is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for link in [*self._links.values(), *self._draining]:
            await link.close()

    async def _everywhere(
        self, call: Callable[[ReplicaLink], Awaitable[list[AdapterInfo]]]
    ) -> dict[ReplicaLink, list[AdapterInfo] | EvenFlowError]:
        links = list(self._links.values())
        if not links:
            raise ServerFull("no replica takes requests now", 1.0)
        results = await asyncio.gather(*(call(link) for link in links), return_exceptions=True)
        found: dict[ReplicaLink, list[AdapterInfo] | EvenFlowError] = {}
        for link, result in zip(links, results, strict=True):
            if isinstance(result, BaseException) and not isinstance(result, EvenFlowError):
                raise result
            found[link] = result
        return found

    @staticmethod
    def _merged(found: Mapping[ReplicaLink, list[AdapterInfo] | EvenFlowError]) -> list[AdapterInfo]:
        """What those that answered said, as one; raises if nobody did."""
        tables = [result for result in found.values() if not isinstance(result, EvenFlowError)]
        if not tables:
            raise next(result for result in found.values() if isinstance(result, EvenFlowError))
        return merge_adapters(tables)

    @staticmethod
    async def _load_at(link: ReplicaLink, name: str, entry: AdapterEntry) -> None:
        with contextlib.suppress(AdapterExists):
            if entry.parts:
                await link.talk.combine_adapters(name, entry.parts)
            else:
                await link.talk.load_adapter(name, entry.path, boundary=entry.boundary)

    async def _change(self, name: str, entry: AdapterEntry | None) -> None:
        """Tell the directory; while it is away the change is kept here, and given to it later."""
        try:
            changed = await self._directory.change(name, entry, self._table.version)
            if changed is None:
                await self._directory.give(self._table)
                changed = await self._directory.change(name, entry, self._table.version)
        except ConnectionError:
            changed = None
        self._table = self._table.changed(name, entry) if changed is None else changed

    async def _speak(self) -> None:
        number, charges = 0, dict[tuple[str, str], int]()
        is_away = False
        while True:
            if not charges:
                charges, number = dict(self.take_charges()), number + 1
            try:
                word = await self._directory.front_speaks(self._table.version, charges, number)
                charges = {}
                self.hear_charges(word.charges)
                if word.wants_table:
                    await self._directory.give(self._table)
                if is_away:
                    log.warning("the directory is back")
                is_away = False
                await self._take(word)
            except ConnectionError as error:
                if not is_away:
                    log.warning("the directory is away (%s); going on with the replicas that are known", error)
                is_away = True
            except EvenFlowError as error:
                if not self._end.done():
                    self._end.set_result(error)
                return
            await asyncio.sleep(SPEAK_S)

    async def _take(self, word: FrontWord) -> None:
        self._unreachable &= {member.name for member in word.members}
        for member in word.members:
            if member.name not in self._links and member.name not in self._connecting and not self._is_draining(member.name):
                task = asyncio.create_task(self._connect(member))
                self._connecting[member.name] = task
        if word.table is not None and word.table.version > self._table.version:
            self._table = word.table
            if self.on_table is not None and self._links:
                with contextlib.suppress(EvenFlowError):
                    await self.on_table()

    def _is_draining(self, name: str) -> bool:
        return any(link.name == name for link in self._draining)

    async def _connect(self, member: Member) -> None:
        try:
            link = await ReplicaLink.connect(member.name, member.host, member.port, self._reported, self._lost)
            await link.set_weights(self._weights)
        except EvenFlowError as error:
            if member.name not in self._unreachable:  # once: the directory names it until it is silent for long
                log.warning("%s", error)
            self._unreachable.add(member.name)
            await asyncio.sleep(RECONNECT_S)
            return
        finally:
            self._connecting.pop(member.name, None)
        self._unreachable.discard(member.name)
        log.info("replica %s takes requests", member.name)
        link.talk.on_aborted = lambda request_id, usage: self._on_aborted(request_id, usage)
        self._links[member.name] = link
        self._routes.joined(member.name)
        if not self._info.done():
            self._info.set_result(link.talk.ready.result())
        if link.is_draining:
            self._leave(link)

    def _reported(self, link: ReplicaLink, report: Report | None) -> None:
        if report is None:
            self._routes.resident(link.name, [each.name for each in link.talk.stats.adapters.values() if each.is_resident])
        elif report.is_draining:
            self._leave(link)
        else:
            self._routes.foreign(link.name, report.foreign_load)

    def _leave(self, link: ReplicaLink) -> None:
        """Send nothing more there; what runs goes on."""
        if self._links.get(link.name) is link:
            log.info("replica %s drains", link.name)
            del self._links[link.name]
            self._routes.left(link.name)
            self._draining.add(link)

    def _lost(self, link: ReplicaLink) -> None:
        was_member = self._links.get(link.name) is link
        if was_member:
            del self._links[link.name]
            self._routes.left(link.name)
            log.warning("replica %s is lost", link.name)
        self._draining.discard(link)
