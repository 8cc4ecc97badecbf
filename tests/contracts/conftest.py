"""Triton's interpreter takes milliseconds per kernel: by default a part of the contracts runs in it, ``slow`` is all."""

from __future__ import annotations

import pytest
from backend_cases import CPU, DEVICE

from triton_interpreter import IS_INSTALLED

BY_DEFAULT = (
    "test_any_mix_of_chunks_and_decode_rows[gqa-64-",
    "test_any_mix_of_chunks_and_decode_rows[odd-48-bf16",
    "test_larger_pages[32-fp32",
    "test_writes_its_own_rows_and_nothing_else[fp32",
    "test_a_row_does_not_depend_on_the_batch[bf16",
    "test_chunking_changes_nothing_but_rounding[chunks2",
    "test_chunking_changes_nothing_but_rounding[chunks4",
    "test_large_scores_do_not_overflow",
    "test_nan_in_a_sequence",
    "test_any_mix_of_ranks_and_missing_modules[qkv-lines-bf16",
    "test_any_mix_of_ranks_and_missing_modules[gate_up-odd-widths-fp32",
    "test_any_mix_of_ranks_and_missing_modules[down-narrow-bf16",
    "test_any_mix_of_ranks_and_missing_modules[o-lines-fp32",
    "test_base_only_rows_and_missing_modules_keep_every_bit",
    "test_rows_may_lie_apart",
    "test_a_slot_can_be_bound_again",
    "test_a_step_without_adapters_touches_nothing",
    "test_nan_in_an_adapter_stays_with_its_rows",
    "test_each_layer_has_its_own_table",
)

CONTRACTS = ("test_attention_contract.py", "test_lora_contract.py")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        params = getattr(getattr(item, "callspec", None), "params", {})
        if DEVICE != CPU:  # make gpu: the whole of both contracts, on the device
            if params.get("name") in ("triton", "torch") and item.path.name in CONTRACTS:
                item.add_marker(pytest.mark.gpu)
            continue
        if params.get("name") == "triton" and not IS_INSTALLED:
            item.add_marker(pytest.mark.skip(reason="Triton is not installed"))
        elif params.get("name") == "flashinfer":
            item.add_marker(pytest.mark.skip(reason="FlashInfer runs on a GPU: tests/gpu"))
        elif params.get("name") == "triton" and not item.name.startswith(BY_DEFAULT):
            item.add_marker(pytest.mark.slow)
