"""What a run is made of, from its configuration: the task, the model before it is split, and the groups of its ranks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from evenflow.base.errors import ConfigError
from evenflow.comm import Collective, TorchCollective
from evenflow.mcbench.names import MODELS
from evenflow.mcbench.runs.benchmark_models import load_model, make_model
from evenflow.mcbench.runs.precision import precision
from evenflow.mcbench.runs.run_config import RunConfig
from evenflow.mcbench.tasks.load import load_task
from evenflow.mcbench.tasks.model_folder import has_tokenizer
from evenflow.mcbench.tasks.task import Task


def build_model(config: RunConfig, task: Task, seed: int) -> nn.Module:
    """Return the run's model before it is split. Equal on all ranks for equal seeds."""
    name = config.model or task.default_model
    if name in MODELS:
        return make_model(
            name,
            seed,
            num_labels=task.num_labels,
            vocab_size=task.vocab_size,
            max_length=max(task.length, 16),
            **config.sizes(),
        ).to(precision(config.dtype).weights)
    torch.manual_seed(seed)
    return load_model(name, task.kind, task.num_labels).to(precision(config.dtype).weights)


def task_of(config: RunConfig) -> Task:
    """Load the run's task. Raises ConfigError where its numbers for words mean nothing to a model that was trained before."""
    folder = config.model if config.model and config.model not in MODELS else None
    if folder is not None and config.task in OWN_NUMBERS and has_tokenizer(folder):
        raise ConfigError(
            f"task {config.task} has numbers of its own for {OWN_NUMBERS[config.task]}, which mean nothing to {folder}: "
            "that model has a tokenizer; allowed: tokens, or text, wikipedia and glue/... with --data-root"
        )
    return load_task(config.task, config.data_root or None, folder)


OWN_NUMBERS = {"chars": "characters", "words": "words", "topics": "words", "pairs": "words"}
"""Tasks that number characters or words themselves, for models that are trained from scratch."""


@dataclass
class MeshGroups:
    """The groups of this rank in the mesh of data-parallel ranks, pipeline stages and tensor-parallel ranks."""

    mesh: DeviceMesh
    tp: Collective
    pp: TorchCollective
    dp: TorchCollective

    @staticmethod
    def of(config: RunConfig) -> MeshGroups:
        """Make this rank's groups; the default group must exist. Raises ConfigError for another world size."""
        if dist.get_world_size() != config.world_size:
            wanted = f"{config.dp} x {config.pp} x {config.tp}"
            raise ConfigError(f"{dist.get_world_size()} ranks were started; dp x pp x tp = {wanted}")
        names = ("dp", "pp", "tp")
        mesh = init_device_mesh("cpu", (config.dp, config.pp, config.tp), mesh_dim_names=names)
        dp, pp, tp = (TorchCollective(mesh[name].get_group()) for name in names)
        return MeshGroups(mesh, tp, pp, dp)


def init_group(rank: int, world_size: int, rendezvous: Path) -> None:
    """Join the default gloo group through a file."""
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world_size)
