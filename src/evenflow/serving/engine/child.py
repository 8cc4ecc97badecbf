"""The engine process itself: ``python -m evenflow.serving.engine.child FOLDER HEARTBEAT PARENT``. Started by ``EngineProcess``.

FOLDER holds the configuration and the socket, HEARTBEAT is a pipe's descriptor, PARENT a process id. torch is imported
only after the threads are settled. Whatever it ends of is told twice, over the socket and as an obituary: one of them may
not get through.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import signal
import sys
from pathlib import Path

import zmq

from evenflow.base.children import die_with_parent, raise_file_limit, write_obituary
from evenflow.base.errors import EngineDead, EvenFlowError
from evenflow.base.heartbeat import Heart
from evenflow.base.logs import configure_logging, flush_logs
from evenflow.base.openmp import share_openmp
from evenflow.base.progress import find_teller, tell_nobody
from evenflow.serving.client.codec import encoder, read_config
from evenflow.serving.client.messages import Failed
from evenflow.serving.client.process import OBITUARY

_LINGER_MS = 1000


def main(folder: Path, heartbeat: int, parent: int) -> int:
    """Run the engine until it is told to stop or its parent is gone; return the exit status."""
    heart = Heart(heartbeat)
    heart.start()
    faulthandler.register(signal.SIGUSR1, all_threads=True)  # asked for before a stuck engine is ended
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole terminal group; the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the parent drains first, then sends Shutdown
    die_with_parent(parent)
    raise_file_limit()
    share_openmp()
    context = zmq.Context()
    socket = context.socket(zmq.PAIR)
    socket.set_hwm(0)
    socket.setsockopt(zmq.LINGER, _LINGER_MS)
    socket.connect(f"ipc://{folder}/engine.sock")
    try:
        from evenflow.serving.engine.loop import EngineLoop

        config = read_config(folder)
        configure_logging(config.log_level, form=config.log_format)
        log = logging.getLogger("evenflow.engine")
        with find_teller(log.info) if log.isEnabledFor(logging.INFO) else contextlib.nullcontext(tell_nobody) as tell:
            loop = EngineLoop(config, socket, is_orphan=lambda: os.getppid() != parent, folder=folder, heart=heart, tell=tell)
        loop.run()
    except Exception as error:
        if not isinstance(error, EvenFlowError):
            logging.getLogger("evenflow").exception("the engine ends")
            error = EngineDead(f"{type(error).__name__}: {error}")
        write_obituary(folder / OBITUARY, error)
        with contextlib.suppress(zmq.ZMQError):
            socket.send(encoder.encode(Failed(type(error).__name__, str(error))), zmq.NOBLOCK)
        return 1
    finally:
        socket.close()
        context.term()
    return 0


if __name__ == "__main__":
    status = main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    flush_logs()
    os._exit(status)  # a thread may still wait for a disk, or for somebody to read the log
