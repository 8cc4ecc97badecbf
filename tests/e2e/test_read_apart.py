"""Adapters whose reading takes more than their folder, read in a process of their own as a server does."""

from __future__ import annotations

import pytest
import torch
from adapter_kinds import make_kinds
from safetensors.torch import load_file

from evenflow.base.errors import AdapterRejected
from evenflow.serving.adapters.base_weights import BaseWeights
from evenflow.serving.adapters.bounded_reading import BoundedReading
from evenflow.serving.adapters.reading import InProcessReading
from evenflow.serving.memory.layout import ArenaLayout
from evenflow.serving.models.model_config import load_config

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow]


def test_a_process_of_its_own_reads_what_this_one_reads(tiny_model, tmp_path):
    """DoRA and own tables need the base weights, and files of torch's need torch: neither fails for its bounds."""
    config, base = load_config(tiny_model), BaseWeights(tiny_model)
    folders = make_kinds(tmp_path, config)
    pickled = folders["bias"]
    torch.save(load_file(pickled / "adapter_model.safetensors"), pickled / "adapter_model.bin")
    (pickled / "adapter_model.safetensors").unlink()
    layout = ArenaLayout(config.shape, 4)
    apart, here = BoundedReading(5.0, base=base), InProcessReading(base=base)
    try:
        for name, folder in folders.items():
            with apart.read(folder, layout, None, ()) as there, here.read(folder, layout, None, ()) as expected:
                assert (there.digest, there.num_bytes) == (expected.digest, expected.num_bytes), name
                assert there.depends_on_base == expected.depends_on_base == (name in ("dora", "saved", "tokens"))
                there.write(tmp_path / "there", "layout")
                expected.write(tmp_path / "here", "layout")
            assert (tmp_path / "there").read_bytes() == (tmp_path / "here").read_bytes(), name
        (pickled / "adapter_model.bin").write_bytes(b"\x80\x04K\x01.")
        with pytest.raises(AdapterRejected, match="weights-only loader"):
            apart.read(pickled, layout, None, ())
    finally:
        apart.close()


def test_dora_on_a_base_whose_weights_are_not_plain_is_refused(tiny_model, tmp_path):
    """As on quantised bases: the gains cannot be worked out, and nothing is guessed."""
    folders = make_kinds(tmp_path, load_config(tiny_model))
    layout = ArenaLayout(load_config(tiny_model).shape, 4)
    with pytest.raises(AdapterRejected, match="has DoRA, for which the base weight"):
        InProcessReading(base=BaseWeights(tmp_path / "no-safetensors", False)).read(folders["dora"], layout, None, ())
