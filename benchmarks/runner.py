"""What the pipeline benchmarks share: a stack, a run of our job, a clock, CPU times."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.workload import Workload, load
from connectors.cassandra_schema import create_schema
from connectors.cassandra_session import CassandraOptions, connect
from local.stack import Stack, StackConfig

METRICS = ("events", "lookups", "rows_written", "catalogue_size", "tick_ms", "write_retries")
_ROLES = {
    "TaskManagerRunner": "TaskManagers",
    "StandaloneSessionClusterEntrypoint": "JobManager",
    "CassandraDaemon": "Cassandra",
    "kafka.Kafka": "Kafka",
}


class BenchmarkError(RuntimeError):
    """A contestant failed, or did not do what it was counted for."""


@dataclass(frozen=True)
class Run:
    """One measured run of our job over a backlog."""

    events: int
    lookups: int
    rows: int
    events_per_second: float
    steady_events_per_second: float
    """Without the first fifth, in which the JVMs compile."""
    cpu_us_per_event: dict[str, float]


class Bench:
    """A running stack with sessions to it."""

    def __init__(self, stack: Stack) -> None:
        """Connect to a started stack."""
        self.stack = stack
        options = CassandraOptions(hosts=(stack.cassandra.host,), port=stack.cassandra.port)
        self.cluster, self.session = connect(options, role="bench")

    def topic(self, name: str, partitions: int = 8) -> str:
        """Create a topic."""
        self.stack.kafka.create_topic(name, partitions, {})
        return name

    def keyspace(self, name: str) -> str:
        """Create a keyspace with the project's schema."""
        replication: dict[str, str | int] = {"class": "SimpleStrategy", "replication_factor": 1}
        create_schema(self.session, name, replication)
        return name

    def load(self, workload: Workload, suffix: str = "") -> tuple[str, str]:
        """Put a workload into topics of its own; returns (events, catalogue)."""
        events, catalogue = f"events{suffix}", f"catalogue{suffix}"
        self.topic(events)
        self.topic(catalogue, 4)
        self.topic(f"dead-letters{suffix}", 1)
        load(self.stack.kafka.bootstrap, catalogue, workload.catalogue())
        load(self.stack.kafka.bootstrap, events, workload.stream())
        return events, catalogue

    def submit(
        self, keyspace: str, suffix: str, parallelism: int, settings: dict[str, str], *more: str
    ) -> str:
        """Submit our job as a user would; returns its id."""
        stack = self.stack
        arguments = [
            f"--kafka-bootstrap={stack.kafka.bootstrap}",
            f"--kafka-group=ours{suffix}",
            f"--events-topic=events{suffix}",
            f"--catalogue-topic=catalogue{suffix}",
            f"--dead-letters-topic=dead-letters{suffix}",
            f"--cassandra-hosts={stack.cassandra.host}",
            f"--cassandra-port={stack.cassandra.port}",
            f"--cassandra-keyspace={keyspace}",
            *more,
        ]
        return stack.flink.run("job/main.py", arguments, parallelism=parallelism, settings=settings)

    def totals(self, job: str) -> dict[str, int]:
        """Sum our job's metrics over its subtasks."""
        metrics = self.stack.flink.metrics(job, METRICS)
        return {name: int(sum(values)) for name, values in metrics.items()}

    def cpu_seconds(self) -> dict[str, float]:
        """CPU time so far, by kind of server."""
        spent = dict.fromkeys(_ROLES.values(), 0.0)
        for process in psutil.process_iter(["cmdline", "cpu_times"]):
            command = process.info["cmdline"] or []
            times = process.info["cpu_times"]
            if times is None or not any(str(self.stack.root) in part for part in command):
                continue
            for marker, role in _ROLES.items():
                if any(marker in part for part in command):
                    spent[role] += times.user + times.system
        return spent

    def measure(self, job: str, expected: int, limit_s: float = 900) -> Run:
        """Wait until our job has saved ``expected`` events.

        Raises:
            BenchmarkError: It has not, within the limit, or rows are missing.
        """
        deadline = time.monotonic() + limit_s
        first: tuple[float, int] | None = None
        steady: tuple[float, int, dict[str, float]] | None = None
        while True:
            totals = self.totals(job)
            now = time.monotonic()
            if totals["events"] and first is None:
                first = (now, totals["events"])
            if totals["events"] >= expected // 5 and steady is None:
                steady = (now, totals["events"], self.cpu_seconds())
            if totals["rows_written"] >= expected + totals["lookups"] and first and steady:
                break
            if now > deadline:
                causes = self.stack.flink.exceptions(job)[:1]
                msg = f"{totals} after {limit_s} s instead of {expected} events; {causes}"
                raise BenchmarkError(msg)
            time.sleep(0.25)
        cpu = self.cpu_seconds()
        counted = expected - steady[1]
        return Run(
            events=totals["events"],
            lookups=totals["lookups"],
            rows=totals["rows_written"],
            events_per_second=(expected - first[1]) / (now - first[0]),
            steady_events_per_second=counted / (now - steady[0]),
            cpu_us_per_event={role: (cpu[role] - steady[2][role]) / counted * 1e6 for role in cpu},
        )

    def count_events(self, keyspace: str) -> int:
        """Count the saved events by reading all their keys."""
        rows = self.session.execute(f"SELECT ts FROM {keyspace}.events_by_user_day", timeout=300)
        return sum(1 for _ in rows)

    def count_lists(self, keyspace: str) -> int:
        """Count the users that have a list."""
        cql = f"SELECT user_id FROM {keyspace}.recommendations_by_user"
        return sum(1 for _ in self.session.execute(cql, timeout=300))


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
