"""``evenflow serve``: the OpenAI-compatible server on one base model and its adapters."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evenflow.base.errors import ConfigError
from evenflow.base.logs import use_log_format
from evenflow.cli.option_flags import add_config_flag, add_option_flags, options_given, parse_adapters
from evenflow.cli.otlp_environment import endpoint_of_environment
from evenflow.cli.serve_options import ServeOptions
from evenflow.cli.vllm_flags import VllmFlags, ignored_flags
from evenflow.serving.config.engine_config import EngineConfig
from evenflow.serving.models.generation_config import read_generation_config, sampling_defaults
from evenflow.serving.server.server_config import ServerConfig

log = logging.getLogger("evenflow.cli")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeCommand:
    """What a command line of ``evenflow serve`` means."""

    options: ServeOptions
    engine: EngineConfig
    server: ServerConfig
    adapters: Mapping[str, str | Path]
    """Folders or addresses of the adapters to register at the start, by name."""
    ignored: tuple[str, ...]
    """Flags of vLLM that were given and have no effect here, each with the reason."""
    further: Mapping[str, Any]
    """What was given of the options that another command has beside these."""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Describe the command."""
    parser = subparsers.add_parser(
        "serve",
        help="serve one base model with its adapters over HTTP",
        description="Serve one base model with many LoRA adapters to many clients, OpenAI-compatible, fairly. "
        "Ctrl-C or SIGTERM lets running requests finish, SIGHUP reads clients.toml again.",
        epilog="The flags of `vllm serve` are taken too: those that have a meaning here are among the above, by name or by "
        "alias; the others are named in the log, or refused with the reason.",
        allow_abbrev=False,
    )
    parser.add_argument("model_dir", nargs="?", metavar="MODEL_DIR", help="Hugging Face folder of the base model")
    add_config_flag(parser)
    add_option_flags(parser, ServeOptions, "models")
    add_option_flags(parser, ServerConfig, "server")
    add_option_flags(parser, EngineConfig, "engine")
    add_option_flags(parser, VllmFlags, "vLLM", is_hidden=True)
    parser.set_defaults(run=run)


def read_command(
    args: argparse.Namespace, environment: Mapping[str, str], further: type | None = None, *, policy: str | None = None
) -> ServeCommand:
    """Return what parsed arguments and the environment ask for. Raises ConfigError for what cannot be served.

    ``further``: options that the command has beside those of ``evenflow serve``. ``policy``: what serves if none is named.
    """
    others = () if further is None else (further,)
    given = options_given(args, ServeOptions, ServerConfig, EngineConfig, VllmFlags, *others)
    ignored = ignored_flags(given[VllmFlags])
    options = ServeOptions(**given[ServeOptions])
    adapters = parse_adapters(options.adapters)
    of_engine, of_server = given[EngineConfig], given[ServerConfig]
    if args.model_dir is not None:
        if _is_on_command_line(args, EngineConfig, "model"):
            raise ConfigError(f"the model is given twice, as {args.model_dir} and as --model {of_engine['model']}")
        of_engine["model"] = args.model_dir
    if options.demo:
        from evenflow.demo.assets import adapter_paths, model_path

        of_engine.setdefault("model", model_path())
        adapters = {**adapter_paths(), **adapters}
    if "model" not in of_engine:
        raise ConfigError("no model; give MODEL_DIR, or --demo for the embedded one")
    if key := environment.get("VLLM_API_KEY"):
        of_server.setdefault("api_keys", (key,))
    for field, value in _spelled_otherwise(options).items():
        if of_engine.setdefault(field, value) != value:
            raise ConfigError(f"{field} is {of_engine[field]!r}, and a flag of vLLM says {value!r}; give one of them")
    if policy is not None:
        of_engine.setdefault("policy", policy)
    given_engine = EngineConfig(**{"log_level": args.log_level, **of_engine})
    from evenflow.serving.client.model_files import with_model_folder

    engine = with_model_folder(given_engine, environment)
    folder = engine.model
    of_server.setdefault("log_requests", engine.log_format == "json")
    if not of_server.get("otlp_endpoint"):
        of_server["otlp_endpoint"] = endpoint_of_environment(environment)
    server = ServerConfig(
        **{
            "served_model_names": tuple(dict.fromkeys(("base", folder.resolve().name))),
            "model_names": tuple(dict.fromkeys((str(given_engine.model), str(given_engine.model.resolve())))),
            "sampling_defaults": _sampling_defaults(folder, options),
            **of_server,
        }
    )
    return ServeCommand(
        options=options,
        engine=engine,
        server=server,
        adapters=adapters,
        ignored=tuple(ignored),
        further={} if further is None else given[further],
    )


def run(args: argparse.Namespace) -> int:
    """Serve until a signal."""
    from evenflow.fairness import check_policy
    from evenflow.serving.client.engine_client import EngineClient
    from evenflow.serving.models.model_config import load_config
    from evenflow.serving.server.run import run_server
    from evenflow.serving.text import ChatTemplate, Tokenizer, read_chat_template

    command = read_command(args, os.environ)
    options, engine = command.options, command.engine
    logging.getLogger().setLevel(engine.log_level.upper())
    use_log_format(engine.log_format)
    check_policy(engine.policy)
    load_config(engine.model)  # says at once what is wrong with the folder
    if command.ignored:
        log.warning("taken without effect: %s", "; ".join(command.ignored))
    tokenizer = Tokenizer.from_folder(engine.text_folder)
    template = ChatTemplate.find(
        engine.text_folder,
        None if options.chat_template is None else read_chat_template(options.chat_template),
        content_format=options.chat_template_content_format,
        variables=options.default_chat_template_kwargs,
    )
    run_server(lambda: EngineClient(engine), tokenizer, template, command.server, command.adapters)
    return 0


def _spelled_otherwise(options: ServeOptions) -> dict[str, str]:
    """Fields of EngineConfig that flags of vLLM with other names set."""
    found = {}
    if options.scheduling_policy is not None:
        found["policy"] = options.scheduling_policy
    if options.fully_sharded_loras:
        found["lora_sharding"] = "sharded"
    return found


def _sampling_defaults(model: Path, options: ServeOptions) -> dict[str, Any]:
    """Fields of SamplingParams for requests that do not say."""
    source = options.generation_config
    generation: dict[str, Any] = {}
    if source == "auto":
        generation = read_generation_config(model)
    elif source not in ("none", "vllm"):
        folder = Path(source).expanduser()
        if not (folder / "generation_config.json").is_file():
            raise ConfigError(f"generation_config is {source!r}; allowed: auto, none, vllm or a folder with that file")
        generation = read_generation_config(folder)
    return sampling_defaults({**generation, **options.override_generation_config})


def _is_on_command_line(args: argparse.Namespace, config_class: type, field: str) -> bool:
    return hasattr(args, f"{config_class.__name__}.{field}")
