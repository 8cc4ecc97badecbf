"""``evenflow generate``: complete prompts from the command line, without a server."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path

from evenflow.base.errors import ConfigError
from evenflow.base.logs import use_log_format
from evenflow.cli.option_flags import add_config_flag, add_option_flags, options_given, parse_adapters
from evenflow.serving.config.engine_config import EngineConfig


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Describe the command."""
    parser = subparsers.add_parser(
        "generate",
        help="complete prompts from the command line",
        description="Complete prompts with the base model or an adapter. Prompts: --prompt, or one per line on stdin.",
    )
    parser.add_argument("model_dir", nargs="?", type=Path, metavar="MODEL_DIR", help="Hugging Face folder of the base model")
    parser.add_argument("--prompt", action="append", default=[], metavar="TEXT", help="may be given several times")
    parser.add_argument(
        "--adapter", action="append", default=[], metavar="NAME=DIR", help="answer with it too; may be repeated"
    )
    parser.add_argument("--chat", action="store_true", help="send each prompt as a user message through the chat template")
    parser.add_argument("--max-tokens", type=int, default=64, metavar="N", help="(64)")
    parser.add_argument("--temperature", type=float, default=0.0, help="(0: greedy)")
    parser.add_argument("--top-p", type=float, default=1.0, help="(1)")
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before this text; may be repeated")
    parser.add_argument("--json", action="store_true", help="one JSON object per line instead of text")
    add_config_flag(parser)
    add_option_flags(parser, EngineConfig, "engine")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Generate, print, end."""
    import msgspec

    from evenflow.serving.client.llm import LLM
    from evenflow.serving.core.sampling import SamplingParams
    from evenflow.serving.text import ChatTemplate

    prompts = args.prompt or ([] if sys.stdin.isatty() else [line.rstrip("\n") for line in sys.stdin if line.strip()])
    if not prompts:
        raise ConfigError("no prompt; give --prompt TEXT, or one prompt per line on standard input")
    adapters = parse_adapters(args.adapter)
    names: list[str | None] = list(adapters) or [None]
    options = options_given(args, EngineConfig)[EngineConfig]
    if args.model_dir is not None:
        options["model"] = args.model_dir
    if "model" not in options:
        raise ConfigError("no model; give MODEL_DIR")
    model = options.pop("model")
    sampling = SamplingParams(
        max_tokens=args.max_tokens, temperature=args.temperature, top_p=args.top_p, stop=tuple(args.stop), seed=None
    )
    level = options.setdefault("log_level", args.log_level)
    logging.getLogger().setLevel(level.upper())
    use_log_format(options.get("log_format", "text"))
    with LLM(model, adapters, **options) as llm:
        texts: list = prompts
        if args.chat:
            template = ChatTemplate.from_folder(model)
            texts = [llm.tokenizer.encode_rendered(template.render([{"role": "user", "content": p}])) for p in prompts]
        pairs = [(text, prompt, name) for text, prompt in zip(texts, prompts) for name in names]
        results = llm.generate([text for text, _, _ in pairs], sampling, adapters=[name for _, _, name in pairs])
        for (_, prompt, name), result in zip(pairs, results):
            if args.json:
                row = {"prompt": prompt, "adapter": name, "text": result.text, "finish_reason": result.finish_reason}
                print(json.dumps(row | {"usage": msgspec.to_builtins(result.usage)}))
            elif len(pairs) == 1:
                print(result.text)
            else:
                print(f"[{name or 'base'}] {prompt!r}\n{result.text.strip()}\n")
    return 0
