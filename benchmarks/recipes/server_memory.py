"""A server's own memory under hundreds of adapters, against what `--memory` and the model say it should be.

    python benchmarks/recipes/server_memory.py --json benchmarks/results/server_memory--MACHINE.json [--adapters 512]

`evenflow serve` on the 135 M random model in bf16 with `--memory 704MiB` and an adapter folder: ranks 64, 32, 16 and 8 in turn
at q, k, v and o, none converted yet. Sixteen clients at once ask over HTTP: first the base model alone, which fills what
the libraries keep for themselves (oneDNN holds compiled products for every number of rows it has met, up to 1,024 of
them), then each request the next adapter, round after round. Sampled: RssAnon of the front and the engine process, and
how much of the arena is committed. What is neither model nor arena at the end of the first part counts as the libraries'.
Beside it the same server with a random model of 0.4 MB: imports, compiled kernels, threads, tokenizer.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import httpx
import numpy as np
import psutil

from evenflow.base.memory_size import parse_size
from evenflow.bench.harness import write_result
from evenflow.serving.models.model_config import ModelConfig, load_config
from evenflow.serving.models.random.random_model import LLAMA_135M, make_model

RANKS, TARGETS = (64, 32, 16, 8), ("q_proj", "k_proj", "v_proj", "o_proj")
NUM_CLIENTS, PROMPT_TOKENS, OUTPUT_TOKENS = 16, (16, 80), 8
MEMORY = "704MiB"


class Server:
    """`evenflow serve` as users start it, and a look into its processes."""

    def __init__(self, model: Path, memory: str, *options: str) -> None:
        command = [sys.executable, "-m", "evenflow.cli.main", "serve", str(model), "--memory", memory, "--port", "0", *options]
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self._arena_bytes = parse_size(memory)
        assert self._process.stderr is not None
        self.url, log = "", []
        for line in self._process.stderr:
            log.append(line)
            if found := re.search(r"listening on (http://\S+)", line):
                self.url = found[1]
            if "ready: " in line:
                break
        else:
            raise RuntimeError(f"the server did not start:\n{''.join(log)}")
        threading.Thread(target=self._process.stderr.read, daemon=True).start()
        self._front = psutil.Process(self._process.pid)
        self._engines = self._front.children(recursive=True)

    def memory(self) -> dict[str, int]:
        """Anonymous bytes now: of the front, of the engine, and of the arena, which is a part of the engine's."""
        return {
            "front": anonymous_bytes(self._front.pid),
            "engine": sum(anonymous_bytes(process.pid) for process in self._engines),
            "arena": sum(committed_bytes(process.pid, self._arena_bytes) for process in self._engines),
        }

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(30)


def anonymous_bytes(pid: int) -> int:
    """RssAnon of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def committed_bytes(pid: int, arena_bytes: int) -> int:
    """Resident bytes of the anonymous mapping that has the arena's size; a page more or less of the arena."""
    size, best = 0, 0
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if line.startswith("Size:"):
            size = 1024 * int(line.split()[1])
        elif line.startswith("Rss:") and abs(size - arena_bytes) < 1 << 20:
            best = max(best, 1024 * int(line.split()[1]))
    return best


def write_adapters(folder: Path, config: ModelConfig, count: int) -> None:
    """PEFT folders, bf16, all different."""
    import torch
    from safetensors.torch import save_file

    generator, shape = torch.Generator().manual_seed(0), config.shape
    for i in range(count):
        rank, path = RANKS[i % len(RANKS)], folder / f"tenant-{i:04d}"
        path.mkdir(parents=True)
        tensors = {}
        for layer in range(shape.num_layers):
            for module in TARGETS:
                inputs, outputs = shape.module_widths(module)
                name = f"base_model.model.model.layers.{layer}.self_attn.{module}"
                for side, size in (("A", (rank, inputs)), ("B", (outputs, rank))):
                    noise = torch.randn(size, generator=generator) * 0.02
                    tensors[f"{name}.lora_{side}.weight"] = noise.to(torch.bfloat16)
        save_file(tensors, path / "adapter_model.safetensors")
        fields = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": list(TARGETS), "bias": "none"}
        (path / "adapter_config.json").write_text(json.dumps(fields))


