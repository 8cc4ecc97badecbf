"""Thousands of adapters on the host: the first and the second start, their memory, and what a load costs.

    python benchmarks/recipes/adapter_store.py --json benchmarks/results/adapter_store--MACHINE.json [--adapters 2000]

Random adapters for the 135 M model: q and v, ranks 8, 4, 2 and 1 in turn, fp32 in PEFT folders, bf16 in the store. Each
start is a process of its own that registers all of them: first with an empty cache, then with the one it left. Anonymous
memory is RssAnon, after the imports and after the registration; 200 in memory, as engines without a store keep them, are
there for comparison. Then every adapter is loaded once into pages of an arena, checksums included, and rows of a
larger adapter are read again and again for the rate. Last, ``evenflow serve --adapter-dir`` and ``--adapters`` until
/ready, with none and with all.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from evenflow.bench.harness import summary, write_result
from evenflow.serving.models.model_config import ModelConfig, load_config
from evenflow.serving.models.random.random_model import LLAMA_135M, make_model

RANKS = (8, 4, 2, 1)


def write_adapters(folder: Path, config: ModelConfig, count: int) -> list[Path]:
    """PEFT folders of random q and v adapters."""
    from safetensors.numpy import save_file

    rng = np.random.default_rng(0)
    shape, paths = config.shape, []
    for i in range(count):
        rank, path = RANKS[i % len(RANKS)], folder / f"tenant-{i:05d}"
        path.mkdir(parents=True)
        tensors = {}
        for layer in range(shape.num_layers):
            for module in ("q_proj", "v_proj"):
                inputs, outputs = shape.module_widths(module)
                name = f"base_model.model.model.layers.{layer}.self_attn.{module}"
                tensors[f"{name}.lora_A.weight"] = rng.standard_normal((rank, inputs), np.float32) * 0.02
                tensors[f"{name}.lora_B.weight"] = rng.standard_normal((outputs, rank), np.float32) * 0.02
        save_file(tensors, path / "adapter_model.safetensors")
        fields = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": ["q_proj", "v_proj"], "bias": "none"}
        (path / "adapter_config.json").write_text(json.dumps(fields))
        paths.append(path)
    return paths


def anonymous_bytes() -> int:
    """This process's own memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def start(model: Path, folder: Path, cache: Path | None, loads: bool) -> dict[str, object]:
    """Register every adapter of ``folder`` (200 without a cache); with ``loads`` read each into pages, too."""
    from evenflow.serving.adapters.catalog import Catalog
    from evenflow.serving.adapters.row_store import RowStore
    from evenflow.serving.memory.layout import ArenaLayout

    layout = ArenaLayout(load_config(model).shape, 2)
    paths = sorted(folder.iterdir())[: None if cache else 200]
    before = anonymous_bytes()
    began = time.perf_counter()
    catalog = Catalog(layout, store=None if cache is None else RowStore(cache, layout))
    digests = [catalog.register(path.name, path) for path in paths]
    seconds = time.perf_counter() - began
    answer: dict[str, object] = {
        "seconds": seconds,
        "num_adapters": len(digests),
        "image_bytes": catalog.size_bytes,
        "anonymous_bytes": anonymous_bytes() - before,
    }
    if loads:
        most = max(catalog.record(digest).num_pages for digest in digests)
        arena = np.zeros((2 * most, layout.page_bytes), np.uint8)
        scattered = [arena[i : i + 1] for i in range(0, 2 * most, 2)]
        seconds_of = []
        for digest in digests:
            rows, count = catalog.rows(digest), catalog.record(digest).num_pages
            began = time.perf_counter()
            rows.read(0, scattered[:count])
            seconds_of.append(time.perf_counter() - began)
        answer["load_s"] = summary(seconds_of)
        answer["anonymous_bytes_after_loads"] = anonymous_bytes() - before - arena.nbytes
    return answer


