from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from autopeft.search.core.jobs import DONE, Done, Job, JobResult, TrainJob
from autopeft.search.execution.output import OutputFiles
from autopeft.search.execution.pool import Capacity, Pool
from autopeft.search.execution.process import ProcessInfo
from autopeft.search.execution.scheduler import Scheduler

T = TypeVar("T")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Source:
    """Gives what is in `left`; `None` where that is empty and something is running."""

    def __init__(self, *jobs: str) -> None:
        self.left: list[str] = list(jobs)
        self.open, self.results = set[str](), list[JobResult]()
        self.steps: list[tuple[str, int, float]] = []
        self.scales: list[int] = []
        self.stopped = False

    def next(self) -> Job | Done | None:
        if not self.left:
            return None if self.open else DONE
        self.open.add(self.left[0])
        return TrainJob(self.left.pop(0), "trial", "x", {"name": "r"}, steps=1)

    def progress(self, job: str, step: int, loss: float) -> None:
        self.steps.append((job, step, loss))

    def complete(self, result: JobResult) -> None:
        self.open.discard(result.job)
        self.results.append(result)

    def scale(self, workers: int) -> None:
        self.scales.append(workers)

    def interrupt(self) -> None:
        self.stopped = True


class Direct:
    """A driver of one thread."""

    def call(self, function: Callable[..., T], *args: Any) -> T:
        return function(*args)

    def pause(self) -> None:
        pass


@dataclass
class Calm:
    doubt: bool = False
    settled: int = 0

    def settle(self, unless: Callable[[], bool]) -> None:
        self.settled += 1


@dataclass
class Stage:
    """An scheduler with machines of CPUs only."""

    source: Source
    machines: list[int]
    workers: int | None = None
    given: list[tuple[str, str]] = field(default_factory=list)
    looked: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.clock, self.health = Clock(), Calm()
        capacity = Capacity(
            Pool(self.workers),
            lambda: [{"CPU": float(n)} for n in self.machines],
            resume="r",
            clock=self.clock,
        )
        self.scheduler = Scheduler(
            self.source,
            capacity,
            Direct(),  # type: ignore[arg-type]
            self.health,  # type: ignore[arg-type]
            self.give,
            look_there=lambda node, pid: self.looked.append((node, pid)),
            look_at_starting=lambda: self.looked.append("starting"),
            clock=self.clock,
        )

    def give(self, handle: str, job: Job) -> Callable[[], str]:
        self.given.append((handle, job.id))
        return lambda: "No module named 'plugin'"

    def up(self, *names: str) -> None:
        """Hire workers and let them come up."""
        for name in names:
            assert self.scheduler.request_worker(name)
        for name in names:
            self.scheduler.receive(name, {"handle": name})

    def finish(self, name: str, job: str) -> None:
        self.scheduler.receive(name, {"outcome": JobResult(job, {"select": 1.0}, files={"w": b"x"})})


def test_workers_are_started_as_long_as_there_is_room_and_work() -> None:
    stage = Stage(Source("a", "b", "c"), [1, 1])
    assert stage.scheduler.request_worker("one")
    assert stage.scheduler.request_worker("two")
    assert not stage.scheduler.request_worker("three"), "no room"
    assert stage.source.left == ["c"], "a job is asked for each worker, and no more"
    few = Stage(Source("a"), [4])
    assert few.scheduler.request_worker("one")
    assert not few.scheduler.request_worker("two"), "no work"


def test_who_is_free_first_takes_what_others_were_started_for() -> None:
    """Else short jobs would keep a capacity small for ever: its workers take longer to come up."""
    stage = Stage(Source("a", "b", "c", "d"), [2])
    assert stage.scheduler.request_worker("quick")
    assert stage.scheduler.request_worker("slow")
    stage.scheduler.receive("quick", {"handle": "quick"})
    stage.finish("quick", "a")
    assert stage.given == [("quick", "a"), ("quick", "b")]
    stage.scheduler.receive("slow", {"handle": "slow"})
    assert stage.given[-1] == ("slow", "c")
    assert not stage.scheduler.stop()


