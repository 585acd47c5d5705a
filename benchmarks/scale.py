"""Throughput over users, products and parallelism; memory of a TaskManager; a soak; capacity.

The capacity table multiplies what was measured here by the events/s asked for. What a single
machine cannot show (network, replication, many nodes) is said beside it and not guessed.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from dataclasses import replace
from typing import Any

import psutil

from benchmarks.runner import Bench, bench
from benchmarks.workload import Workload

# Of a core or a node, what is planned to be used: the rest is for peaks and failed machines.
HEADROOM = 0.6
RATES = (100_000, 500_000, 1_000_000)


def memory_mib(running: Bench) -> float:
    """Resident memory of the largest TaskManager, MiB."""
    sizes = [
        psutil.Process(manager.pid).memory_info().rss
        for manager in running.stack.flink.task_managers
        if manager.pid is not None
    ]
    return max(sizes) / 2**20


def one(running: Bench, workload: Workload, parallelism: int, suffix: str) -> dict[str, Any]:
    """Measure one size: a backlog of its own, in topics and a keyspace of its own."""
    running.load(workload, suffix)
    keyspace = running.keyspace(f"scale{suffix.replace('-', '_')}")
    job = running.submit(keyspace, suffix, parallelism, {})
    run = running.measure(job, keyspace, workload.events)
    time.sleep(12)  # until a checkpoint has the whole state
    state = running.stack.flink.checkpoints(job).latest_bytes
    used = memory_mib(running)
    running.stack.flink.cancel(job)
    return {
        "users": workload.users,
        "products": workload.products,
        "parallelism": parallelism,
        "events_per_second": round(run.events_per_second),
        "steady_events_per_second": round(run.steady_events_per_second),
        "lookups_per_event": round(run.lookups / run.events, 3),
        "task_manager_mib": round(used),
        "checkpoint_mib": round((state or 0) / 2**20, 1),
        "cpu_us_per_event": {k: round(v, 1) for k, v in run.cpu_us_per_event.items()},
    }


def soak(running: Bench, workload: Workload, parallelism: int) -> list[tuple[int, float]]:
    """Run a long backlog through and sample the memory of the largest TaskManager.

    Returns:
        (events so far, MiB), about every half a million events.
    """
    running.load(workload, "-soak")
    job = running.submit(running.keyspace("soak"), "-soak", parallelism, {})
    samples: list[tuple[int, float]] = []
    done = 0
    while done < workload.events:
        time.sleep(1)
        done = running.totals(job)["events"]
        if done >= 500_000 * (len(samples) + 1):
            samples.append((done, memory_mib(running)))
            print(f"soak: {done:>9,} events, {samples[-1][1]:,.0f} MiB", flush=True)
    running.stack.flink.cancel(job)
    return samples


def capacity(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Multiply the measured cost an event by the rates asked for."""
    cpu = row["cpu_us_per_event"]
    plans = []
    for rate in RATES:
        flink = rate * cpu["TaskManagers"] / 1e6 / HEADROOM
        cassandra = rate * cpu["Cassandra"] / 1e6 / HEADROOM
        plans.append(
            {
                "events_per_second": rate,
                "task_manager_cores": math.ceil(flink),
                "task_managers": math.ceil(flink),
                "partitions": math.ceil(flink),
                "cassandra_cores": math.ceil(cassandra),
                "cassandra_nodes_rf3_16_cores": max(3, math.ceil(3 * cassandra / 16)),
                "kafka_cores": math.ceil(rate * cpu["Kafka"] / 1e6 / HEADROOM),
            }
        )
    return plans


def main(arguments: list[str]) -> None:
    """Run the sizes, the soak and the arithmetic."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=500_000)
    parser.add_argument("--soak-events", type=int, default=5_000_000)
    parser.add_argument("--quick", action="store_true", help="fewer sizes, no soak")
    given = parser.parse_args(arguments)
    base = Workload(events=given.events)
    sizes = [replace(base, users=users) for users in (10_000, 100_000, 1_000_000)]
    sizes += [replace(base, products=products) for products in (1_000, 100_000)]
    if given.quick:
        sizes = [base]
    rows: list[dict[str, Any]] = []
    samples: list[tuple[int, float]] = []
    for parallelism in (1, 2):
        with bench(task_managers=parallelism, task_manager_memory="2600m") as running:
            for number, workload in enumerate(sizes):
                rows.append(one(running, workload, parallelism, f"-{number}"))
                print(json.dumps(rows[-1]), flush=True)
            if parallelism == 2 and not given.quick:
                samples = soak(running, replace(base, events=given.soak_events), parallelism)
    print(f"\n{'users':>10}{'products':>10}{'par.':>6}{'events/s':>10}{'lookups/ev':>12}", end="")
    print(f"{'TM MiB':>8}{'state MiB':>11}")
    for row in rows:
        print(
            f"{row['users']:>10,}{row['products']:>10,}{row['parallelism']:>6}"
            f"{row['events_per_second']:>10,}{row['lookups_per_event']:>12}"
            f"{row['task_manager_mib']:>8,}{row['checkpoint_mib']:>11,}"
        )
    reference = next(row for row in rows if row["users"] == 100_000 and row["parallelism"] == 2)
    plans = capacity(reference)
    print(f"\nCapacity: rate x measured CPU an event / {HEADROOM:.0%} use. An event costs", end="")
    print(f" {reference['cpu_us_per_event']} microseconds here.")
    print("One slot a TaskManager and one core a slot, one partition a slot. Cassandra at RF 3")
    print("stores three times; nodes of 16 cores. Not measured: network, replication traffic,")
    print("compaction of months of data, more than two TaskManagers.")
    for plan in plans:
        print("  " + ", ".join(f"{name} {value:,}" for name, value in plan.items()))
    level = [mib for events, mib in samples if events >= 1_000_000]
    growth = round(max(level) / level[0] - 1, 3) if level else None
    print(json.dumps({"rows": rows, "soak_mib": samples, "soak_growth": growth, "plans": plans}))


if __name__ == "__main__":
    main(sys.argv[1:])
