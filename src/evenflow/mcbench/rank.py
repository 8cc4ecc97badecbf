"""One local rank: ``python -m evenflow.mcbench.rank FOLDER RANK``. Started by ``launch``.

FOLDER holds settings.json and becomes the rendezvous; the rank that a job names as its reporter appends its records to
records.jsonl there.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from evenflow.mcbench.runs.end_process import end_process


def main(arguments: list[str]) -> int:
    """Run a rank; return its exit status."""
    folder, rank = Path(arguments[0]), int(arguments[1])
    settings = json.loads((folder / "settings.json").read_text())
    os.environ["GLOO_SOCKET_IFNAME"] = settings["interface"]
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if settings["cores"][rank]:
        os.sched_setaffinity(0, settings["cores"][rank])
    with contextlib.suppress(OSError):
        os.nice(-10)  # where permitted: a rank on a fixed core must not queue behind whatever else runs there

    import torch
    import torch.distributed as dist

    from evenflow.base.errors import EvenFlowError
    from evenflow.comm.collectives.links import Link
    from evenflow.mcbench.predict.break_even import break_even_rank
    from evenflow.mcbench.predict.calibration import calibrate_between_rank, calibrate_rank
    from evenflow.mcbench.runs.build import init_group
    from evenflow.mcbench.runs.rank_worker import run_rank
    from evenflow.mcbench.runs.run_config import RunConfig
    from evenflow.mcbench.runs.timing import compute_rank, time_rank

    torch.set_num_threads(settings["threads"])
    link = Link.parse(settings["link"])
    config = RunConfig.from_json(settings["payload"]) if settings["job"] == "run" else None
    counted = settings["interface"] if settings["interface"] != "lo" else ""
    # Only the last stage has logits.
    reporter = (config.pp - 1) * config.tp if config else 0

    def emit(kind: str, value: Any) -> None:
        if rank == reporter:
            with (folder / "records.jsonl").open("a") as file:
                file.write(json.dumps({"kind": kind, "value": value}) + "\n")

    try:
        init_group(rank, settings["world_size"], folder / "rendezvous")
        if config is not None:
            run_rank(config, emit, link, counted)
        else:
            jobs = {
                "calibrate": calibrate_rank,
                "calibrate-between": calibrate_between_rank,
                "break-even": break_even_rank,
                "compute": compute_rank,
                "time": time_rank,
            }
            jobs[settings["job"]]({**settings["payload"], "interface": counted}, emit, link)
    except EvenFlowError as error:
        print(" ".join(str(error).splitlines()), file=sys.stderr, flush=True)
        return 1
    with contextlib.suppress(RuntimeError):  # a peer that died tells so by its own exit status
        dist.barrier()
    return 0


if __name__ == "__main__":
    end_process(main(sys.argv[1:]))