def test_results_and_news_reach_the_source_and_leave_nothing_with_tune() -> None:
    stage = Stage(Source("a", "b"), [1])
    stage.up("one")
    news, last = (
        {"news": (3, 0.5), "kept": 1},
        {"outcome": JobResult("a", {"select": 1.0}, files={"w": b"x"})},
    )
    stage.scheduler.receive("one", news)
    stage.scheduler.receive("one", last)
    assert stage.source.steps == [("a", 3, 0.5)]
    assert [r.job for r in stage.source.results] == ["a"]
    assert stage.source.results[0].files == {"w": b"x"}
    assert (news, last) == ({"kept": 1}, {})


def test_the_run_ends_when_the_source_is_done() -> None:
    stage = Stage(Source("a", "b"), [2])
    stage.up("one", "two")
    stage.finish("one", "a")
    assert not stage.scheduler.stop(), "a job still runs"
    stage.scheduler.receive("one", {})
    stage.finish("two", "b")
    assert stage.scheduler.stop()
    assert len(stage.given) == 2


def test_a_source_may_be_done_while_its_jobs_run() -> None:
    stage = Stage(Source("a", "b"), [2])
    stage.source.next = lambda: Source.next(stage.source) if stage.source.left else DONE  # type: ignore[method-assign]
    stage.up("one")
    assert stage.scheduler.request_worker("two"), "for b"
    stage.scheduler.receive("one", {})
    stage.finish("one", "a")
    assert not stage.scheduler.stop(), "b was given to who was free, and runs"
    assert stage.given == [("one", "a"), ("one", "b")]
    stage.scheduler.receive("two", {"handle": "two"})
    stage.finish("one", "b")
    assert stage.scheduler.stop()


def test_an_idle_worker_gets_what_comes_later() -> None:
    stage = Stage(Source("a", "b"), [2])
    stage.up("one", "two")
    stage.finish("one", "a")
    stage.source.left.append("late")
    stage.scheduler.receive("one", {})
    assert stage.given[-1] == ("one", "late")


def test_a_lost_worker_costs_its_job_and_is_replaced() -> None:
    stage = Stage(Source("a", "b", "c"), [2])
    stage.up("one", "two")
    stage.scheduler.worker_lost("two", "The actor died because its node has died. Node Id: 0. And much more.")
    (lost,) = stage.source.results
    assert (lost.job, lost.failure) == ("b", "lost")
    assert str(lost.error).endswith("(Ray: The actor died because its node has died).")
    assert stage.health.settled == 1, "Ray itself was looked at first"
    assert stage.scheduler.request_worker("three")
    stage.scheduler.receive("three", {"handle": "three"})
    assert stage.given[-1] == ("three", "c")


def test_the_log_of_a_lost_job_has_what_was_known_of_its_worker() -> None:
    stage = Stage(Source("a", "b"), [1])
    stage.up("one")
    stage.scheduler.receive("one", {"news": (3, 0.5), "peak": 700_000_000})
    stage.finish("one", "a")
    news = {"news": (12, 0.25), "peak": 900_000_000}
    stage.scheduler.receive("one", news)
    assert news == {}, "nothing is left with Tune"
    stage.scheduler.worker_lost("one", "The actor died.", "All that Ray says.")
    log = stage.source.results[-1].log
    for line in (
        "last step reported: 12, with loss 0.25",
        "peak memory of the process, as last reported: 900 MB",
        "All that Ray says.",
    ):
        assert line in log


def test_what_one_job_reported_is_not_told_of_the_next() -> None:
    stage = Stage(Source("a", "b"), [1])
    stage.up("one")
    stage.scheduler.receive("one", {"news": (3, 0.5), "peak": 1_000_000})
    stage.finish("one", "a")
    stage.scheduler.worker_lost("one", "killed")
    assert "last step reported: none" in stage.source.results[-1].log


def test_a_job_that_a_worker_cannot_read_is_lost_and_the_next_one_runs() -> None:
    stage = Stage(Source("a", "b"), [1])
    stage.up("one")
    news = {"idle": True}
    stage.scheduler.receive("one", news)
    (lost,) = stage.source.results
    assert (lost.job, lost.failure) == ("a", "lost")
    assert "No module named 'plugin'" in str(lost.error)
    assert news == {}, "nothing is left with Tune"
    assert stage.given[-1] == ("one", "b")
    stage.finish("one", "b")
    stage.scheduler.receive("one", {"idle": True})
    assert len(stage.source.results) == 2, "one without a job has nothing to lose"


