"""A stand-in for the seam of vLLM 0.32's scheduler: the same classes, calls and order of calls, around a toy of a server.

Memory is tokens, LoRA slots are counted, steps overlap by one as in async scheduling. ``install`` puts it where ``import vllm``
finds it. The real scheduler is driven in tests/vllm.
"""

from __future__ import annotations

import enum
import sys
import time
import types
from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass, field
from typing import Any


class RequestStatus(enum.IntEnum):
    WAITING = 1
    WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR = 2
    WAITING_FOR_REMOTE_KVS = 3
    WAITING_FOR_STREAMING_REQ = 4
    RUNNING = 5
    PREEMPTED = 6
    FINISHED_STOPPED = 7
    FINISHED_LENGTH_CAPPED = 8
    FINISHED_ABORTED = 9
    FINISHED_REPETITION = 10


@dataclass
class LoRARequest:
    lora_name: str
    lora_int_id: int


class Request:
    def __init__(self, request_id, prompt_tokens, max_tokens, client=None, lora=None, grammar_steps=0) -> None:
        self.request_id = request_id
        self.sampling_params = types.SimpleNamespace(extra_args=None if client is None else {"evenflow_client": client})
        self.lora_request = lora
        self.num_prompt_tokens = prompt_tokens
        self.max_tokens = max_tokens
        self.num_computed_tokens = 0
        self.num_stale_output_tokens = 0
        self.num_in_flight_tokens = 0
        self.resumable = False
        self.num_output_tokens = 0
        self.grammar_steps = grammar_steps
        self.status = RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR if grammar_steps else RequestStatus.WAITING
        self.cached_tokens = 0

    num_output_tokens = 0

    def is_finished(self) -> bool:
        return self.status > RequestStatus.PREEMPTED


class RequestQueue(ABC):
    @abstractmethod
    def add_request(self, request): ...
    @abstractmethod
    def pop_request(self): ...
    @abstractmethod
    def peek_request(self): ...
    @abstractmethod
    def prepend_request(self, request): ...
    @abstractmethod
    def prepend_requests(self, requests): ...
    @abstractmethod
    def remove_request(self, request): ...
    @abstractmethod
    def remove_requests(self, requests): ...
    @abstractmethod
    def __bool__(self): ...
    @abstractmethod
    def __len__(self): ...
    @abstractmethod
    def __iter__(self): ...


class FCFSRequestQueue(deque, RequestQueue):
    add_request, pop_request, prepend_request, prepend_requests = (
        deque.append,
        deque.popleft,
        deque.appendleft,
        deque.extendleft,
    )

    def peek_request(self):
        return self[0]

    def remove_request(self, request):
        self.remove(request)

    def remove_requests(self, requests):
        gone = set(requests)
        kept = [request for request in self if request not in gone]
        self.clear()
        self.extend(kept)

    __bool__ = lambda self: len(self) > 0  # noqa: E731
    __len__ = deque.__len__
    __iter__ = deque.__iter__


@dataclass
class NewRequest:
    req_id: str


@dataclass
class Output:
    scheduled_new_reqs: list[NewRequest]
    num_scheduled_tokens: dict[str, int]
    stale: set[str] = field(default_factory=set)


def a_config(**changes: Any) -> Any:
    """What the integration reads of a VllmConfig, and the toy's own limits."""
    given = {
        "policy": "fcfs",
        "async_scheduling": True,
        "max_num_seqs": 4,
        "memory_tokens": 400,
        "budget": 64,
        "max_loras": None,
    }
    given.update(changes)
    space = types.SimpleNamespace
    return space(
        additional_config={"evenflow": given.pop("evenflow", {})},
        scheduler_config=space(policy=given["policy"], async_scheduling=given["async_scheduling"]),
        model_config=space(runner_type=given.get("runner_type", "generate")),
        parallel_config=space(data_parallel_index=0),
        instance_id=given.get("instance_id", "stand-in"),
        toy=space(**given),
    )


