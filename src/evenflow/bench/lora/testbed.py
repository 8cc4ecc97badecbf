"""What all variants of a run stand on: one random model in a folder, one set of adapters, what a batch may hold."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from evenflow.base.openmp import start_numba_threads
from evenflow.bench.lora.row_adapters import AdapterPool
from evenflow.bench.lora.settings import model_folder, model_words, setting
from evenflow.serving.memory.layout import ArenaLayout
from evenflow.serving.models.load import load_model, resolve_dtype
from evenflow.serving.models.model_config import parse_config
from evenflow.serving.models.random.random_model import make_model


class RandomTestbed:
    """A testbed (see ``variants.Testbed``) whose model and adapters are random.

    ``cache_dir`` keeps model and adapters between runs; ``lora_ranks`` replaces the LoRA ranks of the setting.
    """

    def __init__(
        self,
        setting_name: str,
        cache_dir: Path,
        *,
        num_adapters: int,
        dtype: str = "auto",
        device: str = "cpu",
        lora_ranks: tuple[int, ...] | None = None,
        max_num_seqs: int = 16,
        max_batch_tokens: int = 512,
        weight_range: float = 1e-3,
    ) -> None:
        start_numba_threads()
        chosen = setting(setting_name)
        self.lora_ranks = lora_ranks or chosen.lora_ranks
        self.max_lora_rank = max(self.lora_ranks)
        self.max_num_seqs = max_num_seqs
        self.max_batch_tokens = max_batch_tokens
        self.device = torch.device(device)
        self.dtype = resolve_dtype(dtype, self.device)
        words = model_words(setting_name)
        self.folder = model_folder(cache_dir, setting_name, str(self.dtype).removeprefix("torch."))
        if not (self.folder / "model.safetensors").exists():
            make_model(self.folder, words, dtype=self.dtype)
        self.config = parse_config(words)
        self.layout = ArenaLayout(self.config.shape, self.dtype.itemsize)
        self.model = load_model(self.folder, self.config, self.dtype, self.device)
        self.adapters = AdapterPool(
            cache_dir, self.layout, num_adapters, self.lora_ranks, chosen.targets, weight_range=weight_range
        )


def bandwidth(num_bytes: int = 256 << 20, repeats: int = 5) -> dict[str, float]:
    """Bytes per second that this process reads and copies memory at, all threads, the best of a few."""
    memory = torch.empty(num_bytes // 4).fill_(1.0)
    target = torch.empty_like(memory)
    words, target_words = memory.view(torch.int64), target.view(torch.int64)
    page = (1 << 20) // 8

    def best(run: Any) -> float:
        times = []
        for _ in range(repeats):
            started_s = time.perf_counter()
            run()
            times.append(time.perf_counter() - started_s)
        return num_bytes / min(times)

    def copy_pages() -> None:
        for first in range(0, len(words), page):
            target_words[first : first + page].copy_(words[first : first + page])

    return {"read": best(memory.sum), "copy": best(copy_pages)}


__all__ = ["RandomTestbed", "bandwidth"]
