"""The tensors of an adapter's file, matched with what its config and the base model say: every one has its place or is a fault.

Legend: R rank, I input width, O output width of a module, V vocabulary, H hidden size.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from evenflow.serving.adapters.mixture_parts import MixtureMatching, MixtureParts
from evenflow.serving.adapters.peft_config import LoraRules
from evenflow.serving.adapters.tensor_names import (
    EMBEDDING,
    FUSED,
    HEAD,
    LAST_NORM,
    TensorName,
    block_of,
    linear_path,
    parse_name,
)
from evenflow.serving.adapters.tensor_source import TensorSource
from evenflow.serving.core.shape import MODULES, ModelShape

REASONS_PER_KIND = 4
"""So many faults of one kind are spelled out; the rest are counted."""
MOST_NEW_TOKENS = 65536
"""Tokens that an adapter's own vocabulary may have beyond the base model's."""

Target = tuple[int, str]
"""(layer, module)"""


@dataclass(frozen=True, slots=True)
class LinearPart:
    """LoRA of one linear of a layer, or of the output head: the names of its tensors and what they mean."""

    path: str
    """Of the module in the file: a fused one for its pieces."""
    a: str
    b: str
    scale: float
    outputs: slice
    """Rows of B, magnitude and bias that are this module's."""
    magnitude: str | None = None
    bias: str | None = None


@dataclass(slots=True)
class Parts:
    """Where everything in the file belongs."""

    linears: dict[Target, LinearPart] = field(default_factory=dict)
    head: LinearPart | None = None
    embedding: tuple[str, str, float] | None = None
    """(A [R, V], B [H, R], scale) of the token embedding."""
    norms: dict[Target, str] = field(default_factory=dict)
    """Own weights of norms; layer -1 is the last one."""
    tables: dict[str, str] = field(default_factory=dict)
    """Own weight of EMBEDDING and HEAD."""
    mixture: MixtureParts = field(default_factory=MixtureParts)
    tokens: dict[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)
    """Own rows of EMBEDDING and HEAD: (tensor [n, H], token ids as the config lists them)."""


def match_parts(
    tensors: TensorSource, rules: LoraRules, shape: ModelShape, is_tied: bool, reasons: list[str], file_name: str
) -> Parts:
    """Give every tensor its place; faults go to ``reasons``. ``is_tied``: embedding and head of the base model are one."""
    found: dict[str, dict[str, str]] = {}
    names: dict[str, TensorName] = {}
    unknown: list[str] = []
    mixture = MixtureMatching(tensors, rules, shape, reasons)
    for name in tensors.shapes:
        if mixture.take(name):
            continue
        parsed = parse_name(name)
        if parsed is None or parsed.layer >= shape.num_layers or not _is_of(parsed, shape):
            unknown.append(name)
        elif parsed.part in found.setdefault(parsed.path, {}):
            reasons.append(f"{name} says again what {found[parsed.path][parsed.part]} says")
        else:
            found[parsed.path][parsed.part] = name
            names[parsed.path] = parsed
    reasons += summarised("belongs to no part of the base model that an adapter may change", unknown)
    if not tensors.shapes:
        reasons.append(f"{file_name} holds no tensors")
    parts = _Matching(tensors, rules, shape, is_tied, reasons, found, names).parts()
    parts.mixture = mixture.parts()
    return parts