def load_rate(model: Path, folder: Path) -> dict[str, object]:
    """Seconds to load adapters of all modules, by rank: a fixed part and a rate."""
    from evenflow.serving.adapters.catalog import Catalog
    from evenflow.serving.adapters.row_store import RowStore
    from evenflow.serving.memory.layout import ArenaLayout
    from evenflow.serving.models.random.random_adapter import make_adapter

    config = load_config(model)
    layout = ArenaLayout(config.shape, 2)
    catalog = Catalog(layout, store=RowStore(folder / "cache", layout))
    points = []
    for rank in (1, 4, 16, 64):
        digest = catalog.register(str(rank), make_adapter(folder / str(rank), config, lora_rank=rank))
        count = catalog.record(digest).num_pages
        arena = np.zeros((2 * count, layout.page_bytes), np.uint8)
        scattered = [arena[i : i + 1] for i in range(0, 2 * count, 2)]
        seconds_of = []
        for _ in range(15):
            began = time.perf_counter()
            catalog.rows(digest).read(0, scattered)
            seconds_of.append(time.perf_counter() - began)
        points.append({"lora_rank": rank, "bytes": count * layout.page_bytes, "seconds": summary(seconds_of)})
    rate, fixed = np.polyfit([p["bytes"] for p in points], [p["seconds"]["median"] for p in points], 1)  # type: ignore[index]
    return {"points": points, "bytes_per_s": 1 / rate, "fixed_s": max(0.0, fixed)}


def serve(model: Path, arguments: list[str], log: Path) -> float:
    """Seconds from the start of ``evenflow serve`` until it is ready."""
    from evenflow.bench.load.server_process import ServerProcess

    with ServerProcess([str(model), "--memory", "512MiB", *arguments], log) as server:
        return server.wait_ready(300.0)


def child(arguments: list[str]) -> dict[str, object]:
    """Run this file's ``start`` in a process of its own."""
    done = subprocess.run([sys.executable, __file__, "--child", *arguments], check=True, stdout=subprocess.PIPE, text=True)
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--adapters", type=int, default=2000)
    parser.add_argument("--child", nargs=4, metavar=("MODEL", "FOLDER", "CACHE", "LOADS"))
    options = parser.parse_args()
    if options.child:
        model, folder, cache, loads = options.child
        print(json.dumps(start(Path(model), Path(folder), Path(cache) if cache else None, loads == "loads")))
        return
    results: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        make_model(root / "model", LLAMA_135M)
        config = load_config(root / "model")
        paths = write_adapters(root / "adapters", config, options.adapters)
        results["source_bytes"] = sum(file.stat().st_size for path in paths for file in path.iterdir())
        common = [str(root / "model"), str(root / "adapters")]
        for name, cache, loads in (
            ("in memory", "", ""),
            ("first start", str(root / "cache"), ""),
            ("second start", str(root / "cache"), ""),
            ("second start, then all loaded", str(root / "cache"), "loads"),
        ):
            results[name] = child([*common, cache, loads])
            print(name, results[name], flush=True)
        (root / "rate").mkdir()
        results["load"] = load_rate(root / "model", root / "rate")
        print("load", results["load"], flush=True)
        warm = ["--adapter-cache", str(root / "cache")]
        named = ["--adapters", *(f"{path.name}={path}" for path in paths)]
        serve(root / "model", warm, root / "log")  # compiles kernels, if that was never done
        ready = {
            "no adapters": serve(root / "model", warm, root / "log"),
            f"--adapters, {len(paths)}": serve(root / "model", [*warm, *named], root / "log"),
            f"--adapter-dir, {len(paths)}": serve(
                root / "model", [*warm, "--adapter-dir", str(root / "adapters")], root / "log"
            ),
        }
        results["seconds until ready"] = ready
        print(ready, flush=True)
    parameters = {"adapters": options.adapters, "model": dict(LLAMA_135M), "ranks": RANKS, "modules": ["q_proj", "v_proj"]}
    if options.json:
        write_result(options.json, "adapter_store", parameters, results)


if __name__ == "__main__":
    main()
