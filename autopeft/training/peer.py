"""A process beside the first of a training: it calls what it is given, and ends with the first one."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import threading
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue

from autopeft.training.errors import ran_out_of_memory
from autopeft.training.processes import Failed, Settings, joined
from autopeft.training.together import at_work

__all__ = ["serve"]

_LOOK_SECONDS = 1.0


def serve(handle: int) -> None:
    """Call functions that come by a pipe, until it closes."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the first process heeds them, and is followed
    pipe = Connection(handle)
    settings: Settings = pipe.recv()
    work: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_listen, args=(pipe, work, settings), daemon=True).start()
    pipe.send(True)
    with joined(settings) as team, at_work(team):
        while True:
            pipe.send(_done(work.get()))


def _done(message: bytes) -> Failed | bool:
    try:
        function, args = pickle.loads(message)
        function(*args)
    except Exception as error:
        trace = "".join(traceback.format_exception(error))
        return Failed(type(error).__name__, str(error), trace, ran_out_of_memory(error))
    return True


def _listen(pipe: Connection, work: SimpleQueue[bytes], settings: Settings) -> None:
    """Hand on what comes; end at once with the first process, also in the middle of work."""
    first = os.getppid()
    try:
        while os.getppid() == first:
            if pipe.poll(_LOOK_SECONDS):
                work.put(pipe.recv_bytes())
    except (EOFError, OSError):
        first = -1  # it has closed the pipe, or ended
    shutil.rmtree(Path(settings.store).parent, ignore_errors=True)
    os._exit(1)
