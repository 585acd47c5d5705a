"""Events/s of the whole pipeline on this machine, beside the two things one would write instead.

Kafka, Cassandra and Flink run on the same cores as the contestants; every event and every list is
saved; the events are in Kafka before the clock starts. Ours reads all of them; the two others are
counted over a window after a warm-up, by the rows in Cassandra; the ratios therefore take ours
without its first fifth, in which the JVMs compile. And ours alone, at an offered rate: the time
from event to acknowledged write.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import psutil

from benchmarks.chain import STEPS
from benchmarks.runner import Bench, BenchmarkError, Run, bench
from benchmarks.workload import Workload, producer
from udfs.schemas import Event, encode_event


def windowed(session_count: Callable[[], int], warm_up_s: float, window_s: float) -> float:
    """Events/s of a running contestant, from the rows in Cassandra before and after a window.

    Raises:
        BenchmarkError: It saved nothing.
    """
    time.sleep(warm_up_s)
    started, before = time.monotonic(), session_count()
    time.sleep(window_s)
    ended, after = time.monotonic(), session_count()
    if after <= before:
        msg = f"a contestant saved nothing in {window_s} s"
        raise BenchmarkError(msg)
    return (after - before) / (ended - started)


def plain_job(running: Bench, parallelism: int, window_s: float) -> float:
    """Measure contestant (a)."""
    keyspace = running.keyspace("plain")
    stack = running.stack
    job = stack.flink.run(
        "benchmarks/plain_job.py",
        [
            f"--bootstrap={stack.kafka.bootstrap}",
            "--events=events",
            "--catalogue=catalogue",
            "--group=plain",
            f"--host={stack.cassandra.host}",
            f"--port={stack.cassandra.port}",
            f"--keyspace={keyspace}",
        ],
        parallelism=parallelism,
        settings={"python.execution-mode": "process"},
    )
    try:
        stack.flink.wait_running(job)
        return windowed(lambda: running.count_events(keyspace), 25, window_s)
    finally:
        stack.flink.cancel(job)


def chain(running: Bench, window_s: float) -> float:
    """Measure contestant (b)."""
    keyspace = running.keyspace("chain")
    stack = running.stack
    for name in ("chain-embedded", "chain-recommended"):
        running.topic(name)
    arguments = [
        f"--bootstrap={stack.kafka.bootstrap}",
        "--events=events",
        "--catalogue=catalogue",
        "--prefix=chain",
        f"--host={stack.cassandra.host}",
        f"--port={stack.cassandra.port}",
        f"--keyspace={keyspace}",
    ]
    processes = [
        subprocess.Popen([sys.executable, "-m", "benchmarks.chain", step, *arguments])
        for step in STEPS
    ]
    try:
        rate = windowed(lambda: running.count_events(keyspace), 30, window_s)
        for step, process in zip(STEPS, processes, strict=True):
            if process.poll() is not None:
                msg = f"the step {step} of the chain ended with {process.returncode}"
                raise BenchmarkError(msg)
        return rate
    finally:
        for process in processes:
            process.kill()
            process.wait()


def freshness(running: Bench, job: str, workload: Workload, rate: int, seconds: int) -> Any:
    """Offer ``rate`` events/s and read how long each took to be saved.

    Returns:
        (p50, p99) in ms by the job's own gauges, worst subtask, and (p50, p99) from the write
        times that the rows in Cassandra carry.
    """
    client = producer(running.stack.kafka.bootstrap)
    client_records = list(workload.stream(start_ms=0))
    started, sent = time.time(), 0
    first_ms = int(started * 1000)
    decoder = msgspec.json.Decoder(Event)
    while sent < rate * seconds:
        due = min(int((time.time() - started) * rate), rate * seconds)
        while sent < due:
            key, value = client_records[sent % len(client_records)]
            event = msgspec.structs.replace(
                decoder.decode(value), ts=int(time.time() * 1000), event_id=f"fresh-{sent}"
            )
            client.produce("events", encode_event(event), key)
            sent += 1
        client.poll(0)
        time.sleep(0.005)
    client.flush(30)
    names = ("freshness_p50_ms", "freshness_p99_ms")
    for _ in range(2):  # the first question after a pause is answered with what Flink knew before
        time.sleep(3)
        gauges = running.stack.flink.metrics(job, names)
    rows = running.session.execute(
        "SELECT ts, WRITETIME(type) AS written FROM ours.events_by_user_day", timeout=300
    )
    epoch_ms = [(row.ts.timestamp() * 1000, row.written / 1000) for row in rows]
    ages = [written - ts for ts, written in epoch_ms if ts >= first_ms]
    if len(ages) < rate * seconds * 0.99:
        msg = f"{len(ages)} of {sent} offered events were saved"
        raise BenchmarkError(msg)
    by_rows = (float(np.quantile(ages, 0.5)), float(np.quantile(ages, 0.99)))
    return max(gauges["freshness_p50_ms"]), max(gauges["freshness_p99_ms"]), *by_rows


def ours(running: Bench, workload: Workload, parallelism: int, settings: dict[str, str]) -> Any:
    """Measure our job over the backlog and check what it saved; returns (job, run)."""
    keyspace = running.keyspace("ours")
    job = running.submit(keyspace, "", parallelism, settings)
    run = running.measure(job, workload.events)
    saved, lists = running.count_events(keyspace), running.count_lists(keyspace)
    users = len({key for key, _ in workload.stream(start_ms=0)})
    if saved != workload.events or lists != users:
        msg = f"{saved} of {workload.events} events, lists of {lists} of {users} users"
        raise BenchmarkError(msg)
    return job, run


def main(arguments: list[str]) -> None:
    """Run the contestants one after the other and print table and JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--products", type=int, default=10_000)
    parser.add_argument("--parallelism", type=int, default=psutil.cpu_count() or 2)
    parser.add_argument("--window", type=float, default=60, help="of (a) and (b), seconds")
    parser.add_argument("--offered", type=int, default=2000, help="events/s for the freshness")
    parser.add_argument("--offered-seconds", type=int, default=75)
    parser.add_argument("--skip-baselines", action="store_true")
    parser.add_argument("--flink", action="append", default=[], metavar="KEY=VALUE")
    given = parser.parse_args(arguments)
    workload = Workload(events=given.events, users=given.users, products=given.products)
    settings = dict(item.split("=", 1) for item in given.flink)
    with bench(task_managers=given.parallelism) as running:
        print(f"loading {workload.events:,} events into Kafka", flush=True)
        running.load(workload)
        job, run = ours(running, workload, given.parallelism, settings)
        print(f"ours: {run.events_per_second:,.0f} events/s", flush=True)
        p50, p99, row_p50, row_p99 = freshness(
            running, job, workload, given.offered, given.offered_seconds
        )
        running.stack.flink.cancel(job)
        plain = chained = None
        if not given.skip_baselines:
            plain = plain_job(running, given.parallelism, given.window)
            print(f"plain job: {plain:,.0f} events/s", flush=True)
            chained = chain(running, given.window)
            print(f"chain: {chained:,.0f} events/s", flush=True)
    report(workload, run, plain, chained)
    result = {
        "events_per_second": round(run.events_per_second),
        "steady_events_per_second": round(run.steady_events_per_second),
        "ratio_plain_job": round(run.steady_events_per_second / plain, 1) if plain else None,
        "ratio_chain": round(run.steady_events_per_second / chained, 1) if chained else None,
        "plain_job_events_per_second": round(plain) if plain else None,
        "chain_events_per_second": round(chained) if chained else None,
        "freshness_p50_ms": p50,
        "freshness_p99_ms": p99,
        "freshness_rows_p50_ms": round(row_p50),
        "freshness_rows_p99_ms": round(row_p99),
        "lookups_per_event": round(run.lookups / run.events, 3),
        "cpu_us_per_event": {k: round(v, 1) for k, v in run.cpu_us_per_event.items()},
    }
    print(json.dumps(result))


def report(workload: Workload, run: Run, plain: float | None, chained: float | None) -> None:
    """Print the tables."""
    print(f"\n{workload.events:,} events, {workload.users:,} users (Zipf {workload.zipf}),")
    print(f"{workload.products:,} products x 64, {psutil.cpu_count()} cores for everything\n")
    print(f"{'contestant':<28}{'events/s':>10}{'ours is':>10}")
    print(f"{'ours, from the first event':<28}{run.events_per_second:>10,.0f}")
    print(f"{'ours, after the first fifth':<28}{run.steady_events_per_second:>10,.0f}")
    for name, rate in (("plain PyFlink job", plain), ("chain of microservices", chained)):
        if rate:
            print(f"{name:<28}{rate:>10,.0f}{run.steady_events_per_second / rate:>9,.1f}x")
    print(f"\n{'CPU time':<28}{'us/event':>10}")
    for role, spent in run.cpu_us_per_event.items():
        print(f"{role:<28}{spent:>10.1f}")
    print(f"\nlookups an event: {run.lookups / run.events:.3f}")


if __name__ == "__main__":
    main(sys.argv[1:])
