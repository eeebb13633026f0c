"""Starts the processes of one training on this machine, gives them work, and sees that they end together.

This process is the first of them. The others are started from a clean interpreter and wait for functions to
call. They end when this process does, however it ends: the pipe that they listen to closes then. When one of
them ends or fails by itself, this process ends the others, and what it waits for in torch ends with an error.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any, TypeVar

import cloudpickle
import torch
import torch.distributed as dist

from autopeft.devices import count, device_named
from autopeft.errors import AutoPEFTError, UsageError
from autopeft.training.distributed import Team, forget_teams, working_in
from autopeft.training.errors import OutOfMemory, ran_out_of_memory

__all__ = ["ProcessLost", "Processes", "serve"]

_T = TypeVar("_T")
_START_SECONDS = 120.0  # for imports, and for each step of the rendezvous
_APART_SECONDS = 10.0  # that the processes may be apart in what they all come to
_GRACE_SECONDS = 2.0  # until the end of another is seen, where it was the reason of an error here
_LOOK_SECONDS = 0.2
_PARENT_SECONDS = 1.0  # between two looks whether the first process is still there
_TAIL = 2000
# What a new interpreter runs: it finds the same packages as this one, whatever this one's script is.
_BEGIN = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); "
    "from autopeft.training.processes import serve; serve(int(sys.argv[1]))"
)
# Processes on one machine find each other on loopback, where nobody else can reach them.
_LOOPBACK = "lo" if sys.platform == "linux" else "lo0"
_INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


class ProcessLost(AutoPEFTError):  # noqa: N818
    """A process of a training ended before its work was done."""


@dataclass(frozen=True)
class Settings:
    """What a process is told first: its rank among how many, the type of device, and the file by which they
    find each other, in a folder that nobody else can enter."""

    rank: int
    size: int
    device: str
    store: str


@dataclass(frozen=True)
class Failed:
    """The reply of a process whose work ended with an error: its class, what it said, where, and whether
    memory did not suffice."""

    kind: str
    said: str
    trace: str
    memory: bool


@contextlib.contextmanager
def joined(settings: Settings) -> Iterator[Team]:
    """Within, torch's default group holds the processes: by gloo on CPUs, by NCCL on CUDA."""
    device = torch.device("cpu")
    if settings.device != "cpu":
        device = torch.device(settings.device, settings.rank)
        torch.accelerator.set_device_index(settings.rank)
    store = dist.FileStore(settings.store, settings.size)  # type: ignore[attr-defined]
    store.set_timeout(timedelta(seconds=_START_SECONDS))
    with _on_loopback():
        dist.init_process_group(
            dist.get_default_backend_for_device(device),
            store=store,
            rank=settings.rank,
            world_size=settings.size,
        )
    try:
        yield Team(settings.rank, settings.size, device)
    finally:
        forget_teams()
        if dist.is_initialized():  # it may have been cut
            dist.destroy_process_group()


@contextlib.contextmanager
def _on_loopback() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in _INTERFACES}
    os.environ.update(dict.fromkeys(_INTERFACES, _LOOPBACK))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@dataclass
class _Peer:
    """Another process, as this one knows it.

    Attributes:
        reply: to the present work: `True` when done; `None` until then.
        gone: whether it has ended.
        cut: whether this process ended it, as another had broken off.
    """

    rank: int
    process: subprocess.Popen[bytes]
    pipe: Connection
    log: Path
    reply: Failed | bool | None = field(default=None, repr=False)
    gone: bool = False
    cut: bool = False

    @property
    def settled(self) -> bool:
        return self.gone or self.reply is not None

    @property
    def broken(self) -> bool:
        return self.gone or isinstance(self.reply, Failed)

    def how(self) -> str:
        """How it ended, with the last that it wrote."""
        code = self.process.wait()
        end = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        text = self.log.read_bytes()[-_TAIL:].decode("utf-8", errors="replace").strip()
        return f"ended {end}" + (f", having written:\n{text}" if text else "")