def test_a_worker_that_fails_says_why() -> None:
    stage = Stage(Source("a"), [1])
    stage.up("one")
    stage.scheduler.worker_lost("one", "ValueError: oh no")
    assert stage.source.results[0].error == "The worker failed: ValueError: oh no"


def test_an_idle_worker_that_is_lost_costs_nothing() -> None:
    stage = Stage(Source("a", "b"), [2])
    stage.up("one", "two")
    stage.finish("one", "a")
    stage.scheduler.worker_lost("one", "killed")
    assert [r.failure for r in stage.source.results] == [None]


def test_a_worker_lost_while_it_comes_up_costs_no_job() -> None:
    stage = Stage(Source("a", "b"), [1, 1])
    stage.up("one")
    assert stage.scheduler.request_worker("two")
    stage.scheduler.worker_lost("two", "no such module")
    assert stage.source.results == []
    assert not stage.scheduler.request_worker("three"), "not at once"
    stage.clock.now = 2.0
    assert stage.scheduler.request_worker("three")
    assert stage.source.left == [], "its job is still there, and no other was asked for"
    stage.scheduler.receive("three", {"handle": "three"})
    assert stage.given[-1] == ("three", "b")


def test_a_machine_where_workers_cannot_start_does_not_stop_the_others() -> None:
    stage = Stage(Source(*"abcdefgh"), [1, 1])
    stage.up("good")
    waits = []
    for i in range(9):
        begin = stage.clock.now
        while not stage.scheduler.request_worker(f"bad-{i}"):
            stage.clock.now += 0.5
        waits.append(stage.clock.now - begin)
        stage.scheduler.worker_lost(f"bad-{i}", "no such module")
    assert waits == [0.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]
    assert not stage.scheduler.stop()


def test_a_run_where_no_worker_can_start_ends_with_the_reason() -> None:
    stage = Stage(Source(*"abcdefgh"), [4])
    for wave in range(4):
        assert not stage.scheduler.stop()
        stage.clock.now += 60.0
        names = [f"{wave}-{i}" for i in range(4)]
        assert all(stage.scheduler.request_worker(name) for name in names)
        for name in names:  # workers that fail together count once
            stage.scheduler.worker_lost(name, "ModuleNotFoundError: No module named 'autopeft'")
    assert stage.scheduler.stop()
    assert "tried 4 times" in str(stage.scheduler.fatal)
    assert "No module named 'autopeft'" in str(stage.scheduler.fatal)


def test_what_the_source_raises_ends_the_run() -> None:
    stage = Stage(Source("a", "b"), [1])
    stage.up("one")

    def full(result: JobResult) -> None:
        raise OSError("the disk is full")

    stage.source.complete = full  # type: ignore[method-assign]
    stage.finish("one", "a")
    assert stage.scheduler.stop()
    assert str(stage.scheduler.fatal) == "the disk is full"
    assert stage.given == [("one", "a")]


def test_a_stopped_source_ends_the_run() -> None:
    stage = Stage(Source("a", "b"), [1])
    stage.up("one")
    stage.source.interrupt()
    assert stage.scheduler.stop()
    stage.finish("one", "a")
    assert stage.given == [("one", "a")]


def test_machines_that_come_and_go_change_the_capacity() -> None:
    stage = Stage(Source(*"abcdefgh"), [1, 2])
    stage.up("one", "two", "three")
    stage.machines = [1, 2, 2]
    assert not stage.scheduler.request_worker("four"), "it is looked at every 2 s"
    stage.clock.now = 2.0
    assert not stage.scheduler.stop()
    assert stage.source.scales == [5]
    assert stage.scheduler.request_worker("four")
    stage.machines = [1]
    stage.clock.now = 4.0
    stage.scheduler.stop()
    assert stage.source.scales == [5, 1]
    assert not stage.scheduler.request_worker("five")


def test_no_more_workers_than_were_asked_for() -> None:
    stage = Stage(Source(*"abcdefgh"), [8], workers=2)
    stage.up("one", "two")
    assert not stage.scheduler.request_worker("three")
    stage.clock.now = 2.0
    stage.scheduler.stop()
    assert stage.source.scales == []


