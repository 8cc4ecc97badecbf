"""Two real engines behind one fleet, without Ray: the same tokens as one engine gives, and one of them is killed."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal

import pytest

from evenflow.base.errors import ReplicaLost
from evenflow.cluster.directory import Directory, Member
from evenflow.cluster.fleet import Fleet
from evenflow.cluster.replica_door import ReplicaDoor
from evenflow.demo.assets import adapter_paths, model_path
from evenflow.routing.registry import create_router
from evenflow.serving.client.engine_client import EngineClient
from evenflow.serving.client.messages import Submit
from evenflow.serving.config.engine_config import EngineConfig
from evenflow.serving.core.sampling import SamplingParams

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess]


class Here:
    """The directory, for a front in this process."""

    def __init__(self, directory: Directory) -> None:
        self.directory = directory

    async def front_speaks(self, table_version, charges, number):
        return self.directory.front_speaks("front", "", "1", table_version, charges, number, 0.0)

    async def give(self, table):
        self.directory.give(table)

    async def change(self, name, entry, known_version):
        return self.directory.change(name, entry, known_version)


def test_two_engines_answer_as_one_and_one_may_die():
    ids = itertools.count()

    def asked(tokens: int = 24, adapter: str | None = None) -> Submit:
        sampling = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)
        return Submit(f"q{next(ids)}", "c", [5, 6, 7, 8], sampling, adapter)

    async def main() -> None:
        directory = Directory("1")
        config = EngineConfig(model=model_path(), memory_bytes=48 << 20, num_threads=1)
        engines = [EngineClient(config) for _ in range(2)]
        doors = [ReplicaDoor(engine) for engine in engines]
        for i, (engine, door) in enumerate(zip(engines, doors)):
            await engine.wait_until_ready()
            host, port = await door.open("127.0.0.1")
            directory.replica_speaks(Member(f"r{i}", host, port), f"r{i}", "1", 0, 0.0)
        fleet = Fleet(Here(directory), create_router("least-loaded"))
        fleet.start()
        try:
            await fleet.wait_until_ready()
            while len(fleet.replicas) < 2:
                await asyncio.sleep(0.02)
            name, folder = next(iter(adapter_paths().items()))
            await fleet.load_adapter(name, str(folder))

            async def tokens(submit: Submit) -> list[int]:
                return [token async for output in fleet.submit(submit) for token in output.token_ids]

            for adapter in (None, name):
                answers = await asyncio.gather(*(tokens(asked(24, adapter)) for _ in range(12)))
                assert len({tuple(answer) for answer in answers}) == 1
                assert len(answers[0]) == 24
            while fleet.stats.num_adapters < 1 or fleet.stats.num_running:  # both have told of their adapter, and are idle
                await asyncio.sleep(0.05)
            reference = await tokens(asked(200))
            stream = fleet.submit(asked(200))
            begun = [(await anext(stream)).token_ids]
            others = [asyncio.create_task(tokens(asked(200))) for _ in range(12)]
            await asyncio.sleep(0.05)
            where = next(i for i, door in enumerate(doors) if stream_is_at(door))
            os.kill(engines[where].process.pid, signal.SIGKILL)
            with contextlib.suppress(ReplicaLost):
                async for output in stream:
                    begun.append(output.token_ids)
            flat = [token for part in begun for token in part]
            assert flat == reference[: len(flat)], "what was told before was right"
            ends = await asyncio.gather(*others, return_exceptions=True)
            wrong = [end for end in ends if end != reference and not isinstance(end, ReplicaLost)]
            assert wrong == [], reference
            assert any(end == reference for end in ends)
            assert len(fleet.replicas) == 1
            assert await tokens(asked(200)) == reference
        finally:
            await fleet.close()
            for door, engine in zip(doors, engines):
                await door.close()
                await engine.close()

    def stream_is_at(door: ReplicaDoor) -> bool:
        return door.num_streams > 0

    asyncio.run(asyncio.wait_for(main(), 120))
