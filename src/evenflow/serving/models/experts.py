"""The mixture of experts that follows attention: a router, the experts that it chooses, perhaps a shared one.

Rows are sorted by expert, and every expert that has rows multiplies them in one product: a step reads the matrices of the
chosen experts and no others. Over tensor-parallel ranks each expert is divided on its intermediate width, as a dense MLP
is, and the router is repeated. Legend: T rows, H hidden, I intermediate width, E experts, K chosen for a row, N = T K.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from evenflow.serving.backends.devices.weight_products import Matmul, Weight, prepare_matmul
from evenflow.serving.backends.lora.expert_lora import ExpertLoRA
from evenflow.serving.backends.lora.lora_backend import LoRABackend
from evenflow.serving.backends.lora.side_weights import SidedLoRA
from evenflow.serving.models.gated_mlp import GatedMLP, GatedMLPWeights
from evenflow.serving.models.layers import gate_rule
from evenflow.serving.models.mixture import Mixture
from evenflow.serving.models.model_config import ModelConfig
from evenflow.serving.models.weight_source import WeightSource
from evenflow.serving.parallel.group import Group
from evenflow.serving.parallel.linear import ColumnLinear


@dataclass(slots=True)
class ExpertsWeights:
    """gate_up is [gate | up], rows one after another."""

    router: torch.Tensor
    """[E, H]"""
    experts: list[tuple[Weight, Weight]]
    """(gate_up [2I, H], down [H, I]) of each."""
    shared: tuple[Weight, Weight] | None = None
    """The same of the shared expert."""
    shared_gate: torch.Tensor | None = None
    """[1, H]: its sigmoid weighs what the shared expert says."""


def route(logits_TE: torch.Tensor, num_chosen: int, is_renormalised: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The chosen experts of each row, best first, int64 [T, K], and what they weigh: fp32 [T, K].

    Semantics: p = softmax(logits) over all experts in fp32; the K largest; divided by their sum if ``is_renormalised``.
    """
    weights_TK, chosen_TK = logits_TE.float().softmax(dim=-1).topk(num_chosen, dim=-1)
    if is_renormalised:
        weights_TK = weights_TK / weights_TK.sum(dim=-1, keepdim=True)
    return weights_TK, chosen_TK


@dataclass(frozen=True, slots=True)
class Pairs:
    """The step's pairs of a row and an expert that it is sent to, sorted by expert."""

    counts: list[tuple[int, int]]
    """(expert, how many pairs it has), of those that have any."""
    order_N: torch.Tensor
    """int64: number of each pair when they are sorted by row, K for each."""
    num_chosen: int

    @classmethod
    def of(cls, chosen_TK: torch.Tensor, num_experts: int) -> Pairs:
        """The pairs of what ``route`` chose."""
        num_rows, num_chosen = chosen_TK.shape
        flat_N = chosen_TK.flatten()
        if num_rows == 1:  # One row's experts are taken in the order of their weights.
            return cls([(expert, 1) for expert in flat_N.tolist()], torch.arange(num_chosen, device=flat_N.device), num_chosen)
        counts = torch.bincount(flat_N, minlength=num_experts).tolist()
        found = [(expert, count) for expert, count in enumerate(counts) if count]
        return cls(found, flat_N.argsort(stable=True), num_chosen)

    def rows(self) -> torch.Tensor:
        """int64 [N]: the row of each pair."""
        return self.order_N // self.num_chosen

    def experts(self) -> torch.Tensor:
        """int64 [N]: the expert of each pair."""
        experts, counts = (torch.tensor(values, device=self.order_N.device) for values in zip(*self.counts))
        return experts.repeat_interleave(counts)

    def gather(self, x_TH: torch.Tensor) -> torch.Tensor:
        """The row of each pair: [N, H]."""
        return x_TH.expand(self.num_chosen, -1) if len(x_TH) == 1 else x_TH.index_select(0, self.rows())

    def scatter(self, y_NH: torch.Tensor) -> torch.Tensor:
        """What is there for each pair, by row: [T, K, H]."""
        if len(y_NH) > self.num_chosen:
            y_NH = torch.empty_like(y_NH).index_copy_(0, self.order_N, y_NH)
        return y_NH.view(-1, self.num_chosen, y_NH.shape[1])


