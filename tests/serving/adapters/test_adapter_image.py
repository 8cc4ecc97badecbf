"""The page-form image: every row where the layout says, scaled and rounded once, zeros elsewhere."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from evenflow.base.errors import AdapterRejected
from evenflow.serving.adapters.catalog import Catalog
from evenflow.serving.adapters.page_image import page_image
from evenflow.serving.adapters.peft_reader import read_adapter
from evenflow.serving.adapters.safetensors_arrays import round_to_bfloat16
from evenflow.serving.core.shape import MODULES, SITES
from evenflow.serving.core.shard import Shard
from evenflow.serving.memory.layout import ArenaLayout
from evenflow.serving.models.model_config import parse_config
from evenflow.serving.models.random.random_adapter import make_adapter
from evenflow.serving.models.random.random_model import TINY

CONFIG = parse_config(TINY)


@settings(deadline=None)
@given(hnp.arrays(np.float32, st.integers(0, 40), elements=st.floats(allow_nan=False, width=32)))
def test_rounding_to_bf16_is_to_nearest_even(values):
    expected = torch.from_numpy(values).bfloat16().view(torch.uint16).numpy()
    np.testing.assert_array_equal(round_to_bfloat16(values), expected)


@pytest.mark.parametrize("itemsize", [2, 4])
def test_every_row_is_where_the_layout_says(tmp_path, itemsize):
    fields = {"lora_rank": 5, "alpha": 3, "rank_pattern": {"down_proj": 33, "k_proj": 1}, "target_modules": MODULES[1:]}
    adapter = read_adapter(make_adapter(tmp_path, CONFIG, **fields), CONFIG.shape)
    layout = ArenaLayout(CONFIG.shape, itemsize)
    placement, image = page_image(adapter, layout)
    flat, is_row = image.reshape(-1), np.zeros(image.size, bool)
    dtype = torch.bfloat16 if itemsize == 2 else torch.float32
    for layer, module in adapter.targets:
        for part, rows in (("A", adapter.a(layer, module)), ("B", adapter.b_scaled(layer, module))):
            for offset, row in zip(placement.row_offsets(layer, module, part), rows):
                end = offset + row.size * itemsize
                assert torch.equal(torch.from_numpy(flat[offset:end]).view(dtype), torch.tensor(row).to(dtype))
                assert not is_row[offset:end].any(), "two rows share bytes"
                is_row[offset:end] = True
    assert not flat[~is_row].any()


def test_a_scale_that_overflows_the_serving_dtype_is_refused(tmp_path):
    folder = make_adapter(tmp_path, CONFIG, lora_rank=1, alpha=9e37, strength=1e3)
    with pytest.raises(AdapterRejected, match="exceeds the serving dtype"):
        Catalog(ArenaLayout(CONFIG.shape, 2)).prepare(folder)


def test_the_reader_runs_without_torch(tmp_path):
    import subprocess
    import sys

    folder = make_adapter(tmp_path, CONFIG, lora_rank=2, dtype=torch.bfloat16)
    program = f"""
import sys
from evenflow.serving.adapters.catalog import Catalog
from evenflow.serving.memory.layout import ArenaLayout
from evenflow.serving.models.model_config import parse_config
config = parse_config({dict(TINY)!r})
Catalog(ArenaLayout(config.shape, 2)).prepare({str(folder)!r})
assert not {{"torch", "transformers", "peft", "numba"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("exchanged", [(), tuple(SITES), ("qkv", "down")])
def test_shards_together_hold_the_whole_adapter_on_equally_many_pages(tmp_path, world_size, exchanged):
    """Ranks 1, 5, 33: some not divisible, and with four ranks some shards of A empty. Half of the KV heads are repeated."""
    fields = {
        "lora_rank": 5,
        "rank_pattern": {"down_proj": 33, "k_proj": 1, "q_proj": 3},
        "target_modules": MODULES[:-2] + MODULES[-1:],
    }
    adapter = read_adapter(make_adapter(tmp_path, CONFIG, **fields), CONFIG.shape)
    wholes = {
        (*site, part): rows
        for site in adapter.targets
        for part, rows in (("A", adapter.a(*site)), ("B", adapter.b_scaled(*site)))
    }
    gathered = {key: np.full_like(rows, np.nan) for key, rows in wholes.items()}
    pages = set()
    for rank in range(world_size):
        layout = ArenaLayout.of_shard(Shard(CONFIG.shape, rank, world_size, exchanged), 4)
        placement, image = page_image(adapter, layout)
        assert image.shape == (placement.num_pages, layout.page_bytes)
        assert placement.lines(range(placement.num_pages)).size == placement.num_rows
        pages.add((placement.num_pages, layout.page_bytes, layout.page_tokens))
        for layer, module, part in wholes:
            width = placement.row_width(module, part)
            offsets = placement.row_offsets(layer, module, part)
            held = [image.reshape(-1)[o : o + 4 * width].view(np.float32) for o in offsets]
            if held:
                gathered[layer, module, part][
                    layout.held(module, part, adapter.signature.lora_ranks[layer][MODULES.index(module)])
                ] = held
    assert len(pages) == 1, "page numbers would differ between ranks"
    for key, whole in wholes.items():
        np.testing.assert_array_equal(gathered[key], whole)
