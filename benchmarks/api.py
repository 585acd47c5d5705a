"""Requests/s and times of the HTTP service at 1, 8 and 64 connections, beside the bare driver.

A million users' lists stand in Cassandra, ten thousand in the topic of products. wrk asks
for lists of random users over kept connections (a closed loop: a slow answer delays the next
question). Beside it the bare driver: as many processes as the service has, as many threads
together as there are connections, the same statement for random users, the row taken and nothing
done with it. The two take turns, since a machine is not equally fast all the time. Everything
shares this machine's cores, wrk too, which the driver's run needs not.

Last line: JSON with ``p99_ms_8``, ``ratio_driver`` (requests/s of the service at 8 connections by
those of the driver with 8 threads), ``users`` and ``requests_per_second`` (at 8).
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil
import requests
from cassandra import ConsistencyLevel
from cassandra.cluster import EXEC_PROFILE_DEFAULT, Cluster, ExecutionProfile
from cassandra.concurrent import execute_concurrent_with_args
from cassandra.policies import DCAwareRoundRobinPolicy, TokenAwarePolicy
from cassandra.query import tuple_factory
from werkzeug.test import run_wsgi_app

from api.config import ApiConfig
from api.factory import create_app
from benchmarks.runner import BenchmarkError
from benchmarks.workload import SPACE, Workload, load
from connectors.cassandra_schema import create_schema, statement
from connectors.cassandra_session import READ_PROFILE, CassandraOptions, connect
from connectors.cassandra_writer import CassandraWriter, WriterConfig
from connectors.product_rows import ProductRow, product_writes
from connectors.recommendation_store import CassandraRecommendationStore
from local.processes import LOOPBACK, Guardian, ServerProcess, free_ports, wait_until
from local.stack import Stack, StackConfig
from udfs.product_record import encode, merge
from udfs.schemas import SaveBatch, SavedList, decode_product

KEYSPACE: Final = "bench_api"
PRODUCTS: Final = "products"
LENGTH: Final = 20
CONNECTIONS: Final = (1, 8, 64)
# How long one turn of the driver or of the service is, whole seconds: wrk knows no parts of them.
TURN_SECONDS: Final = 3
_USERS_A_BATCH: Final = 2_000
_CORES: Final = os.cpu_count() or 1

_LUA: Final = """
local seeded = 0
function setup(thread) thread:set("seed", seeded); seeded = seeded + 1 end
function init(args) math.randomseed(os.time() + seed * 7919) end
function request()
  local user = string.format("user-%07d", math.random(0, USERS - 1))
  return wrk.format("GET", "/v1/users/" .. user .. "/recommendations?limit=LENGTH")
end
function done(summary, latency, requests)
  local errors = summary.errors
  print(string.format("RESULT %d %d %d", summary.requests, summary.duration,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout))
  local times = {}
  for tenth = 0, 999 do times[tenth + 1] = latency:percentile((tenth + 0.5) / 10) end
  print("TIMES " .. table.concat(times, " "))