class _Matching:
    """One run over what was found; faults go to ``reasons``."""

    def __init__(
        self,
        tensors: TensorSource,
        rules: LoraRules,
        shape: ModelShape,
        is_tied: bool,
        reasons: list[str],
        found: dict[str, dict[str, str]],
        names: Mapping[str, TensorName],
    ) -> None:
        self._tensors, self._rules, self._shape, self._is_tied = tensors, rules, shape, is_tied
        self._reasons, self._found, self._names = reasons, found, names
        self._wrong: list[str] = []
        # Patterns are matched with the path that the trainer's model had: one spelled path tells how the others are.
        in_layers = next((n for n in names.values() if n.layer >= 0), None)
        self._prefix = "model." if in_layers is None else in_layers.spelled[: in_layers.spelled.rindex("layers.")]

    def parts(self) -> Parts:
        parts = Parts()
        self._check_targets()
        for path in sorted(self._found):
            has = self._found[path]
            if any(kind in has for kind in ("A", "B", "magnitude", "B bias")):
                self._linear(path, has, parts)
            if "embedding A" in has or "embedding B" in has:
                self._embedding(path, has, parts)
            for kind in ("weight", "base weight"):
                if kind in has:
                    self._own_weight(path, kind, has[kind], parts)
            if "tokens" in has:
                self._own_tokens(path, has["tokens"], parts)
        self._check_saved(parts)
        if self._is_tied:
            self._tie(parts)
        self._reasons += [*self._wrong[:REASONS_PER_KIND], *rest(self._wrong)]
        return parts

    def _spelled(self, path: str) -> str:
        name = self._names.get(path)
        if name is not None:
            return name.spelled
        return self._prefix + path.removeprefix("model.") if path.startswith("model.") else path

    def _is_target(self, path: str) -> bool:
        return self._rules.is_target(self._spelled(path))

    def _check_targets(self) -> None:
        """Targets without tensors, and tensors without a target."""
        adapted = {path for path, has in self._found.items() if has.keys() & {"A", "B", "embedding A", "embedding B"}}
        covered = set(adapted)
        for path in adapted:
            block, _, module = path.rpartition(".")
            covered |= {f"{block}.{piece}" for piece in FUSED.get(module, ())}
        blocks = [self._shape.mlp_block(layer) for layer in range(self._shape.num_layers)]
        linears = {
            linear_path(layer, module, block)
            for layer, block in enumerate(blocks)
            for module in MODULES
            if block or block_of(module) != "mlp"
        }
        targeted = {path for path in (*linears, EMBEDDING, HEAD) if self._is_target(path)}
        if self._rules.is_tying and (targeted & {EMBEDDING, HEAD}):
            targeted |= {EMBEDDING, HEAD} & adapted
        stray = sorted(path for path in adapted - targeted if not self._is_target(path))
        self._reasons += summarised("has tensors, but target_modules does not name it", stray)
        self._reasons += summarised("is named by target_modules, but has no tensors", sorted(targeted - covered))

    def _linear(self, path: str, has: Mapping[str, str], parts: Parts) -> None:
        if path in (EMBEDDING, LAST_NORM) or (self._names[path].layer >= 0 and self._module_widths(path) is None):
            self._wrong.append(f"{path} is no linear and cannot have lora_A and lora_B")
            return
        if "A" not in has or "B" not in has:
            alone = "A" if "A" in has else "B"
            self._wrong.append(f"{path} has lora_{alone} alone" if alone in has else f"{path} has neither lora_A nor lora_B")
            return
        name, rules = self._names[path], self._rules
        spelled = self._spelled(path)
        lora_rank = rules.lora_rank_of(spelled)
        inputs, outputs = self._widths(path, has)
        self._check(has["A"], (lora_rank, inputs))
        self._check(has["B"], (outputs, lora_rank))
        magnitude, bias = has.get("magnitude"), has.get("B bias")
        if (magnitude is not None) != rules.use_dora:
            self._wrong.append(
                f"{path} has {'a' if magnitude else 'no'} lora_magnitude_vector, but use_dora is {str(rules.use_dora).lower()}"
            )
        if (bias is not None) != rules.has_lora_bias:
            self._wrong.append(f"{path} has {'a' if bias else 'no'} lora_B.bias, but lora_bias is {str(not bias).lower()}")
        for vector in (magnitude, bias):
            if vector is not None:
                self._check(vector, (outputs,))
        first = 0
        for module in FUSED.get(name.module, (name.module,)):
            width = outputs if path == HEAD else self._shape.module_widths(module)[1]
            part = LinearPart(path, has["A"], has["B"], rules.scale_of(spelled), slice(first, first + width), magnitude, bias)
            first += width
            if path == HEAD:
                parts.head = part
            elif (name.layer, module) in parts.linears:
                self._wrong.append(f"{path} and {parts.linears[name.layer, module].path} adapt the same module")
            else:
                parts.linears[name.layer, module] = part

    def _module_widths(self, path: str) -> tuple[int, int] | None:
        modules = FUSED.get(self._names[path].module, (self._names[path].module,))
        if any(module not in MODULES for module in modules):
            return None
        widths = [self._shape.module_widths(module) for module in modules]
        return widths[0][0], sum(outputs for _, outputs in widths)

    def _widths(self, path: str, has: Mapping[str, str]) -> tuple[int, int]:
        if path == HEAD:
            return self._shape.hidden_size, self._vocabulary(path, has["B"], 0)
        widths = self._module_widths(path)
        assert widths is not None
        return widths

    def _vocabulary(self, path: str, name: str, axis: int) -> int:
        """Tokens that a tensor of a table covers, if that is a vocabulary this model may have; else the base model's."""
        shape = self._tensors.shapes[name]
        size = shape[axis] if axis < len(shape) else 0
        return size if 0 < size <= self._shape.vocab_size + MOST_NEW_TOKENS else self._shape.vocab_size

    def _embedding(self, path: str, has: Mapping[str, str], parts: Parts) -> None:
        if path != EMBEDDING:
            self._wrong.append(f"{path} is no embedding and cannot have lora_embedding_A and lora_embedding_B")
            return
        if "embedding A" not in has or "embedding B" not in has:
            self._wrong.append(f"{path} has {'lora_embedding_A' if 'embedding A' in has else 'lora_embedding_B'} alone")
            return
        if self._rules.use_dora:
            self._wrong.append(f"{path} is an embedding; DoRA is supported for linears")
        a, b = has["embedding A"], has["embedding B"]
        lora_rank = self._rules.lora_rank_of(self._spelled(path))
        self._check(a, (lora_rank, self._vocabulary(path, a, 1)))
        self._check(b, (self._shape.hidden_size, lora_rank))
        parts.embedding = a, b, self._rules.scale_of(self._spelled(path))

    def _own_weight(self, path: str, kind: str, name: str, parts: Parts) -> None:
        hidden, parsed = self._shape.hidden_size, self._names[path]
        if path in (EMBEDDING, HEAD):
            self._check(name, (self._vocabulary(path, name, 0), hidden))
            parts.tables[path] = name
        elif kind == "weight" and (path == LAST_NORM or parsed.layer >= 0) and self._rules.is_saved(self._spelled(path)):
            if path != LAST_NORM and self._module_widths(path) is not None:
                return  # told with modules_to_save
            self._check(name, (hidden,))
            parts.norms[parsed.layer, parsed.module or "norm"] = name
        else:
            self._wrong.append(f"{name} is a weight of the base model that modules_to_save does not name")

    def _own_tokens(self, path: str, name: str, parts: Parts) -> None:
        listed = self._rules.token_ids_of(self._spelled(path))
        if path not in (EMBEDDING, HEAD) or not listed:
            self._wrong.append(f"{name} has rows of tokens, but trainable_token_indices does not name {path}")
            return
        self._check(name, (len(listed), self._shape.hidden_size))
        if len(set(listed)) < len(listed) or min(listed) < 0 or max(listed) >= self._shape.vocab_size + MOST_NEW_TOKENS:
            self._wrong.append(f"trainable_token_indices of {path} holds a token twice, or one that the model cannot have")
        parts.tokens[path] = name, tuple(listed)

    def _check_saved(self, parts: Parts) -> None:
        """What modules_to_save and trainable_token_indices name must be there, and be something that is served."""
        has_linear = sorted(
            path
            for path, has in self._found.items()
            if "weight" in has and path not in (EMBEDDING, HEAD, LAST_NORM) and self._module_widths(path) is not None
        )
        self._reasons += summarised(
            "is named by modules_to_save; supported there: embed_tokens, lm_head and norms (target a linear with LoRA)",
            has_linear,
        )
        saved = [path for path, has in self._found.items() if "weight" in has]
        for entry in self._rules.modules_to_save:
            if not any(self._spelled(path).endswith(entry) or path.endswith(entry) for path in saved):
                self._reasons.append(
                    f"modules_to_save names {entry[:80]}, which has no weight here; supported: embed_tokens, lm_head, norms"
                )
        for entry in self._rules.token_ids:
            if not any(_is_named(entry, self._spelled(path)) for path in parts.tokens):
                self._reasons.append(f"trainable_token_indices names {entry[:80]}, which has no rows of tokens")

    def _tie(self, parts: Parts) -> None:
        """Embedding and head of the base model are one tensor: what peft loads into it changes both."""
        base = self._found.get(EMBEDDING, {}).get("base weight")
        if base is None and not self._rules.is_saved(self._spelled(EMBEDDING)):
            base = parts.tables.get(EMBEDDING)
        if base is not None:
            parts.tables.setdefault(HEAD, base)
        if EMBEDDING in parts.tokens and HEAD not in parts.tokens and HEAD not in parts.tables:
            parts.tokens[HEAD] = parts.tokens[EMBEDDING]

    def _check(self, name: str, expected: tuple[int, ...]) -> None:
        if self._tensors.shapes[name] != expected:
            found = list(self._tensors.shapes[name])
            self._wrong.append(f"{name} has shape {found}, config and base model say {list(expected)}")
        elif not self._tensors.is_float(name):
            self._wrong.append(f"{name} is {self._tensors.dtypes[name]}; supported: F32, F16, BF16")


def _is_of(name: TensorName, shape: ModelShape) -> bool:
    """False for a linear of an MLP in a layer that has another one, or none."""
    if name.layer < 0 or block_of(name.module) != "mlp":
        return True
    return name.path == linear_path(name.layer, name.module, shape.mlp_block(name.layer))


def _is_named(entry: str, path: str) -> bool:
    return path == entry or path.endswith(f".{entry}")


def summarised(fault: str, subjects: Iterable[str]) -> list[str]:
    """One sentence for each subject, up to REASONS_PER_KIND, and a count of the rest."""
    listed = list(subjects)
    return [f"{subject} {fault}" for subject in listed[:REASONS_PER_KIND]] + rest(listed)


def rest(faults: list[str]) -> list[str]:
    """A count of the faults that are not spelled out."""
    return [f"and {len(faults) - REASONS_PER_KIND} more of this kind"] if len(faults) > REASONS_PER_KIND else []


__all__ = ["LinearPart", "Parts", "Target", "match_parts", "summarised"]
