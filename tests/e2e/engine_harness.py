"""A whole engine in the test's own process: real model, kernels, arena, scheduler and text."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from pathlib import Path

from evenflow.serving.client.messages import RequestOutput, Submit
from evenflow.serving.config.engine_config import EngineConfig
from evenflow.serving.core.sampling import SamplingParams
from evenflow.serving.engine.build import build_engine


@dataclass
class Answer:
    token_ids: list[int]
    text: str
    last: RequestOutput


class EngineHarness:
    """Submit, step until quiet, collect. ``check_integrity`` after every ``check_every`` steps."""

    def __init__(self, model: Path, adapters: dict[str, Path] | None = None, *, check_every: int = 1, **settings):
        self._check_every = check_every
        self._num_steps = 0
        self.engine = build_engine(EngineConfig(model=model, **{"dtype": "float32", "memory_bytes": 8 << 20, **settings}))
        self.scheduler = self.engine._scheduler
        self.answers: dict[str, Answer] = {}
        self._ids = count()
        for name, path in (adapters or {}).items():
            self.load(name, path)

    def load(self, name: str, path: Path, *, replace: bool = False) -> None:
        self.engine.register_adapter(name, self.engine.catalog.prepare(path), replace=replace)

    def submit(self, prompt: list[int], adapter: str | None = None, client: str = "c", salt: str = "", **sampling) -> str:
        params = SamplingParams(**{"temperature": 0.0, "max_tokens": 8, "ignore_eos": True, **sampling})
        request_id = f"r{next(self._ids)}"
        refusal = self.engine.submit(Submit(request_id, client, prompt, params, adapter, cache_salt=salt))
        self.answers[request_id] = Answer([], "", refusal or RequestOutput(request_id))
        return request_id

    def step(self) -> None:
        for output in self.engine.step():
            answer = self.answers[output.request_id]
            answer.token_ids += output.token_ids
            answer.text += output.text
            answer.last = output
        self._num_steps += 1
        if self._num_steps % self._check_every == 0:
            self.scheduler.check_integrity()
            self.engine.catalog.check_integrity()

    def run(self) -> None:
        while self.engine.has_work:
            self.step()

    def generate(self, *requests: tuple[list[int], str | None], **sampling) -> list[list[int]]:
        """All at once; token ids in the order of the requests."""
        request_ids = [self.submit(prompt, adapter, **sampling) for prompt, adapter in requests]
        self.run()
        return [self.answers[request_id].token_ids for request_id in request_ids]

    def assert_nothing_leaked(self) -> None:
        """Every page is free, owned by a resident adapter, or kept by the prefix cache for nobody in particular."""
        snapshot = self.scheduler.snapshot()
        assert snapshot.num_kv_pages == 0
        assert snapshot.num_free_pages + snapshot.num_adapter_pages + snapshot.num_idle_cache_pages == snapshot.num_pages
