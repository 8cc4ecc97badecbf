"""What is deployed, as one value that every process of the deployment is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evenflow.cluster.ray_options import RayOptions
from evenflow.serving.config.engine_config import EngineConfig
from evenflow.serving.server.server_config import ServerConfig
from evenflow.serving.text import ChatTemplate, Tokenizer

SHARED_POLICY = "vtc-shared"
"""Without an address: shared counters in the deployment's own directory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentPlan:
    """Settings of engines, fronts and Ray."""

    engine: EngineConfig
    server: ServerConfig
    ray: RayOptions
    adapters: Mapping[str, Path] = field(default_factory=dict)
    """Registered at the start, by name."""
    chat_template: str | None = None
    """The template itself; None: the model's own."""
    chat_template_content_format: str = "auto"
    chat_template_variables: Mapping[str, Any] = field(default_factory=dict)

    @property
    def gpus_per_replica(self) -> float:
        """GPUs of one engine."""
        if self.ray.gpus_per_replica is not None:
            return self.ray.gpus_per_replica
        return float(self.engine.tensor_parallel) if self.engine.device.startswith("cuda") else 0.0

    def text_side(self) -> tuple[Tokenizer, ChatTemplate | None]:
        """Tokenizer and chat template. Raises ModelError or ConfigError."""
        folder = self.engine.text_folder
        template = ChatTemplate.find(
            folder,
            self.chat_template,
            content_format=self.chat_template_content_format,
            variables=self.chat_template_variables,
        )
        return Tokenizer.from_folder(folder), template
