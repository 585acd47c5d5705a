"""Events/s of the whole pipeline on this machine, beside the two things one would write instead.

Kafka, Cassandra and Flink run on the same cores as the contestants; every event and every list is
saved; the events are in Kafka before the clock starts. One clock for all: the write times that the
rows in Cassandra carry, read after a contestant has stopped. Ours reads all events; the two others
are counted over a window after a warm-up; the ratios therefore take ours without its first tenth,
in which the JVMs compile. And ours alone, at an offered rate: the time from event to acknowledged
write.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from typing import Any

import msgspec
import numpy as np
import psutil

from benchmarks.chain import LIST_LENGTH, STEPS
from benchmarks.runner import FOREIGN, Bench, BenchmarkError, Run, bench
from benchmarks.workload import Workload, producer
from local.processes import PROJECT
from udfs.schemas import Event, encode_event


def plain_job(
    running: Bench, workload: Workload, parallelism: int, warm_up_s: float, window_s: float
) -> Run:
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

    def loaded() -> bool:
        found = stack.flink.metric(job, "products")
        return len(found) == parallelism and min(found) == workload.products

    try:
        stack.flink.wait_running(job)
    except BaseException:
        stack.flink.cancel(job)
        raise
    return running.measure_window(
        keyspace,
        workload.events,
        window_s,
        warm_up_s=warm_up_s,
        alive=lambda: running.check_alive(job),
        stop=lambda: stack.flink.cancel(job),
        ready=loaded,
    )


def chain(running: Bench, workload: Workload, warm_up_s: float, window_s: float) -> Run:
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
    # One BLAS thread a process, as the TaskManagers have: three processes share two cores.
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    processes: list[subprocess.Popen[bytes]] = []

    def alive() -> None:
        for step, process in zip(STEPS, processes, strict=True):
            if process.poll() is not None:
                msg = f"the step {step} of the chain ended with {process.returncode}"
                raise BenchmarkError(msg)

    def stop() -> None:
        for process in processes:
            process.kill()
            process.wait()

    try:
        for step in STEPS:
            command = [sys.executable, "-m", "benchmarks.chain", step, *arguments]
            processes.append(subprocess.Popen(command, env=environment, cwd=PROJECT))
        return running.measure_window(
            keyspace,
            workload.events,
            window_s,
            warm_up_s=warm_up_s,
            alive=alive,
            stop=stop,
            workers=[process.pid for process in processes],
        )
    finally:
        stop()


def freshness(running: Bench, job: str, workload: Workload, rate: int, seconds: int) -> Any:
    """Offer ``rate`` events/s and read how long each took to be saved.

    Returns:
        (p50, p99) in ms by the job's own gauges, worst subtask, and (p50, p99) from the times at
        which the rows in Cassandra were sent, which does not know of their acknowledgement.

    Raises:
        BenchmarkError: Fewer were offered or saved than asked for.
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
    achieved = sent / (time.time() - started)
    if achieved < 0.95 * rate:
        msg = f"{achieved:.0f} events/s were offered instead of {rate}"
        raise BenchmarkError(msg)
    names = ("freshness_p50_ms", "freshness_p99_ms")
    for _ in range(2):  # the first question after a pause is answered with what Flink knew before
        time.sleep(3)
        gauges = running.stack.flink.metrics(job, names)
    running.check_alive(job)
    saved = running.saved("ours")
    offered = saved.event_ms >= first_ms
    ages = (saved.written_s * 1000 - saved.event_ms)[offered]
    if len(ages) != sent:
        msg = f"{len(ages)} of {sent} offered events were saved"
        raise BenchmarkError(msg)
    by_rows = (float(np.quantile(ages, 0.5)), float(np.quantile(ages, 0.99)))
    return max(gauges["freshness_p50_ms"]), max(gauges["freshness_p99_ms"]), *by_rows


def ours(running: Bench, workload: Workload, parallelism: int, settings: dict[str, str]) -> Any:
    """Measure our job over the backlog and check what it saved; returns (job, run)."""
    keyspace = running.keyspace("ours")
    job = running.submit(keyspace, "", parallelism, settings)
    run = running.measure(job, keyspace, workload.events)
    lists = running.users_with_list(keyspace)
    users = {key for key, _ in workload.stream(start_ms=0)}
    if lists != users:
        msg = f"lists of {len(lists)} of {len(users)} users"
        raise BenchmarkError(msg)
    check_sample(running, workload, keyspace)
    return job, run


def check_sample(running: Bench, workload: Workload, keyspace: str, every: int = 2003) -> None:
    """Compare each ``every``-th event and its user's list with what was sent.

    Raises:
        BenchmarkError: One differs.
    """
    select_event = running.session.prepare(
        f"SELECT type, product_id, session_id FROM {keyspace}.events_by_user_day"
        " WHERE user_id = ? AND day = ? AND ts = ? AND event_id = ?"
    )
    select_list = running.session.prepare(
        f"SELECT items FROM {keyspace}.recommendations_by_user WHERE user_id = ?"
    )
    known = {workload.product_id(number) for number in range(workload.products)}
    records = workload.stream(start_ms=running.start_ms)
    for _, value in itertools.islice(records, 0, None, every):
        event = msgspec.json.decode(value, type=Event)
        day = event.ts // 86_400_000 + 2**31  # CQL dates count from the year -5877641
        row = running.session.execute(
            select_event, (event.user_id, day, event.ts, event.event_id)
        ).one()
        if row is None or tuple(row) != (event.type, event.product_id, event.session_id):
            msg = f"{event} was saved as {row}"
            raise BenchmarkError(msg)
        items = running.session.execute(select_list, (event.user_id,)).one().items
        scores = [score for _, score, _ in items]
        products = {product for product, _, _ in items}
        if (
            len(products) != min(LIST_LENGTH, workload.products)
            or not products <= known
            or scores != sorted(scores, reverse=True)
        ):
            msg = f"the list of {event.user_id} is {items}"
            raise BenchmarkError(msg)


