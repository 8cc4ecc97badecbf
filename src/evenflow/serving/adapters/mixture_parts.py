"""LoRA on mixtures of experts: on routers, on the gate of the shared expert, and on experts in the two ways PEFT writes them.

Each expert by itself, as linears were when every expert was a module of its own: ``experts.7.w1.lora_A.weight`` [R, I] and
``lora_B`` [O, R]. All experts in one pair, where they are one parameter (``target_parameters``): ``experts.lora_A.weight``
[E R, I], expert by expert, and ``lora_B`` [O, R E], in which an expert's columns are E apart. There a second parameter of
the same module lies one ``base_layer`` deeper; which is which, the shapes say. PEFT before 0.19 took input for output of
such parameters. numpy only. Legend: E experts, R rank, I input width, O output width, H hidden size.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from evenflow.serving.adapters.peft_config import LoraRules
from evenflow.serving.adapters.tensor_names import split_name, usual_path
from evenflow.serving.adapters.tensor_source import TensorSource
from evenflow.serving.core.adapter import SideRows
from evenflow.serving.core.shape import ExpertsShape, ModelShape

_PATH = re.compile(
    r"model\.layers\.(?P<layer>0|[1-9][0-9]{0,5})\.(?:mlp|block_sparse_moe)\.(?:(?P<router>gate|router\.layer)"
    r"|(?P<shared_gate>shared_expert_gate)|(?P<stacked>experts(?:\.base_layer)*)"
    r"|experts\.(?P<expert>0|[1-9][0-9]{0,3})\.(?P<module>w[123]|(?:gate|up|down)_proj))"
)
_MODULES = {"w1": "gate", "w3": "up", "w2": "down", "gate_proj": "gate", "up_proj": "up", "down_proj": "down"}
_STACKED = {"gate_up": "gate_up_proj", "down": "down_proj"}
SMALL = {"router": "router", "shared_gate": "shared_expert_gate"}
"""Linears of a mixture beside its experts: our names, and those for people."""


@dataclass(frozen=True, slots=True)
class Factors:
    """One pair of tensors and what it means."""

    a: str
    b: str
    scale: float
    lora_rank: int
    is_turned: bool = False
    """True: A holds what multiplies the output, and B what multiplies the input (PEFT before 0.19)."""


@dataclass(slots=True)
class MixtureParts:
    """Everything that an adapter has for mixtures."""

    small: dict[tuple[int, str], Factors] = field(default_factory=dict)
    """By layer and one of SMALL."""
    stacked: dict[tuple[int, str], Factors] = field(default_factory=dict)
    """By layer and "gate_up" or "down": of all experts."""
    each: dict[tuple[int, str], dict[int, Factors]] = field(default_factory=dict)
    """By layer and "gate", "up" or "down": of each expert by itself."""

    def factors(self) -> Iterator[tuple[str, Factors]]:
        """All pairs, each with a text that says where it belongs."""
        for where, factors in (*self.small.items(), *self.stacked.items()):
            yield repr(where), factors
        for where, experts in self.each.items():
            for expert, factors in experts.items():
                yield repr((where, expert)), factors

    @property
    def modules(self) -> tuple[str, ...]:
        """What is adapted, in the words of checkpoints."""
        found = [told for name, told in SMALL.items() if any(module == name for _, module in self.small)]
        return (*found, *(("experts",) if self.stacked or self.each else ()))

    def side_rows(self, tensors: TensorSource, num_experts: int) -> list[tuple[SideRows, Callable[[], np.ndarray]]]:
        """Side rows, and what makes what they hold: fp32 [count, width]."""
        layers = sorted({layer for layer, _ in (*self.small, *self.stacked, *self.each)})
        return [rows for layer in layers for rows in self._of_layer(layer, tensors, num_experts)]

    def _of_layer(
        self, layer: int, tensors: TensorSource, num_experts: int
    ) -> Iterator[tuple[SideRows, Callable[[], np.ndarray]]]:
        for name in SMALL:
            small = self.small.get((layer, name))
            if small is not None:
                a_RI, b_OR = tensors.as_float32(small.a), tensors.as_float32(small.b)
                b_RO = b_OR.T * np.float32(small.scale)
                yield SideRows("small_a", len(a_RI), a_RI.shape[1], layer, name), _held(a_RI)
                yield SideRows("small_b", len(b_RO), b_RO.shape[1], layer, name), _held(b_RO)
        for name in ("gate_up", "gate", "up", "down"):
            stacked, each = self.stacked.get((layer, name)), self.each.get((layer, name))
            if stacked is not None:
                inputs, outputs = (tensors.shapes[stacked.a][1], tensors.shapes[stacked.b][0])
                if stacked.is_turned:
                    inputs, outputs = outputs, inputs
                count = num_experts * stacked.lora_rank
                yield (
                    SideRows("expert_a", count, inputs, layer, name, num_experts=num_experts),
                    _Stacked(tensors, stacked, num_experts, "A"),
                )
                halves = ("gate", "up") if name == "gate_up" else (name,)
                width = outputs // len(halves)
                for half, module in enumerate(halves):
                    yield (
                        SideRows("expert_b", count, width, layer, module, num_experts=num_experts),
                        _Stacked(tensors, stacked, num_experts, "B", slice(half * width, (half + 1) * width)),
                    )
            if each is not None:
                lora_rank = max(factors.lora_rank for factors in each.values())
                one = next(iter(each.values()))
                count = num_experts * lora_rank
                widths = {"A": tensors.shapes[one.a][1], "B": tensors.shapes[one.b][0]}
                for part, kind in (("A", "expert_a"), ("B", "expert_b")):
                    yield (
                        SideRows(kind, count, widths[part], layer, name, num_experts=num_experts),
                        _Each(tensors, each, num_experts, lora_rank, part),
                    )


@dataclass(frozen=True, slots=True)
class _Stacked:
    """Makes the rows of A [E R, I], or these columns of B transposed times its scale [E R, O], of all experts in one pair."""

    tensors: TensorSource
    factors: Factors
    num_experts: int
    part: str
    columns: slice | None = None

    def __call__(self) -> np.ndarray:
        factors = self.factors
        if (self.part == "A") == factors.is_turned:
            whole = self.tensors.as_float32(factors.b)
            rows = whole.reshape(len(whole), factors.lora_rank, self.num_experts).transpose(2, 1, 0).reshape(-1, len(whole))
        else:
            rows = self.tensors.as_float32(factors.a)
        rows = rows if self.columns is None else rows[:, self.columns]
        return rows if self.part == "A" else rows * np.float32(factors.scale)


@dataclass(frozen=True, slots=True)
class _Each:
    """The same of experts by themselves: zeros where an expert has none, or fewer rows than others."""

    tensors: TensorSource
    experts: Mapping[int, Factors]
    num_experts: int
    lora_rank: int
    part: str

    def __call__(self) -> np.ndarray:
        def rows_of(factors: Factors) -> np.ndarray:
            if self.part == "A":
                return self.tensors.as_float32(factors.a)
            return self.tensors.as_float32(factors.b).T * np.float32(factors.scale)

        made = {expert: rows_of(factors) for expert, factors in self.experts.items()}
        rows = np.zeros((self.num_experts, self.lora_rank, next(iter(made.values())).shape[1]), np.float32)
        for expert, values in made.items():
            rows[expert, : len(values)] = values
        return rows.reshape(-1, rows.shape[2])


class MixtureMatching:
    """Gives the tensors of mixtures their places; faults go to ``reasons``."""

    def __init__(self, tensors: TensorSource, rules: LoraRules, shape: ModelShape, reasons: list[str]) -> None:
        self._tensors, self._rules, self._shape, self._reasons = tensors, rules, shape, reasons
        self._found: dict[str, dict[str, str]] = {}
        """By the module's path as the file has it: name of the tensor of each part."""

    def take(self, name: str) -> bool:
        """True if the tensor ``name`` is part of a mixture that the base model has."""
        split = split_name(name)
        if split is None or self._shape.experts is None:
            return False
        match = _PATH.fullmatch(usual_path(split[0]))
        if match is None or int(match["layer"]) >= self._shape.num_layers or not self._shape.is_sparse(int(match["layer"])):
            return False
        if match["expert"] is not None and int(match["expert"]) >= self._shape.experts.num_experts:
            return False
        if match["shared_gate"] is not None and not self._shape.experts.shared_width:
            return False
        has = self._found.setdefault(split[0], {})
        if split[1] in has:
            self._reasons.append(f"{name} says again what {has[split[1]]} says")
        has[split[1]] = name
        return True

    def parts(self) -> MixtureParts:
        """Every tensor that was taken, in its place."""
        parts = MixtureParts()
        wrong: list[str] = []
        used: set[str] = set()
        for spelled, has in sorted(self._found.items()):
            if set(has) != {"A", "B"}:
                wrong.append(f"{spelled} has {', '.join(sorted(has))}; supported on experts and routers: lora_A and lora_B")
            elif self._rules.use_dora or self._rules.has_lora_bias:
                wrong.append(f"{spelled} is part of a mixture of experts, where use_dora and lora_bias are not supported")
            else:
                self._place(spelled, has["A"], has["B"], parts, wrong, used)
        if not wrong:
            wrong += self._missing()
        entries = sorted(set(self._rules.target_parameters))
        for entry in entries:
            if not any(path == entry or path.endswith(f".{entry}") for path in used):
                wrong.append(
                    f"target_parameters names {entry[:80]}, which has no tensors here that this model knows; supported: "
                    "gate_up_proj and down_proj of experts, the weight of routers"
                )
        self._reasons += wrong[:_MOST_REASONS]
        if len(wrong) > _MOST_REASONS:
            self._reasons.append(f"and {len(wrong) - _MOST_REASONS} more faults of experts and routers")
        return parts

    def _place(self, spelled: str, a: str, b: str, parts: MixtureParts, wrong: list[str], used: set[str]) -> None:
        match = _PATH.fullmatch(usual_path(spelled))
        experts = self._shape.experts
        assert match is not None
        assert experts is not None
        layer, hidden = int(match["layer"]), self._shape.hidden_size
        if match["stacked"] is not None:
            self._place_stacked(spelled, layer, a, b, parts, wrong, used)
            return
        rule = self._rule_of(spelled)
        if rule is None:
            wrong.append(f"{spelled} has tensors, but neither target_modules nor target_parameters names it")
            return
        used.add(rule)
        factors = Factors(a, b, self._rules.scale_of(rule), self._rules.lora_rank_of(rule))
        if match["expert"] is None:
            name = "router" if match["router"] is not None else "shared_gate"
            inputs, outputs = hidden, experts.num_experts if name == "router" else 1
            if self._fits(factors, 1, inputs, outputs, wrong):
                parts.small[layer, name] = factors
            return
        module = _MODULES[match["module"]]
        inputs, outputs = (experts.width, hidden) if module == "down" else (hidden, experts.width)
        if self._fits(factors, 1, inputs, outputs, wrong):
            parts.each.setdefault((layer, module), {})[int(match["expert"])] = factors

    def _rule_of(self, spelled: str) -> str | None:
        """The path that patterns are matched with: of the module or of its parameter; None if neither is named."""
        if self._rules.is_parameter(f"{spelled}.weight"):
            return f"{spelled}.weight"
        return spelled if self._rules.is_target(spelled) else None

    def _place_stacked(
        self, spelled: str, layer: int, a: str, b: str, parts: MixtureParts, wrong: list[str], used: set[str]
    ) -> None:
        experts, hidden = self._shape.experts, self._shape.hidden_size
        assert experts is not None
        path = spelled.replace(".base_layer", "")
        a_shape, b_shape = self._tensors.shapes[a], self._tensors.shapes[b]
        given = (a_shape[-1:], b_shape[:1])
        fits = [
            (name, is_turned)
            for name, (inputs, outputs) in (("gate_up", (hidden, 2 * experts.width)), ("down", (experts.width, hidden)))
            for is_turned in (False, True)
            if given == (((outputs,), (inputs,)) if is_turned else ((inputs,), (outputs,)))
        ]
        if len(fits) > 1:  # Input and output are equally wide: only the version tells which way they lie.
            fits = [fit for fit in fits if self._rules.turns_parameters == fit[1]]
        if len(fits) != 1:
            wrong.append(
                f"{spelled} has lora_A {list(a_shape)} and lora_B {list(b_shape)}, which fit "
                + (
                    "both ways of writing them: peft_version must say which peft did"
                    if given[0] == given[1]
                    else "neither gate_up_proj nor down_proj of the experts"
                )
            )
            return
        name, is_turned = fits[0]
        rule = f"{path}.{_STACKED[name]}"
        if not self._rules.is_parameter(rule):
            wrong.append(f"{spelled} has tensors of {rule}, but target_parameters does not name it")
            return
        used.add(rule)
        factors = Factors(a, b, self._rules.scale_of(rule), self._rules.lora_rank_of(rule), is_turned)
        if (layer, name) in parts.stacked:
            wrong.append(f"{rule} has two pairs of tensors")
        elif self._fits(factors, experts.num_experts, a_shape[-1], b_shape[0], wrong):
            parts.stacked[layer, name] = factors

    def _fits(self, factors: Factors, num_experts: int, inputs: int, outputs: int, wrong: list[str]) -> bool:
        before = len(wrong)
        rows = num_experts * factors.lora_rank
        for name, expected in ((factors.a, (rows, inputs)), (factors.b, (outputs, rows))):
            if self._tensors.shapes[name] != expected:
                found = list(self._tensors.shapes[name])
                wrong.append(f"{name} has shape {found}, config and base model say {list(expected)}")
            elif not self._tensors.is_float(name):
                wrong.append(f"{name} is {self._tensors.dtypes[name]}; supported: F32, F16, BF16")
        return len(wrong) == before

    def _missing(self) -> list[str]:
        """What the same rule names in other layers, or of other experts, must be there too."""
        experts = self._shape.experts
        if experts is None:
            return []
        patterns = {re.sub(r"(layers|experts)\.\d+\.", r"\1.#.", spelled) for spelled in self._found}
        missing = []
        for pattern in sorted(patterns):
            for layer in range(self._shape.num_layers):
                if not self._shape.is_sparse(layer):
                    continue
                of_layer = pattern.replace("layers.#.", f"layers.{layer}.")
                for expert in range(experts.num_experts) if "experts.#." in of_layer else (0,):
                    path = of_layer.replace("experts.#.", f"experts.{expert}.")
                    if path not in self._found and self._is_named(path):
                        missing.append(f"{path} is named like others that have tensors, but has none")
        return missing

    def _is_named(self, path: str) -> bool:
        module = path.replace(".base_layer", "")
        if module.endswith(".experts"):
            return any(self._rules.is_parameter(f"{module}.{name}") for name in _STACKED.values())
        return self._rule_of(path) is not None


_MOST_REASONS = 8


def max_mixture_values(experts: ExpertsShape, hidden_size: int, lora_rank: int) -> int:
    """The most numbers that an adapter can have for one layer's mixture."""
    each = 3 * (hidden_size + experts.width)
    return lora_rank * (experts.num_experts * each + 2 * hidden_size + experts.num_experts + 1)


def _held(rows: np.ndarray) -> Callable[[], np.ndarray]:
    return lambda: rows


__all__ = ["SMALL", "Factors", "MixtureMatching", "MixtureParts", "max_mixture_values"]
