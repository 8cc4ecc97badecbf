"""A model that is asked for the logits of every token of a text, with the kernels that serve."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from evenflow.base.errors import ConfigError
from evenflow.serving.backends.choose import choose
from evenflow.serving.backends.devices.batch import build_batch
from evenflow.serving.backends.devices.storage import Storage
from evenflow.serving.core.plan import NO_ADAPTER_SLOT, PlannedSequence, SampleSpec, StepPlan
from evenflow.serving.core.request import RequestId
from evenflow.serving.core.sampling import GREEDY
from evenflow.serving.memory.layout import ArenaLayout
from evenflow.serving.models.load import load_model, resolve_dtype
from evenflow.serving.models.model_attention import make_attention
from evenflow.serving.models.model_config import load_config


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """Which model, and in what form."""

    folder: Path
    quantization: str = "none"
    dtype: str = "auto"

    @property
    def label(self) -> str:
        """How it is called in tables."""
        return self.folder.name + ("" if self.quantization == "none" else f" {self.quantization}")


class ScoredModel:
    """One model on the CPU, with an arena for one window. Raises ModelError and ConfigError as ``load_model`` does."""

    def __init__(self, choice: ModelChoice, length: int, cache_folder: Path | None = None) -> None:
        config = load_config(choice.folder)
        longest = config.context_length()
        if length > longest:
            raise ConfigError(f"a window has {length} tokens; {choice.label} takes {longest} at most")
        dtype, device = resolve_dtype(choice.dtype), torch.device("cpu")
        self.vocab_size = config.shape.vocab_size
        self._model = load_model(
            choice.folder, config, dtype, device, quantization=choice.quantization, cache_folder=cache_folder
        )
        self._layout = ArenaLayout(config.shape, dtype.itemsize)
        self._pages = list(range(-(-length // self._layout.page_tokens)))
        storage = Storage(self._layout, len(self._pages) + 1, dtype, device)
        self._attention = make_attention(choose(device, dtype, config.shape).attention, storage, config, length)
        self._model.bind(self._attention)
        self._device = device

    @torch.inference_mode()
    def log_probs(self, token_ids: list[int]) -> torch.Tensor:
        """fp32 [T, V]: of every next token, given the window up to here."""
        pages = self._pages[: -(-len(token_ids) // self._layout.page_tokens)]
        spec = SampleSpec(GREEDY, [], [], 0)
        sequence = PlannedSequence(RequestId("window"), token_ids, 0, pages, NO_ADAPTER_SLOT, sample=spec, prompt_logprobs=0)
        batch = build_batch(StepPlan(0, (sequence,)), self._layout.page_tokens, self._device)
        self._attention.plan(batch)
        return torch.log_softmax(self._model(batch).float(), dim=-1)


__all__ = ["ModelChoice", "ScoredModel"]