end
"""


@dataclass(frozen=True)
class Turn:
    """One turn: how many answers in how many seconds, and how long they took.

    ``times_ms`` are the answers' times or as many of their quantiles, each of equal weight;
    ``cpu`` are seconds of the asking or serving processes, ``cassandra`` those of Cassandra.
    """

    count: int
    seconds: float
    times_ms: np.ndarray[Any, np.dtype[np.float64]]
    cpu: float = 0.0
    cassandra: float = 0.0


@dataclass(frozen=True)
class Load:
    """Several turns: answers a second, how long one took, and CPU time an answer, microseconds."""

    per_second: float
    p50_ms: float
    p99_ms: float
    cpu_us: float
    cassandra_us: float


def merged(turns: Sequence[Turn]) -> Load:
    """Put turns together, each with the weight of its answers."""
    count = sum(turn.count for turn in turns)
    times = np.concatenate([turn.times_ms for turn in turns])
    weights = np.concatenate(
        [np.full(len(turn.times_ms), turn.count / len(turn.times_ms)) for turn in turns]
    )
    order = np.argsort(times)
    reached = np.cumsum(weights[order]) / count
    p50, p99 = (
        float(times[order][min(np.searchsorted(reached, q), len(order) - 1)]) for q in (0.5, 0.99)
    )
    return Load(
        count / sum(turn.seconds for turn in turns),
        p50,
        p99,
        sum(turn.cpu for turn in turns) / count * 1e6,
        sum(turn.cassandra for turn in turns) / count * 1e6,
    )


def user_id(number: int) -> str:
    """Id of a user."""
    return f"user-{number:07d}"


def parse_result(output: str) -> Turn:
    """Read what the script prints at the end of wrk.

    Raises:
        BenchmarkError: It is not there, or a request failed.
    """
    said = {line.split()[0]: line.split()[1:] for line in output.splitlines() if line.strip()}
    if "RESULT" not in said or "TIMES" not in said:
        msg = f"wrk said nothing of its result: {output[-500:]}"
        raise BenchmarkError(msg)
    count, micros, errors = (int(part) for part in said["RESULT"])
    if errors or not count:
        msg = f"{errors} of {count} requests failed"
        raise BenchmarkError(msg)
    return Turn(count, micros / 1e6, np.array(said["TIMES"], dtype=np.float64) / 1000)


def find_wrk() -> str:
    """Return the path of wrk.

    Raises:
        BenchmarkError: It is not installed.
    """
    found = shutil.which("wrk")
    if found is None:
        msg = "wrk is not found\n  remedy: install it (Debian, Ubuntu: apt-get install wrk)"
        raise BenchmarkError(msg)
    return found


# --- the data ------------------------------------------------------------------------------------


def save_lists(options: CassandraOptions, users: int, products: int) -> None:
    """Write a list of random products for each user, through the job's own writer."""
    workload = Workload(products=products)
    ids = [workload.product_id(number) for number in range(products)]
    rng = np.random.default_rng(1)
    scores = np.linspace(1, 0.5, LENGTH, dtype=np.float32)
    writer = CassandraWriter(options, WriterConfig())
    now = time.time_ns() // 1_000_000
    try:
        for start in range(0, users, _USERS_A_BATCH):
            count = min(_USERS_A_BATCH, users - start)
            # Of a random place on, in steps: twenty different ones without a permutation each.
            first = rng.integers(0, products, count)
            step = rng.integers(1, max(2, products // LENGTH), count)
            chosen = (first[:, None] + step[:, None] * np.arange(LENGTH)) % products
            lists = [
                SavedList(
                    user_id(start + at),
                    list(dict.fromkeys(ids[one] for one in row)),
                    scores[: len(set(row))],
                    SPACE,
                    now - 1000,
                    now * 1000,
                    [f"viewed:{ids[row[0]]}"] * len(set(row)),
                    [],
                    "",
                )
                for at, row in enumerate(chosen.tolist())
            ]
            writer.save(SaveBatch(lists=lists))
            if sys.stderr.isatty():
                print(f"\r  {start + count:,} of {users:,} lists", end="", file=sys.stderr)
        writer.drain()
    finally:
        writer.close()
        if sys.stderr.isatty():
            print(file=sys.stderr)


def _no_vector(_title: str, _category: str) -> None:
    """Make no vector: all products have one."""


def save_products(options: CassandraOptions, bootstrap: str, products: int) -> None:
    """Put the catalogue into its topic and its tables, as the job leaves it."""
    records = [
        merge(None, decode_product(key, value)[0], seen_ms=1, at_us=1000, encode_text=_no_vector)
        for key, value in Workload(products=products).catalogue()
    ]
    encoded = {one.product_id: encode(one) for one in records}
    load(bootstrap, PRODUCTS, iter(encoded.items()))
    cluster, session = connect(options, role="bench")
    try:
        values: dict[str, list[tuple[Any, ...]]] = {}
        for one in records:
            row = ProductRow.of(one, 1)
            for write in product_writes(None, row, 1000, encoded[one.product_id]):
                values.setdefault(write.statement, []).append(write.values)
        for name, rows in values.items():
            prepared = session.prepare(statement(name, options.keyspace))
            execute_concurrent_with_args(session, prepared, rows, concurrency=100)
    finally:
        cluster.shutdown()


# --- the bare driver -----------------------------------------------------------------------------


def bare_cluster(options: CassandraOptions) -> Cluster:
    """Make a cluster of the driver as it comes, with the cheapest rows and protocol it has.

    Not :func:`connectors.cassandra_session.connect`, whose connections and decoding are ours.
    """
    profile = ExecutionProfile(
        load_balancing_policy=TokenAwarePolicy(DCAwareRoundRobinPolicy()),
        consistency_level=ConsistencyLevel.LOCAL_ONE,
        request_timeout=options.read_timeout_seconds,
        row_factory=tuple_factory,
    )
    return Cluster(
        list(options.hosts),
        port=options.port,
        execution_profiles={EXEC_PROFILE_DEFAULT: profile},
        protocol_version=options.protocol_version,
        compression=False,
    )


def _drive(
    options: CassandraOptions, users: int, threads: int, seconds: float, ready: Any, go: Any
) -> tuple[list[float], float]:
    """Read random users' lists with ``threads`` for ``seconds``.

    Returns:
        The time of each read, seconds, and the CPU time of all, seconds.
    """
    cluster = bare_cluster(options)
    session = cluster.connect()
    prepared = session.prepare(statement("select_recommendations", options.keyspace))
    times: list[list[float]] = []

    def read(number: int) -> None:
        choose = random.Random(number * 1000 + os.getpid())
        mine: list[float] = []
        times.append(mine)
        go.wait()
        now = time.perf_counter()
        end = now + seconds
        while now < end:
            user = user_id(choose.randrange(users))
            (row,) = session.execute(prepared, (user,))
            if len(row[0]) == 0:
                msg = f"{user} has no list"
                raise BenchmarkError(msg)
            then, now = now, time.perf_counter()
            mine.append(now - then)

    try:
        workers = [threading.Thread(target=read, args=(number,)) for number in range(threads)]
        for one in workers:
            one.start()
        ready.release()
        begun = time.process_time()
        for one in workers:
            one.join()
        spent = time.process_time() - begun
    finally:
        cluster.shutdown()
    return [one for mine in times for one in mine], spent


def _driver_process(queue: Any, *args: Any) -> None:
    queue.put(_drive(*args))


def driver(
    options: CassandraOptions, users: int, processes: int, connections: int, seconds: float
) -> Turn:
    """Measure the bare driver with ``connections`` threads in all."""
    context = multiprocessing.get_context("spawn")
    queue, ready, go = context.Queue(), context.Semaphore(0), context.Event()
    processes = min(processes, connections)
    running = [
        context.Process(
            target=_driver_process,
            args=(
                queue,
                options,
                users,
                connections // processes + (number < connections % processes),
                seconds,
                ready,
                go,
            ),
        )
        for number in range(processes)
    ]
    for one in running:
        one.start()
    for _ in running:
        if not ready.acquire(timeout=60):
            msg = "a process of the driver did not start"
            raise BenchmarkError(msg)
    go.set()
    found = [queue.get(timeout=seconds + 60) for _ in running]
    for one in running:
        one.join()
    times = np.concatenate([np.asarray(one) for one, _ in found]) * 1000
    return Turn(len(times), seconds, times, sum(one for _, one in found))


# --- the service ---------------------------------------------------------------------------------


def environment(stack: Stack, port: int, workers: int) -> dict[str, str]:
    """Return the variables of the service under test; the rest are its defaults."""
    return {
        "RECOMMENDER_CASSANDRA_HOSTS": stack.cassandra.host,
        "RECOMMENDER_CASSANDRA_PORT": str(stack.cassandra.port),
        "RECOMMENDER_CASSANDRA_KEYSPACE": KEYSPACE,
        "RECOMMENDER_KAFKA_BOOTSTRAP": stack.kafka.bootstrap,
        "RECOMMENDER_KAFKA_PRODUCTS_TOPIC": PRODUCTS,
        "RECOMMENDER_API_BIND": f"{LOOPBACK}:{port}",
        "RECOMMENDER_API_WORKERS": str(workers),
    }


@contextmanager
def serving(stack: Stack, workers: int) -> Iterator[tuple[str, ServerProcess]]:
    """Run the service under gunicorn until the catalogue is read."""
    (port,) = free_ports(1)
    service = stack.server("api")
    command = [sys.executable, "-m", "gunicorn", "-c", "api/gunicorn.conf.py"]
    service.spawn(command, env={**os.environ, **environment(stack, port, workers)})
    url = f"http://{LOOPBACK}:{port}"

    def ready() -> bool:
        try:
            return (
                "recommender_api_catalogue_caught_up 1.0"
                in requests.get(f"{url}/metrics", timeout=5).text
            )
        except requests.RequestException:
            return False

    try:
        wait_until(ready, 120, what="the service")
        answer = requests.get(f"{url}/v1/users/{user_id(0)}/recommendations", timeout=5).json()
        if len(answer["items"]) != LENGTH or answer["source"] != "personal":
            msg = f"the service answers wrongly: {answer}"
            raise BenchmarkError(msg)
        yield url, service
    finally:
        service.stop()


def run_wrk(wrk: str, url: str, users: int, connections: int, seconds: float) -> Turn:
    """Ask for random users' lists over ``connections``.

    Raises:
        BenchmarkError: A request failed.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(_LUA.replace("USERS", str(users)).replace("LENGTH", str(LENGTH)))
        script.flush()
        done = subprocess.run(
            [wrk, "-t1", f"-c{connections}", f"-d{seconds:g}s", "-s", script.name, url],
            capture_output=True,
            text=True,
            timeout=seconds + 60,
            check=True,
        )
    return parse_result(done.stdout)


def cpu_seconds(pid: int | None) -> float:
    """CPU time of a process and its children so far, seconds."""
    if pid is None:
        return 0.0
    process = psutil.Process(pid)
    return sum(sum(one.cpu_times()[:2]) for one in (process, *process.children(recursive=True)))


def stages(stack: Stack, options: CassandraOptions, users: int, count: int) -> dict[str, float]:
    """Time the parts of a request one after the other in one thread, microseconds each.

    The statement alone, the store's call, and the whole application without a network; the
    products come out of memory only in the last, where the catalogue has been read.
    """
    found: dict[str, float] = {}

    def timed(name: str, call: Callable[[str], object]) -> None:
        choose = random.Random(5)
        chosen = [user_id(choose.randrange(users)) for _ in range(count)]
        for user in chosen[: count // 5]:
            call(user)
        begun = time.perf_counter()
        for user in chosen:
            call(user)
        found[name] = (time.perf_counter() - begun) / count * 1e6

    cluster, session = connect(options, role="bench")
    try:
        prepared = session.prepare(statement("select_recommendations", options.keyspace))
        timed(
            "statement",
            lambda user: list(session.execute(prepared, (user,), execution_profile=READ_PROFILE)),
        )
        store = CassandraRecommendationStore(session, options.keyspace)
        timed("store", store.recommendations)
    finally:
        cluster.shutdown()
    variables = environment(stack, 0, 1)
    app = create_app(ApiConfig.from_env(variables))
    services = app.extensions["recommender"]
    services.start()
    try:
        wait_until(lambda: services.catalogue.caught_up, 60, what="the catalogue")
        base = {
            "REQUEST_METHOD": "GET",
            "SCRIPT_NAME": "",
            "QUERY_STRING": f"limit={LENGTH}",
            "SERVER_NAME": "localhost",
            "SERVER_PORT": "80",
            "REMOTE_ADDR": LOOPBACK,
            "HTTP_HOST": "localhost",
            "wsgi.url_scheme": "http",
        }

        def ask(user: str) -> None:
            path = f"/v1/users/{user}/recommendations"
            body, status, _ = run_wsgi_app(app.wsgi_app, {**base, "PATH_INFO": path})
            if status != "200 OK" or sum(len(part) for part in body) < LENGTH:
                msg = f"{path}: {status}"
                raise BenchmarkError(msg)

        timed("application", ask)
    finally:
        services.stop()
    return found


# --- the whole -----------------------------------------------------------------------------------


@contextmanager
def servers(root: Path) -> Iterator[Stack]:
    """Run Kafka and Cassandra; Flink has no part in a read."""
    stack = Stack(StackConfig(root=root))
    stack.root.joinpath("run").mkdir(parents=True, exist_ok=True)
    guardian = Guardian(stack.root / "run")
    try:
        stack.kafka.start()
        stack.cassandra.start()
        yield stack
    finally:
        stack.stop()
        guardian.release()


def measure(stack: Stack, wrk: str, users: int, products: int, seconds: float) -> dict[str, Any]:
    """Fill the stores, measure everything, print it, and return the last line."""
    options = CassandraOptions(
        hosts=(stack.cassandra.host,), port=stack.cassandra.port, keyspace=KEYSPACE
    )
    cluster, session = connect(options, role="bench")
    create_schema(session, KEYSPACE, {"class": "SimpleStrategy", "replication_factor": 1})
    cluster.shutdown()
    stack.kafka.create_topic(PRODUCTS, 4, {"cleanup.policy": "compact"})
    print(f"{users:,} users' lists and {products:,} products", flush=True)
    save_products(options, stack.kafka.bootstrap, products)
    save_lists(options, users, products)
    # What the writing leaves to be done (compaction, the JVM's warmth) is not the readers'.
    driver(options, users, _CORES, 8, seconds)
    print(
        f"{'':24}{'requests/s':>12}{'p50 ms':>10}{'p99 ms':>10}{'own µs':>10}{'Cassandra µs':>14}"
    )
    found: dict[str, Load] = {}

    def turn(pid: int | None, run: Callable[[], Turn]) -> Turn:
        """Run; ``pid``: of the service, None where the run tells its own CPU time."""
        watched = (pid, stack.cassandra.process.pid)
        before = [cpu_seconds(one) for one in watched]
        taken = run()
        own, cassandra = (cpu_seconds(one) - was for one, was in zip(watched, before, strict=True))
        return replace(taken, cpu=taken.cpu or own, cassandra=cassandra)

    with serving(stack, _CORES) as (url, service):
        run_wrk(wrk, url, users, 8, seconds)
        each = min(TURN_SECONDS, max(1, round(seconds)))
        for count in CONNECTIONS:
            pair: tuple[tuple[str, int | None, Callable[[], Turn]], ...] = (
                (
                    f"driver, {count} threads",
                    None,
                    functools.partial(driver, options, users, _CORES, count, each),
                ),
                (
                    f"service, {count} connections",
                    service.pid,
                    functools.partial(run_wrk, wrk, url, users, count, each),
                ),
            )
            turns: dict[str, list[Turn]] = {name: [] for name, _, _ in pair}
            for _ in range(max(1, round(seconds / each))):
                for name, pid, run in pair:
                    turns[name].append(turn(pid, run))
            for name, taken in turns.items():
                one = found[name] = merged(taken)
                print(
                    f"{name:24}{one.per_second:12,.0f}{one.p50_ms:10.2f}{one.p99_ms:10.2f}"
                    f"{one.cpu_us:10.0f}{one.cassandra_us:14.0f}",
                    flush=True,
                )
    parts = stages(stack, options, users, 2_000)
    print(
        "one after the other, microseconds: "
        f"statement {parts['statement']:.0f}, with the store's objects {parts['store']:.0f}, "
        f"the whole application without HTTP {parts['application']:.0f}"
    )
    ours, bare = found["service, 8 connections"], found["driver, 8 threads"]
    return {
        "p99_ms_8": round(ours.p99_ms, 3),
        "ratio_driver": round(ours.per_second / bare.per_second, 3),
        "users": users,
        "requests_per_second": round(ours.per_second, 1),
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few users, short runs: does it work?")
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--products", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=30.0, help="of each kind of load")
    given = parser.parse_args()
    users = min(given.users, 20_000) if given.quick else given.users
    seconds = min(given.seconds, 4.0) if given.quick else given.seconds
    if not 1 <= users <= 10_000_000 or given.products < LENGTH:
        parser.error(f"users must be 1 to 10,000,000, products at least {LENGTH}")
    try:
        wrk = find_wrk()
    except BenchmarkError as error:
        parser.exit(1, f"{error}\n")
    with (
        tempfile.TemporaryDirectory(prefix="bench-api-") as folder,
        servers(Path(folder)) as stack,
    ):
        result = measure(stack, wrk, users, given.products, seconds)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
