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
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from autopeft.errors import AutoPEFTError
from autopeft.search.execution.driver_thread import DriverThread
from autopeft.search.execution.environment import environment
from autopeft.search.execution.health import Endpoint, HealthCheck, RayEndedError, answers_grpc
from autopeft.search.execution.pool import Pool, Resources
from autopeft.search.execution.private_folder import RAY, private_folder
from autopeft.search.execution.process import has_ended, is_stopped, stopped_below
from autopeft.search.execution.ray_logs import kept_on_error
from autopeft.search.execution.ray_token import TOKEN, secure_token, token_hint

with environment(importing=True):
    import ray
    from ray import tune

__all__ = ["Cluster", "cluster", "mute", "nodes", "one_ray"]

_log = logging.getLogger("autopeft")
_OBJECT_STORE = 256 << 20
_LEAVE_SECONDS, _LEAVE_SOON = 15.0, 4.0
_LISTEN_SECONDS = 10.0
_LOOK_SECONDS, _WATCH_SECONDS, _STOPPED_SECONDS, _NOTICE_SECONDS = 0.05, 0.5, 8.0, 3.0
_START = "start Ray on this machine"


def nodes() -> list[Resources]:
    """What each machine that is there has."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


@contextlib.contextmanager
def mute() -> Iterator[None]:
    """Keep what Ray tells off standard output, where results are written; log levels do not cover that."""

    def tell(data: Any, ignore_prefix: Any) -> None:
        _log.debug("\n".join(data["lines"]))

    with _replaced(ray._private.worker, "print_to_stdstream", tell):
        yield


def one_ray() -> contextlib.AbstractContextManager[None]:
    """Let no call of Ray's interface start a Ray by itself.

    Where jobs do not end in time, Tune's thread may be amid such calls when the run's own Ray has ended. It
    would start another one, which nobody ends: the process would wait for it a minute, and leave its workers.
    """
    return _replaced(ray._private.auto_init_hook, "enable_auto_connect", False)


@dataclass
class Cluster:
    """A cluster that is used.

    Attributes:
        started: process ids of what a private Ray consists of, by the names of the programs.
    """

    health: HealthCheck
    started: Mapping[str, int]
    _stopped: frozenset[int] = frozenset()

    def end_stopped(self) -> None:
        """Kill processes of a private Ray's raylet that stood still at the last look already.

        A worker that was stopped before it was up has told nothing of itself.
        """
        raylet = self.started.get("raylet")
        before, self._stopped = self._stopped, frozenset(stopped_below(raylet) if raylet else ())
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
            started: Mapping[str, int] = {}
            if folder is not None:
                started = _start(pool, folder, left)
                if pool.listen is not None and notify is not None:
                    notify(_joining())
            elif not joined:
                _join(str(pool.address))
            yield Cluster(_health(resume, private=private), started)
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
    end = time.monotonic() + seconds
    leaving.start()
    while leaving.is_alive() and time.monotonic() < end:
        with _own_signals():
            leaving.join(_LOOK_SECONDS)
    if leaving.is_alive():
        # At the end of the process, these would wait for an answer.
        atexit.unregister(ray.shutdown)
        atexit.unregister(tune.registry._unregister_all)
    return not leaving.is_alive()


# Starting and joining
# ----------------------------------------------------------------------------------------------------------


def _start(pool: Pool, folder: Path, left: threading.Event) -> dict[str, int]:
    """Start a private Ray in a folder; process ids of what it consists of, by the names of the programs.

    It ends with the thread that starts it, which lives until `left` is set.
    """
    secure_token()
    with _own_group() as started, _on_loopback(pool.listen), _while_it_starts(started) as ended:
        _init(
            _START,
            run=partial(_unless_ended, ended, started, left),
            address="local",
            num_cpus=(pool.workers or 1) * pool.cpus,
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
    return started


def _join(address: str) -> None:
    where = f"join the Ray cluster at {address!r}"
    try:
        _check_listening(address)
    except OSError as error:
        raise AutoPEFTError(f"Cannot {where}: {error}.") from error
    _init(where, hint=f" {token_hint()}", address=address)


def _init(
    what: str, hint: str = "", run: Callable[[Callable[[], Any]], Any] = lambda init: init(), **options: Any
) -> None:
    common = {"log_to_driver": False, "logging_level": logging.CRITICAL, "configure_logging": True}
    try:
        with _own_signals():
            run(partial(ray.init, **common, **options))
    except RayEndedError:
        raise
    except Exception as error:  # Ray raises bare ones too, as where its raylet does not come up
        raise AutoPEFTError(f"Cannot {what}: {error}{hint}") from error


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


# What Ray has no option for
# ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    """Let a name of one of Ray's modules mean something else inside the block; one that is gone stays so."""
    before = getattr(module, name, None)
    if before is not None:
        setattr(module, name, value)
    try:
        yield
    finally:
        if before is not None:
            setattr(module, name, before)


