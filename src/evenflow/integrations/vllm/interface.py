"""The part of vLLM that the integration stands on, written down, and the check that the installed vLLM still has it.

vLLM says that the interface of its scheduler is not public and may change with any release. Everything that is
overridden, called or read is listed here; whoever uses more adds it. The check reads signatures and the names that
functions use, so it needs no model and no GPU. What it cannot see, the order in which vLLM calls its queue, is tested
against every version in TESTED by driving the real scheduler.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

from evenflow.base.errors import ConfigError

TESTED = ("0.32.0",)
"""Versions of vLLM whose real scheduler passed the tests of this release."""

REQUEST_QUEUE = "vllm.v1.core.sched.request_queue:RequestQueue"
SCHEDULER = "vllm.v1.core.sched.scheduler:Scheduler"
ASYNC_SCHEDULER = "vllm.v1.core.sched.async_scheduler:AsyncScheduler"
REQUEST = "vllm.v1.request:Request"
REQUEST_STATUS = "vllm.v1.request:RequestStatus"

ABSTRACT_METHODS = {
    REQUEST_QUEUE: (
        "add_request",
        "pop_request",
        "peek_request",
        "prepend_request",
        "prepend_requests",
        "remove_request",
        "remove_requests",
        "__bool__",
        "__len__",
        "__iter__",
    ),
}
"""All that the queue must be able to do: a further one would stay unwritten."""

SIGNATURES = {
    f"{SCHEDULER}.schedule": ("self", "throttle_prefills"),
    f"{SCHEDULER}._update_after_schedule": ("self", "scheduler_output"),
    f"{SCHEDULER}._preempt_request": ("self", "request", "timestamp", "drop_stale_output"),
    f"{SCHEDULER}._update_request_with_output": ("self", "request", "new_token_ids", "is_stale"),
    f"{ASYNC_SCHEDULER}._update_request_with_output": ("self", "request", "new_token_ids", "is_stale"),
    f"{SCHEDULER}._handle_stopped_request": ("self", "request"),
    f"{SCHEDULER}._free_request": ("self", "request", "delay_free_blocks"),
    f"{SCHEDULER}._request_blocks_can_be_freed": ("self", "request"),
    f"{SCHEDULER}.shutdown": ("self",),
}
"""Parameters of what is overridden or called."""

USED_NAMES = {
    f"{SCHEDULER}.__init__": (
        "waiting",
        "kv_holding_waiting",
        "running",
        "requests",
        "max_num_active_reqs",
        "num_waiting_for_streaming_input",
        "lora_config",
        "vllm_config",
        "scheduler_config",
        "connector",
    ),
    f"{SCHEDULER}.schedule": ("waiting", "peek_request", "pop_request", "prepend_requests", "_update_after_schedule"),
    f"{SCHEDULER}._preempt_request": ("waiting", "prepend_request", "num_stale_output_tokens"),
    f"{SCHEDULER}.update_from_output": ("_update_request_with_output", "_handle_stopped_request", "_free_request"),
    f"{SCHEDULER}.finish_requests": ("waiting", "remove_requests", "_free_request"),
    f"{REQUEST}.__init__": (
        "request_id",
        "sampling_params",
        "lora_request",
        "num_prompt_tokens",
        "max_tokens",
        "num_computed_tokens",
        "num_stale_output_tokens",
        "resumable",
        "status",
    ),
}
"""Attributes and methods that a function of vLLM reads, writes or calls."""

MEMBERS = {
    REQUEST_STATUS: (
        "WAITING",
        "RUNNING",
        "PREEMPTED",
        "WAITING_FOR_REMOTE_KVS",
        "FINISHED_STOPPED",
        "FINISHED_LENGTH_CAPPED",
        "FINISHED_REPETITION",
    ),
    REQUEST: ("num_output_tokens", "is_finished"),
}
"""Members of classes."""


def differences(find: Callable[[str], Any]) -> list[str]:
    """What vLLM lacks or has otherwise.

    ``find`` returns the class that is named ``module:Class``, or raises ImportError or AttributeError.
    """
    found: list[str] = []
    classes: dict[str, Any] = {}

    def class_of(name: str) -> Any:
        if name not in classes:
            try:
                classes[name] = find(name)
            except (ImportError, AttributeError):
                classes[name] = None
                found.append(f"there is no {name.replace(':', '.')}")
        return classes[name]

    def function_of(name: str) -> Any:
        owner, _, attribute = name.rpartition(".")
        if class_of(owner) is None:
            return None
        function = getattr(classes[owner], attribute, None)
        if function is None:
            found.append(f"there is no {name.replace(':', '.')}")
        return function

    for name, methods in ABSTRACT_METHODS.items():
        abstract: frozenset[str] = getattr(class_of(name), "__abstractmethods__", frozenset())
        if classes[name] is not None and abstract != frozenset(methods):
            changed = ", ".join(sorted(abstract ^ frozenset(methods)))
            found.append(f"{name.replace(':', '.')} has other abstract methods: {changed}")
    for name, parameters in SIGNATURES.items():
        function = function_of(name)
        if function is not None and tuple(inspect.signature(function).parameters) != parameters:
            found.append(f"{name.replace(':', '.')} takes {inspect.signature(function)}, not ({', '.join(parameters)})")
    for name, names in USED_NAMES.items():
        function = function_of(name)
        missing = [] if function is None else sorted(set(names) - set(function.__code__.co_names))
        if missing:
            found.append(f"{name.replace(':', '.')} does not use {', '.join(missing)}")
    for name, members in MEMBERS.items():
        missing = [] if class_of(name) is None else [member for member in members if not hasattr(classes[name], member)]
        if missing:
            found.append(f"{name.replace(':', '.')} lacks {', '.join(missing)}")
    return found


def check_interface(version: str, find: Callable[[str], Any], allow_untested: bool) -> str | None:
    """Raise ConfigError for a vLLM that this release cannot work with. Returns a warning for one that was not tested."""
    tested = f"EvenFlow's scheduler was tested with vLLM {', '.join(TESTED)}, and this is {version}"
    missing = differences(find)
    if missing:
        raise ConfigError(f"{tested}, which differs where it matters: {'; '.join(missing)}")
    match = re.match(r"\d+\.\d+\.\d+", version)
    if match is not None and match[0] in TESTED:
        return None
    if not allow_untested:
        raise ConfigError(f"{tested}; EVENFLOW_ALLOW_UNTESTED=1 starts it all the same, its interface looks right")
    return f"{tested}; its interface looks right"
