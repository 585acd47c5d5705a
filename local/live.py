"""The live status: what flows, how fresh it is, and what one user is recommended."""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from dataclasses import dataclass, field
from typing import Any, Final, TextIO

import requests
from cassandra import DriverException
from cassandra.cluster import NoHostAvailable
from prometheus_client.parser import text_string_to_metric_families

from connectors.cassandra_schema import UNRESOLVED_SCOPE, statement
from connectors.flink_metrics import ALL, LAG, totals
from local.demo_catalogue import titles
from local.errors import StackError
from local.flink_cluster import Checkpoints
from local.stack import Stack

# The tables are asked for examples and for erasures at most so often.
_TABLES_EVERY_S: Final = 15.0
# Examples that a subtask has not renewed for so long are of the past.
_EXAMPLES_MS: Final = 60 * 60 * 1000
_MOST_SUBTASKS: Final = 64


@dataclass(frozen=True)
class Tables:
    """What only Cassandra's tables tell."""

    unresolved: tuple[str, ...] = ()
    """Ids of products that users touched lately and the catalogue does not have."""
    waiting: int | None = None
    """Erasures that were asked for and are not done; None where nobody could be asked."""


@dataclass(frozen=True)
class Status:
    """One look at the pipeline; None where nobody could be asked."""

    at: float
    job_id: str | None = None
    state: str = "no job"
    values: dict[str, float] = field(default_factory=dict)
    lag: float | None = None
    checkpoints: Checkpoints | None = None
    restarts: int = 0
    dead: tuple[str, ...] = ()
    user: str = ""
    recommended: tuple[tuple[str, float], ...] = ()
    events_per_second: float | None = None
    tables: Tables = Tables()
    service: dict[str, float] | None = None
    """Of the service's own counters: events lost and refused, requests above their rate."""


class Watch:
    """Takes looks at a stack, and remembers the last one for the rates."""

    def __init__(
        self, stack: Stack, flask_port: int, keyspace: str, user: str = "user-0000"
    ) -> None:
        self._stack = stack
        self._keyspace = keyspace
        self._tables = Tables()
        self._tables_at = float("-inf")
        self._api = f"http://127.0.0.1:{flask_port}"
        self._user = user
        self._titles = titles()
        self._last: Status | None = None

    @property
    def window_url(self) -> str:
        """Where the shop window is."""
        return f"{self._api}/"

    def look(self) -> Status:
        """Ask Flink and the HTTP service once."""
        flink = self._stack.flink
        known: dict[str, Any] = {"user": self._user, "recommended": self._recommended()}
        known["service"] = self._service()
        known["tables"] = self._look_at_tables()
        servers = {
            "kafka": self._stack.kafka.process,
            "cassandra": self._stack.cassandra.process,
            **{one.name: one.process for one in (flink.job_manager, *flink.task_managers)},
        }
        known["dead"] = tuple(name for name, process in servers.items() if not process.alive)
        with contextlib.suppress(StackError, requests.RequestException, KeyError):
            job_id = flink.running_job()
            if job_id is not None:
                known["job_id"] = job_id
                known["state"] = flink.job(job_id)["state"]
                known["values"] = totals(flink.metrics(job_id, ALL))
                known["lag"] = known["values"].get(LAG)
                known["checkpoints"] = flink.checkpoints(job_id)
                known["restarts"] = flink.restarts(job_id)
        status = Status(at=time.monotonic(), **known)
        known["events_per_second"] = self._rate(status)
        self._last = Status(at=status.at, **known)
        return self._last

    def _rate(self, status: Status) -> float | None:
        last = self._last
        if last is None or last.job_id != status.job_id or "events" not in last.values:
            return None
        gained = status.values.get("events", 0.0) - last.values["events"]
        return gained / (status.at - last.at) if gained >= 0 else None

    def _service(self) -> dict[str, float] | None:
        try:
            answer = requests.get(f"{self._api}/metrics", timeout=2)
            answer.raise_for_status()
            return service_counts(answer.text)
        except (requests.RequestException, ValueError):
            return None

    def _look_at_tables(self) -> Tables:
        if time.monotonic() - self._tables_at < _TABLES_EVERY_S:
            return self._tables
        self._tables_at = time.monotonic()
        try:
            with self._stack.cassandra.cluster(5.0) as cluster:
                now_ms = time.time_ns() // 1_000_000
                self._tables = read_tables(cluster.connect(), self._keyspace, now_ms)
        except (DriverException, NoHostAvailable, OSError):
            self._tables = Tables()
        return self._tables

    def _recommended(self) -> tuple[tuple[str, float], ...]:
        url = f"{self._api}/v1/users/{self._user}/recommendations?limit=5"
        try:
            items = requests.get(url, timeout=2).json().get("items", [])
            return tuple(
                (self._titles.get(item["product_id"], item["product_id"]), float(item["score"]))
                for item in items
            )
        except (requests.RequestException, ValueError, KeyError, AttributeError, TypeError):
            return ()


