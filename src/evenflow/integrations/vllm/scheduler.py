"""vLLM's scheduler with a policy of EvenFlow's in front of it. The only module here that imports vLLM's scheduler.

    vllm serve MODEL --scheduler-cls evenflow.integrations.vllm.FairScheduler

Running requests, the token budget, memory and LoRA slots stay vLLM's business. What is ours: who of those that wait
is next, who must give way to them, and what each is charged. Steps overlap as they do without it: tokens of the step
that is being computed are charged when they come back, one step after the next one was planned.
"""

from __future__ import annotations

import importlib
import logging
import os
import time
from collections.abc import Callable
from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.request_queue import RequestQueue
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request, RequestStatus

import vllm
from evenflow.base.errors import ConfigError
from evenflow.fairness.books.live_shares import LiveShares
from evenflow.fairness.books.queue import ClientQueues
from evenflow.fairness.registry import create_policy
from evenflow.integrations.clients import WatchedClients
from evenflow.integrations.vllm.books import Books
from evenflow.integrations.vllm.figures import Figures
from evenflow.integrations.vllm.interface import check_interface
from evenflow.integrations.vllm.line import WaitingLine
from evenflow.integrations.vllm.request_view import Statuses
from evenflow.integrations.vllm.settings import Settings, read_settings
from evenflow.integrations.vllm.snapshot import Publisher

log = logging.getLogger("evenflow.integrations.vllm")


def find(name: str) -> Any:
    """The class of vLLM that is named ``module:Class``."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def statuses() -> Statuses:
    """The states of a request, in vLLM's own terms."""
    return Statuses(
        running=RequestStatus.RUNNING,
        loading=RequestStatus.WAITING_FOR_REMOTE_KVS,
        ready=frozenset({RequestStatus.WAITING, RequestStatus.PREEMPTED}),
        complete=frozenset(
            {RequestStatus.FINISHED_STOPPED, RequestStatus.FINISHED_LENGTH_CAPPED, RequestStatus.FINISHED_REPETITION}
        ),
    )


class FairLine(WaitingLine, RequestQueue):
    """The waiting line, as vLLM wants to see it."""


