"""What an event, a checkpoint and a start cost as the catalogue grows: ``make bench-catalogue``.

For each number of products a job of its own on the real stack, one TaskManager: the products stand
in the topics `products` and `related`, the events of Zipf users in Kafka. Up to 100,000 the
products come through the topic `catalogue` and the job's catalogue operator, whose rate is
measured; more are written to `products` as the operator would (``--direct``: all), since its rate
does not depend on how many there are. A row of the table:

- ``events_per_second`` after the first tenth of the events, ``tm_cpu_us_per_event`` of the
  TaskManager from then to the last list of a user;
- ``task_manager_mib``: the most that the process has held;
- ``checkpoint_mib`` after all events, and ``recommender_mib``, the recommender's part of it;
- ``start_to_first_list_s`` from Flink's start of the job to the first list that can be read;
- ``restore_s`` from the end of a killed TaskManager, whose replacement is started at once, to the
  list of a user who had none before;
- ``recall``: of the 50 nearest products in stock, what the job's index finds.
"""

from __future__ import annotations

import os

# Before NumPy loads its thread pool.
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from confluent_kafka import Consumer, TopicPartition
from numpy.typing import NDArray

from benchmarks.runner import FOREIGN, Bench, BenchmarkError, bench
from benchmarks.workload import DIMENSIONS, Workload, load
from job import uids
from udfs.catalogue import Catalogue
from udfs.product_record import decode_record
from udfs.schemas import Event, encode_event

SIZES: Final = (10_000, 100_000, 1_000_000)
# Above so many, products are written to `products` directly.
_MOST_THROUGH_OPERATOR: Final = 100_000
_LOADING_S: Final = 1800.0
_LIST_LENGTH: Final = 20
_K: Final = 50
_QUERIES: Final = 500
_FIRST: Final = SIZES[0]
_COLUMNS: Final = (
    ("products", "products", 11),
    ("events_per_second", "events/s", 10),
    ("tm_cpu_us_per_event", "TM us/event", 13),
    ("task_manager_mib", "TM MiB", 9),
    ("checkpoint_mib", "state MiB", 11),
    ("start_to_first_list_s", "first list s", 14),
    ("restore_s", "restore s", 11),
    ("recall", "recall", 9),
    ("products_per_second", "products/s", 12),
)


def peak_mib(status: str) -> float:
    """Read the most resident memory that a process has held, MiB, from its ``/proc/…/status``.

    Raises:
        BenchmarkError: It is not there: this is no Linux.
    """
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    msg = "the process has no VmHWM"
    raise BenchmarkError(msg)


def operator_bytes(job: Mapping[str, Any], checkpoint: Mapping[str, Any], name: str) -> int:
    """Sum the state in a checkpoint of the tasks that an operator's name is part of.

    Args:
        job: Flink's ``/jobs/<id>``.
        checkpoint: Flink's ``/jobs/<id>/checkpoints/details/<number>``.
        name: Of the operator.

    Raises:
        BenchmarkError: No task has it.
    """
    found = [vertex["id"] for vertex in job["vertices"] if name in vertex["name"]]
    if not found:
        msg = f"no task of {[vertex['name'] for vertex in job['vertices']]} has {name}"
        raise BenchmarkError(msg)
    return sum(int(checkpoint["tasks"][one]["state_size"]) for one in found)


