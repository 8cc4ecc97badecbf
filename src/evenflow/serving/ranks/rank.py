"""One tensor-parallel rank other than 0: ``python -m evenflow.serving.ranks.rank FOLDER RANK HEARTBEAT PARENT``.

Started by ``RankProcesses``; HEARTBEAT is a pipe's descriptor, PARENT rank 0's process id.
It builds its shard, runs the plans it is told, and ends when it is told to or when rank 0 is gone. It samples nothing
and answers nobody but rank 0's collectives. Adapters are read on a thread beside the one that computes.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from pathlib import Path

import zmq

from evenflow.base.children import die_with_parent, raise_file_limit, write_obituary
from evenflow.base.errors import EngineDead, EvenFlowError
from evenflow.base.heartbeat import Heart
from evenflow.base.logs import configure_logging, flush_logs
from evenflow.base.openmp import share_openmp
from evenflow.serving.client.codec import read_config
from evenflow.serving.config.engine_config import EngineConfig
from evenflow.serving.ranks.rank_messages import Forget, Loaded, RunStep, encoder, plan_of, step_decoder


def main(folder: Path, rank: int, heartbeat: int, parent: int) -> int:
    """Run the rank; return its exit status."""
    heart = Heart(heartbeat)
    heart.start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the engine process decides
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    die_with_parent(parent)
    raise_file_limit()
    share_openmp()
    try:
        config = read_config(folder)
        configure_logging(config.log_level, who=f"rank {rank}: ", form=config.log_format)
        _serve(config, folder, rank, parent, heart)
    except Exception as error:
        if not isinstance(error, EvenFlowError):
            logging.getLogger("evenflow").exception("the rank ends")
            error = EngineDead(f"{type(error).__name__}: {error}")
        if folder.exists():
            write_obituary(folder / f"failed{rank}.json", error)
        return 1
    return 0


def _serve(config: EngineConfig, folder: Path, rank: int, parent: int, heart: Heart) -> None:
    from evenflow.base.openmp import start_numba_threads
    from evenflow.serving.adapters.catalog import Catalog
    from evenflow.serving.models.model_config import load_config
    from evenflow.serving.ranks.rank_adapters import RankAdapters
    from evenflow.serving.runner.build_worker import base_weights, build_worker, row_store
    from evenflow.serving.runner.membership import join

    start_numba_threads()
    context = zmq.Context()
    plans, adapters = (context.socket(zmq.PAIR) for _ in range(2))
    for socket, kind in ((plans, "plans"), (adapters, "adapters")):
        socket.set_hwm(0)
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(f"ipc://{folder}/{kind}{rank}")
    model_config = load_config(config.model)
    plans.send(b"")  # see RankProcesses.wait_until_started
    membership = join(config, model_config, rank, folder)
    built = build_worker(config, model_config, membership, None, lambda digest: held.host_rows(digest))
    store = row_store(config, built.layout, is_bounded=True)
    held = RankAdapters(Catalog(built.layout, max_lora_rank=config.max_lora_rank, store=store, base=base_weights(config)))
    threading.Thread(target=held.serve, args=(adapters,), name="adapters", daemon=True).start()
    heart.is_ready()
    while True:
        heart.advance()
        if not plans.poll(1000):
            if os.getppid() != parent:
                return
            continue
        message = step_decoder.decode(plans.recv())
        if isinstance(message, RunStep):
            result = built.worker.run(plan_of(message))
            if message.loads:
                plans.send(encoder.encode(Loaded({str(digest): why for digest, why in result.failed_loads.items()})))
        elif isinstance(message, Forget):
            held.forget(message.digest)
        else:
            membership.leave()
            return


if __name__ == "__main__":
    status = main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
    flush_logs()
    os._exit(status)  # a thread may still be reading an adapter
