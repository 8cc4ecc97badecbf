"""``evenflow serve``: the OpenAI-compatible server on one base model and its adapters."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from evenflow.base.errors import ConfigError
from evenflow.cli.option_flags import add_config_flag, add_option_flags, options_given, parse_adapters
from evenflow.cli.serve_options import ServeOptions
from evenflow.serving.config.engine_config import EngineConfig
from evenflow.serving.server.server_config import ServerConfig


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Describe the command."""
    parser = subparsers.add_parser(
        "serve",
        help="serve one base model with its adapters over HTTP",
        description="Serve one base model with many LoRA adapters to many clients, OpenAI-compatible, fairly. "
        "Ctrl-C or SIGTERM lets running requests finish, SIGHUP reads clients.toml again.",
    )
    parser.add_argument("model_dir", nargs="?", type=Path, metavar="MODEL_DIR", help="Hugging Face folder of the base model")
    add_config_flag(parser)
    add_option_flags(parser, ServeOptions, "models")
    add_option_flags(parser, ServerConfig, "server")
    add_option_flags(parser, EngineConfig, "engine")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Serve until a signal."""
    from evenflow.fairness import check_policy
    from evenflow.serving.client.engine_client import EngineClient
    from evenflow.serving.models.model_config import load_config
    from evenflow.serving.server.run import run_server
    from evenflow.serving.text import ChatTemplate, Tokenizer

    given = options_given(args, ServeOptions, ServerConfig, EngineConfig)
    options = ServeOptions(**given[ServeOptions])
    adapters = parse_adapters(options.adapters)
    if args.model_dir is not None:
        given[EngineConfig]["model"] = args.model_dir
    if options.demo:
        from evenflow.demo.assets import adapter_paths, model_path

        given[EngineConfig].setdefault("model", model_path())
        adapters = {**adapter_paths(), **adapters}
    if "model" not in given[EngineConfig]:
        raise ConfigError("no model; give MODEL_DIR, or --demo for the embedded one")
    engine = EngineConfig(log_level=args.log_level, **given[EngineConfig])
    check_policy(engine.policy)
    config = load_config(engine.model)  # says at once what is wrong with the folder
    folder = engine.model
    if os.environ.get("VLLM_API_KEY") and "api_keys" not in given[ServerConfig]:
        given[ServerConfig]["api_keys"] = (os.environ["VLLM_API_KEY"],)
    server = ServerConfig(
        **{
            "served_model_names": tuple(dict.fromkeys(("base", folder.resolve().name))),
            "model_names": tuple(dict.fromkeys((str(folder), str(folder.resolve())))),
            "sampling_defaults": dict(config.sampling_defaults) if options.generation_config == "auto" else {},
            **given[ServerConfig],
        }
    )
    tokenizer = Tokenizer.from_folder(folder)
    run_server(lambda: EngineClient(engine), tokenizer, ChatTemplate.find(folder), server, adapters)
    return 0
