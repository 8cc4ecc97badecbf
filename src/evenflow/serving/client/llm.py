"""``LLM``: the offline facade, for notebooks and scripts.

It uses the same engine process as the server, so a caller who has already imported torch, or runs
threads of its own, gets the same speed and the same answers.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType

from evenflow.base.children import error_from_name
from evenflow.base.errors import EngineDead, EvenFlowError, InvalidRequest
from evenflow.serving.client.messages import (
    Abort,
    AdapterInfo,
    Answer,
    EngineStats,
    ListAdapters,
    LoadAdapter,
    Logprobs,
    Outputs,
    PinAdapter,
    Ready,
    RequestOutput,
    Submit,
    UnloadAdapter,
    Usage,
)
from evenflow.serving.client.model_files import with_model_folder
from evenflow.serving.client.process import EngineConnection
from evenflow.serving.config.engine_config import EngineConfig
from evenflow.serving.config.option import fields_given
from evenflow.serving.core.sampling import SamplingParams
from evenflow.serving.models.model_config import load_config
from evenflow.serving.text import Tokenizer
from evenflow.serving.text.bad_words import with_bad_words

Prompt = str | Sequence[int]


@dataclass(slots=True)
class CompletionOutput:
    """One continuation of a prompt."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    """stop, length or abort."""
    stop_reason: str | int | None = None
    """The stop string or stop token id that ended it, if one did."""
    logprobs: list[Logprobs] = field(default_factory=list)
    usage: Usage | None = None


@dataclass(slots=True)
class Generation:
    """What became of one prompt. ``text`` and its neighbours are those of the first completion."""

    prompt: Prompt
    prompt_token_ids: list[int]
    completions: list[CompletionOutput]
    prompt_logprobs: list[Logprobs | None] | None = None

    @property
    def text(self) -> str:
        """Generated text, without the prompt."""
        return self.completions[0].text

    @property
    def token_ids(self) -> list[int]:
        """Generated token ids."""
        return self.completions[0].token_ids

    @property
    def finish_reason(self) -> str | None:
        """stop, length or abort."""
        return self.completions[0].finish_reason

    @property
    def logprobs(self) -> list[Logprobs]:
        """One entry per generated token, if asked for."""
        return self.completions[0].logprobs

    @property
    def usage(self) -> Usage | None:
        """Tokens and times of the first completion."""
        return self.completions[0].usage


class LLM:
    """One base model and its adapters, ready to generate. Close it, or use it as a context manager.

    Raises ModelError for a folder that cannot be served, AdapterRejected for an adapter that cannot.
    Calls from several threads take turns.
    """

    def __init__(
        self,
        model: str | Path,
        adapters: Mapping[str, str | Path] | None = None,
        **options: object,
    ) -> None:
        """``options`` are those of EngineConfig, by the names of the command line or by its fields, in any unit that a
        command line takes: ``memory="2GiB"``, ``threads=2``. Raises ConfigError for an option that there is not.
        """
        given = fields_given(EngineConfig, {"model": model, **options}, "LLM")
        config = with_model_folder(EngineConfig(**given), os.environ)
        load_config(config.model)  # says what is wrong with the folder before a process is started
        self.tokenizer = Tokenizer.from_folder(config.text_folder)
        self._ids = itertools.count()
        self._lock = threading.RLock()
        self._stats = EngineStats()
        self._connection = EngineConnection(config)
        try:
            self.info: Ready = self._connection.wait_until_ready()
            for name, path in (adapters or {}).items():
                self.load_adapter(name, path)
        except BaseException:
            self.close()
            raise

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        adapters: Sequence[str | None] | str | None = None,
        clients: Sequence[str] | str = "anonymous",
    ) -> list[Generation]:
        """Complete every prompt; results are in the order of the prompts.

        ``prompts``: texts or lists of token ids. ``adapters``: a name (None: the base model) for all or for each.
        ``clients``: who is charged, for all or for each. Raises InvalidRequest before anything is generated
        if one of the prompts cannot be served.
        """
        prompt_list = _as_prompts(prompts)
        params = _for_each(sampling_params or SamplingParams(), SamplingParams, len(prompt_list), "sampling_params")
        adapter_names = _for_each(adapters, (str, type(None)), len(prompt_list), "adapters")
        client_ids = _for_each(clients, str, len(prompt_list), "clients")
        encode = self.tokenizer.encode_rendered
        params = [with_bad_words(one, encode) for one in params]
        results = [
            Generation(p, self._encode(p), [CompletionOutput() for _ in range(s.n)]) for p, s in zip(prompt_list, params)
        ]
        with self._lock:
            submits: dict[str, tuple[Submit, Generation, int]] = {}
            for result, sampling, adapter, client in zip(results, params, adapter_names, client_ids):
                for i in range(sampling.n):
                    one = replace(sampling, n=1, seed=None if sampling.seed is None else sampling.seed + i)
                    request_id = f"llm-{next(self._ids)}"
                    submit = Submit(request_id, client, result.prompt_token_ids, one, adapter, time.monotonic())
                    submits[request_id] = (submit, result, i)
            self._run(submits)
        return results

    def load_adapter(self, name: str, path: str | Path, *, replace: bool = False) -> list[AdapterInfo]:
        """Register the PEFT adapter in folder ``path``. Raises AdapterRejected, AdapterNotFound or AdapterExists."""
        return self._call(LoadAdapter(next(self._ids), name, str(Path(path).absolute()), replace))

    def unload_adapter(self, name: str, *, purge: bool = False) -> list[AdapterInfo]:
        """Forget ``name`` and free its memory; with ``purge`` also its file in the adapter cache. Raises AdapterNotFound."""
        return self._call(UnloadAdapter(next(self._ids), name, purge))

    def pin_adapter(self, name: str, is_pinned: bool = True) -> list[AdapterInfo]:
        """Keep an adapter in the arena (or no longer). Raises AdapterNotFound."""
        return self._call(PinAdapter(next(self._ids), name, is_pinned))

    def list_adapters(self) -> list[AdapterInfo]:
        """Every registered adapter."""
        return self._call(ListAdapters(next(self._ids)))

    @property
    def stats(self) -> EngineStats:
        """The latest snapshot of the engine."""
        return self._stats

    def close(self) -> None:
        """End the engine process. Idempotent."""
        connection = getattr(self, "_connection", None)
        if connection is not None:
            connection.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def _encode(self, prompt: Prompt) -> list[int]:
        return self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)

    def _run(self, submits: dict[str, tuple[Submit, Generation, int]]) -> None:
        for submit, _, _ in submits.values():
            self._connection.send(submit)
        waiting = set(submits)
        failure: EvenFlowError | None = None
        try:
            while waiting:
                message = self._connection.receive()
                if not isinstance(message, Outputs):
                    continue
                self._stats = message.stats or self._stats
                for output in message.outputs:
                    if output.request_id not in waiting:
                        continue
                    _, result, index = submits[output.request_id]
                    _extend(result, index, output)
                    if output.error_type is not None:
                        failure = failure or error_from_name(output.error_type, output.error)
                        waiting.discard(output.request_id)
                    elif output.finish_reason is not None:
                        waiting.discard(output.request_id)
                if failure is not None:
                    raise failure
        finally:
            if waiting and self._connection.process.is_alive:
                with contextlib.suppress(EngineDead):  # what ended the loop says more
                    self._connection.send(Abort(sorted(waiting)))

    def _call(self, message: LoadAdapter | UnloadAdapter | PinAdapter | ListAdapters) -> list[AdapterInfo]:
        with self._lock:
            self._connection.send(message)
            while True:
                answer = self._connection.receive()
                if isinstance(answer, Outputs):
                    self._stats = answer.stats or self._stats
                if isinstance(answer, Answer) and answer.call_id == message.call_id:
                    if answer.error_type is not None:
                        raise error_from_name(answer.error_type, answer.error, answer.reasons)
                    return answer.adapters


def _as_prompts(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    if isinstance(prompts, str):
        return [prompts]
    if len(prompts) > 0 and all(isinstance(p, int) for p in prompts):
        return [list(prompts)]  # type: ignore[arg-type]
    for prompt in prompts:
        if not isinstance(prompt, str) and not all(isinstance(t, int) for t in prompt):  # type: ignore[union-attr]
            raise InvalidRequest(f"a prompt is {prompt!r}; allowed: a text or a list of token ids", "prompt")
    return list(prompts)  # type: ignore[arg-type]


def _for_each(value: object, kind: type | tuple[type, ...], count: int, name: str) -> list:
    if isinstance(value, kind):
        return [value] * count
    values = list(value)  # type: ignore[call-overload]
    if len(values) != count:
        raise InvalidRequest(
            f"{name} has {len(values)} entries for {count} prompts; allowed: one for all, or one for each", name
        )
    return values


def _extend(result: Generation, index: int, output: RequestOutput) -> None:
    completion = result.completions[index]
    completion.text += output.text
    completion.token_ids.extend(output.token_ids)
    completion.logprobs.extend(output.logprobs)
    if output.prompt_logprobs is not None:
        result.prompt_logprobs = output.prompt_logprobs
    if output.finish_reason is not None:
        completion.finish_reason = output.finish_reason
        completion.stop_reason = output.stop_reason
        completion.usage = output.usage