class Processes:
    """Processes of this machine that do the same work together. A context manager; made and used in one
    thread.

    Args:
        size: how many, this one included.
        device: the kind of device, as in `cpu` or `cuda`: each takes one of its own, of those that this
            process sees.

    Raises:
        UsageError: fewer than two are asked for, there are fewer GPUs, or this process has a torch group.
        ProcessLost: one did not start.

    Example:
        >>> with Processes(2) as processes:                          # doctest: +SKIP
        ...     outcome = processes.run(trial, "model", recipe)      # it loads, shards and trains
    """

    def __init__(self, size: int, *, device: str = "cpu") -> None:
        if size < 2:
            raise UsageError(f"Several processes are at least 2, but got {size}; one needs none of this.")
        if device_named(device).type != "cpu" and count() < size:
            raise UsageError(f"{size} processes need a GPU each, and this process sees {count()}.")
        if dist.is_initialized():
            raise UsageError(
                "This process belongs to a torch.distributed group already, and a trial over several "
                "processes makes one of its own; end that with torch.distributed.destroy_process_group()."
            )
        self.size, self.device, self.alive = size, device, True
        self._folder = Path(tempfile.mkdtemp(prefix="autopeft-processes-"))
        self._group = contextlib.ExitStack()
        self._peers: list[_Peer] = []
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        for rank in range(1, self.size):
            ours, theirs = Pipe()
            log = self._folder / f"{rank}.log"
            command = [sys.executable, "-c", _BEGIN, str(theirs.fileno()), json.dumps(sys.path)]
            with theirs, log.open("wb") as out:
                process = subprocess.Popen(
                    command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=out, stderr=out
                )
            self._peers.append(_Peer(rank, process, ours, log))
        settings = [Settings(rank, self.size, self.device, str(self._folder / "store"))
                    for rank in range(self.size)]  # fmt: skip
        for peer in self._peers:
            peer.pipe.send(settings[peer.rank])
        self._await(time.monotonic() + _START_SECONDS)  # imports take seconds: none waits in torch for them
        for peer in self._peers:
            peer.reply = None
        with self._watched():
            self._team = self._group.enter_context(joined(settings[0]))

    def run(self, function: Callable[..., _T], *args: Any, here: Callable[[], _T] | None = None) -> _T:
        """Call `function(*args)` in all processes; what it returns in this one.

        Args:
            function, args: are pickled for the others.
            here: is called in this process instead; it has to do the same.

        Raises:
            ProcessLost: another process ended; all have ended then, as after any error that the processes
                did not come to together.
            OutOfMemory: the memory of another process did not suffice.
            AutoPEFTError: it failed otherwise; the message has its traceback.
            Exception: what the function raised in this process.
        """
        if not self.alive:
            raise UsageError("These processes have ended; start new ones.")
        message = cloudpickle.dumps((function, args))
        for peer in self._peers:
            peer.reply = None
            with contextlib.suppress(BrokenPipeError, ConnectionError):  # seen when its reply is looked for
                peer.pipe.send_bytes(message)
        try:
            with self._watched(), working_in(self._team):
                found = function(*args) if here is None else here()
        except Exception as error:
            own = isinstance(error, AutoPEFTError)
            self._settle(time.monotonic() + (_APART_SECONDS if own else _GRACE_SECONDS))
            cause = self._cause()
            if own and self._all_failed(type(error).__name__):
                raise  # all have come to the same end
            self.close()
            if cause is None:
                raise
            raise cause from error
        except BaseException:
            self.close()
            raise
        self._settle(None)
        cause = self._cause()
        if cause is not None:
            self.close()
            raise cause
        return found

    def _all_failed(self, kind: str) -> bool:
        return all(isinstance(p.reply, Failed) and p.reply.kind == kind for p in self._peers)

    def _cause(self) -> AutoPEFTError | None:
        """What went wrong in another process by itself."""
        for peer in sorted(self._peers, key=lambda p: not p.gone or p.cut):
            what = f"Process {peer.rank + 1} of the {self.size} of this training"
            if isinstance(peer.reply, Failed):
                failed = peer.reply
                kind = OutOfMemory if failed.memory else AutoPEFTError
                return kind(f"{what} failed, and not this one: {failed.kind}: {failed.said}\n{failed.trace}")
            if peer.gone and not peer.cut:
                return ProcessLost(f"{what} {peer.how()}. The others were ended too.")
        return None

    # Watching
    # --------------------------------------------------------------------------------------------

    def _look(self, seconds: float) -> None:
        """Take replies, and notice who has ended."""
        waited = {peer.pipe: peer for peer in self._peers if not peer.settled}
        for pipe in wait(list(waited), seconds) if waited else ():
            peer = waited[pipe]  # type: ignore[index]  # they are the pipes
            try:
                peer.reply = peer.pipe.recv()
            except (EOFError, OSError):
                peer.gone = True

    def _settle(self, until: float | None) -> None:
        """Wait for all replies, to a point in time or until one process has ended."""
        while not all(p.settled for p in self._peers) and not any(p.gone for p in self._peers):
            if until is not None and time.monotonic() > until:
                return
            self._look(_LOOK_SECONDS)

    def _await(self, until: float) -> None:
        """Wait until all have started.

        Raises:
            ProcessLost: one has not.
        """
        self._settle(until)
        cause = self._cause()
        if cause is not None:
            raise cause
        if not all(p.settled for p in self._peers):
            raise ProcessLost(f"The {self.size} processes of this training did not start in time.")

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        """Within, another process that ends, or fails while this one goes on, ends the wait for it."""
        over = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(over,), daemon=True)
        try:
            watcher.start()
            yield
        finally:
            over.set()
            watcher.join()

    def _watch(self, over: threading.Event) -> None:
        broken: float | None = None
        while not over.is_set():
            if all(p.settled for p in self._peers):
                over.wait(_LOOK_SECONDS)
            else:
                self._look(_LOOK_SECONDS)
            if broken is None and any(p.broken for p in self._peers):
                broken = time.monotonic()
            gone = any(p.gone for p in self._peers)
            if broken is not None and (gone or time.monotonic() - broken > _APART_SECONDS):
                self._cut()
                return

    def _cut(self) -> None:
        """End the other processes, and with them whatever this one waits for in torch."""
        for peer in self._peers:
            if not peer.gone:
                peer.cut = True
                peer.process.kill()
        if self.device != "cpu" and dist.is_initialized():  # gloo notices closed connections, NCCL does not
            dist.distributed_c10d._abort_process_group()

    def close(self) -> None:
        """End the other processes. A model that is sharded over them is of no use any more."""
        if not self.alive:
            return
        self.alive = False
        for peer in self._peers:
            if peer.process.poll() is None:
                peer.process.kill()
            peer.process.wait()
            peer.pipe.close()
        self._group.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Processes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


# In the other processes
# ----------------------------------------------------------------------------------------------------------


def serve(handle: int) -> None:
    """Call functions that come by a pipe, until it closes."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the first process heeds them, and is followed
    pipe = Connection(handle)
    settings: Settings = pipe.recv()
    work: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_listen, args=(pipe, work, settings), daemon=True).start()
    pipe.send(True)
    with joined(settings) as team, working_in(team):
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
            if pipe.poll(_PARENT_SECONDS):
                work.put(pipe.recv_bytes())
    except (EOFError, OSError):
        first = -1  # it has closed the pipe, or ended
    shutil.rmtree(Path(settings.store).parent, ignore_errors=True)
    os._exit(1)
