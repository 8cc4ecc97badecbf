"""The example policy of docs/extend/policy.md runs as it stands there, and keeps the contract."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from evenflow.base.registry import Registry
from evenflow.fairness import ClientQueues, PolicyDefaults, PolicySettings, Schedulable, create_policy
from evenflow.fairness.registry import refuse_argument
from evenflow.fairness.toy_server import ToyServer

GUIDE = Path(__file__).parents[2] / "docs" / "extend" / "policy.md"


def test_the_example_policy_serves_the_shortest_prompt_first():
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), flags=re.DOTALL)
    names: dict[str, Any] = {
        "ClientQueues": ClientQueues,
        "PolicyDefaults": PolicyDefaults,
        "PolicySettings": PolicySettings,
        "Schedulable": Schedulable,
        "refuse_argument": refuse_argument,
        "ToyServer": ToyServer,
    }
    for block in blocks:
        exec("from __future__ import annotations\n" + block, names)
    assert len(blocks) == 2
    server = names["server"]
    for client, length in [("a", 300), ("b", 20), ("c", 100)]:
        server.submit(client, length, 1)
    assert server.policy.pick(server.now_s).client_id == "b"
    for _ in range(20):
        server.step()
        server.check_integrity()
    assert all(request.is_complete for request in server.requests)


def test_a_policy_of_ones_own_comes_through_a_registry_of_ones_own():
    registry = Registry("policy", {"mine": "evenflow.fairness.policies.baselines:FCFS"})
    assert create_policy("mine", queues=ClientQueues(), registry=registry).counters() == {}