class Experts:
    """y = sum over the chosen experts of weight * down(activation(gate(x)) * up(x)), + the shared expert's. A FeedForward.

    In a layer that is not sparse it is the family's ordinary MLP.
    """

    def __init__(self, weights: ExpertsWeights | GatedMLPWeights, config: ModelConfig, layer: int, group: Group) -> None:
        self._dense: GatedMLP | None = None
        if isinstance(weights, GatedMLPWeights):
            self._dense = GatedMLP(weights, config, layer, group)
            return
        assert config.mixture is not None
        self._layer, self._group, self._mixture = layer, group, config.mixture
        self._gated = gate_rule(config.activation)
        self._router = prepare_matmul(weights.router)
        self._experts: list[tuple[Matmul, Matmul]] = []
        weights.experts.reverse()
        while weights.experts:  # each is dropped as soon as it is packed
            gate_up, down = weights.experts.pop()
            self._experts.append((prepare_matmul(gate_up), prepare_matmul(down)))
        self._shared: SharedExpert | None = None
        if weights.shared is not None:
            assert weights.shared_gate is not None
            self._shared = SharedExpert(*weights.shared, weights.shared_gate, config, layer)

    def __call__(self, x_TH: torch.Tensor, lora: LoRABackend | None) -> torch.Tensor:
        """See ``FeedForward``."""
        if self._dense is not None:
            return self._dense(x_TH, lora)
        mixture = self._mixture
        adapted = lora.side.experts if isinstance(lora, SidedLoRA) and lora.side.experts.is_active else None
        logits_TE = self._router(x_TH)
        if adapted is not None:
            adapted.add_small(self._layer, "router", x_TH, logits_TE)
        weights_TK, chosen_TK = route(logits_TE, mixture.num_chosen, mixture.is_renormalised)
        pairs = Pairs.of(chosen_TK, len(self._experts))
        x_NH = pairs.gather(x_TH)
        gate_up_N2I = self._products(0, pairs, x_NH)
        if adapted is not None:
            where = pairs.rows(), pairs.experts()
            adapted.add(self._layer, "gate_up", *where, x_NH, gate_up_N2I)
        x_NI = self._gated(gate_up_N2I)
        y_NH = self._products(1, pairs, x_NI)
        if adapted is not None:
            adapted.add(self._layer, "down", *where, x_NI, y_NH)
        y_TH = torch.bmm(weights_TK[:, None], pairs.scatter(y_NH).float())[:, 0]
        if self._shared is not None:
            y_TH += self._shared(x_TH, lora, adapted)
        return self._group.sum_outputs(y_TH.to(x_TH.dtype), "down")

    def _products(self, which: int, pairs: Pairs, x_NI: torch.Tensor) -> torch.Tensor:
        """The product of every expert that has rows with them: gate and up (0), or down (1)."""
        outputs, first = [], 0
        for expert, count in pairs.counts:
            outputs.append(self._experts[expert][which](x_NI[first : first + count]))
            first += count
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    @staticmethod
    def tensors(config: ModelConfig, layer: int) -> dict[str, tuple[int, ...]]:
        """See ``FeedForward``."""
        mixture = config.mixture
        assert mixture is not None
        if not mixture.is_sparse[layer]:
            return GatedMLP.tensors(config, layer)
        hidden, names = config.shape.hidden_size, mixture.names
        found: dict[str, tuple[int, ...]] = {f"{names.block}.{names.router}.weight": (mixture.num_experts, hidden)}
        for expert in range(mixture.num_experts):
            for name in (names.gate, names.up):
                found[f"{names.block}.experts.{expert}.{name}.weight"] = mixture.width, hidden
            found[f"{names.block}.experts.{expert}.{names.down}.weight"] = hidden, mixture.width
        if mixture.shared_width:
            for name in (names.gate, names.up):
                found[f"{names.block}.shared_expert.{name}.weight"] = mixture.shared_width, hidden
            found[f"{names.block}.shared_expert.{names.down}.weight"] = hidden, mixture.shared_width
            found[f"{names.block}.shared_expert_gate.weight"] = 1, hidden
        return found

    @staticmethod
    def read(source: WeightSource, config: ModelConfig, layer: int) -> Any:
        """See ``FeedForward``."""
        mixture = config.mixture
        assert mixture is not None
        if not mixture.is_sparse[layer]:
            return GatedMLP.read(source, config, layer)
        block = f"model.layers.{layer}.{mixture.names.block}."
        weights = ExpertsWeights(
            router=source.tensor(f"{block}{mixture.names.router}.weight"),
            experts=[
                _gated(source, f"{block}experts.{expert}.", mixture, mixture.width, config.shape.hidden_size)
                for expert in range(mixture.num_experts)
            ],
        )
        if mixture.shared_width:
            prefix = f"{block}shared_expert."
            weights.shared = _gated(source, prefix, mixture, mixture.shared_width, config.shape.hidden_size)
            weights.shared_gate = source.tensor(f"{block}shared_expert_gate.weight")
        return weights


class SharedExpert:
    """y = sigmoid(g x) * down(activation(gate(x)) * up(x)): this rank's part of it. Adapters know it as the layer's MLP."""

    def __init__(self, gate_up: Weight, down: Weight, weigh_1H: torch.Tensor, config: ModelConfig, layer: int) -> None:
        # Outputs of the row-parallel half are added up over ranks once, with those of the other experts.
        self._gate_up = ColumnLinear(gate_up, None, layer, "gate_up")
        self._gated = gate_rule(config.activation)
        self._down = ColumnLinear(down, None, layer, "down")
        self._weigh, self._layer = prepare_matmul(weigh_1H), layer

    def __call__(self, x_TH: torch.Tensor, lora: LoRABackend | None, adapted: ExpertLoRA | None) -> torch.Tensor:
        """A new [T, H]. ``adapted``: where an adapter of the step has LoRA on mixtures."""
        weight_T1 = self._weigh(x_TH)
        if adapted is not None:
            adapted.add_small(self._layer, "shared_gate", x_TH, weight_T1)
        return self._down(self._gated(self._gate_up(x_TH, lora)), lora) * weight_T1.sigmoid()


def _gated(source: WeightSource, prefix: str, mixture: Mixture, width: int, hidden: int) -> tuple[Weight, Weight]:
    """(gate_up, down) of one expert: the rank's part."""
    shard, names = source.shard, mixture.names
    part = width // shard.world_size
    run = range(shard.rank * part, (shard.rank + 1) * part)
    gate_up = source.matrices.linear([f"{prefix}{name}.weight" for name in (names.gate, names.up)], [run, run])
    columns = run if shard.world_size > 1 else None
    return gate_up, source.matrices.linear([f"{prefix}{names.down}.weight"], [range(hidden)], columns)


__all__ = ["Experts", "ExpertsWeights", "SharedExpert", "route"]