def main(arguments: list[str]) -> None:
    """Run the contestants one after the other and print table and JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--products", type=int, default=10_000)
    parser.add_argument("--related", type=int, default=50, help="related products of each")
    parser.add_argument("--parallelism", type=int, default=psutil.cpu_count() or 2)
    parser.add_argument("--warm-up", type=float, default=15, help="of (a) and (b), seconds")
    parser.add_argument("--window", type=float, default=90, help="of (a) and (b), seconds")
    parser.add_argument("--offered", type=int, default=2000, help="events/s for the freshness")
    parser.add_argument("--offered-seconds", type=int, default=75)
    parser.add_argument("--skip-baselines", action="store_true")
    parser.add_argument("--flink", action="append", default=[], metavar="KEY=VALUE")
    given = parser.parse_args(arguments)
    workload = Workload(
        events=given.events, users=given.users, products=given.products, related=given.related
    )
    settings = dict(item.split("=", 1) for item in given.flink)
    runs: dict[str, Run] = {}
    with bench(task_managers=given.parallelism) as running:
        print(f"loading {workload.events:,} events into Kafka", flush=True)
        running.load(workload)
        running.wait_idle()
        job, run = ours(running, workload, given.parallelism, settings)
        print(f"ours: {run.steady_events_per_second:,.0f} events/s", flush=True)
        try:
            running.wait_idle()
            p50, p99, row_p50, row_p99 = freshness(
                running, job, workload, given.offered, given.offered_seconds
            )
        finally:
            running.stack.flink.cancel(job)
        print(f"freshness: p50 {p50:.0f} ms, p99 {p99:.0f} ms", flush=True)
        running.truncate("ours")
        if not given.skip_baselines:
            running.wait_idle()
            runs["plain PyFlink job"] = plain_job(
                running, workload, given.parallelism, given.warm_up, given.window
            )
            plain_rate = runs["plain PyFlink job"].events_per_second
            print(f"plain job: {plain_rate:,.0f} events/s", flush=True)
            running.truncate("plain")
            running.wait_idle()
            runs["chain of microservices"] = chain(running, workload, given.warm_up, given.window)
    report(workload, run, runs)
    plain, chained = runs.get("plain PyFlink job"), runs.get("chain of microservices")
    result = {
        "events_per_second": round(run.events_per_second),
        "steady_events_per_second": round(run.steady_events_per_second),
        "ratio_plain_job": ratio(run, plain),
        "ratio_chain": ratio(run, chained),
        "plain_job_events_per_second": round(plain.events_per_second) if plain else None,
        "chain_events_per_second": round(chained.events_per_second) if chained else None,
        "freshness_p50_ms": p50,
        "freshness_p99_ms": p99,
        "freshness_rows_p50_ms": round(row_p50),
        "freshness_rows_p99_ms": round(row_p99),
        "lookups_per_event": round(run.lookups / run.events, 3),
        "cpu_us_per_event": {k: round(v, 1) for k, v in run.cpu_us_per_event.items()},
        "foreign_cpu_share": {
            name: round(one.foreign_share, 3) for name, one in {"ours": run, **runs}.items()
        },
    }
    print(json.dumps(result))


def ratio(run: Run, other: Run | None) -> float | None:
    """How many times as fast, both without their warm-up; None where it was not measured."""
    if other is None:
        return None
    return round(run.steady_events_per_second / other.steady_events_per_second, 1)


def report(workload: Workload, run: Run, others: dict[str, Run]) -> None:
    """Print the tables."""
    print(f"\n{workload.events:,} events, {workload.users:,} users (Zipf {workload.zipf}),")
    print(f"{workload.products:,} products x 64, {psutil.cpu_count()} cores for everything\n")
    print(f"{'contestant':<28}{'events/s':>10}{'ours is':>10}")
    print(f"{'ours, from the start':<28}{run.events_per_second:>10,.0f}")
    print(f"{'ours, after the first tenth':<28}{run.steady_events_per_second:>10,.0f}")
    for name, other in others.items():
        print(f"{name:<28}{other.steady_events_per_second:>10,.0f}{ratio(run, other):>9,.1f}x")
    columns = {"ours": run, **others}
    print(f"\n{'CPU time, us/event':<28}" + "".join(f"{name:>24}" for name in columns))
    for role in run.cpu_us_per_event:
        spent = (one.cpu_us_per_event[role] for one in columns.values())
        print(f"{role:<28}" + "".join(f"{microseconds:>24,.1f}" for microseconds in spent))
    shares = "".join(f"{one.foreign_share:>24.1%}" for one in columns.values())
    print(f"{'used by others':<28}{shares}")
    print(f"\nlookups an event: {run.lookups / run.events:.3f}")
    if any(one.foreign_share > FOREIGN for one in columns.values()):
        print("DISTURBED: others used more than a tenth of the machine; do not quote these numbers")


if __name__ == "__main__":
    main(sys.argv[1:])
