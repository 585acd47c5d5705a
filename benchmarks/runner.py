"""What the pipeline benchmarks share: a stack, a run of our job, a clock, CPU times."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from benchmarks.workload import Workload, load
from connectors.cassandra_schema import create_schema
from connectors.cassandra_session import CassandraOptions, connect
from local.cli import CATALOGUE, PRODUCTS, RELATED, TOPICS
from local.stack import Stack, StackConfig

METRICS = ("events", "lookups", "rows_written", "catalogue_size", "tick_ms", "write_retries")
SKIPPED = 0.1
"""Share of the events before the steady state: the JVMs compile."""
FOREIGN = 0.1
"""Share of the machine that others may use before a measurement is called disturbed."""


class BenchmarkError(RuntimeError):
    """A contestant failed, or did not do what it was counted for."""


@dataclass(frozen=True)
class Saved:
    """The event rows of a keyspace, sorted by the write time that each of them carries.

    The one clock of all contestants. It is read after they have stopped, so that counting takes
    nothing from the cores that are measured.
    """

    users: list[str]
    event_ms: NDArray[np.float64]
    written_s: NDArray[np.float64]
    """Epoch seconds at which the client sent the row; only rows that stand are read."""

    def rate(self, since_s: float, until_s: float) -> float:
        """Rows/s within [since, until)."""
        low, high = np.searchsorted(self.written_s, (since_s, until_s))
        return float(high - low) / (until_s - since_s)

    def steady_rate(self, skipped: float = SKIPPED) -> float:
        """Rows/s from the end of the first ``skipped`` of the rows to the last row.

        Raises:
            BenchmarkError: All rows carry one time.
        """
        at = int(len(self.written_s) * skipped)
        seconds = float(self.written_s[-1] - self.written_s[at])
        if seconds <= 0:
            msg = f"{len(self.written_s)} rows are too few to see a rate in"
            raise BenchmarkError(msg)
        return (len(self.written_s) - 1 - at) / seconds


@dataclass(frozen=True)
class Spent:
    """CPU time up to a moment."""

    at: float
    roles: dict[str, float]
    machine: float
    """CPU seconds of everything on the machine, ours or not."""

    def per_event(self, before: Spent, events: int) -> dict[str, float]:
        """Microseconds an event since ``before``, by role."""
        return {
            role: (spent - before.roles.get(role, 0.0)) / events * 1e6
            for role, spent in self.roles.items()
        }

    def foreign_share(self, before: Spent, cores: int) -> float:
        """Share of the machine that went to what is not part of the benchmark."""
        own = sum(spent - before.roles.get(role, 0.0) for role, spent in self.roles.items())
        other = self.machine - before.machine - own
        return max(0.0, other / ((self.at - before.at) * cores))


@dataclass(frozen=True)
class Run:
    """One measured run of a contestant."""

    events: int
    lookups: int
    events_per_second: float
    """From the last moment at which nothing was processed; a baseline: within its window."""
    steady_events_per_second: float
    """Without the first tenth; a baseline: within its window, after its warm-up."""
    cpu_us_per_event: dict[str, float]
    foreign_share: float


class Bench:
    """A running stack with sessions to it."""

    def __init__(self, stack: Stack) -> None:
        """Connect to a started stack."""
        self.stack = stack
        options = CassandraOptions(hosts=(stack.cassandra.host,), port=stack.cassandra.port)
        self.cluster, self.session = connect(options, role="bench")
        self.start_ms = 0
        """Event time of the first event that was loaded last."""

    def topic(self, name: str, partitions: int = 8, **config: str) -> str:
        """Create a topic; a setting's name has underscores for its dots."""
        settings = {key.replace("_", "."): value for key, value in config.items()}
        self.stack.kafka.create_topic(name, partitions, settings)
        return name

    def keyspace(self, name: str) -> str:
        """Create a keyspace with the project's schema."""
        replication: dict[str, str | int] = {"class": "SimpleStrategy", "replication_factor": 1}
        create_schema(self.session, name, replication)
        return name

    def topics(self, suffix: str = "") -> None:
        """Create the topics of a job of its own."""
        self.topic(f"events{suffix}")
        for name in (CATALOGUE, PRODUCTS, RELATED):
            self.stack.kafka.create_topic(f"{name}{suffix}", *TOPICS[name])
        self.topic(f"dead-letters{suffix}", 1)

    def load(self, workload: Workload, suffix: str = "") -> None:
        """Put a workload into topics of its own: the catalogue as a shop would, and the events."""
        self.topics(suffix)
        load(self.stack.kafka.bootstrap, f"catalogue{suffix}", workload.catalogue())
        self.load_events(workload, suffix)

    def load_events(self, workload: Workload, suffix: str = "") -> None:
        """Put a workload's events into their topic, the newest of them now."""
        self.start_ms = int(time.time() * 1000) - workload.events
        stream = workload.stream(start_ms=self.start_ms)
        load(self.stack.kafka.bootstrap, f"events{suffix}", stream)

    def submit(
        self,
        keyspace: str,
        suffix: str,
        parallelism: int,
        settings: dict[str, str],
        *more: str,
        savepoint: str | None = None,
    ) -> str:
        """Submit our job as a user would, with topics that it writes; returns its id."""
        stack = self.stack
        for name in ("products", "related"):
            self.topic(f"{name}{suffix}", 4, cleanup_policy="compact")
        arguments = [
            f"--kafka-bootstrap={stack.kafka.bootstrap}",
            f"--kafka-group=ours{suffix}",
            f"--events-topic=events{suffix}",
            f"--catalogue-topic=catalogue{suffix}",
            f"--products-topic=products{suffix}",
            f"--related-topic=related{suffix}",
            f"--dead-letters-topic=dead-letters{suffix}",
            f"--products-topic=products{suffix}",
            f"--related-topic=related{suffix}",
            f"--cassandra-hosts={stack.cassandra.host}",
            f"--cassandra-port={stack.cassandra.port}",
            f"--cassandra-keyspace={keyspace}",
            *more,
        ]
        return stack.flink.run(
            "job/main.py",
            arguments,
            parallelism=parallelism,
            savepoint=savepoint,
            settings=settings,
        )

    def totals(self, job: str) -> dict[str, int]:
        """Sum our job's metrics over its subtasks."""
        metrics = self.stack.flink.metrics(job, METRICS)
        return {name: int(sum(values)) for name, values in metrics.items()}

    def spent(self, workers: Iterable[int] = ()) -> Spent:
        """CPU time so far by kind of process; ``workers``: pids of a contestant's own processes."""
        flink = self.stack.flink
        managers = [manager.pid for manager in flink.task_managers]
        pids: dict[str, list[int | None]] = {
            "TaskManagers": managers,
            "Python workers": [*workers, *(pid for one in managers for pid in _children(one))],
            "Cassandra": [self.stack.cassandra.process.pid],
            "Kafka": [self.stack.kafka.process.pid],
            "JobManager": [flink.job_manager.pid],
            "benchmark itself": [psutil.Process().pid],
        }
        roles = {role: sum(map(_cpu_seconds, found)) for role, found in pids.items()}
        machine = psutil.cpu_times()
        waiting = machine.idle + getattr(machine, "iowait", 0.0)
        guests = getattr(machine, "guest", 0.0) + getattr(machine, "guest_nice", 0.0)
        return Spent(time.monotonic(), roles, sum(machine) - waiting - guests)

    def wait_idle(self, limit_s: float = 90) -> None:
        """Wait until compactions and the like are over; say so where the machine stays busy."""
        deadline = time.monotonic() + limit_s
        quiet = 0
        while quiet < 3:
            used = psutil.cpu_percent(interval=1)
            quiet = quiet + 1 if used < 15 else 0
            if time.monotonic() > deadline:
                print(f"the machine is not idle ({used:.0f} %): measuring all the same", flush=True)
                return

    def check_alive(self, job: str) -> None:
        """Refuse a job that has ended or restarted.

        Raises:
            BenchmarkError: It has; with the cause.
        """
        flink = self.stack.flink
        state, restarts = flink.job(job)["state"], flink.restarts(job)
        if state != "RUNNING" or restarts:
            msg = f"the job is {state}, {restarts} restarts; {flink.exceptions(job)[:1]}"
            raise BenchmarkError(msg)

    def measure(self, job: str, keyspace: str, events: int, limit_s: float = 900) -> Run:
        """Wait until our job has saved ``events`` events, and count them in Cassandra.

        Raises:
            BenchmarkError: It has not, within the limit; it restarted; or rows are missing.
        """
        deadline = time.monotonic() + limit_s
        started = time.time()
        steady: tuple[int, Spent] | None = None
        lookups, moved = -1, time.monotonic()
        spent = self.spent()
        while True:
            totals = self.totals(job)
            if not totals["events"]:
                # Flink's metrics are up to a second old: the start is early rather than late.
                started = time.time()
            if totals["events"] >= events * SKIPPED and steady is None:
                steady = (totals["events"], self.spent())
            if totals["lookups"] != lookups:
                lookups, moved, spent = totals["lookups"], time.monotonic(), self.spent()
            # All is saved when all events are taken and no list was made for longer than Flink's
            # metrics are old. What comes then is the work on products, and no cost of an event.
            if totals["events"] >= events and steady and time.monotonic() - moved > 3:
                break
            if time.monotonic() > deadline:
                causes = self.stack.flink.exceptions(job)[:1]
                msg = f"{totals} after {limit_s} s instead of {events} events; {causes}"
                raise BenchmarkError(msg)
            # To answer is work for the JobManager and the TaskManagers that are measured.
            time.sleep(0.25 if not totals["events"] else 1)
        self.check_alive(job)
        saved = self.saved(keyspace)
        if not totals["events"] == len(saved.users) == events:
            msg = f"{len(saved.users)} rows, {totals['events']} by the metrics, of {events} events"
            raise BenchmarkError(msg)
        return Run(
            events=events,
            lookups=totals["lookups"],
            events_per_second=events / (float(saved.written_s[-1]) - started),
            steady_events_per_second=saved.steady_rate(),
            # At least one: a small backlog may be over before it is seen to have begun.
            cpu_us_per_event=spent.per_event(steady[1], max(1, events - steady[0])),
            foreign_share=spent.foreign_share(steady[1], psutil.cpu_count() or 1),
        )

    def measure_window(
        self,
        keyspace: str,
        available: int,
        window_s: float,
        *,
        warm_up_s: float,
        alive: Callable[[], None],
        stop: Callable[[], None],
        workers: Iterable[int] = (),
        ready: Callable[[], bool] = lambda: True,
    ) -> Run:
        """Measure a baseline within a window, stop it, and count its rows.

        Args:
            keyspace: Where it saves.
            available: Events in its topic; it must not come to their end.
            window_s: Seconds that count.
            warm_up_s: Seconds from the first row, and from ``ready``, to the window.
            alive: Raises where the contestant has failed; asked every second.
            stop: Ends it.
            workers: Pids of its own processes.
            ready: Whether it has its catalogue.

        Raises:
            BenchmarkError: It failed, saved nothing, came to the end or left lists out.
        """
        first = f"SELECT user_id FROM {keyspace}.events_by_user_day LIMIT 1"
        try:
            deadline = time.monotonic() + 240
            while not (ready() and self.session.execute(first).one()):
                alive()
                if time.monotonic() > deadline:
                    msg = f"{keyspace}: no row or no catalogue after 240 s"
                    raise BenchmarkError(msg)
                time.sleep(0.25)
            _sleep(warm_up_s, alive)
            before, since = self.spent(workers), time.time()
            _sleep(window_s, alive)
            after, until = self.spent(workers), time.time()
            alive()
        finally:
            stop()
        saved = self.saved(keyspace)
        low, high = np.searchsorted(saved.written_s, (since, until)).tolist()
        if low == high or len(saved.users) >= available:
            msg = (
                f"{keyspace}: {high - low} rows in {window_s} s and {len(saved.users)} of"
                f" {available} events: too slow to measure, or more --events are needed"
            )
            raise BenchmarkError(msg)
        without = set(saved.users[low:high]) - self.users_with_list(keyspace)
        if without:
            msg = f"{keyspace}: {len(without)} users of the window have no list"
            raise BenchmarkError(msg)
        rate = saved.rate(since, until)
        return Run(
            events=high - low,
            lookups=high - low,
            events_per_second=rate,
            steady_events_per_second=rate,
            cpu_us_per_event=after.per_event(before, high - low),
            foreign_share=after.foreign_share(before, psutil.cpu_count() or 1),
        )

    def saved(self, keyspace: str) -> Saved:
        """Read the user and the times of every saved event."""
        cql = f"SELECT user_id, ts, WRITETIME(type) AS at FROM {keyspace}.events_by_user_day"
        users: list[str] = []
        times: list[tuple[float, float]] = []
        for row in self.session.execute(cql, timeout=300):
            users.append(row.user_id)
            # The driver's datetimes are UTC without saying so.
            times.append((row.ts.replace(tzinfo=UTC).timestamp() * 1000, row.at / 1e6))
        found = np.array(times, dtype=np.float64).reshape(-1, 2)
        order = np.argsort(found[:, 1], kind="stable")
        return Saved([users[at] for at in order.tolist()], found[order, 0], found[order, 1])

    def users_with_list(self, keyspace: str) -> set[str]:
        """Read which users have a list."""
        cql = f"SELECT user_id FROM {keyspace}.recommendations_by_user"
        return {row.user_id for row in self.session.execute(cql, timeout=300)}

    def truncate(self, keyspace: str) -> None:
        """Empty the tables of a contestant that is done."""
        for table in ("events_by_user_day", "recommendations_by_user"):
            self.session.execute(f"TRUNCATE {keyspace}.{table}", timeout=120)


def _children(pid: int | None) -> list[int]:
    """Descendants of a process: the Python workers of a TaskManager."""
    if pid is None:
        return []
    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _cpu_seconds(pid: int | None) -> float:
    """CPU time of a process; 0 for one that is gone."""
    if pid is None:
        return 0.0
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)


def _sleep(seconds: float, alive: Callable[[], None]) -> None:
    """Sleep, asking every second whether the contestant still lives."""
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        alive()
        time.sleep(min(1.0, left))


@contextmanager
def bench(**config: Any) -> Iterator[Bench]:
    """Start a stack in a temporary folder, and stop it whatever happens."""
    with (
        tempfile.TemporaryDirectory(prefix="recommender-bench-") as folder,
        Stack(StackConfig(root=Path(folder), **config)) as stack,
    ):
        running = Bench(stack)
        try:
            yield running
        finally:
            running.cluster.shutdown()