def read_tables(session: Any, keyspace: str, now_ms: int) -> Tables:
    """Read the examples of unresolved products, most frequent first, and count open erasures."""
    scopes = ", ".join(f"'{UNRESOLVED_SCOPE}:{at}'" for at in range(_MOST_SUBTASKS))
    found = session.execute(
        "SELECT items, toUnixTimestamp(generated_at) AS at_ms"
        f" FROM {keyspace}.trending WHERE scope IN ({scopes})"
    )
    examples: dict[str, float] = {}
    for row in found:
        if row.at_ms >= now_ms - _EXAMPLES_MS:
            for product_id, count in row.items or ():
                examples[product_id] = examples.get(product_id, 0.0) + count
    waiting = sum(
        one.requested_at is not None and (one.done_for is None or one.done_for < one.requested_at)
        for one in session.execute(statement("scan_erasures", keyspace))
    )
    return Tables(tuple(sorted(examples, key=lambda one: -examples[one])[:5]), waiting)


def service_counts(metrics: str) -> dict[str, float]:
    """Add up what the service exports of events and requests that came to nothing.

    Raises:
        ValueError: It is not the text format of Prometheus.
    """
    found = {"lost": 0.0, "refused": 0.0, "above_rate": 0.0}
    for family in text_string_to_metric_families(metrics):
        for name, labels, value, *_ in family.samples:
            if name == "recommender_api_events_total":
                if labels["outcome"] in ("failed", "lost", "dropped"):
                    found["lost"] += value
            elif name == "recommender_api_events_refused_total":
                found["refused"] += value
            elif name == "recommender_api_requests_total" and labels["status"] == "429":
                found["above_rate"] += value
    return found


def lines(status: Status) -> list[str]:
    """The status as text."""
    values = status.values

    def whole(name: str) -> str:
        return f"{values[name]:,.0f}" if name in values else "-"

    rate = "-" if status.events_per_second is None else f"{status.events_per_second:,.0f}"
    lag = "-" if status.lag is None else f"{status.lag:,.0f}"
    writes = f"p50 {whole('write_latency_p50_ms')} ms   p99 {whole('write_latency_p99_ms')} ms"
    dead = f"   DEAD: {', '.join(status.dead)}" if status.dead else ""
    refused = values.get("refused_events", 0.0) + values.get("refused_rows", 0.0)
    examples = ", ".join(one[:40] for one in status.tables.unresolved)
    waiting = "-" if status.tables.waiting is None else f"{status.tables.waiting:,}"
    text = [
        f"job          {status.state}   restarts {status.restarts}{dead}",
        f"events       {rate}/s   total {whole('events')}   lag {lag}",
        f"rejected     dead letters {whole('dead_letters')}   duplicates {whole('duplicates')}",
        f"refused      by Cassandra {refused:,.0f} rows",
        f"unresolved   {whole('unresolved_events')} events"
        + (f", of {examples}" if examples else ""),
        f"erasures     waiting {waiting}   events of erased users {whole('erased_events')}",
        f"objections   events {whole('opted_out_events')}",
        f"freshness    p50 {whole('freshness_p50_ms')} ms   p99 {whole('freshness_p99_ms')} ms",
        f"lookups      {whole('lookups')}   in batches of {whole('lookup_batch_size')}",
        f"catalogue    {whole('catalogue_size')} products",
        f"writes       {writes}   retries {whole('write_retries')}",
    ]
    if (found := status.checkpoints) is not None:
        size = (found.latest_bytes or 0) / 1024
        text.append(
            f"checkpoints  {found.completed} completed   {found.failed} failed"
            f"   last {found.latest_duration_ms or 0} ms, {size:,.0f} KiB"
        )
    if (counts := status.service) is not None:
        text.append(
            f"service      events lost {counts['lost']:,.0f}   refused {counts['refused']:,.0f}"
            f"   requests above their rate {counts['above_rate']:,.0f}"
        )
    text.append(f"for {status.user}:" + ("" if status.recommended else "   nothing yet"))
    text += [f"   {score:6.3f}  {title}" for title, score in status.recommended]
    return text


def show(watch: Watch, *, every: float = 1.0, out: TextIO = sys.stdout) -> None:
    """Show the status until interrupted: redrawn in place on a terminal, else as lines."""
    redraw = out.isatty()
    pause = every if redraw else max(every, 10.0)
    drawn = 0
    while True:
        text = lines(watch.look())
        if redraw:
            width = shutil.get_terminal_size().columns - 1
            if drawn:
                out.write(f"\x1b[{drawn}F\x1b[J")
            text += ["", f"shop window  {watch.window_url}", "Ctrl-C stops everything"]
            text = [line[:width] for line in text]
            drawn = len(text)
        out.write("\n".join(text) + "\n")
        out.flush()
        time.sleep(pause)
