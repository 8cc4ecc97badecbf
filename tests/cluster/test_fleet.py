"""A front and its replicas over real connections, with a directory in this process: routed, retried, drained, kept alike."""

from __future__ import annotations

import asyncio
import contextlib
import itertools

import pytest
from server_fakes import FakeEngine, make_adapter

from evenflow.base.errors import (
    AdapterNotFound,
    AdapterRejected,
    ConfigError,
    EngineDead,
    EvenFlowError,
    ReplicaLost,
    ServerFull,
)
from evenflow.cluster.adapter_table import AdapterEntry, AdapterTable, change_between
from evenflow.cluster.directory import Directory, Member
from evenflow.cluster.fleet import Fleet
from evenflow.cluster.replica_door import ReplicaDoor
from evenflow.cluster.replica_member import ReplicaMember
from evenflow.routing.registry import create_router
from evenflow.serving.client.conversation import Conversation
from evenflow.serving.client.messages import Submit, SubmitAll, Usage
from evenflow.serving.core.sampling import SamplingParams

NUMBERS = itertools.count()


class LocalDirectory:
    """The directory without a cluster; may be away."""

    def __init__(self, name: str, directory: Directory, version: str = "1") -> None:
        self.name, self.directory, self.version = name, directory, version
        self.is_away = False

    def reached(self) -> Directory:
        if self.is_away:
            raise ConnectionError("away")
        return self.directory

    async def replica_speaks(self, member, table_version):
        return self.reached().replica_speaks(member, self.name, self.version, table_version, 0.0)

    async def front_speaks(self, table_version, charges, number):
        return self.reached().front_speaks(self.name, "", self.version, table_version, charges, number, 0.0)

    async def give(self, table):
        self.reached().give(table)

    async def change(self, name, entry, known_version):
        return self.reached().change(name, entry, known_version)


class RelayedFake(FakeEngine):
    """The stand-in, passing outputs on as an engine client does."""

    def __init__(self) -> None:
        super().__init__()
        self.tasks = {}

    async def relay(self, message, sinks):
        streams = [self.submit(message)] if isinstance(message, Submit) else self.submit_all(message)
        for (request_id, sink), stream in zip(sinks.items(), streams):
            self.tasks[request_id] = asyncio.create_task(self._pump(sink, stream))

    def forget(self, request_id, *, is_running):
        task = self.tasks.pop(request_id, None)
        if task is not None and is_running:
            task.cancel()
            self.on_aborted(request_id, Usage(1, 2, service=3.0))

    @staticmethod
    async def _pump(sink, stream):
        try:
            async with contextlib.aclosing(stream):
                async for output in stream:
                    sink.put_nowait(output)
        except EvenFlowError as error:
            sink.put_nowait(error)


class Replica:
    """A stand-in engine behind a real door."""

    def __init__(self, name: str, directory: Directory) -> None:
        self.name = name
        self.engine = RelayedFake()
        self.door = ReplicaDoor(self.engine)
        self.directory = LocalDirectory(name, directory)

    async def start(self) -> None:
        host, port = await self.door.open("127.0.0.1")
        self.member = ReplicaMember(self.engine, self.directory, Member(self.name, host, port))
        await self.member.join()

    async def crash(self) -> None:
        """As SIGKILL: connections break, nobody says anything."""
        self.member._speaker.cancel()
        self.directory.directory._members.pop(self.name, None)
        self.door._listener.close()
        self.door._reporter.cancel()
        for front in list(self.door._fronts):
            front.writer.transport.abort()
        await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def a_fleet(num_replicas=2, router="affinity"):
    directory = Directory("1")
    replicas = [Replica(f"r{i}", directory) for i in range(num_replicas)]
    for replica in replicas:
        await replica.start()
    fleet = Fleet(LocalDirectory("front", directory), create_router(router))
    fleet.start()
    async with asyncio.timeout(10):
        await fleet.wait_until_ready()
        while len(fleet.replicas) < num_replicas:
            await asyncio.sleep(0.01)
    try:
        yield fleet, replicas
    finally:
        await fleet.close()
        for replica in replicas:
            replica.engine.gate.set()
            await replica.member.leave()
            await replica.door.close()


