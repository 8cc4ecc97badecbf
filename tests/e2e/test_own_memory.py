"""What a process has of its own does not grow with the number of adapters that it has served."""

from __future__ import annotations

from pathlib import Path

import pytest
from engine_harness import EngineHarness

from evenflow.serving.core.shape import MODULES
from evenflow.serving.models.model_config import load_config
from evenflow.serving.models.random.random_adapter import make_adapter


def anonymous_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux' /proc")
def test_adapters_that_come_and_go_leave_nothing_in_memory(tiny_model, tmp_path):
    """An arena for a handful, filled before anything is measured; then sixty more, each served once."""
    config, folder = load_config(tiny_model), tmp_path / "adapter"
    engine = EngineHarness(tiny_model, adapter_cache=tmp_path / "cache", memory_bytes=2 << 20, check_every=50)
    sizes = []
    for i in range(100):
        make_adapter(folder, config, lora_rank=64, target_modules=MODULES, seed=i)
        engine.load(f"a{i}", folder)
        engine.generate(([5, 6, 7], f"a{i}"), max_tokens=2)
        if i in (39, 99):
            sizes.append(anonymous_bytes())
    assert engine.scheduler.snapshot().num_adapter_evictions > 60
    each = engine.engine.catalog.size_bytes / 100
    assert sizes[1] - sizes[0] < 0.1 * 60 * each, f"{sizes[1] - sizes[0]} bytes for 60 adapters of {each:.0f}"
