"""The start-up check of vLLM's interface, on the recorded seam and on one that has changed."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest
import recorded_vllm as vllm

from evenflow.base.errors import ConfigError
from evenflow.integrations.vllm.interface import SCHEDULER, TESTED, check_interface, differences


def find(name: str):
    module, _, attribute = name.partition(":")
    return getattr(vllm.modules()[module], attribute)


def test_the_recorded_interface_is_what_the_integration_needs():
    assert differences(find) == []
    assert check_interface(f"{TESTED[0]}+cpu", find, allow_untested=False) is None


def changed(name: str, **members):
    """``find``, with a subclass in the place of one class."""

    def find_changed(wanted: str):
        found = find(wanted)
        return type(found.__name__, (found,), members) if wanted == name else found

    return find_changed


def a_preemption_of_another_kind(self, request):
    self.waiting.prepend_request(request, request.num_stale_output_tokens)


def a_start_without_slots(self, vllm_config):
    self.waiting = self.running = self.requests = self.lora_config = self.vllm_config = None


@pytest.mark.parametrize(
    ("find_changed", "says"),
    [
        (
            changed(SCHEDULER, _preempt_request=a_preemption_of_another_kind),
            "_preempt_request takes (self, request), not (self",
        ),
        (changed(SCHEDULER, _free_request=None), "there is no vllm.v1.core.sched.scheduler.Scheduler._free_request"),
        (changed(SCHEDULER, __init__=a_start_without_slots), "does not use connector, kv_holding_waiting"),
    ],
)
def test_a_changed_interface_is_named_with_the_tested_versions(find_changed, says):
    for allow_untested in (False, True):
        with pytest.raises(ConfigError) as caught:
            check_interface("0.32.0", find_changed, allow_untested)
        assert says in str(caught.value)
        assert TESTED[0] in str(caught.value)


def test_a_further_method_of_the_queue_is_noticed():
    class Wider(vllm.RequestQueue):
        def another_method(self): ...

        another_method.__isabstractmethod__ = True  # type: ignore[attr-defined]

    def find_wider(name):
        return Wider if name.endswith(":RequestQueue") else find(name)

    assert "other abstract methods: another_method" in differences(find_wider)[0]


def test_a_vllm_without_that_module_is_said_so():
    def find_nothing(name):
        raise ImportError(name)

    with pytest.raises(ConfigError, match="there is no vllm"):
        check_interface("9.9.9", find_nothing, allow_untested=True)


def test_an_untested_version_needs_permission():
    with pytest.raises(ConfigError, match=r"tested with vLLM .*and this is 0\.99\.1; EVENFLOW_ALLOW_UNTESTED=1"):
        check_interface("0.99.1", find, allow_untested=False)
    assert "0.99.1" in check_interface("0.99.1", find, allow_untested=True)


def test_importing_the_integration_loads_no_numbers_library_and_no_engine():
    program = (
        "import sys, evenflow.integrations.vllm.identity, evenflow.integrations.vllm.line, evenflow.integrations.vllm.settings;"
        "import evenflow.integrations.vllm.snapshot, evenflow.integrations.vllm.series, evenflow.integrations.gateway;"
        "bad = [m for m in sys.modules if m.split('.')[0] in ('torch', 'numba', 'numpy', 'vllm', 'fastapi')"
        " or m.startswith('evenflow.serving') or m.startswith('evenflow.comm')];"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_names_of_the_package_are_found_where_vllm_looks(monkeypatch):
    scheduler = vllm.install(monkeypatch)
    package = importlib.import_module("evenflow.integrations.vllm")
    assert package.FairScheduler is scheduler.FairScheduler
    assert isinstance(package.ClientIdentity, type)
    with pytest.raises(AttributeError):
        _ = package.Unknown