def a_submit(text="hello", adapter=None, **sampling) -> Submit:
    return Submit(f"q{next(NUMBERS)}", "c", list(text.encode()), SamplingParams(**sampling), adapter)


async def text_of(outputs) -> str:
    return "".join([output.text async for output in outputs])


def run(coroutine):
    async def bounded():
        async with asyncio.timeout(20):
            return await coroutine

    return asyncio.run(bounded())


def test_requests_are_answered_as_by_one_engine_and_by_all_of_them():
    async def main():
        async with a_fleet(3, "least-loaded") as (fleet, replicas):
            submits = [a_submit(f"text {i}") for i in range(30)]
            submits[0].traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
            texts = await asyncio.gather(*(text_of(fleet.submit(submit)) for submit in submits))
            assert texts == [f"[base] text {i}" for i in range(30)]
            assert all(len(replica.engine.submitted) >= 5 for replica in replicas)
            sent = {submit.request_id: submit.traceparent for replica in replicas for submit in replica.engine.submitted}
            assert sent == {submit.request_id: submit.traceparent for submit in submits}, "a trace goes along with its request"
            group = SubmitAll(a_submit("several"), [(f"q{next(NUMBERS)}", None) for _ in range(2)])
            assert [await text_of(stream) for stream in fleet.submit_all(group)] == ["[base] several"] * 3
            assert fleet.trouble is None

    run(main())


def test_who_leaves_is_aborted_where_it_runs():
    async def main():
        async with a_fleet(2) as (fleet, replicas):
            told = []
            fleet.hear_aborted(lambda request_id, usage: told.append((request_id, usage.service)))
            for replica in replicas:
                replica.engine.step_s = 0.01
            stream = fleet.submit(submit := a_submit("a long text"))
            assert (await anext(stream)).text == "["
            await stream.aclose()
            while not any(replica.engine.aborted for replica in replicas):
                await asyncio.sleep(0.01)
            assert [replica.engine.aborted for replica in replicas if replica.engine.aborted] == [[submit.request_id]]
            while not told:
                await asyncio.sleep(0.01)
            assert told == [(submit.request_id, 3.0)]
            unread = fleet.submit(a_submit("never read"))
            await unread.aclose()
            assert sum(len(replica.engine.submitted) for replica in replicas) == 1

    run(main())


def test_what_was_not_begun_is_answered_elsewhere_once_and_what_was_begun_ends_in_an_error():
    async def main():
        async with a_fleet(2, "least-loaded") as (fleet, replicas):
            for replica in replicas:
                replica.engine.gate.clear()
            waiting = [asyncio.create_task(text_of(fleet.submit(a_submit(f"w{i}")))) for i in range(12)]
            while sum(len(replica.engine.submitted) for replica in replicas) < 12:
                await asyncio.sleep(0.01)
            first, second = replicas
            num_there = len(first.engine.submitted)
            await first.crash()
            second.engine.gate.set()
            assert await asyncio.gather(*waiting) == [f"[base] w{i}" for i in range(12)]
            assert fleet.num_retried == num_there > 0
            ids = [s.request_id for s in second.engine.submitted]
            assert len(ids) == len(set(ids)) == 12, "nothing was sent there twice"
            second.engine.step_s = 0.02
            stream = fleet.submit(a_submit("begun"))
            await anext(stream)
            await second.crash()
            with pytest.raises(ReplicaLost, match="what came so far is not all"):
                await text_of(stream)
            with pytest.raises(ServerFull, match="no replica"):
                await text_of(fleet.submit(a_submit("nobody is left")))
            assert fleet.trouble == "no replica takes requests now"
            late = Replica("r9", first.directory.directory)
            await late.start()
            replicas.append(late)
            while not fleet.replicas:
                await asyncio.sleep(0.01)
            assert await text_of(fleet.submit(a_submit("back"))) == "[base] back"

    run(main())


