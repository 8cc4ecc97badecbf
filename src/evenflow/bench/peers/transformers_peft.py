"""transformers + peft, static batch: the peer that everybody has.

``python -m evenflow.bench.peers.transformers_peft [--dtype float32] MODEL_DIR [NAME=DIR ...]`` answers JSON lines:
``{"prompts": [[ids]], "max_tokens": n, "adapters": [name or null]}`` -> ``{"seconds": s, "token_ids": [[ids]]}``.
Its best form for each case: the bare model when no adapter is asked for, ``set_adapter`` when all
requests share one, ``adapter_names`` when they are mixed. Prompts must have equal lengths, so that
nothing is padded. Needs transformers and peft; nothing else of EvenFlow imports them.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from typing import Any

import torch


class Peer:
    """The bare model and, if adapters are given, a second copy wrapped by peft."""

    def __init__(self, model_dir: str, adapter_dirs: dict[str, str], dtype: torch.dtype) -> None:
        from peft import PeftModel
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        logging.disable_progress_bar()
        warnings.simplefilter("ignore", FutureWarning)

        def load() -> Any:
            return AutoModelForCausalLM.from_pretrained(model_dir, dtype=dtype, local_files_only=True).eval()

        self._bare = load()
        self._wrapped: Any = None
        for name, path in adapter_dirs.items():
            if self._wrapped is None:
                self._wrapped = PeftModel.from_pretrained(load(), path, adapter_name=name).eval()
            else:
                self._wrapped.load_adapter(path, adapter_name=name)

    @torch.inference_mode()
    def generate(self, prompts: list[list[int]], max_tokens: int, adapters: list[str | None]) -> tuple[float, list[list[int]]]:
        """Seconds taken and the new token ids; greedy, exactly ``max_tokens`` each."""
        ids = torch.tensor(prompts)
        options: dict[str, Any] = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "max_new_tokens": max_tokens,
            "min_new_tokens": max_tokens,
            "do_sample": False,
            "pad_token_id": 0,
        }
        names = set(adapters)
        model = self._bare if names == {None} else self._wrapped
        if len(names) > 1:
            options["adapter_names"] = [name or "__base__" for name in adapters]
        elif names != {None}:
            model.set_adapter(next(iter(names)))
        started_s = time.perf_counter()
        output = model.generate(**options)
        return time.perf_counter() - started_s, output[:, ids.shape[1] :].tolist()


def main(argv: list[str]) -> int:
    """Serve requests from stdin until it closes."""
    dtype = torch.bfloat16
    if argv[0] == "--dtype":
        dtype, argv = getattr(torch, argv[1]), argv[2:]
    model_dir, *specs = argv
    peer = Peer(model_dir, dict(spec.split("=", 1) for spec in specs), dtype)
    print(json.dumps({"ready": True, "threads": torch.get_num_threads()}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        seconds, token_ids = peer.generate(request["prompts"], request["max_tokens"], request["adapters"])
        print(json.dumps({"seconds": seconds, "token_ids": token_ids}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