class Scheduler:
    def __init__(self, vllm_config: Any) -> None:
        toy = vllm_config.toy
        self.vllm_config = vllm_config
        self.scheduler_config = vllm_config.scheduler_config
        self.max_num_active_reqs = toy.max_num_seqs
        self.lora_config = None if toy.max_loras is None else types.SimpleNamespace(max_loras=toy.max_loras)
        self.connector = toy.connector if hasattr(toy, "connector") else None
        self.memory_tokens, self.budget = toy.memory_tokens, toy.budget
        self.num_waiting_for_streaming_input = 0
        self.waiting: Any = FCFSRequestQueue()
        self.kv_holding_waiting: Any = FCFSRequestQueue()
        self.running: list[Request] = []
        self.requests: dict[str, Request] = {}

    @property
    def used_tokens(self) -> int:
        return sum(r.num_computed_tokens + 1 for r in self.running)

    def add_request(self, request: Request) -> None:
        self.requests[request.request_id] = request
        self.waiting.add_request(request)

    def schedule(self, throttle_prefills: bool = False) -> Output:
        budget, planned, new, preempted = self.budget, {}, [], []
        for request in list(self.running):
            if request not in self.running or budget <= 0:
                continue
            wanted = (
                request.num_prompt_tokens + request.num_output_tokens + self._in_flight(request) - request.num_computed_tokens
            )
            if request.num_output_tokens + self._in_flight(request) >= request.max_tokens:
                continue
            count = max(1, min(wanted, budget))
            while self.used_tokens + count > self.memory_tokens:
                victim = self.running.pop()
                self._preempt_request(victim, time.monotonic())
                preempted.append(victim)
                planned.pop(victim.request_id, None)
                if victim is request:
                    break
            if request not in self.running:
                break
            planned[request.request_id] = count
            budget -= count
        if not preempted:
            loras = {r.lora_request.lora_int_id for r in self.running if r.lora_request}
            skipped: deque[Request] = deque()
            while budget > 0 and self.waiting and len(self.running) < self.max_num_active_reqs:
                request = self.waiting.peek_request()
                if not self._is_ready(request) or self._needs_slot(request, loras):
                    skipped.appendleft(self.waiting.pop_request())
                    continue
                start = min(request.cached_tokens, request.num_prompt_tokens - 1)
                count = min(request.num_prompt_tokens + request.num_output_tokens - start, budget)
                if self.used_tokens + start + count + 1 > self.memory_tokens:
                    break
                request = self.waiting.pop_request()
                self.running.append(request)
                if request.status is RequestStatus.WAITING:
                    new.append(NewRequest(request.request_id))
                request.status = RequestStatus.RUNNING
                request.num_computed_tokens = start
                if request.lora_request:
                    loras.add(request.lora_request.lora_int_id)
                planned[request.request_id] = count
                budget -= count
            if skipped:
                self.waiting.prepend_requests(skipped)
        output = Output(new, planned)
        self._update_after_schedule(output)
        return output

    def _in_flight(self, request: Request) -> int:
        """Tokens that the step in flight will produce."""
        is_past_prompt = request.num_computed_tokens >= request.num_prompt_tokens + request.num_output_tokens
        return int(bool(request.num_in_flight_tokens) and is_past_prompt)

    def _is_ready(self, request: Request) -> bool:
        if request.status is RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR:
            request.grammar_steps -= 1
            if request.grammar_steps > 0:
                return False
            request.status = RequestStatus.WAITING
        return not request.num_stale_output_tokens

    def _needs_slot(self, request: Request, loras: set[int]) -> bool:
        lora = request.lora_request
        return bool(self.lora_config and lora and len(loras) == self.lora_config.max_loras and lora.lora_int_id not in loras)

    def _update_after_schedule(self, scheduler_output: Output) -> None:
        for request_id, count in scheduler_output.num_scheduled_tokens.items():
            self.requests[request_id].num_computed_tokens += count
            self.requests[request_id].num_in_flight_tokens += count

    def _preempt_request(self, request: Request, timestamp: float, drop_stale_output: bool = False) -> None:
        request.status = RequestStatus.PREEMPTED
        request.num_computed_tokens = 0
        request.num_stale_output_tokens = request.num_in_flight_tokens
        self.waiting.prepend_request(request)

    def update_from_output(self, scheduler_output: Output, model_runner_output: Any = None) -> list[str]:
        """Every request whose prompt is done gets a token; the last of its tokens ends it. Returns who has ended."""
        gone_running, gone_waiting = set(), set()
        for request_id, count in scheduler_output.num_scheduled_tokens.items():
            request = self.requests.get(request_id)
            if request is None:
                continue
            request.num_in_flight_tokens -= count
            is_stale = request.num_stale_output_tokens > 0
            if is_stale:
                request.num_stale_output_tokens -= count
            elif (
                request.num_computed_tokens - request.num_in_flight_tokens
                < request.num_prompt_tokens + request.num_output_tokens
            ):
                continue
            if is_stale and count > 1:
                continue  # a chunk of the prompt gives no token
            before = request.status
            _, stopped = self._update_request_with_output(request, [7], is_stale=is_stale)
            if stopped and self._handle_stopped_request(request):
                self._free_request(request)
                (gone_running if before is RequestStatus.RUNNING else gone_waiting).add(request)
        self.running = [request for request in self.running if request not in gone_running]
        if gone_waiting:
            self.waiting.remove_requests(gone_waiting)
            self.kv_holding_waiting.remove_requests(gone_waiting)
        return [request.request_id for request in gone_running | gone_waiting]

    def _update_request_with_output(self, request: Request, new_token_ids: list[int], is_stale: bool = False) -> Any:
        request.num_output_tokens += len(new_token_ids)
        stopped = request.num_output_tokens >= request.max_tokens
        if stopped:
            request.status = RequestStatus.FINISHED_LENGTH_CAPPED
        return new_token_ids, stopped

    def _handle_stopped_request(self, request: Request) -> bool:
        return True

    def finish_requests(self, request_ids: Any, finished_status: RequestStatus) -> None:
        waiting = []
        for request_id in [request_ids] if isinstance(request_ids, str) else request_ids:
            request = self.requests.get(request_id)
            if request is None:
                continue
            if request.status is RequestStatus.RUNNING:
                self.running.remove(request)
            else:
                waiting.append(request)
        if waiting:
            self.waiting.remove_requests(waiting)
            self.kv_holding_waiting.remove_requests(waiting)
        for request_id in [request_ids] if isinstance(request_ids, str) else request_ids:
            request = self.requests.get(request_id)
            if request is not None:
                request.status = finished_status
                self._free_request(request)

    def _free_request(self, request: Request, delay_free_blocks: bool = False) -> tuple[None, None]:
        del self.requests[request.request_id]
        return None, None

    def _request_blocks_can_be_freed(self, request: Request) -> bool:
        return True

    def shutdown(self) -> None: ...


