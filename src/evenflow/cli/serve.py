"""``evenflow serve``: the OpenAI-compatible server on one base model and its adapters."""

from __future__ import annotations

import argparse
from pathlib import Path

from evenflow.base.errors import ConfigError
from evenflow.cli.engine_options import add_engine_options, engine_config, parse_adapters


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Describe the command."""
    parser = subparsers.add_parser(
        "serve",
        help="serve one base model with its adapters over HTTP",
        description="Serve one base model with many LoRA adapters to many clients, OpenAI-compatible, fairly. "
        "Ctrl-C or SIGTERM lets running requests finish, SIGHUP reads clients.toml again.",
    )
    parser.add_argument("model", nargs="?", type=Path, metavar="MODEL_DIR", help="Hugging Face folder of the base model")
    parser.add_argument("--demo", action="store_true", help="serve the embedded model with its adapters; no MODEL_DIR needed")
    group = parser.add_argument_group("models")
    group.add_argument(
        "--served-model-name", nargs="+", metavar="NAME", help='names of the base model; default: "base" and the folder\'s name'
    )
    group.add_argument(
        "--adapters", "--lora-modules", nargs="+", default=[], metavar="NAME=DIR", help="PEFT adapters to register at the start"
    )
    group.add_argument(
        "--adapter-dir", type=Path, metavar="DIR", help="adapters in its sub-folders are loaded when first asked for"
    )
    group.add_argument(
        "--generation-config",
        default="auto",
        choices=("auto", "none", "vllm"),
        help="auto: sampling fields that a request leaves out are those of the model's generation_config.json, and its "
        "max_new_tokens limits every request; none (or vllm): OpenAI's defaults (auto)",
    )
    group = parser.add_argument_group("server")
    group.add_argument("--clients", type=Path, metavar="FILE", help="clients.toml: keys, weights and limits of clients")
    group.add_argument("--host", default="127.0.0.1", help="(127.0.0.1)")
    group.add_argument("--port", type=int, default=8000, help="(8000); 0: any free port")
    group.add_argument(
        "--max-queue", "--max-num-queued-reqs", type=int, default=4096, metavar="N", help="waiting requests (4096)"
    )
    group.add_argument("--drain-timeout", type=float, default=30.0, metavar="S", help="seconds to finish after SIGTERM (30)")
    group.add_argument("--metrics-top", type=int, default=50, metavar="K", help="clients and adapters with own series (50)")
    add_engine_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Serve until a signal."""
    from evenflow.fairness import check_policy
    from evenflow.serving.client.engine_client import EngineClient
    from evenflow.serving.models.model_config import load_config
    from evenflow.serving.server.run import run_server
    from evenflow.serving.server.server_config import ServerConfig
    from evenflow.serving.text import ChatTemplate, Tokenizer

    model, adapters = args.model, parse_adapters(args.adapters)
    if args.demo:
        from evenflow.demo.assets import adapter_paths, model_path

        model = model or model_path()
        adapters = {**adapter_paths(), **adapters}
    if model is None:
        raise ConfigError("no model; give MODEL_DIR, or --demo for the embedded one")
    check_policy(args.policy)
    config = load_config(model)  # says at once what is wrong with the folder
    names = args.served_model_name or list(dict.fromkeys(("base", model.resolve().name)))
    server = ServerConfig(
        served_model_names=tuple(names),
        model_names=tuple(dict.fromkeys((str(model), str(model.resolve())))),
        sampling_defaults=dict(config.sampling_defaults) if args.generation_config == "auto" else {},
        host=args.host,
        port=args.port,
        clients_file=args.clients,
        adapter_dir=args.adapter_dir,
        max_queue=args.max_queue,
        drain_timeout_s=args.drain_timeout,
        metrics_top_k=args.metrics_top,
    )
    engine = engine_config(args, model)
    tokenizer = Tokenizer.from_folder(model)
    run_server(lambda: EngineClient(engine), tokenizer, ChatTemplate.find(model), server, adapters)
    return 0
