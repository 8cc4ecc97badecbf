"""Options of ``evenflow serve`` that are neither the engine's nor the server's: what is served, and under which defaults."""

from __future__ import annotations

from dataclasses import dataclass

from evenflow.serving.config.kinds import Choice, Names, Switch
from evenflow.serving.config.option import option, read_options


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """What is served. Raises ConfigError, naming the option, for a value outside its range."""

    demo: bool = option(Switch(), False, "Serve the embedded model with its adapters; no MODEL_DIR is needed.")
    adapters: tuple[str, ...] = option(
        Names("NAME=DIR"), (), "PEFT adapters to register at the start.", aliases=("lora_modules",)
    )
    generation_config: str = option(
        Choice(("auto", "none", "vllm")),
        "auto",
        "auto: sampling fields that a request leaves out are those of the model's generation_config.json; none (or vllm): "
        "OpenAI's defaults.",
    )

    def __post_init__(self) -> None:
        read_options(self)