class AsyncScheduler(Scheduler):
    def _update_request_with_output(self, request: Request, new_token_ids: list[int], is_stale: bool = False) -> Any:
        return super()._update_request_with_output(request, new_token_ids)


def modules() -> dict[str, types.ModuleType]:
    """Module by name, as ``import`` finds them."""
    made: dict[str, types.ModuleType] = {}
    for name, members in {
        "vllm": {"__version__": "0.32.0+cpu"},
        "vllm.v1": {},
        "vllm.v1.core": {},
        "vllm.v1.core.sched": {},
        "vllm.v1.core.sched.async_scheduler": {"AsyncScheduler": AsyncScheduler},
        "vllm.v1.core.sched.request_queue": {"RequestQueue": RequestQueue},
        "vllm.v1.core.sched.scheduler": {"Scheduler": Scheduler},
        "vllm.v1.request": {"Request": Request, "RequestStatus": RequestStatus},
    }.items():
        module = made[name] = types.ModuleType(name)
        vars(module).update(members)
    return made


def install(monkeypatch: Any) -> Any:
    """Put the stand-in in vLLM's place, and return a fresh import of the integration's scheduler."""
    for name, module in modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "evenflow.integrations.vllm.scheduler", raising=False)
    import importlib

    scheduler = importlib.import_module("evenflow.integrations.vllm.scheduler")
    monkeypatch.setitem(sys.modules, "evenflow.integrations.vllm.scheduler", scheduler)
    return scheduler
