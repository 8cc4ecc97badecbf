"""``evenflow demo``: one base model, over a thousand adapters, four clients; ``fcfs`` first, then ``fair``.

Starts the real server on the embedded model once per policy, lets one greedy client flood it while three quiet ones
chat, and tells what each got: a table, sample answers of the trained adapters, and a report page.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from evenflow.base.errors import ConfigError
from evenflow.bench.load.server_process import ServerProcess, terminated_as_interrupted
from evenflow.demo.assets import random_adapter
from evenflow.demo.clients import ClientPlan
from evenflow.demo.contest import Round, play_round
from evenflow.demo.present import BASE_VOICE, Sample, headline, report_page, result_table, sample_lines
from evenflow.demo.stage import Stage, embedded_stage
from evenflow.serving.models.model_config import load_config

Tell = Callable[[str, float], None]
"""Called with what is going on and how far it is, from 0 to 1."""

POLICIES = ("fcfs", "fair")
_READY_TIMEOUT_S = 300.0
"""Kernels are compiled on a first start: seconds on an idle machine, minutes on a crowded one."""
_RANKS = (4, 8, 2)
_SAMPLES_SHOWN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """What may be changed. Raises ConfigError, naming the field, for a value outside its range."""

    report: Path
    num_adapters: int = 1000
    """Random adapters beside the trained ones."""
    seconds: float = 25.0
    """Length of each round."""
    greedy: int = 64
    """Requests the greedy client keeps in flight."""
    max_num_seqs: int = 16
    stage: Stage = field(default_factory=embedded_stage)
    """Model, trained adapters and questions."""

    def __post_init__(self) -> None:
        def check(ok: bool, name: str, allowed: str) -> None:
            if not ok:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; allowed: {allowed}")

        check(0 <= self.num_adapters <= 100_000, "num_adapters", "0 to 100,000")
        check(1 <= self.seconds <= 3600, "seconds", "1 to 3600")
        check(1 <= self.greedy <= 1000, "greedy", "1 to 1000")
        check(not self.report.is_dir(), "report", "a file")


def client_plans(adapters: list[str], greedy: int, stage: Stage) -> list[ClientPlan]:
    """Return the four clients, the greedy one first; every client's requests are spread over many adapters."""
    quarter = max(1, len(adapters) // 4)
    own = [tuple(adapters[i * quarter : (i + 1) * quarter]) for i in range(4)]
    trained = list(stage.adapters)
    voices_of = [tuple(trained[i::3]) or (BASE_VOICE,) for i in range(3)]
    quiet = [
        ("anna", voices_of[0], 2, 0.10, own[1]),
        ("ben", voices_of[2], 3, 0.15, own[2]),
        ("cleo", voices_of[1], 4, 0.20, own[3]),
    ]
    plans = [
        ClientPlan(
            name="greedy",
            habit=f"keeps {greedy} requests of 64 to 128 tokens in flight, over {max(1, len(adapters)):,} adapters",
            concurrency=greedy,
            pause_s=0.0,
            starts_s=0.0,
            adapters=tuple(adapters) or (BASE_VOICE,),
            page_tokens=(64, 128),
            beginnings=stage.beginnings,
        )
    ]
    for name, voices, people, pause_s, others in quiet:
        # As many entries for the trained voices as for the others, so that half of the requests go to them.
        share = max(1, len(others) // len(voices))
        plans.append(
            ClientPlan(
                name=name,
                habit=f"{people} people chatting: short questions, one after the other",
                concurrency=people,
                pause_s=pause_s,
                starts_s=1.0,
                adapters=voices * share + others,
                questions=stage.questions,
            )
        )
    return plans


async def _ask(http: httpx.AsyncClient, model: str, prompt: str) -> str:
    body = {"model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": 96, "temperature": 0.0}
    response = await http.post("/v1/chat/completions", json=body)
    response.raise_for_status()
    text: str = response.json()["choices"][0]["message"]["content"]
    return text


async def take_samples(http: httpx.AsyncClient, voices: list[str], prompts: Sequence[str]) -> list[Sample]:
    """Ask every voice every example prompt, all at once."""
    answers = await asyncio.gather(*(_ask(http, voice, prompt) for prompt in prompts for voice in voices))
    found = iter(answers)
    return [Sample(prompt, {voice: next(found) for voice in voices}) for prompt in prompts]


def run_demo(options: DemoOptions, console: Console) -> int:
    """Run the whole demo; return the exit status. Raises ConfigError, and KeyboardInterrupt after cleaning up."""
    began = time.monotonic()
    samples: list[Sample] = []
    rounds: list[Round] = []
    with (
        terminated_as_interrupted(),
        tempfile.TemporaryDirectory(prefix="evenflow-demo-") as scratch,
        _Teller(console) as tell,
    ):
        folder = Path(scratch)
        stage = options.stage
        folders = _write_adapters(folder, options.num_adapters, stage, tell)
        plans = client_plans(list(folders), options.greedy, stage)
        console.print(f"{len(stage.adapters)} trained and {len(folders):,} random LoRA adapters for {stage.title}")
        for policy in POLICIES:
            wanted = samples if policy == POLICIES[-1] else None
            played = _play(policy, options, folder / f"{policy}.log", folders, plans, tell, wanted)
            rounds.append(played)
            console.print(
                f"{policy}: {played.num_adapters:,} adapters registered, {played.num_adapters_used:,} answered, "
                f"{sum(c.num_requests for c in played.clients):,} requests in {played.seconds:.0f} s"
            )
    console.print()
    console.print(result_table(rounds))
    console.print(headline(rounds) + "\n")
    for sample in samples[:_SAMPLES_SHOWN]:
        console.print(sample_lines(sample))
    seconds = time.monotonic() - began
    report_page(rounds, plans, samples, seconds).write(options.report)
    console.print(f"Report: {options.report} ({seconds:.0f} s in all)")
    return 0


def _write_adapters(folder: Path, count: int, stage: Stage, tell: Tell) -> dict[str, Path]:
    folders: dict[str, Path] = {}
    shape = load_config(stage.model).shape
    try:
        for i in range(count):
            name = f"tenant-{i:04d}"
            folders[name] = random_adapter(folder / name, i, shape=shape, lora_rank=_RANKS[i % len(_RANKS)])
            tell("writing adapters", (i + 1) / count)
    except OSError as error:
        raise ConfigError(f"cannot write {count} random adapters to {folder}: {error.strerror or error}") from error
    return folders


def _play(
    policy: str, options: DemoOptions, log: Path, folders: dict[str, Path], plans: list[ClientPlan], tell: Tell,
    samples: list[Sample] | None,
) -> Round:  # fmt: skip
    """Play one round on a server of its own; afterwards fill ``samples``, if a list is given."""
    trained = options.stage.adapters
    arguments = [str(options.stage.model), "--served-model-name", BASE_VOICE, "--policy", policy]
    arguments += ["--memory", options.stage.memory, "--max-num-seqs", str(options.max_num_seqs)]
    arguments += [
        "--adapter-cache",
        str(log.parent / "cache"),
    ]  # The random adapters are converted into a folder that is deleted with the demo.
    arguments += ["--adapters", *(f"{name}={path}" for name, path in trained.items())]

    async def keep_samples(http: httpx.AsyncClient) -> None:
        if samples is not None:
            tell("asking every trained adapter", 0.0)
            samples.extend(await take_samples(http, [BASE_VOICE, *trained], options.stage.example_prompts))

    with ServerProcess(arguments, log) as server:
        start_s = server.wait_ready(_READY_TIMEOUT_S, lambda seconds: tell(f"{policy}: starting the server", seconds / 30))
        return asyncio.run(
            play_round(
                server, policy, start_s, folders, plans, options.seconds,
                lambda what, share: tell(f"{policy}: {what}", share), keep_samples,
            )
        )  # fmt: skip


class _Teller:
    """One line that says what is going on; on something that is no terminal, a line per phase."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._phase = ""
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=console, transient=True
        )
        self._task = self._progress.add_task("", total=1.0)

    def __enter__(self) -> Tell:
        if self._console.is_terminal:
            self._progress.start()
        return self._tell

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def _tell(self, phase: str, share: float) -> None:
        if phase != self._phase:
            self._phase = phase
            self._progress.reset(self._task, description=phase)
            if not self._console.is_terminal:
                self._console.print(f"  {phase} ...")
        self._progress.update(self._task, completed=min(1.0, share))