class FairScheduler:
    """What ``--scheduler-cls`` names. Makes one or the other of the two below, as vLLM would have chosen between its own."""

    waiting: FairLine
    clock: Callable[[], float] = staticmethod(time.monotonic)

    def __new__(cls, *args: Any, **kwargs: Any) -> FairScheduler:
        """``FairAsyncScheduler`` if the configuration has async scheduling on, else ``FairSyncScheduler``."""
        if cls is FairScheduler:
            is_async = _config_of(args, kwargs).scheduler_config.async_scheduling
            cls = FairAsyncScheduler if is_async else FairSyncScheduler
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        config = _config_of(args, kwargs)
        extra = config.additional_config if isinstance(config.additional_config, dict) else {}
        settings = read_settings(os.environ, extra.get("evenflow"))
        warning = check_interface(str(getattr(vllm, "__version__", "unknown")), find, settings.allow_untested)
        super().__init__(*args, **kwargs)
        untested = [*([warning] if warning else ()), *self._untested_setup(config)]
        if untested and not settings.allow_untested:
            raise ConfigError(f"{'; '.join(untested)}; EVENFLOW_ALLOW_UNTESTED=1 starts it all the same")
        for text in untested:
            log.warning("%s", text)
        self._clients = WatchedClients(settings.clients, self.clock)
        directory = self._clients.directory
        self._shares = LiveShares(
            dict(directory.weight_by_client), dict(directory.tier_by_client), dict(directory.weight_by_tier)
        )
        self._figures = Figures(settings.metrics_names)
        self.waiting = FairLine(lambda: self._make_books(settings), statuses(), self._figures, self.clock)
        self._publisher = Publisher(config.instance_id, config.parallel_config.data_parallel_index, self.clock)
        log.info("requests are scheduled by %s", settings.policy)

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """One step: vLLM's, with our order."""
        if self._clients.poll():
            self._take_shares()
        line = self.waiting
        did_not_fit = line.head_did_not_fit()
        line.begin_step(self._started)
        if line and (did_not_fit or self._num_free_slots() <= 0):
            self._make_room()
        output = super().schedule(*args, **kwargs)  # type: ignore[misc]
        self._publisher.publish(self._snapshot)
        return output

    def shutdown(self) -> None:
        """Also give back what the policy holds."""
        self.waiting.close()
        self._publisher.close()
        super().shutdown()  # type: ignore[misc]

    def check_integrity(self) -> None:
        """Assert that the books agree with vLLM's. O(everything): for tests."""
        self.waiting.check_integrity(self._started())

    def _update_after_schedule(self, scheduler_output: Any) -> None:
        self.waiting.book_taken()
        for new in scheduler_output.scheduled_new_reqs:
            self.waiting.arrived_running(self.requests[new.req_id])  # type: ignore[attr-defined]
        super()._update_after_schedule(scheduler_output)  # type: ignore[misc]

    def _preempt_request(self, request: Request, *args: Any, **kwargs: Any) -> None:
        self.waiting.preempting(request)
        super()._preempt_request(request, *args, **kwargs)  # type: ignore[misc]

    def _update_request_with_output(self, request: Request, new_token_ids: list[int], is_stale: bool = False) -> Any:
        result = super()._update_request_with_output(request, new_token_ids, is_stale)  # type: ignore[misc]
        self.waiting.output(request, len(result[0]))
        return result

    def _handle_stopped_request(self, request: Request) -> bool:
        if request.resumable:
            self.waiting.ended(request)  # a turn of a session with streaming input: the next one is booked by itself
        return super()._handle_stopped_request(request)  # type: ignore[misc]

    def _free_request(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        self.waiting.ended(request)
        result = super()._free_request(request, *args, **kwargs)  # type: ignore[misc]
        if not self.requests:  # type: ignore[attr-defined]
            self._publisher.publish(self._snapshot, is_last=True)
        return result

    def _make_books(self, settings: Settings) -> Books:
        queues = ClientQueues()
        policy = create_policy(
            settings.policy,
            queues=queues,
            weights=self._shares.weight_by_client,
            tier_by_client=self._shares.tier_by_client,
            weight_by_tier=self._shares.weight_by_tier,
        )
        return Books(
            policy=policy,
            queues=queues,
            statuses=statuses(),
            figures=self._figures,
            clock=self.clock,
            overtaking=settings.overtaking,
        )

    def _take_shares(self) -> None:
        directory = self._clients.directory
        try:
            self._shares.replace(directory.weight_by_client, directory.tier_by_client, directory.weight_by_tier)
        except ConfigError as error:
            log.error("weights and tiers stay as they were: %s", error)
        else:
            self.waiting.shares_changed()

    def _started(self) -> list[Request]:
        """Requests that hold memory or a slot and have not ended; a session between two turns is none."""
        waiting = {request.request_id for request in self.waiting}
        between_turns = {
            request.request_id
            for request in self.kv_holding_waiting  # type: ignore[attr-defined]
            if request.resumable and request.status != RequestStatus.WAITING_FOR_REMOTE_KVS
        }
        return [
            request
            for request in self.requests.values()  # type: ignore[attr-defined]
            if not request.is_finished() and request.request_id not in waiting | between_turns
        ]

    def _num_free_slots(self) -> int:
        return int(self.max_num_active_reqs - len(self.running) - self.num_waiting_for_streaming_input)  # type: ignore[attr-defined]

    def _make_room(self) -> None:
        """Preempt the request that the policy wants to give way to the one that is next, if that helps."""
        request = self.waiting.next_request()
        if request is None or not self._may_have_slot(request):
            return
        running: list[Request] = self.running  # type: ignore[attr-defined]
        victim = self.waiting.displaced(running)
        if victim is None or victim not in running or not self._request_blocks_can_be_freed(victim):  # type: ignore[attr-defined]
            return
        running.remove(victim)
        self._preempt_request(victim, time.monotonic())
        self.waiting.hold_back(victim)

    def _may_have_slot(self, request: Any) -> bool:
        """Whether the request's adapter has a LoRA slot, or one is free: else nobody's place would help it."""
        if self.lora_config is None or request.lora_request is None:  # type: ignore[attr-defined]
            return True
        used = {other.lora_request.lora_int_id for other in self.running if other.lora_request}  # type: ignore[attr-defined]
        return request.lora_request.lora_int_id in used or len(used) < self.lora_config.max_loras  # type: ignore[attr-defined]

    def _snapshot(self) -> dict[str, Any]:
        return {
            "clients": self._figures.clients.snapshot(),
            "adapters": self._figures.adapters.snapshot(),
            "counters": self.waiting.counters(),
            "num_faults": self.waiting.num_faults,
        }

    def _untested_setup(self, config: Any) -> list[str]:
        found = []
        if config.scheduler_config.policy != "fcfs":
            found.append(
                f"--scheduling-policy is {config.scheduler_config.policy!r}: EvenFlow's policy takes its place, and "
                "priorities of requests would have no effect; allowed: fcfs"
            )
        if self.connector is not None:  # type: ignore[attr-defined]
            found.append("a KV connector is configured, and EvenFlow's scheduler has not been tested with any")
        if config.model_config.runner_type == "pooling":
            found.append("this is a pooling model, whose requests cannot name a client: all would be one")
        return found


class FairAsyncScheduler(FairScheduler, AsyncScheduler):
    """Steps are planned while the last one is being computed."""


class FairSyncScheduler(FairScheduler, Scheduler):
    """One step after the other: on CPUs, with ``--no-async-scheduling``, and wherever else vLLM turns overlap off."""


def _config_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """vLLM's configuration, however it was passed."""
    return kwargs["vllm_config"] if "vllm_config" in kwargs else args[0]
