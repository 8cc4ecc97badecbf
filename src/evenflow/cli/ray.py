"""``evenflow ray serve``: several engines behind one address, on Ray."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evenflow.base.errors import ConfigError
from evenflow.cli.option_flags import add_config_flag, add_option_flags
from evenflow.cli.serve import ServeCommand, read_command
from evenflow.cli.serve_options import ServeOptions
from evenflow.cli.vllm_flags import VllmFlags
from evenflow.cluster.ray_options import RayOptions
from evenflow.serving.config.engine_config import EngineConfig
from evenflow.serving.server.server_config import ServerConfig

if TYPE_CHECKING:
    from evenflow.cluster.plan import DeploymentPlan

SHARED_POLICY = "vtc-shared"


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Describe the command."""
    parser = subparsers.add_parser(
        "ray",
        help="serve with several engines, on one machine or many, through Ray",
        description="Several engines behind one address, with one fairness over all of them, on Ray Serve.",
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    serve = actions.add_parser(
        "serve",
        help="start or join a cluster, deploy, and print the address",
        description="Deploy engines and HTTP fronts on a Ray cluster, its own or one that runs, print the address, and end "
        "both with Ctrl-C. Takes the options of `evenflow serve`, for every engine and front alike.",
        allow_abbrev=False,
    )
    add_arguments(serve)
    parser.set_defaults(run=run)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, and all options."""
    parser.add_argument("model_dir", nargs="?", metavar="MODEL_DIR", help="Hugging Face folder of the base model")
    add_config_flag(parser)
    add_option_flags(parser, RayOptions, "Ray")
    add_option_flags(parser, ServeOptions, "models")
    add_option_flags(parser, ServerConfig, "server")
    add_option_flags(parser, EngineConfig, "engine")
    add_option_flags(parser, VllmFlags, "vLLM", is_hidden=True)


def run(args: argparse.Namespace) -> int:
    """Deploy, and serve until a signal."""
    from evenflow.base.logs import say, use_log_format
    from evenflow.cluster.ray_package import import_ray
    from evenflow.cluster.ray_run import run_deployment

    import_ray()
    command = read_command(args, os.environ, RayOptions, policy=SHARED_POLICY)
    use_log_format(command.engine.log_format)
    run_deployment(plan_of(command), say)
    return 0


def plan_of(command: ServeCommand) -> DeploymentPlan:
    """What is deployed. Raises ConfigError or ModelError for what cannot be served."""
    from evenflow.cluster.plan import DeploymentPlan
    from evenflow.fairness import check_policy
    from evenflow.serving.models.model_config import load_config
    from evenflow.serving.text import read_chat_template

    options, engine = command.options, command.engine
    if engine.policy != SHARED_POLICY:
        check_policy(engine.policy)
    load_config(engine.model)  # says at once what is wrong with the folder
    if command.server.uds is not None:
        raise ConfigError("uds is a socket of one machine; fronts on Ray listen at --host and --port")
    remote = sorted(name for name, place in command.adapters.items() if not isinstance(place, Path))
    if remote:
        raise ConfigError(f"adapters {', '.join(remote)} lie at an address; give folders that every node of the cluster has")
    plan = DeploymentPlan(
        engine=replace(engine, model=engine.model.resolve()),
        server=command.server,
        ray=RayOptions(**command.further),
        adapters={name: Path(folder).resolve() for name, folder in command.adapters.items()},
        chat_template=None if options.chat_template is None else read_chat_template(options.chat_template),
        chat_template_content_format=options.chat_template_content_format,
        chat_template_variables=options.default_chat_template_kwargs,
    )
    plan.text_side()  # says at once what is wrong with the tokenizer or the template
    return plan


def application(arguments: Mapping[str, Any]) -> Any:  # Any: ray.serve.Application
    """Ray Serve's application for the options in ``arguments``; see ``read_arguments``."""
    from evenflow.cluster.ray_application import build
    from evenflow.cluster.ray_package import import_ray

    import_ray()
    return build(plan_of(read_arguments(arguments)))


def read_arguments(arguments: Mapping[str, Any]) -> ServeCommand:
    """Options under their names, with dashes or underscores; the door is Ray Serve's proxy unless they say otherwise.

    Raises ConfigError for what is no option, or a value that is not allowed.
    """
    words = {key.replace("_", "-"): value for key, value in arguments.items()}
    words.setdefault("doors", "ray")
    model = words.pop("model", words.pop("model-dir", None))
    argv = [] if model is None else [str(model)]
    for key, value in words.items():
        if isinstance(value, bool) or (isinstance(value, str) and value.lower() in ("true", "false")):
            argv.append(f"--{key}" if str(value).lower() == "true" else f"--no-{key}")
        elif isinstance(value, list | tuple):
            argv += [f"--{key}", *map(str, value)]
        else:
            argv += [f"--{key}={value}"]
    parser = _Arguments(prog="evenflow.integrations.ray:app", allow_abbrev=False)
    add_arguments(parser)
    args = parser.parse_args(argv)
    args.log_level, args.command = "info", "ray"
    return read_command(args, os.environ, RayOptions, policy=SHARED_POLICY)


class _Arguments(argparse.ArgumentParser):
    def error(self, message: str) -> Any:  # Any: it never returns
        raise ConfigError(f"{self.prog}: {message}")
