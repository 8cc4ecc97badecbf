"""Tensor parallelism with compressed exchanges on an unmodified transformers model.

``compress_model`` cuts the linear layers of a model over the "tp" dimension of a mesh and puts compressed exchanges where
Megatron has its operators: g after every row-parallel product (before the bias), f once per module that owns
column-parallel ones. ``emulate_model`` does the same with W virtual ranks in one process, for accuracy with many seeds.
Build the optimiser afterwards: learned compressors add parameters, and cut weights are new ones.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from evenflow.base.errors import ConfigError
from evenflow.comm import Collective, Ledger, TorchCollective
from evenflow.comm.collectives.links import Link
from evenflow.comm.collectives.stopwatch import Stopwatch
from evenflow.mcbench.names import DEFAULT_LAYERS
from evenflow.mcbench.split.dropout import check_random_state
from evenflow.mcbench.split.families import make_linear
from evenflow.mcbench.split.roles import check_divisible, layer_of, roles_of
from evenflow.mcbench.split.rules import CompressionRules, select_layers
from evenflow.mcbench.split.sequence import attach_sequence
from evenflow.mcbench.split.wiring import Compression, GroupWiring, VirtualWiring, Wiring


def compression_of(model: nn.Module) -> Compression:
    """Return the compression attached to a model. Raises ConfigError if there is none."""
    found = getattr(model, "_evenflow_compression", None)
    if not isinstance(found, Compression):
        raise ConfigError(f"{type(model).__name__} has no compression attached")
    return found


def compress_model(
    model: nn.Module,
    mesh: DeviceMesh,
    spec: str,
    layers: str = DEFAULT_LAYERS,
    modules: str = ".*",
    *,
    link: Link | None = None,
    stopwatch: Stopwatch | None = None,
    ledger: Ledger | None = None,
    seed: int | None = None,
    **options: Any,
) -> nn.Module:
    """Cut ``model`` over mesh["tp"] and compress its exchanges; return the same model, changed in place.

    All ranks must hold equal weights before. A model with dropout needs the same random numbers on all ranks: ``seed`` sets
    them; without it they are compared. Raises ConfigError (heads that do not divide, a pattern that matches nothing, dropout
    over ranks that were seeded differently), ModelError (a family without a plan), RegistryError (unknown names in ``spec``).
    """
    rules = CompressionRules.parse(spec, layers, modules, **options)
    names = mesh.mesh_dim_names or ()
    if "tp" not in names:
        raise ConfigError(f"the mesh has the dimensions {names}; it needs one called tp")
    collective: Collective = TorchCollective(mesh["tp"].get_group())
    if seed is not None:
        torch.manual_seed(seed)
    check_random_state(model, collective)
    return attach(model, rules, GroupWiring(collective, link, stopwatch), ledger, stopwatch)


def emulate_model(
    model: nn.Module, world_size: int, spec: str, layers: str = DEFAULT_LAYERS, modules: str = ".*", **options: Any
) -> nn.Module:
    """Compress the exchanges that ``world_size`` tensor-parallel ranks would have, in this one process."""
    return attach(model, CompressionRules.parse(spec, layers, modules, **options), VirtualWiring(world_size))


def attach(
    model: nn.Module,
    rules: CompressionRules,
    wiring: Wiring,
    ledger: Ledger | None = None,
    stopwatch: Stopwatch | None = None,
) -> nn.Module:
    """Put the exchanges into the model. See ``compress_model`` for errors."""
    roles = roles_of(make_linear(model))
    check_divisible(model, roles, wiring.world_size)
    chosen_layers = select_layers(rules.layers, roles.num_layers)
    pattern = re.compile(rules.modules)
    sites = [*roles.rows, *roles.owners, *roles.lone_columns]
    if not any(pattern.search(name) for name in sites):
        raise ConfigError(f"module pattern {rules.modules!r} matches none of the {len(sites)} sites, such as {sites[0]}")

    compression = Compression(rules, ledger if ledger is not None else Ledger(), stopwatch)
    named = dict(model.named_modules())
    seeds: Iterator[int] = iter(range(10**9))

    def exchange(site: str, name: str, width: int) -> Any:
        made = wiring.exchange(site, rules, is_chosen(name), compression)
        like = next(model.parameters())
        compression.add(made, width, next(seeds), like)
        return made

    def is_chosen(name: str) -> bool:
        return layer_of(name) in chosen_layers and bool(pattern.search(name))

    if rules.is_sequence_parallel:
        if not isinstance(wiring, GroupWiring):
            raise ConfigError("sequence parallelism is not emulated: start real ranks (no --emulate)")
        attach_sequence(model, roles, rules, wiring, compression, is_chosen)
        return _finish(model, compression)
    for name in roles.rows:
        wiring.row(named[name], exchange("tp.forward", name, named[name].out_features))
    grouped = {owner: [c for c in roles.columns if c.rpartition(".")[0] == owner] for owner in roles.owners}
    for owner, columns in grouped.items():
        wiring.owner(named[owner], [named[c] for c in columns], exchange("tp.backward", owner, named[columns[0]].in_features))
    for name in roles.lone_columns:
        made = exchange("tp.backward", name, named[name].in_features)
        wiring.lone_column(named[name], made, roles.segments_of(name))
    for name in roles.partial:
        wiring.sum_gradients(named[name], compression)
    wiring.cut_heads(named, roles)
    return _finish(model, compression)


def _finish(model: nn.Module, compression: Compression) -> nn.Module:
    """Hang the compression on the model: its switch, its parameters, itself."""
    model.register_forward_pre_hook(lambda module, args: compression.set_switch(module.training))
    model.add_module("_compression_parameters", compression.parameters)
    object.__setattr__(model, "_evenflow_compression", compression)
    return model