def test_an_engine_that_dies_in_a_replica_that_lives_is_left_and_not_returned_to():
    async def main():
        async with a_fleet(2, "least-loaded") as (fleet, replicas):
            for replica in replicas:
                replica.engine.gate.clear()
            waiting = [asyncio.create_task(text_of(fleet.submit(a_submit(f"w{i}")))) for i in range(12)]
            while sum(len(replica.engine.submitted) for replica in replicas) < 12:
                await asyncio.sleep(0.01)
            replicas[0].engine.die()
            while len(fleet.replicas) > 1:
                await asyncio.sleep(0.01)
            replicas[1].engine.gate.set()
            assert await asyncio.gather(*waiting) == [f"[base] w{i}" for i in range(12)]
            await asyncio.sleep(0.5)  # the directory still names it
            assert fleet.replicas == ("r1",)

    run(main())


def test_a_dying_engine_tells_every_sink_although_each_forgets_itself():
    async def main():
        async def sent(message):
            return None

        talk = Conversation(sent, lambda message: None)
        errors = []

        class Forgetful:
            def __init__(self, name):
                self.name = name

            def put_nowait(self, item):
                errors.append((self.name, type(item)))
                talk.forget(self.name, is_running=False)

        group = SubmitAll(a_submit(), [("other", None)])
        await talk.relay(group, {submit.request_id: Forgetful(submit.request_id) for submit in group.submits()})
        talk.end(EngineDead("gone"))
        assert errors == [(submit.request_id, EngineDead) for submit in group.submits()]
        with pytest.raises(EngineDead):
            await talk.relay(group, {})

    run(main())


def test_a_replica_that_drains_ends_its_streams_and_gets_no_more():
    async def main():
        async with a_fleet(2) as (fleet, replicas):
            for replica in replicas:
                replica.engine.step_s = 0.01
            streams = [fleet.submit(a_submit(f"stream {i}")) for i in range(6)]
            for stream in streams:
                await anext(stream)
            leaving = replicas[0]
            before = len(leaving.engine.submitted)
            reading = [asyncio.create_task(text_of(stream)) for stream in streams]
            await leaving.member.leave()
            assert await leaving.door.drain(5.0)
            await leaving.door.close()
            assert [await task for task in reading] == [f"base] stream {i}" for i in range(6)]
            assert fleet.replicas == ("r1",)
            for i in range(4):
                assert await text_of(fleet.submit(a_submit(f"after {i}"))) == f"[base] after {i}"
            assert len(leaving.engine.submitted) == before

    run(main())


def test_adapters_are_alike_everywhere_and_with_those_that_come(tmp_path):
    async def main():
        async with a_fleet(2) as (fleet, replicas):
            path = str(make_adapter(tmp_path, "one", "one"))
            await fleet.load_adapter("x", path)
            await fleet.load_adapter("y", path)
            await fleet.pin_adapter("x", True)
            assert [sorted(replica.engine.infos) for replica in replicas] == [["x", "y"]] * 2
            late = Replica("late", replicas[0].directory.directory)
            await late.start()
            replicas.append(late)
            assert sorted(late.engine.infos) == ["x", "y"]
            assert late.engine.infos["x"].is_pinned
            while len(fleet.replicas) < 3:
                await asyncio.sleep(0.01)
            before = {replica.name: replica.engine.infos["x"].digest for replica in replicas}
            await fleet.load_adapter("x", str(make_adapter(tmp_path, "two", "two")), replace=True, must_read=True)
            assert all(replica.engine.infos["x"].digest != before[replica.name] for replica in replicas)
            await fleet.unload_adapter("y")
            assert [info.name for info in await fleet.list_adapters()] == ["x"]
            with pytest.raises(AdapterNotFound):
                await fleet.unload_adapter("y")
            with pytest.raises(AdapterRejected):
                await fleet.load_adapter("z", str(make_adapter(tmp_path, "bad", "bad")))
            assert "z" not in fleet._table.entries
            late.engine.infos.clear()  # as one that has just come and was not told yet
            for _ in range(9):
                assert await text_of(fleet.submit(a_submit("q", "x"))) == "[x] q"

    run(main())


