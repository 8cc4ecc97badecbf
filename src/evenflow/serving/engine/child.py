"""The engine process itself: ``python -m evenflow.serving.engine.child FOLDER``. Started by ``EngineProcess``.

FOLDER holds the configuration and the socket. torch is imported only after the threads are settled.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path

import zmq

from evenflow.base.children import die_with_parent
from evenflow.base.errors import EvenFlowError
from evenflow.base.logs import configure_logging
from evenflow.base.openmp import share_openmp
from evenflow.serving.client.codec import encoder, read_config
from evenflow.serving.client.messages import Failed


def main(folder: Path) -> int:
    """Run the engine until it is told to stop or its parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole terminal group; the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the parent drains first, then sends Shutdown
    parent = os.getppid()
    die_with_parent()
    share_openmp()
    context = zmq.Context()
    socket = context.socket(zmq.PAIR)
    socket.set_hwm(0)
    socket.setsockopt(zmq.LINGER, 2000)
    socket.connect(f"ipc://{folder}/engine.sock")
    try:
        from evenflow.serving.engine.loop import EngineLoop

        config = read_config(folder)
        configure_logging(config.log_level)
        loop = EngineLoop(config, socket, is_orphan=lambda: os.getppid() != parent, folder=folder)
        loop.run()
    except Exception as error:
        import traceback

        if not isinstance(error, EvenFlowError):
            logging.getLogger("evenflow").error("the engine ends:\n%s", traceback.format_exc())
        name = type(error).__name__ if isinstance(error, EvenFlowError) else "EngineDead"
        text = str(error) if isinstance(error, EvenFlowError) else f"{type(error).__name__}: {error}"
        socket.send(encoder.encode(Failed(name, text)))
        return 1
    finally:
        socket.close()
        context.term()
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
