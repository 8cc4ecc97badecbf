"""How a case is measured: saturated, by the clock, on a fixed set of requests, by what memory holds, or per operator.

A method makes what it needs in the measuring process and returns one sample: a flat mapping of names to numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from evenflow.base.errors import ConfigError, EvenFlowError
from evenflow.base.memory_size import parse_size
from evenflow.bench.harness import JsonProcess
from evenflow.bench.lora.settings import model_folder, model_words, setting
from evenflow.bench.lora.suites import Case

Sample = dict[str, Any]

MAX_MODEL_LEN = 1024
STEPS_PER_SAMPLE = 24
WARM_STEPS = 32
FIXED_REQUESTS, FIXED_INPUT, FIXED_OUTPUT = 16, 64, 48


class Measuring:
    """The measuring process: calls that raise what it answers."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._process = JsonProcess("evenflow.bench.lora.measuring_process", environment=environment)
        self.threads = self._process.ready["threads"]
        self.runs: set[str] = set()

    def __call__(self, method: str, /, **arguments: Any) -> dict[str, Any]:
        """Call one of the process's methods. Raises ConfigError with its error."""
        answer = self._process.ask({"do": method, **arguments})
        if "error" in answer:
            raise ConfigError(answer["error"]) if answer["kind"] == "ConfigError" else EvenFlowError(answer["error"])
        return answer

    def close(self) -> None:
        """End it. Idempotent."""
        self._process.close()


class Method(Protocol):
    """One method of measuring, by which every case of a suite is measured."""

    can_use_peers: bool

    def sample(self, measuring: Measuring, case: Case, variant: str, round_number: int) -> Sample | None:
        """Measure once. None: the case does not exist for this variant."""
        ...

    def close(self) -> None:
        """Give back what it holds. Idempotent."""
        ...


def make_run(measuring: Measuring, case: Case, variant: str) -> str:
    """A run for the case, its arena holding as many of its adapters as fit."""
    name = f"{case.label}|{variant}"
    arena = {"memory_bytes": parse_size(case.memory), "max_model_len": MAX_MODEL_LEN}
    measuring("make_run", name=name, variant=variant, policy=case.policy, shed=case.shed, **arena)
    measuring("fill", name=name, num_adapters=case.point.num_adapters)
    return name


class Saturated:
    """Requests without end: every sample is the next steps of a run that keeps running."""

    can_use_peers = False

    def sample(self, measuring: Measuring, case: Case, variant: str, round_number: int) -> Sample | None:
        """See Method."""
        name = f"{case.label}|{variant}"
        if name not in measuring.runs:
            make_run(measuring, case, variant)
            if "batch" in case.settings:
                adapters = [str(number) for number in case.settings["batch"]]
                measuring("hold", name=name, adapters=adapters, output_len=MAX_MODEL_LEN - 16)
            else:
                only = case.settings.get("adapter")
                measuring("saturate", name=name, point=asdict(case.point), seed=round_number, adapter=only)
            measuring("advance", name=name, num_steps=WARM_STEPS)
            measuring.runs.add(name)
        return measuring("advance", name=name, num_steps=STEPS_PER_SAMPLE)

    def close(self) -> None:
        """Runs end with the measuring process."""


class ByTheClock:
    """The case's requests at their times, to the last token, by a run of its own. Another round is another seed."""

    can_use_peers = False

    def sample(self, measuring: Measuring, case: Case, variant: str, round_number: int) -> Sample | None:
        """See Method."""
        name = make_run(measuring, case, variant)
        try:
            return measuring("serve", name=name, point=asdict(case.point), seed=round_number)
        finally:
            measuring("drop", name=name)

    def close(self) -> None:
        """Nothing is kept."""


