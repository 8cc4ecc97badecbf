"""Models that are one file: the folder that stands for it, made before an engine is started."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from evenflow.serving.client.environment import default_adapter_cache
from evenflow.serving.config.engine_config import EngineConfig
from evenflow.serving.models.stored.gguf_folder import model_folder


def with_model_folder(config: EngineConfig, environment: Mapping[str, str]) -> EngineConfig:
    """``config``, and where its model is a GGUF file, the folder made of that, beside the adapter cache.

    Raises ModelError for a file that cannot be served, and ConfigError if it cannot be read here.
    """
    cache = (config.adapter_cache or default_adapter_cache(environment)).parent / "gguf"
    folder = model_folder(config.model, cache)
    return config if folder == config.model else replace(config, model=folder)


__all__ = ["with_model_folder"]
