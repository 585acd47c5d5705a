"""Memory of a TaskManager over a long time under a steady load: ``python -m benchmarks.soak``.

Events arrive in real time and at random (a Poisson process), so there is no moment without touched
users, and the catalogue changes meanwhile: prices, stock, deletions and returns. A backlog shows
none of that: it is over within minutes, and its event times run ahead of the clock. The JVM's heap
is taken whole at the start (``-XX:+AlwaysPreTouch``), so that what grows is native memory: Python's
objects and what the allocators keep.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np

from benchmarks.runner import Bench, BenchmarkError, bench
from benchmarks.scale import memory_mib
from benchmarks.workload import Workload, load, producer
from udfs.schemas import Event, Product, encode_event, encode_product

# How often due events are sent; between two of them a tick may run.
_STEP_S: Final = 0.005
_SAMPLE_S: Final = 30.0
# How long a job may take to catch up with what was offered while it started.
_STARTING_S: Final = 300.0
# Changes of the catalogue a second: each kind takes its turn.
_CHANGES_A_SECOND: Final = 10
# Share of the run before the memory is compared: users and caches fill up.
WARM_UP: Final = 0.4


class Sample(NamedTuple):
    """What was seen at a moment."""

    seconds: float
    """Since the first event was offered."""
    events: int
    """Events that the job has saved."""
    mib: float
    """Resident memory of the largest TaskManager."""


def growth_a_day(samples: Sequence[Sample], warm_up: float = WARM_UP) -> float | None:
    """Slope of the memory over time, MiB a day, by least squares behind the warm-up.

    Returns:
        None where fewer than three samples are behind the warm-up.
    """
    if not samples:
        return None
    since = warm_up * samples[-1].seconds
    level = [one for one in samples if one.seconds >= since]
    if len(level) < 3:
        return None
    slope, _ = np.polyfit([one.seconds for one in level], [one.mib for one in level], 1)
    return round(float(slope) * 86_400, 1)


class Churn:
    """Changes the catalogue in turn: a price, stock off, stock on, a deletion, a return."""

    def __init__(self, workload: Workload, client: Any, topic: str) -> None:
        """Keep the products as they were published."""
        self._products = [
            (key, msgspec.json.decode(value, type=Product)) for key, value in workload.catalogue()
        ]
        self._client = client
        self._topic = topic
        self._rng = np.random.default_rng(workload.seed + 3)
        self._turn = 0
        self._chosen = 0

    def change(self) -> None:
        """Publish the next change."""
        turn = self._turn % 5
        if turn in (0, 1, 3):
            self._chosen = int(self._rng.integers(len(self._products)))
        key, product = self._products[self._chosen]
        price = round(float(self._rng.uniform(1, 200)), 2)
        value = {
            0: encode_product(msgspec.structs.replace(product, price=price)),
            1: encode_product(msgspec.structs.replace(product, in_stock=False)),
            2: encode_product(product),
            3: None,
            4: encode_product(product),
        }[turn]
        self._client.produce(self._topic, value, key)
        self._turn += 1


def soak(
    running: Bench, workload: Workload, rate: int, minutes: float, parallelism: int
) -> list[Sample]:
    """Offer ``rate`` events/s for ``minutes`` and sample the memory.

    Raises:
        BenchmarkError: The job failed or restarted, or does not keep up.
    """
    catalogue, topic = "catalogue-soak", "events-soak"
    running.topics("-soak")
    load(running.stack.kafka.bootstrap, catalogue, workload.catalogue())
    job = running.submit(running.keyspace("soak"), "-soak", parallelism, {})
    running.stack.flink.wait_running(job)
    client = producer(running.stack.kafka.bootstrap)
    churn = Churn(workload, client, catalogue)
    decoder = msgspec.json.Decoder(Event)
    records = list(workload.stream(start_ms=0))
    rng = np.random.default_rng(workload.seed + 4)
    samples: list[Sample] = []
    started = time.monotonic()
    sent = changes = 0
    due = 0.0
    next_sample = _SAMPLE_S
    while (now := time.monotonic() - started) < 60 * minutes:
        # Arrivals of a Poisson process within the time since the last look.
        arrivals = int(rng.poisson(rate * (now - due)))
        due = now
        for _ in range(arrivals):
            key, value = records[sent % len(records)]
            event = msgspec.structs.replace(
                decoder.decode(value), ts=time.time_ns() // 1_000_000, event_id=f"soak-{sent}"
            )
            client.produce(topic, encode_event(event), key)
            sent += 1
        while changes < now * _CHANGES_A_SECOND:
            churn.change()
            changes += 1
        client.poll(0)
        if now >= next_sample:
            next_sample += _SAMPLE_S
            running.check_alive(job)
            done = running.totals(job)["events"]
            samples.append(Sample(round(now, 1), done, round(memory_mib(running), 1)))
            print(f"{now:7.0f} s  {done:>11,} events  {samples[-1].mib:,.1f} MiB", flush=True)
            if now > _STARTING_S and sent - done > 60 * rate:
                msg = f"{sent - done:,} of {sent:,} events wait: {rate}/s is more than this machine"
                raise BenchmarkError(msg)
        time.sleep(_STEP_S)
    client.flush(30)
    running.stack.flink.cancel(job)
    return samples


def main(arguments: Sequence[str]) -> None:
    """Run the soak and print the samples as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--rate", type=int, default=2_500, help="events/s (default 2500)")
    parser.add_argument("--users", type=int, default=20_000)
    parser.add_argument("--products", type=int, default=10_000)
    given = parser.parse_args(arguments)
    workload = Workload(events=500_000, users=given.users, products=given.products)
    with bench(task_managers=1, task_manager_memory="1600m") as running:
        samples = soak(running, workload, given.rate, given.minutes, 1)
    print(
        json.dumps(
            {
                "rate": given.rate,
                "minutes": given.minutes,
                "samples": samples,
                "mib_a_day": growth_a_day(samples),
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1:])
