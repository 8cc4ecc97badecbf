"""What a server is told when it is made: frozen, validated here, each field with unit and reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from evenflow.base.errors import ConfigError, InvalidRequest
from evenflow.serving.core.sampling import SamplingParams

MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """Settings of one HTTP server. Raises ConfigError, naming the field, for a value outside its range."""

    served_model_names: tuple[str, ...] = ("base",)
    """Names of the base model in ``model``; the first one is shown, the others are aliases."""
    model_names: tuple[str, ...] = ()
    """What adapters may call the base model beside that, e.g. its folder; with none, what they say is not compared."""
    sampling_defaults: Mapping[str, float] = field(default_factory=dict)
    """For requests that do not say: fields of SamplingParams. ``max_tokens`` among them is a limit for all requests."""
    host: str = "127.0.0.1"
    port: int = 8000
    """0: any free port."""
    clients_file: Path | None = None
    """clients.toml: keys, weights, limits. None: everyone may enter and says who they are."""
    adapter_dir: Path | None = None
    """Folder whose sub-folders are adapters, loaded when their name is first asked for."""
    max_queue: int = 4096
    """Completions that may wait for their first token, of all clients together; beyond it 503."""
    max_body_bytes: int = 32 * MIB
    """A larger request body is refused before it is read to its end."""
    max_choices: int = 1024
    """Completions one HTTP request may ask for (prompts x n)."""
    drain_timeout_s: float = 30.0
    """After SIGTERM, running requests get this long to finish."""
    keepalive_s: float = 15.0
    """A stream that has nothing to say for so long sends a comment, so that proxies do not cut it."""
    metrics_top_k: int = 50
    """Clients, and adapters, with series of their own in /metrics; the rest is summed as "other"."""

    def __post_init__(self) -> None:
        def check(ok: bool, name: str, allowed: str) -> None:
            if not ok:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; allowed: {allowed}")

        object.__setattr__(self, "served_model_names", tuple(self.served_model_names))
        for name in ("clients_file", "adapter_dir"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, Path(getattr(self, name)))
        names = self.served_model_names
        check(bool(names) and all(names) and len(set(names)) == len(names), "served_model_names", "one or more different names")
        try:
            SamplingParams(**self.sampling_defaults)  # type: ignore[arg-type]
        except InvalidRequest as error:
            raise ConfigError(f"generation_config.json: {error}; or start with --generation-config none") from None
        check(0 <= self.port <= 65535, "port", "0 to 65535")
        check(self.adapter_dir is None or self.adapter_dir.is_dir(), "adapter_dir", "a folder that exists")
        for name in ("max_queue", "max_body_bytes", "max_choices"):
            check(getattr(self, name) >= 1, name, "1 or more")
        check(self.drain_timeout_s >= 0, "drain_timeout_s", "0 or more seconds")
        check(self.keepalive_s > 0, "keepalive_s", "above 0 seconds")
        check(self.metrics_top_k >= 0, "metrics_top_k", "0 or more")
