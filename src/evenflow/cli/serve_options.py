"""Options of ``evenflow serve`` that are neither the engine's nor the server's: what is served, and under which defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evenflow.base.errors import ConfigError
from evenflow.serving.config.kinds import Choice, Names, Switch, Table, Text
from evenflow.serving.config.option import option, read_options
from evenflow.serving.models.generation_config import FIELDS
from evenflow.serving.text.content_format import CONTENT_FORMATS


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """What is served. Raises ConfigError, naming the option, for a value outside its range."""

    demo: bool = option(Switch(), False, "Serve the embedded model with its adapters; no MODEL_DIR is needed.")
    adapters: tuple[str, ...] = option(
        Names("NAME=DIR"),
        (),
        'PEFT adapters to register at the start: NAME=DIR, {"name": NAME, "path": DIR}, or a JSON list of those.',
        aliases=("lora_modules",),
    )
    chat_template: str | None = option(
        Text("a file, or a template", "FILE"),
        None,
        "Chat template of the server: a file with a jinja template, or the template itself.",
        when_none="the model's own",
    )
    chat_template_content_format: str = option(
        Choice(CONTENT_FORMATS),
        "auto",
        "What the template is given as a message's content: a text (string), a list of parts (openai), or what its own source "
        "shows that it reads (auto).",
    )
    default_chat_template_kwargs: Mapping[str, Any] = option(
        Table(),
        default_factory=dict,
        help="Variables for the chat template that a request does not set itself, e.g. '{\"enable_thinking\": false}'.",
    )
    generation_config: str = option(
        Text("auto, none, vllm or a folder", "NAME|DIR"),
        "auto",
        "auto: fields that a request leaves out are those of the model's generation_config.json; none (or vllm): OpenAI's "
        "defaults; a folder: those of the file there.",
    )
    override_generation_config: Mapping[str, Any] = option(
        Table(),
        default_factory=dict,
        help="Fields of generation_config.json that count instead of the file's, e.g. '{\"temperature\": 0.5}'.",
    )
    scheduling_policy: str | None = option(
        Choice(("fcfs", "priority")),
        None,
        "vLLM's spelling of --policy fcfs. Its priority policy is not served: weights and tiers of clients are.",
        when_none="--policy says it",
    )
    fully_sharded_loras: bool = option(Switch(), False, "vLLM's spelling of --lora-sharding sharded.")

    def __post_init__(self) -> None:
        read_options(self)
        if self.scheduling_policy == "priority":
            raise ConfigError(
                "scheduling_policy is 'priority'; allowed: fcfs. Requests are ordered by the shares of their clients: give "
                "weights or tiers in clients.toml"
            )
        unknown = sorted(set(self.override_generation_config) - set(FIELDS))
        if unknown:
            raise ConfigError(f"override_generation_config sets {', '.join(unknown)}; allowed: {', '.join(FIELDS)}")