def _on_loopback(listen: str | None) -> contextlib.AbstractContextManager[None]:
    """Let a Ray that starts listen on loopback, unless it shall listen elsewhere.

    Ray does so by itself on Windows and macOS, where it asks this constant; an address of loopback that it
    is given it replaces by one that other machines reach.
    """
    if listen is not None:
        return contextlib.nullcontext()
    return _replaced(ray._private.ray_constants, "ENABLE_RAY_CLUSTER", False)


@contextlib.contextmanager
def _own_group() -> Iterator[dict[str, int]]:
    """Let what Ray starts be in a process group of its own, together; process ids by name, as they start.

    A scheduler or a terminal sends signals to a whole group: there the search alone hears of them, and ends
    its Ray itself.
    """
    started: dict[str, int] = {}
    popen = ray._private.services.ConsolePopen

    def start(command: list[str], *args: Any, preexec_fn: Callable[[], None], **more: Any) -> Any:
        first = next(iter(started.values()), 0)

        def before() -> None:
            try:
                os.setpgid(0, first)
            except OSError:  # the first has ended
                os.setpgid(0, 0)
            preexec_fn()

        process: subprocess.Popen[bytes] = popen(command, *args, preexec_fn=before, **more)
        started.setdefault(Path(command[0]).name, process.pid)
        return process

    with _replaced(ray._private.services, "ConsolePopen", start):
        yield started


@contextlib.contextmanager
def _while_it_starts(started: Mapping[str, int]) -> Iterator[threading.Event]:
    """Where the head or the raylet ends or stands still while Ray starts, end all of it and set the event
    that the block gets."""
    over, ended = threading.Event(), threading.Event()

    def watch() -> None:
        since: dict[int, float] = {}
        while not over.wait(_WATCH_SECONDS):
            pids = [started[name] for name in ("gcs_server", "raylet") if name in started]
            now = time.monotonic()
            since = {pid: since.get(pid, now) for pid in pids if is_stopped(pid)}
            if any(map(has_ended, pids)) or any(now - at >= _STOPPED_SECONDS for at in since.values()):
                _kill(started)
                ended.set()
                return

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield ended
    finally:
        over.set()


def _unless_ended(
    ended: threading.Event, started: Mapping[str, int], left: threading.Event, init: Callable[[], Any]
) -> None:
    """Call `init` in a thread of its own: it waits a minute for a head that is gone, and then Ray ends the
    process.

    Linux ends what a thread has started when the thread ends, if it was asked to as Ray asks it. So the
    thread stays until `left` is set.

    Raises:
        RayEndedError: what it started ended or stands still, and some seconds later it has not noticed.
        Exception: what it raised.
    """
    outcome: Future[None] = Future()

    def work() -> None:
        try:
            init()
        except Exception as error:
            outcome.set_exception(error)
        else:
            outcome.set_result(None)
            left.wait()

    threading.Thread(target=work, daemon=True).start()
    noticed: float | None = None
    try:
        while not wait([outcome], timeout=_LOOK_SECONDS).done:
            if not ended.is_set():
                continue
            noticed = noticed or time.monotonic()
            if time.monotonic() - noticed > _NOTICE_SECONDS:
                raise RayEndedError(f"Cannot {_START}: its head or its raylet ended while it started.")
    except KeyboardInterrupt:  # what it has started has no owner any more
        _kill(started)
        wait([outcome], timeout=_NOTICE_SECONDS)
        raise
    outcome.result()


def _kill(started: Mapping[str, int]) -> None:
    for pid in list(started.values()):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Keep the handlers of signals.

    Where Ray starts, it sets one of its own that ends the process at SIGTERM. Where it ends, it gives SIGTERM
    back to the system behind Python's back.
    """
    here = threading.current_thread() is threading.main_thread()
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)} if here else {}
    try:
        with _replaced(ray._private.utils, "set_sigterm_handler", lambda handler: None):
            yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
