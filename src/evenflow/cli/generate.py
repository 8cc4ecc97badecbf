"""``evenflow generate``: complete prompts from the command line, without a server."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from evenflow.base.errors import ConfigError
from evenflow.cli.engine_options import add_engine_options, engine_config, parse_adapters


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Describe the command."""
    parser = subparsers.add_parser(
        "generate",
        help="complete prompts from the command line",
        description="Complete prompts with the base model or an adapter. Prompts: --prompt, or one per line on stdin.",
    )
    parser.add_argument("model", type=Path, metavar="MODEL_DIR", help="Hugging Face folder of the base model")
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
    add_engine_options(parser)
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
    config = engine_config(args, args.model)
    shared = (
        "device",
        "page_tokens",
        "kernels",
        "enable_prefix_caching",
        "num_threads",
        "tensor_parallel",
        "lora_sharding",
        "compress",
        "cache_dir",
        "adapter_cache",
        "adapter_cache_bytes",
        "adapter_eviction",
        "adapter_prefetch_bytes",
        "log_level",
    )
    options = {name: getattr(config, name) for name in shared}
    sampling = SamplingParams(
        max_tokens=args.max_tokens, temperature=args.temperature, top_p=args.top_p, stop=tuple(args.stop), seed=None
    )
    with LLM(
        args.model,
        adapters,
        policy=config.policy,
        dtype=config.dtype,
        memory=config.memory_bytes,
        max_num_seqs=config.max_num_seqs,
        max_batch_tokens=config.max_batch_tokens,
        max_model_len=config.max_model_len,
        seed=config.seed,
        max_lora_rank=config.max_lora_rank,
        **options,
    ) as llm:
        texts: list = prompts
        if args.chat:
            template = ChatTemplate.from_folder(args.model)
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
