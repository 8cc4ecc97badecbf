"""Layers that rotate in different ways, or not at all: every backend does for each what it does with that table alone."""

from __future__ import annotations

import random

import pytest
import torch
from backend_cases import Seq, batch_of, make_storage, on_device, on_one_thread, scatter_pages

from evenflow.serving.backends.choose import ATTENTION_BACKENDS
from evenflow.serving.core.shape import ModelShape
from evenflow.serving.models.rope import RopeSpec
from evenflow.serving.models.rope_table import rope_tables

SHAPE = ModelShape(3, 48, 80, 4, 2, 32, 10)
LOCAL, GLOBAL = RopeSpec(theta=100.0), RopeSpec(kind="linear", factor=3.0)

one_thread = pytest.fixture(autouse=True)(on_one_thread)


@pytest.mark.parametrize("name", list(ATTENTION_BACKENDS))
def test_each_layer_has_its_own_table(name):
    specs = [GLOBAL, None, LOCAL]
    cos, sin, rope_of_layer = rope_tables(specs, SHAPE.head_dim, 64)
    assert cos.shape == (3, 64, 16)
    assert rope_of_layer == (0, 1, 2)
    seqs = [Seq(0, 20), Seq(0, 3)]
    qkv = torch.randn(23, SHAPE.q_width + 2 * SHAPE.kv_width)

    def outputs(tables, **settings):
        storage = make_storage(SHAPE, torch.float32, 16, 8)
        backend = on_device(ATTENTION_BACKENDS.load(name)(storage, *tables, 0.3, **settings))
        backend.plan(batch_of(storage, seqs, scatter_pages(storage, seqs, random.Random(0))))
        return [backend.run(layer, qkv.clone()).clone() for layer in range(3)]

    found = outputs((cos, sin), rope_of_layer=rope_of_layer)
    for layer, spec in enumerate(specs):
        alone = rope_tables([spec] * 3, SHAPE.head_dim, 64)
        assert alone[0].shape == (64, 16)
        torch.testing.assert_close(found[layer], outputs(alone[:2])[layer], rtol=0, atol=0)
    assert not torch.allclose(found[0], found[1], atol=1e-3)
