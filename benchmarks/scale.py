"""Throughput over users, products and parallelism; memory of a TaskManager; capacity.

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
PLANNED_USERS = 10_000_000
PLANNED_PRODUCTS = 100_000
# A product in a TaskManager, bytes, about: its vector and that of the index, 50 related products,
# its words and its id; `make bench-catalogue` measures it.
BYTES_A_PRODUCT = 600
CATALOGUE_MIB = PLANNED_PRODUCTS * BYTES_A_PRODUCT / 2**20


def memory_mib(running: Bench) -> float:
    """Resident memory of the largest TaskManager, MiB."""
    sizes = [
        psutil.Process(manager.pid).memory_info().rss
        for manager in running.stack.flink.task_managers
        if manager.pid is not None
    ]
    return max(sizes) / 2**20


def one(running: Bench, workload: Workload, parallelism: int, suffix: str) -> dict[str, Any]:
    """Measure one size: topics, keyspace and TaskManagers of its own.

    A JVM does not give back what an earlier size made it take, so its memory would say nothing.
    """
    running.stack.flink.replace_task_managers(older_than=time.time())
    running.load(workload, suffix)
    keyspace = running.keyspace(f"scale{suffix.replace('-', '_')}")
    job = running.submit(keyspace, suffix, parallelism, {})
    run = running.measure(job, keyspace, workload.events)
    running.stack.flink.trigger_checkpoint(job)  # with the whole state
    state = running.stack.flink.checkpoints(job).latest_bytes or 0
    used = memory_mib(running)
    running.stack.flink.cancel(job)
    active = len(running.users_with_list(keyspace))
    running.truncate(keyspace)
    return {
        "users": workload.users,
        "products": workload.products,
        "parallelism": parallelism,
        "events_per_second": round(run.events_per_second),
        "steady_events_per_second": round(run.steady_events_per_second),
        "lookups_per_event": round(run.lookups / run.events, 3),
        "task_manager_mib": round(used),
        "checkpoint_mib": round(state / 2**20, 1),
        "active_users": active,
        "bytes_a_user": round(state / active),
        "foreign_cpu_share": round(run.foreign_share, 3),
        "cpu_us_per_event": {k: round(v, 1) for k, v in run.cpu_us_per_event.items()},
    }


def capacity(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Multiply the measured cost an event by the rates asked for."""
    cpu = row["cpu_us_per_event"]
    plans = []
    for rate in RATES:
        flink = rate * cpu["TaskManagers"] / 1e6 / HEADROOM
        cassandra = rate * cpu["Cassandra"] / 1e6 / HEADROOM
        managers = math.ceil(flink)
        plans.append(
            {
                "events_per_second": rate,
                "task_manager_cores": managers,
                "task_managers": managers,
                "partitions": managers,
                "cassandra_cores": math.ceil(cassandra),
                "cassandra_nodes_rf3_16_cores": max(3, math.ceil(3 * cassandra / 16)),
                "kafka_cores": math.ceil(rate * cpu["Kafka"] / 1e6 / HEADROOM),
                "state_gib_10m_users": round(PLANNED_USERS * row["bytes_a_user"] / 2**30, 1),
                "catalogue_mib_a_task_manager_100k_products": round(CATALOGUE_MIB, 1),
            }
        )
    return plans


def explain(row: dict[str, Any], plans: list[dict[str, Any]]) -> None:
    """Print the capacity table, its arithmetic, and what it does not know."""
    cpu = row["cpu_us_per_event"]
    first = plans[0]
    rate = first["events_per_second"]
    print(f"\nCapacity, from {row['users']:,} users and {row['products']:,} products here.")
    print(f"Measured CPU an event, microseconds: {cpu}")
    print(f"cores = events/s x microseconds / 1,000,000 / {HEADROOM} (share in use), such as")
    print(f"  TaskManagers: {rate:,} x {cpu['TaskManagers']} / 1e6 / {HEADROOM} =", end=" ")
    print(f"{rate * cpu['TaskManagers'] / 1e6 / HEADROOM:.1f} -> {first['task_managers']}")
    print(f"  Cassandra:    {rate:,} x {cpu['Cassandra']} / 1e6 / {HEADROOM} =", end=" ")
    print(f"{rate * cpu['Cassandra'] / 1e6 / HEADROOM:.1f}, three copies of it on nodes of 16")
    print("One slot a TaskManager, one core a slot, at least one partition a slot.")
    print(
        f"State: {PLANNED_USERS:,} users x {row['bytes_a_user']:,} bytes of checkpoint a user"
        " (objects on the heap take more)."
    )
    print(
        f"Catalogue: {PLANNED_PRODUCTS:,} x {BYTES_A_PRODUCT} bytes = {CATALOGUE_MIB:.0f} MiB in"
        " every TaskManager, and nothing in a checkpoint."
    )
    print(
        "Not measured: network, replication between Cassandra nodes (taken as three times the\n"
        "CPU of one copy), compaction of months of data, more than two TaskManagers, other\n"
        "processors, skew that one slot cannot carry; lookups an event fall where users come\n"
        "back within a tick, and rise where they do not."
    )
    for plan in plans:
        print("  " + ", ".join(f"{name} {value:,}" for name, value in plan.items()))


def main(arguments: list[str]) -> None:
    """Run the sizes and the arithmetic."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=500_000)
    parser.add_argument("--quick", action="store_true", help="one size")
    given = parser.parse_args(arguments)
    base = Workload(events=given.events)
    sizes = [replace(base, users=users) for users in (10_000, 100_000, 1_000_000)]
    sizes += [replace(base, products=products) for products in (1_000, 100_000)]
    if given.quick:
        sizes = [base]
    rows: list[dict[str, Any]] = []
    for parallelism in (1, 2):
        with bench(task_managers=parallelism, task_manager_memory="2600m") as running:
            for number, workload in enumerate(sizes):
                rows.append(one(running, workload, parallelism, f"-{number}"))
                print(json.dumps(rows[-1]), flush=True)
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
    explain(reference, plans)
    print(json.dumps({"rows": rows, "plans": plans}))


if __name__ == "__main__":
    main(sys.argv[1:])