def test_a_weighted_sum_is_made_everywhere_and_where_it_is_missing(tmp_path):
    async def main():
        async with a_fleet(2) as (fleet, replicas):
            await fleet.load_adapter("x", str(make_adapter(tmp_path, "one", "one")))
            await fleet.combine_adapters("both", [("x", 0.5)])
            late = Replica("late", replicas[0].directory.directory)
            await late.start()
            replicas.append(late)
            assert [replica.engine.combined for replica in replicas] == [[[("x", 0.5)]]] * 3

    run(main())


def test_the_adapters_of_the_start_are_given_once_and_not_again_after_a_change(tmp_path):
    async def main():
        directory = Directory("1")
        initial = {"x": AdapterEntry(str(make_adapter(tmp_path, "one", "one")))}
        engines = [FakeEngine() for _ in range(3)]
        members = [
            ReplicaMember(e, LocalDirectory(f"r{i}", directory), Member(f"r{i}", "", 1), initial) for i, e in enumerate(engines)
        ]
        await asyncio.gather(*(member.join() for member in members[:2]))
        directory.change("x", None, 1)
        await members[2].join()
        assert [sorted(engine.infos) for engine in engines] == [["x"], ["x"], []]
        for member in members:
            await member.leave()
        broken = {"z": AdapterEntry(str(make_adapter(tmp_path, "bad", "bad")))}
        with pytest.raises(AdapterRejected):
            await ReplicaMember(FakeEngine(), LocalDirectory("r", Directory("1")), Member("r", "", 1), broken).join()

    run(main())


def test_a_directory_that_was_lost_is_filled_again_and_missed_by_nobody(tmp_path):
    async def main():
        async with a_fleet(2) as (fleet, replicas):
            members = [fleet._directory, *(replica.directory for replica in replicas)]
            await fleet.load_adapter("x", str(make_adapter(tmp_path, "one", "one")))
            for member in members:
                member.is_away = True
            assert await text_of(fleet.submit(a_submit("alone", "x"))) == "[x] alone"
            await fleet.load_adapter("y", str(make_adapter(tmp_path, "two", "two")))
            empty = Directory("1")
            for member in members:
                member.directory, member.is_away = empty, False
            while empty._table != fleet._table or len(empty.members(0.0)) < 2:
                await asyncio.sleep(0.02)
            assert sorted(empty._table.entries) == ["x", "y"]
            late = Replica("late", empty)
            await late.start()
            replicas.append(late)
            assert sorted(late.engine.infos) == ["x", "y"]

    run(main())


def test_another_version_is_refused_in_one_sentence():
    async def main():
        directory = Directory("1")
        fleet = Fleet(LocalDirectory("front", directory, "2"), create_router("random"))
        fleet.start()
        with pytest.raises(ConfigError, match=r"front runs EvenFlow 2 and this deployment 1; install the same version"):
            await fleet.wait_until_ready()
        assert isinstance(await fleet.wait_until_dead(), ConfigError)
        await fleet.close()

    run(main())


def test_a_table_knows_what_changes():
    first = AdapterTable().changed("a", AdapterEntry("/a")).changed("b", AdapterEntry("/b", is_pinned=True))
    assert (first.version, first.changed("a", AdapterEntry("/a"))) == (2, first)
    second = first.changed("a", None).changed("b", AdapterEntry("/b", revision=1, is_pinned=True))
    change = change_between(first, second.changed("c", AdapterEntry("/c")))
    assert change.unload == ("a",)
    assert set(change.load) == {"c"}
    assert set(change.replace) == {"b"}
    assert change.pin == {"b": True}
