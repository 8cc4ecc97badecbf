"""llama.cpp's server: `llama.cpp` (bf16), `llama.cpp:q8_0`, `llama.cpp:q4_0` and what else its quantiser knows.

Model and adapters are converted by its own scripts, once. Adapters are chosen by request, all loaded at the start.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evenflow.bench.peers.http_peer import HttpPeer, ServerCommand
from evenflow.bench.peers.peer import PeerFailed, Setup, converted_path, environment_python

NAME = "llama.cpp"
_CONVERT_TIMEOUT_S = 600


class LlamaCppPeer(HttpPeer):
    """``form``: a type of its quantiser, or bf16 (also if empty)."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.name = f"{NAME}:{form}" if form else NAME
        self._form = (form or "bf16").lower()
        self._adapter_ids: dict[str, int] = {}

    def command(self, setup: Setup) -> ServerCommand:
        """See HttpPeer."""
        python = environment_python(setup.cache, NAME)
        folder = python.parents[1]
        model = self._model(python, folder, setup)
        self._adapter_ids = {name: i for i, name in enumerate(setup.adapters)}
        context = str(setup.num_streams * (setup.num_tokens + 8))
        words = [str(folder / "build" / "bin" / "llama-server"), "--model", str(model), "--threads", str(setup.num_threads)]
        words += ["--threads-batch", str(setup.num_threads), "--parallel", str(setup.num_streams), "--ctx-size", context]
        for path in setup.adapters.values():
            words += ["--lora", str(_converted_adapter(python, folder, path, setup))]
        return ServerCommand(words, "/health", {"LLAMA_ARG_LORA_INIT_WITHOUT_APPLY": "1"})

    def fields(self, adapter: str | None) -> dict[str, Any]:
        """See HttpPeer."""
        chosen = [{"id": number, "scale": float(name == adapter)} for name, number in self._adapter_ids.items()]
        return {"ignore_eos": True, "cache_prompt": False, "lora": chosen}

    def question(self, prompt: Sequence[int], adapter: str | None, output_tokens: int) -> tuple[str, dict[str, Any]]:
        """See HttpPeer."""
        body = {"prompt": list(prompt), "n_predict": output_tokens, "temperature": 0, **self.fields(adapter)}
        return "/completion", {**body, "return_tokens": True}

    def token_ids(self, answer: Mapping[str, Any]) -> list[int]:
        """See HttpPeer."""
        return list(answer["tokens"])

    def _model(self, python: Path, folder: Path, setup: Setup) -> Path:
        plain = converted_path(setup, setup.model, "bf16.gguf")
        if not plain.exists():
            script = folder / "source" / "convert_hf_to_gguf.py"
            _convert([str(python), str(script), str(setup.model), "--outtype", "bf16"], plain, "--outfile")
        if self._form == "bf16":
            return plain
        quantised = converted_path(setup, setup.model, f"{self._form}.gguf")
        if not quantised.exists():
            _convert([str(folder / "build" / "bin" / "llama-quantize"), str(plain)], quantised, "", self._form.upper())
        return quantised


def _converted_adapter(python: Path, folder: Path, adapter: Path, setup: Setup) -> Path:
    path = converted_path(setup, adapter, "lora.gguf")
    if not path.exists():
        script = folder / "source" / "convert_lora_to_gguf.py"
        _convert([str(python), str(script), "--base", str(setup.model), "--outtype", "f16", str(adapter)], path, "--outfile")
    return path


def _convert(command: Sequence[str], to: Path, flag: str, *more: str) -> None:
    """Run a converter that writes ``to``, whole or not at all. Raises PeerFailed with the end of what it said."""
    to.parent.mkdir(parents=True, exist_ok=True)
    partial = to.with_name(f"{to.name}.{os.getpid()}.part")
    words = [*command, *([flag] if flag else []), str(partial), *more]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=_CONVERT_TIMEOUT_S, check=False)
        if done.returncode or not partial.exists():
            raise PeerFailed(f"{Path(words[0]).name} failed: {(done.stderr or done.stdout)[-600:]}")
        partial.replace(to)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PeerFailed(f"{Path(words[0]).name} failed: {error}") from None
    finally:
        partial.unlink(missing_ok=True)
