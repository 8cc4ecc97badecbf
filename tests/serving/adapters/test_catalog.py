"""Names, digests and users of adapters: a model-based test of every order of calls, and the errors."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from evenflow.base.errors import AdapterExists, AdapterNotFound, InvalidRequest
from evenflow.serving.adapters.catalog import Catalog, PreparedAdapter
from evenflow.serving.adapters.row_file import MemoryRows
from evenflow.serving.core.adapter import AdapterRecord, AdapterSignature
from evenflow.serving.core.request import AdapterDigest
from evenflow.serving.core.shape import MODULES
from evenflow.serving.memory.layout import ArenaLayout
from evenflow.serving.models.model_config import parse_config
from evenflow.serving.models.random.random_adapter import make_adapter
from evenflow.serving.models.random.random_model import TINY

CONFIG = parse_config(TINY)
LAYOUT = ArenaLayout(CONFIG.shape, 4)
NAMES = ["a", "b", "c"]
DIGESTS = [AdapterDigest(f"digest-{i}") for i in range(3)]


def prepared(digest):
    signature = AdapterSignature(((1,) * len(MODULES),) * 2)
    return PreparedAdapter(
        AdapterRecord(digest, signature, 1, 64), MemoryRows(np.zeros((1, 64), np.uint8)), ("q_proj",), Path(".")
    )


class CatalogMachine(RuleBasedStateMachine):
    """The model: names point at digests, a count of users per digest, alive = named or used."""

    def __init__(self):
        super().__init__()
        self.freed = []
        self.catalog = Catalog(LAYOUT, reserved=["base"], on_freed=self.freed.append)
        self.names, self.users, self.alive = {}, dict.fromkeys(DIGESTS, 0), set()
        self.expected_freed = []

    def _collect(self):
        for digest in sorted(self.alive):
            if digest not in self.names.values() and not self.users[digest]:
                self.alive.discard(digest)
                self.expected_freed.append(digest)

    @rule(name=st.sampled_from(NAMES), digest=st.sampled_from(DIGESTS), replace=st.booleans())
    def register(self, name, digest, replace):
        if name in self.names and not replace:
            with pytest.raises(AdapterExists):
                self.catalog.register(name, prepared(digest), replace=replace)
            return
        assert self.catalog.register(name, prepared(digest), replace=replace) == digest
        self.names[name] = digest
        self.alive.add(digest)
        self._collect()

    @rule(name=st.sampled_from(NAMES))
    def unregister(self, name):
        if name not in self.names:
            with pytest.raises(AdapterNotFound):
                self.catalog.unregister(name)
            return
        assert self.catalog.unregister(name) == self.names.pop(name)
        self._collect()

    @rule(digest=st.sampled_from(DIGESTS))
    def retain(self, digest):
        if digest not in self.alive:
            with pytest.raises(AdapterNotFound):
                self.catalog.retain(digest)
            return
        self.catalog.retain(digest)
        self.users[digest] += 1

    @rule(digest=st.sampled_from(DIGESTS))
    def release(self, digest):
        if self.users[digest]:
            self.catalog.release(digest)
            self.users[digest] -= 1
            self._collect()

    @invariant()
    def agrees(self):
        self.catalog.check_integrity()
        assert self.catalog.digest_by_name == self.names
        assert set(self.catalog) == self.alive
        assert self.freed == self.expected_freed
        for digest in self.alive:
            assert self.catalog.num_users(digest) == self.users[digest]
            assert set(self.catalog.names(digest)) == {n for n, d in self.names.items() if d == digest}


CatalogMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestCatalogMachine = CatalogMachine.TestCase


def test_reload_under_the_same_name_leaves_running_requests_their_weights(tmp_path):
    catalog = Catalog(LAYOUT)
    old = catalog.register("a", make_adapter(tmp_path / "old", CONFIG, lora_rank=2, seed=1))
    catalog.retain(old)
    before = catalog.image(old).copy()
    new = catalog.register("a", make_adapter(tmp_path / "new", CONFIG, lora_rank=2, seed=2), replace=True)
    assert catalog.resolve("a") == new != old
    np.testing.assert_array_equal(catalog.image(old), before)
    assert catalog.names(old) == ()
    assert catalog.last_name(old) == "a"
    catalog.release(old)
    assert old not in catalog
    with pytest.raises(AdapterNotFound, match=old):
        catalog.image(old)


def test_two_names_with_the_same_weights_share_them(tmp_path):
    catalog = Catalog(LAYOUT)
    folder = make_adapter(tmp_path, CONFIG, lora_rank=2)
    assert catalog.register("a", folder) == catalog.register("b", folder)
    assert len(catalog) == 1
    assert catalog.size_bytes == catalog.image(catalog.resolve("a")).nbytes
    catalog.unregister("a")
    assert catalog.resolve("b") in catalog


def test_names_that_cannot_be_given(tmp_path):
    catalog = Catalog(LAYOUT, reserved=["base"])
    with pytest.raises(AdapterExists, match="'base' is the base model's name"):
        catalog.register("base", tmp_path)
    for name in ("", "a\nb"):
        with pytest.raises(InvalidRequest, match="name"):
            catalog.register(name, tmp_path)
    with pytest.raises(AdapterNotFound, match="no adapter is named 'x'"):
        catalog.resolve("x")


def test_a_refused_adapter_leaves_nothing_behind(tmp_path):
    catalog = Catalog(LAYOUT)
    with pytest.raises(AdapterNotFound):
        catalog.register("a", tmp_path / "nothing")
    assert len(catalog) == 0
    assert not catalog.digest_by_name


def test_releasing_too_often_is_a_fault_of_the_engine():
    catalog = Catalog(LAYOUT)
    digest = catalog.register("a", prepared(DIGESTS[0]))
    with pytest.raises(AssertionError, match="released more often"):
        catalog.release(digest)
