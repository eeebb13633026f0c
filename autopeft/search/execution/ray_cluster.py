"""The cluster that a run uses: the one at an address, the one that this process is in, or a private one.

A private Ray is nobody else's: its folder can be entered by its owner alone, its token is the owner's secret,
it listens on loopback unless it is told otherwise, and signals to the search's process group do not reach it.
"""

from __future__ import annotations

import atexit
import contextlib
import ipaddress
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from autopeft.errors import AutoPEFTError
from autopeft.search.execution.driver_thread import DriverThread
from autopeft.search.execution.environment import environment
from autopeft.search.execution.health import Endpoint, HealthCheck, RayEndedError, answers_grpc
from autopeft.search.execution.pool import Pool, Resources
from autopeft.search.execution.private_folder import RAY, end_processes, private_folder
from autopeft.search.execution.process import has_ended, is_stopped, stopped_below
from autopeft.search.execution.ray_logs import kept_on_error
from autopeft.search.execution.ray_token import TOKEN, secure_token, token_hint

with environment(importing=True):
    import ray

__all__ = ["Cluster", "cluster", "mute", "nodes", "one_ray"]

_log = logging.getLogger("autopeft")
_OBJECT_STORE = 256 << 20
_LEAVE_SECONDS, _LEAVE_SOON = 15.0, 4.0
_LISTEN_SECONDS = 10.0
_LOOK_SECONDS, _WATCH_SECONDS, _STOPPED_SECONDS, _NOTICE_SECONDS = 0.05, 0.5, 8.0, 3.0