class FixedSet:
    """Equal requests, all there at once, adapters in turn: what other engines can serve too."""

    can_use_peers = True

    def __init__(self, setting_name: str, cache_dir: Path, dtype: str) -> None:
        self._setting, self._cache_dir = setting(setting_name), cache_dir
        self._words = model_words(setting_name)
        # Peers have no float32 form here, and read any model folder that there is.
        self._model = model_folder(cache_dir, setting_name, "bfloat16" if dtype == "auto" else dtype)
        self._peer: JsonProcess | None = None
        self._num_peer_adapters = 0

    def sample(self, measuring: Measuring, case: Case, variant: str, round_number: int) -> Sample | None:
        """See Method."""
        count = case.point.num_adapters
        names = [str(i % count) for i in range(FIXED_REQUESTS)]
        if variant in ("peft", "peft-names"):
            return self._ask_peer(names, is_mixed=variant == "peft-names")
        name = f"{case.label}|{variant}"
        rows = [(FIXED_INPUT, FIXED_OUTPUT, adapter) for adapter in names]
        if name not in measuring.runs:
            make_run(measuring, case, variant)
            measuring("drain", name=name, rows=rows)
            measuring.runs.add(name)
        return measuring("drain", name=name, rows=rows)

    def close(self) -> None:
        """End the peer."""
        if self._peer is not None:
            self._peer.close()
            self._peer = None

    def _ask_peer(self, names: list[str], *, is_mixed: bool) -> Sample:
        """Static batches of at most 16: as they come, or one adapter after the other."""
        known = len(set(names))
        if self._peer is None or self._num_peer_adapters < known:
            self.close()
            specs = [f"{i}={self._peft_folder(i)}" for i in range(known)]
            self._peer = JsonProcess("evenflow.bench.peers.transformers_peft", str(self._model), *specs)
            self._num_peer_adapters = known
            self._run_batches(names, is_mixed=is_mixed)
        return {"seconds": self._run_batches(names, is_mixed=is_mixed), "output_tokens": len(names) * FIXED_OUTPUT}

    def _run_batches(self, names: list[str], *, is_mixed: bool) -> float:
        assert self._peer is not None
        groups = [names] if is_mixed else [[name] * names.count(name) for name in dict.fromkeys(names)]
        vocab, seconds = self._setting.shape.vocab_size, 0.0
        for group in groups:
            for first in range(0, len(group), 16):
                batch = group[first : first + 16]
                prompts = [[(7919 * r + 104_729 * i) % vocab for i in range(FIXED_INPUT)] for r in range(len(batch))]
                question = {"prompts": prompts, "max_tokens": FIXED_OUTPUT, "adapters": batch}
                seconds += self._peer.ask(question)["seconds"]
        return seconds

    def _peft_folder(self, number: int) -> Path:
        """A PEFT adapter of the setting's rank, made once."""
        from evenflow.serving.adapters.peft_format import WEIGHTS_FILE
        from evenflow.serving.models.model_config import parse_config
        from evenflow.serving.models.random.random_adapter import make_adapter

        lora_rank = self._setting.lora_ranks[number % len(self._setting.lora_ranks)]
        folder = self._cache_dir / f"peft-{self._model.name}" / f"{number}-r{lora_rank}"
        if not (folder / WEIGHTS_FILE).exists():
            make_adapter(
                folder,
                parse_config(self._words),
                lora_rank=lora_rank,
                target_modules=self._setting.targets,
                strength=0.01,
                seed=number,
            )
        return folder


class Footprint:
    """What the arena and the process hold once the case's adapters are resident and some requests have run."""

    can_use_peers = False

    def sample(self, measuring: Measuring, case: Case, variant: str, round_number: int) -> Sample | None:
        """See Method."""
        before = measuring("process")["anonymous_bytes"]
        name = make_run(measuring, case, variant)
        rows = [(FIXED_INPUT, 4, str(i)) for i in range(case.point.num_adapters)]
        measuring("drain", name=name, rows=rows)
        held = measuring("memory", name=name)
        measuring("drop", name=name)
        return {**held, "anonymous_before_bytes": before, "arena_bytes": held["num_pages"] * held["page_bytes"]}

    def close(self) -> None:
        """Nothing is kept."""


class Operators:
    """LoRA of one site and layer; all variants at once, so that the first one asked for answers for all."""

    can_use_peers = False

    def __init__(self) -> None:
        self._measured: dict[str, dict[str, Any]] = {}

    def sample(self, measuring: Measuring, case: Case, variant: str, round_number: int) -> Sample | None:
        """See Method."""
        if case.label not in self._measured:
            settings = {**case.settings, "adapters": case.point.num_adapters}
            self._measured[case.label] = measuring("operators", case=settings, repeats=20)
        measured = self._measured[case.label]
        return {"seconds_all": measured["seconds"][variant], "bytes": measured["bytes"]}

    def close(self) -> None:
        """Nothing is kept."""


__all__ = ["ByTheClock", "FixedSet", "Footprint", "Measuring", "Method", "Operators", "Sample", "Saturated"]