def ratios(rows: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """CPU an event at 100,000 and 1,000,000 products to that at 10,000; None: not measured."""
    spent = {row["products"]: row["tm_cpu_us_per_event"] for row in rows}
    return {
        f"cpu_ratio_{name}": round(spent[size] / spent[_FIRST], 2)
        if {size, _FIRST} <= spent.keys()
        else None
        for name, size in (("100k", 100_000), ("1m", 1_000_000))
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Lay the rows out, a dash for what was not measured."""
    lines = ["".join(f"{title:>{width}}" for _, title, width in _COLUMNS)]
    for row in rows:
        cells = (
            ("–" if row[key] is None else f"{row[key]:,}", width) for key, _, width in _COLUMNS
        )
        lines.append("".join(f"{cell:>{width}}" for cell, width in cells))
    return "\n".join(lines)


def recall(
    search: Callable[[NDArray[np.float32]], Sequence[Sequence[str]]],
    vectors: NDArray[np.float32],
    name_of: Callable[[int], str],
    k: int = _K,
    queries: int = _QUERIES,
) -> float:
    """Return the share of the true k nearest that a search finds.

    Args:
        search: Finds the ids of the nearest to vectors (q, d), at least k each.
        vectors: All that it searches, shape (n, d), unit vectors.
        name_of: Id of a row.
        k: Neighbours.
        queries: How many; each is the direction of three products, as a user's vector is.
    """
    rng = np.random.default_rng(8)
    wanted = vectors[rng.integers(0, len(vectors), (queries, 3))].sum(axis=1)
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    k = min(k, len(vectors))
    hits = 0
    for at in range(0, queries, 50):
        part = wanted[at : at + 50]
        scores = part @ vectors.T
        nearest = np.argpartition(-scores, k - 1, axis=1)[:, :k].tolist()
        for truth, found in zip(nearest, search(part), strict=True):
            hits += len({name_of(row) for row in truth} & set(found[:k]))
    return hits / (k * queries)


def index_recall(workload: Workload) -> float:
    """Fill the job's catalogue with the workload's products and measure its recall."""
    catalogue = Catalogue(dimensions=DIMENSIONS)
    catalogue.load((decode_record(key, value) for key, value in workload.records()), (), None)
    return recall(
        lambda queries: [ids for ids, _ in catalogue.search(queries, _K)],
        workload.vectors(),
        workload.product_id,
    )


class Measurement:
    """One number of products: topics, keyspace and TaskManager of its own."""

    def __init__(self, running: Bench, workload: Workload, options: Sequence[str]) -> None:
        """Create topics and keyspace."""
        self._running = running
        self._workload = workload
        self._options = options
        self._suffix = f"-{workload.products}"
        self._bootstrap = running.stack.kafka.bootstrap
        running.topics(self._suffix)
        self._keyspace = running.keyspace(f"catalogue_{workload.products}")

    def run(self, *, direct: bool) -> dict[str, Any]:
        """Measure it; ``direct``: without the catalogue operator."""
        flink, workload = self._running.stack.flink, self._workload
        load(self._bootstrap, f"related{self._suffix}", workload.related_rows())
        rate, savepoint = None, None
        if direct:
            load(self._bootstrap, f"products{self._suffix}", workload.records())
        else:
            rate, savepoint = self._through_operator()
        self._running.load_events(workload, self._suffix)
        self._running.wait_idle()
        flink.replace_task_managers(older_than=time.time())
        job = self._submit(savepoint)
        try:
            first_list_s = self._list_after(flink.job(job)["start-time"] / 1000)
            run = self._running.measure(job, self._keyspace, workload.events, _LOADING_S)
            flink.trigger_checkpoint(job)
            state, own = self._checkpoint_bytes(job)
            memory = self._peak_mib()
            restore_s = self._restore()
        finally:
            flink.cancel(job)
        self._running.truncate(self._keyspace)
        return {
            "products": workload.products,
            "events_per_second": round(run.steady_events_per_second),
            "tm_cpu_us_per_event": round(run.cpu_us_per_event["TaskManagers"], 1),
            "task_manager_mib": round(memory),
            "checkpoint_mib": round(state / 2**20, 1),
            "recommender_mib": round(own / 2**20, 1),
            "start_to_first_list_s": round(first_list_s, 1),
            "restore_s": round(restore_s, 1),
            "recall": round(index_recall(workload), 4),
            "products_per_second": rate,
            "lookups_per_event": round(run.lookups / run.events, 3),
            "foreign_cpu_share": round(run.foreign_share, 3),
        }

    def _submit(self, savepoint: str | None) -> str:
        more = [f"--{option}" for option in self._options]
        return self._running.submit(self._keyspace, self._suffix, 1, {}, *more, savepoint=savepoint)

    def _through_operator(self) -> tuple[int | None, str]:
        """Let the job fill `products`; returns its products/s and where it goes on from.

        Raises:
            BenchmarkError: It does not get through.
        """
        flink = self._running.stack.flink
        # What was learned is in its topic already.
        products = replace(self._workload, related=0).catalogue()
        load(self._bootstrap, f"catalogue{self._suffix}", products)
        job = self._submit(None)
        try:
            started: tuple[float, int] | None = None
            deadline = time.monotonic() + _LOADING_S
            while (count := self._records("products")) < self._workload.products:
                now = time.monotonic()
                if count and started is None:
                    started = now, count
                if now > deadline:
                    msg = f"{count} of {self._workload.products} products after {_LOADING_S} s"
                    raise BenchmarkError(msg)
                self._running.check_alive(job)
                time.sleep(0.25)
            seconds = time.monotonic() - started[0] if started else 0.0
            rate = round((count - started[1]) / seconds) if started and seconds else None
            return rate, flink.stop_with_savepoint(job)
        except BaseException:
            flink.cancel(job)
            raise

    def _records(self, topic: str) -> int:
        """Count the records that were ever written to a topic."""
        consumer = Consumer({"bootstrap.servers": self._bootstrap, "group.id": "counter"})
        try:
            name = f"{topic}{self._suffix}"
            partitions = consumer.list_topics(name, timeout=30).topics[name].partitions
            marks = (
                consumer.get_watermark_offsets(TopicPartition(name, one), timeout=30)
                for one in partitions
            )
            return sum(high for _, high in marks)
        finally:
            consumer.close()

    def _list_after(self, since_s: float, user: str | None = None) -> float:
        """Wait for a user's whole list, or anybody's; returns the seconds since ``since_s``.

        Raises:
            BenchmarkError: There is none.
        """
        of_user = "" if user is None else f" WHERE user_id = '{user}'"
        cql = f"SELECT items FROM {self._keyspace}.recommendations_by_user{of_user} LIMIT 1"
        deadline = time.monotonic() + _LOADING_S
        while time.monotonic() < deadline:
            row = self._running.session.execute(cql).one()
            if row is not None and len(row.items) == _LIST_LENGTH:
                return time.time() - since_s
            time.sleep(0.1)
        msg = f"no list of {user or 'anybody'} after {_LOADING_S} s"
        raise BenchmarkError(msg)

    def _restore(self) -> float:
        """Kill the TaskManager, start another, and wait for the list of somebody new."""
        flink = self._running.stack.flink
        killed_s = time.time()
        flink.kill_task_manager(0)
        event = Event(
            event_id="restored",
            user_id="restored",
            type="click",
            ts=int(time.time() * 1000),
            product_id=self._workload.product_id(1),
        )
        load(self._bootstrap, f"events{self._suffix}", iter([("restored", encode_event(event))]))
        flink.start_task_manager(0)
        return self._list_after(killed_s, "restored")

    def _checkpoint_bytes(self, job: str) -> tuple[int, int]:
        """Size of the newest checkpoint, and the recommender's part of it."""
        flink = self._running.stack.flink
        latest = flink.get(f"/jobs/{job}/checkpoints")["latest"]["completed"]
        details = flink.get(f"/jobs/{job}/checkpoints/details/{latest['id']}")
        return int(details["state_size"]), operator_bytes(flink.job(job), details, uids.RECOMMENDER)

    def _peak_mib(self) -> float:
        (manager,) = self._running.stack.flink.task_managers
        return peak_mib(Path(f"/proc/{manager.pid}/status").read_text(encoding="ascii"))


def main(arguments: Sequence[str]) -> None:
    """Measure the sizes one after the other and print table and JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--products", type=int, nargs="+", default=SIZES)
    parser.add_argument("--events", type=int, default=500_000)
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument(
        "--direct",
        action="store_true",
        help=f"write also {_MOST_THROUGH_OPERATOR:,} products or fewer to their topic directly",
    )
    parser.add_argument("--task-manager-memory", default="1600m")
    parser.add_argument(
        "--job", action="append", default=[], metavar="OPTION=VALUE", help="of the job"
    )
    given = parser.parse_args(arguments)
    rows = []
    for products in given.products:
        workload = Workload(events=given.events, users=given.users, products=products)
        direct = given.direct or products > _MOST_THROUGH_OPERATOR
        # Servers of their own: a JobManager loses the metrics of a TaskManager that was killed.
        with bench(task_managers=1, task_manager_memory=given.task_manager_memory) as running:
            rows.append(Measurement(running, workload, given.job).run(direct=direct))
        print(json.dumps(rows[-1]), flush=True)
    print(f"\n{given.events:,} events, {given.users:,} users (Zipf), products x {DIMENSIONS}\n")
    print(table(rows))
    if any(row["foreign_cpu_share"] > FOREIGN for row in rows):
        print("DISTURBED: others used more than a tenth of the machine; do not quote these numbers")
    print(json.dumps({"rows": rows, **ratios(rows)}))


if __name__ == "__main__":
    main(sys.argv[1:])