def nodes() -> list[Resources]:
    """What each machine that is there has."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


@contextlib.contextmanager
def mute() -> Iterator[None]:
    """Keep what Ray tells off standard output, where results are written.

    Ray 2.60 prints there that a worker has died, with `log_to_driver=False` and at any level of its logs.
    """

    def tell(data: Any, ignore_prefix: Any) -> None:
        _log.debug("\n".join(data["lines"]))

    with _replaced(ray._private.worker, "print_to_stdstream", tell):
        yield


def one_ray() -> contextlib.AbstractContextManager[None]:
    """Let no call of Ray's interface start a Ray by itself.

    Where SIGTERM reaches every process, Ray's too, Tune's thread may be amid such calls. Ray 2.60 would then
    start another head, which nobody ends: the search would not end in time, and leave its workers.
    """
    return _replaced(ray._private.auto_init_hook, "enable_auto_connect", False)


@dataclass
class Cluster:
    """A cluster that is used.

    Attributes:
        private: whether this process has started it.
    """

    health: HealthCheck
    private: bool
    _stopped: frozenset[int] = frozenset()

    def end_stopped(self) -> None:
        """Kill processes of a private Ray's raylet that stood still at the last look already.

        A worker that was stopped before it was up has told nothing of itself.
        """
        raylets = _started("raylet") if self.private else ()
        before, self._stopped = self._stopped, frozenset(p for r in raylets for p in stopped_below(r))
        for pid in before & self._stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def cluster(
    pool: Pool,
    resume: str,
    driver: DriverThread,
    logs: Path | None = None,
    notify: Callable[[str], None] | None = None,
    hurry: Callable[[], bool] = lambda: False,
) -> Iterator[Cluster]:
    """The cluster at `pool.address`, the one that this process has joined already, or a private one.

    Args:
        resume: the command that continues the run, for the message where Ray ends.
        driver: is told where Ray does not answer any more.
        logs: a folder for the logs of a private Ray, where an error leaves the block.
        notify: takes a line that says how machines join a private Ray that others can reach.
        hurry: whether the disconnection at the end shall take 4 s at most, not 15.

    Raises:
        AutoPEFTError: Ray cannot be started or joined.
    """
    joined = ray.is_initialized()
    private = not joined and pool.address is None
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(private_folder()) / RAY if private else None
        stack.enter_context(kept_on_error(folder, logs))
        ended, left = False, threading.Event()
        try:
            if folder is not None:
                _start(pool, folder, left)
                if pool.listen is not None and notify is not None:
                    notify(_joining())
            elif not joined:
                _join(str(pool.address))
            yield Cluster(_health(resume, private=private), private)
        except RayEndedError:
            joined = False  # there is nothing left to stay with, and Ray would end the process
            ended = True
            raise
        finally:
            if not joined and not _left(_LEAVE_SOON if ended or hurry() else _LEAVE_SECONDS):
                driver.abandon()
            left.set()


def _left(seconds: float) -> bool:
    """Disconnect from Ray, in so many seconds at most; `False` where it does not answer."""
    leaving = threading.Thread(target=ray.shutdown, daemon=True)
    here = threading.current_thread() is threading.main_thread()
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)} if here else {}
    end = time.monotonic() + seconds
    leaving.start()
    while leaving.is_alive() and time.monotonic() < end:
        leaving.join(_LOOK_SECONDS)
        for number, handler in before.items():
            # Ray 2.60 gives SIGTERM back to the system where it ends, behind Python's back.
            signal.signal(number, handler)
    if leaving.is_alive():
        atexit.unregister(ray.shutdown)  # it would wait for an answer at the end of the process
    return not leaving.is_alive()


# Starting and joining
# ----------------------------------------------------------------------------------------------------------


def _start(pool: Pool, folder: Path, left: threading.Event) -> None:
    """Start a private Ray in a folder."""
    secure_token()
    with contextlib.ExitStack() as stack:
        # A group of its own for each process of Ray: `timeout` and schedulers send SIGTERM to a whole group.
        # There Ray 2.60 ends at once, and jobs do not get their time to end (--grace).
        apart = partial(ray._private.services.ConsolePopen, start_new_session=True)
        stack.enter_context(_replaced(ray._private.services, "ConsolePopen", apart))
        if pool.listen is None:
            # By this constant Ray listens on loopback alone, as on Windows and macOS. On Linux, Ray 2.60
            # replaces an address of loopback that it is given by one that other machines reach.
            stack.enter_context(_replaced(ray._private.ray_constants, "ENABLE_RAY_CLUSTER", False))
        _init(
            "start Ray on this machine",
            folder=folder,
            left=left,
            address="local",
            num_cpus=(pool.workers or 1) * pool.cpus,
            num_gpus=pool.gpus_here,
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE,
            _temp_dir=str(folder),
            _node_ip_address=pool.listen,
        )
    host = _head()[0]
    if pool.listen is None and not ipaddress.ip_address(host).is_loopback:
        raise AutoPEFTError(
            f"Ray listens at {host}, where other machines reach it, though it was told to listen on loopback "
            f"alone; give --listen {host} if that is wanted, or --workers 0 to search without Ray."
        )


def _join(address: str) -> None:
    where = f"join the Ray cluster at {address!r}"
    try:
        _check_listening(address)
    except OSError as error:
        raise AutoPEFTError(f"Cannot {where}: {error}.") from error
    _init(where, hint=f" {token_hint()}", address=address)


def _init(
    what: str, hint: str = "", folder: Path | None = None, left: threading.Event | None = None, **options: Any
) -> None:
    """Call `ray.init` in a thread of its own, where Ray leaves the handlers of signals alone.

    Ray waits a minute for a head that is gone, and then ends the process. So where the head or the raylet
    ends or stands still meanwhile, all of it is ended, and given up where Ray does not notice.

    Args:
        what: is done, for messages.
        folder: of a Ray that is started.
        left: the thread stays until it is set. Linux ends what a thread has started when the thread ends, if
            it was asked to as Ray asks it.

    Raises:
        AutoPEFTError: Ray cannot be started or joined.
    """
    outcome: Future[None] = Future()

    def work() -> None:
        try:
            ray.init(log_to_driver=False, logging_level=logging.CRITICAL, configure_logging=True, **options)
        except BaseException as error:
            outcome.set_exception(error)
            return
        outcome.set_result(None)
        if left is not None:
            left.wait()

    threading.Thread(target=work, daemon=True).start()
    moved: dict[int, float] = {}  # when each process was last seen not to stand still
    ended: float | None = None
    look = time.monotonic()
    try:
        while not wait([outcome], timeout=_LOOK_SECONDS).done:
            now = time.monotonic()
            if folder is None or now < look:
                continue
            look = now + _WATCH_SECONDS
            for pid in {*moved, *_started("gcs_server", "raylet")}:
                moved[pid] = moved.get(pid, now) if is_stopped(pid) else now
            over = any(has_ended(pid) or now - at >= _STOPPED_SECONDS for pid, at in moved.items())
            if over and ended is None:
                ended = now
                end_processes(folder)
            if ended is not None and now - ended > _NOTICE_SECONDS:
                raise RayEndedError(f"Cannot {what}: its head or its raylet ended while it started.")
        outcome.result()
    except KeyboardInterrupt:
        if folder is not None:  # what was started has no owner any more
            end_processes(folder)
        wait([outcome], timeout=_NOTICE_SECONDS)
        raise
    except RayEndedError:
        raise
    except Exception as error:  # Ray raises bare ones too, as where its raylet does not come up
        raise AutoPEFTError(f"Cannot {what}: {error}{hint}") from error


def _started(*names: str) -> list[int]:
    """Process ids of the programs of these names that this process has started."""
    try:
        return [child.pid for child in psutil.Process().children() if child.name() in names]
    except psutil.Error:  # one of them ended meanwhile
        return []


def _check_listening(address: str) -> None:
    """Fail at once where no Ray listens at `host:port`; Ray itself would try for minutes.

    Raises:
        OSError: nobody listens, or something else does.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit() and not answers_grpc(host.strip("[]"), int(port), _LISTEN_SECONDS):
        raise OSError("something listens there that does not answer as Ray does")


def _head() -> tuple[str, int]:
    """Where the head listens."""
    host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    return host.strip("[]"), int(port)


def _joining() -> str:
    host, port = _head()
    where = f"{host}:{port}" if ":" not in host else f"[{host}]:{port}"
    return (
        f"Ray listens at {where}. A machine joins by `ray start --address={where}`, with RAY_AUTH_MODE=token "
        f"and the token of this one, which stands in {TOKEN} or in RAY_AUTH_TOKEN."
    )


def _health(resume: str, *, private: bool) -> HealthCheck:
    """Watch the raylet of this process's node and the head; only a cluster's head may come back."""
    mine = ray.get_runtime_context().get_node_id()
    endpoints = [
        Endpoint(
            "the raylet of this machine", node["NodeManagerAddress"], node["NodeManagerPort"], 3.0, here=True
        )
        for node in ray.nodes()
        if node["NodeID"] == mine
    ]
    host, port = _head()
    endpoints.append(Endpoint("the head", host, port, 3.0 if private else 20.0, here=private))
    return HealthCheck(endpoints, resume=resume)


@contextlib.contextmanager
def _replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    """Give a name of one of Ray's modules another value inside the block, where Ray has no option for it; a
    name that is gone stays so."""
    before = getattr(module, name, None)
    if before is not None:
        setattr(module, name, value)
    try:
        yield
    finally:
        if before is not None:
            setattr(module, name, before)