def test_a_cluster_without_machines_ends_the_run_after_a_minute() -> None:
    stage = Stage(Source("a", "b"), [1])
    stage.machines = []
    for now in (2.0, 30.0, 61.0):
        stage.clock.now = now
        assert not stage.scheduler.stop()
    stage.machines = [1]
    stage.clock.now = 63.0
    assert not stage.scheduler.stop()
    stage.machines = []
    for now in (65.0, 120.0):
        stage.clock.now = now
        assert not stage.scheduler.stop(), "the minute begins anew"
    stage.clock.now = 126.0
    assert stage.scheduler.stop()
    assert "room for a job for a minute" in str(stage.scheduler.fatal)


def test_ray_is_asked_nothing_while_it_is_in_doubt() -> None:
    asked = []
    stage = Stage(Source("a"), [1])
    stage.health.settle = lambda unless: asked.append("settle")  # type: ignore[method-assign]
    stage.scheduler._capacity._nodes = lambda: asked.append("nodes") or [{"CPU": 1.0}]  # type: ignore[func-returns-value]
    stage.clock.now = 2.0
    stage.scheduler.stop()
    assert asked == ["settle", "nodes"]
    stage.health.doubt = True
    stage.scheduler.stop()
    assert asked == ["settle", "nodes", "settle"]


@dataclass
class Process:
    """What a trace knows of a worker's process."""

    stopped: bool = False
    killed: bool = False
    about: Any = None
    stopped_since: float | None = None
    ends: Any = None
    peak: Any = None
    step: int = 0
    loss: float = 0.0

    def kill(self) -> None:
        self.killed = True

    def begin(self) -> None:
        pass


def watching(stage: Stage, process: Process, seconds: range, *, heard: Callable[[int], bool]) -> None:
    """Let time pass, second by second."""
    for now in seconds:
        stage.clock.now = float(now)
        if heard(now):
            stage.scheduler.receive("one", {"news": (now, 0.5)})
        stage.scheduler.stop()
        if process.killed:
            return


def with_process(process: Process) -> Stage:
    stage = Stage(Source("a", "b"), [1])
    stage.up("one")
    stage.scheduler._workers["one"].trace = process  # type: ignore[assignment]
    return stage


def test_a_worker_that_stands_still_is_killed_in_time() -> None:
    process = Process(stopped=True)
    stage = with_process(process)
    watching(stage, process, range(60), heard=lambda now: False)
    assert process.killed
    assert 8 <= stage.clock.now <= 20


def test_a_worker_that_is_slow_is_left_alone() -> None:
    process = Process(stopped=False)
    watching(with_process(process), process, range(3600), heard=lambda now: False)
    assert not process.killed


def test_a_worker_that_goes_on_is_left_alone() -> None:
    process = Process(stopped=True)
    stage = with_process(process)
    watching(stage, process, range(9), heard=lambda now: False)
    assert process.stopped_since is not None
    process.stopped = False
    watching(stage, process, range(9, 12), heard=lambda now: False)
    process.stopped = True
    watching(stage, process, range(12, 16), heard=lambda now: False)
    assert not process.killed, "each time counts anew"
    watching(stage, process, range(16, 19), heard=lambda now: True)
    assert process.stopped_since is None


def test_where_the_driver_itself_stood_still_nobody_is_killed_at_once() -> None:
    process = Process(stopped=True)
    stage = with_process(process)
    stage.scheduler.stop()
    stage.clock.now = 600.0
    stage.scheduler.stop()
    assert not process.killed


def test_on_another_machine_it_is_looked_there() -> None:
    process = Process(about=ProcessInfo("h", "other", 77, {}, OutputFiles({})))
    stage = with_process(process)
    stage.scheduler._workers["one"].node = "node-2"
    watching(stage, process, range(30), heard=lambda now: False)
    assert set(stage.looked) == {("node-2", 77)}
    assert 2 <= len(stage.looked) <= 5
    assert not process.killed


def test_workers_that_do_not_come_up_are_looked_at() -> None:
    stage = Stage(Source("a"), [1])
    assert stage.scheduler.request_worker("one")
    for now in range(40):
        stage.clock.now = float(now)
        stage.scheduler.stop()
        assert not stage.looked or now >= 10
    assert set(stage.looked) == {"starting"}
    assert 3 <= len(stage.looked) <= 6
