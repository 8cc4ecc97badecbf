"""One local rank: ``python -m evenflow.mcbench.rank FOLDER RANK THREADS INTERFACE shape|free``. Started by ``run``.

FOLDER holds config.json and becomes the rendezvous; the first rank of the last stage, which has the logits, appends its
records to records.jsonl there.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any


def main(arguments: list[str]) -> int:
    """Run a rank; return its exit status."""
    folder, rank, threads, interface, shape = (
        Path(arguments[0]),
        int(arguments[1]),
        int(arguments[2]),
        arguments[3],
        arguments[4],
    )
    os.environ["GLOO_SOCKET_IFNAME"] = interface
    os.environ["TOKENIZERS_PARALLELISM"] = "false"

    import torch

    from evenflow.base.errors import EvenFlowError
    from evenflow.comm.links import Link
    from evenflow.mcbench.config import RunConfig
    from evenflow.mcbench.worker import init_group, run_rank

    torch.set_num_threads(threads)
    config = RunConfig.from_json(json.loads((folder / "config.json").read_text()))
    reporter = (config.pp - 1) * config.tp

    def emit(kind: str, value: Any) -> None:
        if rank == reporter:
            with (folder / "records.jsonl").open("a") as file:
                file.write(json.dumps({"kind": kind, "value": value}) + "\n")

    try:
        init_group(rank, config.world_size, folder / "rendezvous")
        run_rank(config, emit, Link.parse(config.link) if shape == "shape" else Link.parse("unlimited"))
    except EvenFlowError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