class Load:
    """Clients that ask for one model after the other until they are stopped."""

    def __init__(self, url: str, models: Sequence[str], vocab_size: int) -> None:
        self._url, self._models, self._vocab_size = url, models, vocab_size
        self._lock = threading.Lock()
        self.num_sent = self.num_answered = self.num_failed = 0
        self._is_stopping = False
        self._threads = [threading.Thread(target=self._run, args=(i,)) for i in range(NUM_CLIENTS)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._is_stopping = True
        for thread in self._threads:
            thread.join()

    def _run(self, client: int) -> None:
        random = np.random.default_rng(client)
        with httpx.Client(base_url=self._url, timeout=120, headers={"Authorization": f"Bearer c{client}"}) as http:
            while not self._is_stopping:
                with self._lock:
                    name = self._models[self.num_sent % len(self._models)]
                    self.num_sent += 1
                prompt = random.integers(1, self._vocab_size, random.integers(*PROMPT_TOKENS)).tolist()
                body = {"model": name, "prompt": prompt, "max_tokens": OUTPUT_TOKENS, "ignore_eos": True}
                is_answered = http.post("/v1/completions", json=body).status_code == 200
                with self._lock:
                    self.num_answered += is_answered
                    self.num_failed += not is_answered


def small_server(scratch: Path) -> dict[str, int]:
    """Anonymous bytes of the front and the engine with next to no model and no arena."""
    make_model(scratch / "small")
    server = Server(scratch / "small", "16MiB")
    try:
        prompt = {"model": "small", "prompt": [1, 2, 3], "max_tokens": 4, "ignore_eos": True}
        httpx.post(f"{server.url}/v1/completions", json=prompt, timeout=60)
        return server.memory()
    finally:
        server.close()


def sample_under_load(server: Server, models: Sequence[str], vocab_size: int, seconds: float) -> list[dict[str, float]]:
    """A sample a second. Raises RuntimeError if a request failed."""
    samples = []
    load = Load(server.url, models, vocab_size)
    started_s = time.perf_counter()
    try:
        while (now_s := time.perf_counter() - started_s) < seconds:
            samples.append({"seconds": round(now_s, 1), "answered": load.num_answered, **server.memory()})
            time.sleep(1.0)
    finally:
        load.stop()
    samples.append({"seconds": round(time.perf_counter() - started_s, 1), "answered": load.num_answered, **server.memory()})
    if load.num_failed:
        raise RuntimeError(f"{load.num_failed} of {load.num_sent} requests failed")
    return samples


def beyond_arena(sample: dict[str, float]) -> float:
    """Bytes of both processes that are not the arena's."""
    return sample["front"] + sample["engine"] - sample["arena"]


def main() -> None:
    """Measure and write."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--adapters", type=int, default=512)
    parser.add_argument("--base-seconds", type=float, default=60.0)
    parser.add_argument("--seconds", type=float, default=130.0)
    parser.add_argument("--folder", type=Path, help="keep model and adapters here between runs")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        scratch = options.folder or Path(temporary)
        model, adapters = scratch / "model", scratch / f"adapters-{options.adapters}"
        if not adapters.exists():
            write_adapters(adapters, make_model(model, LLAMA_135M, dtype=torch.bfloat16), options.adapters)
        vocab_size = load_config(model).shape.vocab_size
        model_bytes = sum(file.stat().st_size for file in model.glob("*.safetensors"))
        small = small_server(Path(temporary))
        server = Server(model, MEMORY, "--adapter-dir", str(adapters), "--adapter-cache", str(Path(temporary) / "cache"))
        names = sorted(path.name for path in adapters.iterdir())
        try:
            ready = server.memory()
            base = sample_under_load(server, ["model"], vocab_size, options.base_seconds)
            mixed = sample_under_load(server, names, vocab_size, options.seconds)
        finally:
            server.close()
    memory = parse_size(MEMORY)
    libraries = beyond_arena(base[-1]) - model_bytes
    first_round = next((s for s in mixed if s["answered"] >= options.adapters), mixed[-1])
    peak = max(s["front"] + s["engine"] for s in mixed)
    results = {
        "unit": "bytes, anonymous and resident, of front and engine process",
        "small server": small,
        "model": model_bytes,
        "memory option": memory,
        "ready": ready,
        "after the base model alone": base[-1],
        "libraries": libraries,
        "model + memory + libraries": model_bytes + memory + libraries,
        "peak with adapters": peak,
        "peak / allowed": round(peak / (model_bytes + memory + libraries), 4),
        "beyond arena, grown by": {
            "base model alone": beyond_arena(base[-1]) - (ready["front"] + ready["engine"] - ready["arena"]),
            "first round of adapters": beyond_arena(first_round) - beyond_arena(base[-1]),
            "later rounds": beyond_arena(mixed[-1]) - beyond_arena(first_round),
        },
        "answered": {"base model": base[-1]["answered"], "adapters": mixed[-1]["answered"]},
    }
    for name, value in results.items():
        print(f"{name:28} {value}")
    parameters = {
        "model": dict(LLAMA_135M), "dtype": "bfloat16", "memory": MEMORY, "num_adapters": options.adapters, "ranks": RANKS,
        "targets": TARGETS, "num_clients": NUM_CLIENTS, "prompt_tokens": PROMPT_TOKENS, "output_tokens": OUTPUT_TOKENS,
        "base_seconds": options.base_seconds, "seconds": options.seconds,
    }  # fmt: skip
    if options.json:
        write_result(options.json, "server_memory", parameters, {**results, "samples": {"base": base, "adapters": mixed}})


if __name__ == "__main__":
    main()
