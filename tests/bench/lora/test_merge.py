"""Merged weights against the products apart, in fp64."""

import torch

from evenflow.bench.lora.baselines.merge import merge
from evenflow.serving.adapters.page_image import page_image
from evenflow.serving.adapters.peft_reader import read_adapter
from evenflow.serving.core.shape import SITES
from evenflow.serving.memory.layout import ArenaLayout
from evenflow.serving.models.random.random_adapter import make_adapter
from evenflow.serving.models.random.random_model import TINY, make_model
from evenflow.serving.models.weights import load_weights


def test_every_matrix_gets_its_delta_and_nothing_else_changes(tmp_path):
    config = make_model(tmp_path / "model", TINY)
    fields = {
        "lora_rank": 3,
        "alpha": 5,
        "rank_pattern": {"down_proj": 20},
        "layers": [1],
        "target_modules": ["q_proj", "v_proj", "down_proj"],
    }
    adapter = read_adapter(make_adapter(tmp_path / "a", config, **fields), config.shape)
    layout = ArenaLayout(config.shape, 4)
    _, image = page_image(adapter, layout)
    before = load_weights(tmp_path / "model", config, torch.float32, torch.device("cpu"))
    merged = load_weights(tmp_path / "model", config, torch.float32, torch.device("cpu"))
    merge(merged, layout, adapter.signature, image)
    for layer, (old, new) in enumerate(zip(before.layers, merged.layers)):
        for site, modules in SITES.items():
            part = "attention" if site in ("qkv", "o") else "mlp"
            want, first = getattr(getattr(old, part), site).double().clone(), 0
            for module in modules:
                width = config.shape.module_widths(module)[1]
                if (layer, module) in adapter.targets:
                    a, b = (torch.tensor(rows).double() for rows in (adapter.a(layer, module), adapter.b_scaled(layer, module)))
                    want[first : first + width] += b.T @ a
                first += width
            torch.testing.assert_close(getattr(getattr(new, part), site).double(), want, rtol=1e-6, atol=1e-6)
        assert torch.equal(old.norms["input_layernorm"], new.norms["input_layernorm"])
    assert torch.equal(before.head, merged.head)
    changed = [not torch.equal(old.attention.qkv, new.attention.qkv) for old, new in zip(before.layers, merged.layers)]
    assert changed == [False, True]
