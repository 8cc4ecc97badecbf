"""What is compressed where: the rules of a run, read from text and checked before anything starts.

``none``, or rules separated by ``;``: ``site=compressor[/transport]``. Sites are tp, sp and pp, each with ``.forward`` or
``.backward``; without a direction both are meant; ``dp`` is ``dp.gradients``. Layers: ``all``, ``none``, ``first-half``,
``last-half``, or a 1-based range ``13-24``.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from evenflow.base.errors import ConfigError, RegistryError
from evenflow.comm import Compressor, GradientRule, Transport, get_compressor, get_transport
from evenflow.mcbench.names import DEFAULT_LAYERS, WIRE_SITES


@dataclass(frozen=True, slots=True)
class Rule:
    """A compressor's spec and, if named, the transport that carries its messages."""

    spec: str
    transport: str | None = None

    def make(self, world_size: int) -> tuple[Compressor, Transport]:
        """Return a fresh compressor and its transport among so many ranks. Raises RegistryError or ConfigError."""
        compressor = get_compressor(self.spec)
        return compressor, get_transport(self.transport, compressor, world_size)


DENSE = Rule("none")


def parse_rules(text: str) -> dict[str, Rule]:
    """Return a rule for each named site. Raises ConfigError or RegistryError naming what is allowed."""
    rules: dict[str, Rule] = {}
    if text.strip() in ("", "none"):
        return rules
    for part in filter(None, (piece.strip() for piece in text.split(";"))):
        site, equals, value = (word.strip() for word in part.partition("="))
        if not equals or not value:
            raise ConfigError(f"rule {part!r}; allowed: site=compressor[/transport], sites {', '.join(WIRE_SITES)}")
        sites = [name for name in WIRE_SITES if site in (name, name.split(".")[0])]
        if not sites:
            raise RegistryError(f"unknown site {site!r}; known: tp, sp, pp, dp, {', '.join(WIRE_SITES)}")
        spec, slash, transport = value.rpartition("/")
        rule = Rule(spec.strip(), transport.strip()) if slash else Rule(value)
        rule.make(world_size=2)  # whatever the number of ranks: what cannot work is said here
        for name in sites:
            if name in rules:
                raise ConfigError(f"two rules for {name}: {rules[name].spec} and {rule.spec}")
            if not name.startswith(("tp", "dp")) and rule.transport is not None:
                raise ConfigError(f"{part}: {name} has a transport of its own; allowed: {name}={rule.spec}")
            if name != "tp.forward" and rule.spec.startswith("caat"):
                raise ConfigError(f"{part}: partial channels have no meaning at {name}")
            rules[name] = rule
    return rules


def parse_gradients(text: str) -> dict[str, GradientRule]:
    """Read ``RULE`` (for both forward sites) or ``site=RULE; ...``. Raises ConfigError or RegistryError."""
    known = {rule.value: rule for rule in GradientRule}
    forward = ["tp.forward", "pp.forward"]
    rules: dict[str, GradientRule] = {}
    for part in filter(None, (piece.strip() for piece in text.split(";"))):
        site, equals, name = (word.strip() for word in part.partition("="))
        sites = [known_site for known_site in forward if site in (known_site, known_site.split(".")[0])] if equals else forward
        name = name if equals else part
        if not sites:
            raise RegistryError(f"unknown site {site!r} of a gradient rule; known: {', '.join(forward)}")
        if name not in known:
            raise ConfigError(f"gradient {name!r}; allowed: {', '.join(known)}")
        rules.update(dict.fromkeys(sites, known[name]))
    return rules


def select_layers(text: str, num_layers: int) -> frozenset[int]:
    """Return 0-based layer numbers. Raises ConfigError."""
    half = num_layers // 2
    named: Mapping[str, range] = {
        "all": range(num_layers),
        "none": range(0),
        "first-half": range(half),
        "last-half": range(half, num_layers),
    }
    if text in named:
        return frozenset(named[text])
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", text.strip())
    if not match:
        raise ConfigError(f"layers {text!r}; allowed: all, none, first-half, last-half, or 1-based like 13-24")
    first, last = int(match.group(1)), int(match.group(2) or match.group(1))
    if not 1 <= first <= last <= num_layers:
        raise ConfigError(f"layers {text!r}: the model has layers 1 to {num_layers}")
    return frozenset(range(first - 1, last))


def stage_layers(num_layers: int, num_stages: int) -> list[range]:
    """Return the layers of each stage, as even as possible. Raises ConfigError if a stage would be empty."""
    if not 1 <= num_stages <= num_layers:
        raise ConfigError(f"{num_layers} layers cannot be cut into {num_stages} stages")
    edges = [round(i * num_layers / num_stages) for i in range(num_stages + 1)]
    return [range(a, b) for a, b in itertools.pairwise(edges)]


@dataclass(frozen=True, slots=True)
class CompressionRules:
    """What one run compresses: a rule for each wire site, the layers and modules they apply to, and when."""

    by_site: Mapping[str, Rule] = field(default_factory=dict)
    """The rule of each wire site that has one."""
    layers: str = DEFAULT_LAYERS
    modules: str = ".*"
    """Regular expression; only sites whose module name it matches are compressed."""
    warmup_steps: int = 0
    """Dense for so many optimiser steps."""
    active_at_eval: bool = True
    dense_below: int = 0
    """Tensors of fewer bytes than this are sent as they are."""
    gradients: Mapping[str, GradientRule] = field(default_factory=dict)
    """Gradient rules of tp.forward and pp.forward; each compressor's own where none is given."""

    def __post_init__(self) -> None:
        try:
            re.compile(self.modules)
        except re.error as error:
            raise ConfigError(f"module pattern {self.modules!r}: {error}") from None
        if self.is_sequence_parallel and any(site.startswith("tp") for site in self.by_site):
            raise ConfigError("rules for sp and tp: sequence parallelism has gathers and scatters in the place of tp's sums")
        if self.dense_below < 0:
            raise ConfigError(f"dense below {self.dense_below} bytes; allowed: 0 or more")
        if self.warmup_steps < 0:
            raise ConfigError(f"warm-up of {self.warmup_steps} steps; allowed: 0 or more")

    @staticmethod
    def parse(spec: str, layers: str = DEFAULT_LAYERS, modules: str = ".*", **options: object) -> CompressionRules:
        """Read the rules of a SPEC. Raises ConfigError or RegistryError naming what is allowed."""
        return CompressionRules(parse_rules(spec), layers, modules, **options)  # type: ignore[arg-type]

    @property
    def is_sequence_parallel(self) -> bool:
        """Whether the sequence is split between tensor-parallel blocks: any rule for sp, be it ``sp=none``."""
        return any(site.startswith("sp") for site in self.by_site)

    def rule(self, site: str, is_chosen: bool = True) -> Rule:
        """Return the rule of a site, dense if there is none or the module is not chosen."""
        return self.by_site.get(site, DENSE) if is_chosen else DENSE
