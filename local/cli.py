"""The commands behind `make run`, `up`, `down`, `status`, `reset`, `resume` and `scale`."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import requests

from local import preflight
from local.errors import StackError
from local.processes import LOOPBACK, PROJECT
from local.stack import DEFAULT_ROOT, Stack, StackConfig

_DAY_MS: Final = 86_400_000
EVENTS, CATALOGUE, DEAD_LETTERS = "events", "catalogue", "dead-letters"
PRODUCTS, RELATED = "products", "related"
# Who reads of products after a week still hears of what was deleted.
_COMPACTED: Final = {"cleanup.policy": "compact", "delete.retention.ms": str(7 * _DAY_MS)}
# More partitions than TaskManagers, so that a rescale needs no repartitioning of the topic.
TOPICS: Final[dict[str, tuple[int, dict[str, str]]]] = {
    EVENTS: (8, {}),
    # A job that is away for a week still reads each partial update.
    CATALOGUE: (4, {**_COMPACTED, "min.compaction.lag.ms": str(7 * _DAY_MS)}),
    # Rejected records hold personal data.
    DEAD_LETTERS: (2, {"retention.ms": str(30 * _DAY_MS)}),
    PRODUCTS: (4, _COMPACTED),
    RELATED: (4, _COMPACTED),
}
_KEPT_SAVEPOINTS = 3
_JOB_ROOMS = ("udfs", "connectors", "job")


def _scaled(root: Path) -> int:
    """How many TaskManagers the last `scale` asked for, 0 if there was none."""
    try:
        return int((root / "task-managers").read_text())
    except (OSError, ValueError):
        return 0


def _code_changed_at() -> float:
    """When the code that runs in TaskManagers was last changed."""
    sources = (file for room in _JOB_ROOMS for file in (PROJECT / room).rglob("*.py"))
    return max((file.stat().st_mtime for file in sources), default=0.0)


class Steps:
    """Progress: one line a step, with the time it took."""

    def __init__(self) -> None:
        self._begin = time.monotonic()

    def line(self, name: str, seconds: float, note: str = "") -> None:
        """Print one finished step."""
        print(f"  {name:<22} {seconds:6.1f} s  {note}".rstrip(), flush=True)

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[list[str]]:
        """Time a step; what is appended to the list stands beside it."""
        begin = time.monotonic()
        notes: list[str] = []
        yield notes
        self.line(name, time.monotonic() - begin, " ".join(notes))

    def done(self, text: str) -> None:
        """Print the closing line."""
        print(f"{text} in {time.monotonic() - self._begin:.1f} s", flush=True)


class App:
    """The pipeline on one stack: topics, schema, job, catalogue, service and shop."""

    def __init__(self, given: argparse.Namespace, *, detached: bool) -> None:
        self.steps = Steps()
        self.keyspace: str = given.keyspace
        self.flask_port: int = given.flask_port
        self.stack = Stack(
            StackConfig(
                root=given.root,
                kafka_port=given.kafka_port,
                cassandra_port=given.cassandra_port,
                flink_port=given.flink_port,
                kafka_controller_port=given.kafka_controller_port,
                cassandra_storage_port=given.cassandra_storage_port,
                flink_rpc_port=given.flink_rpc_port,
                task_managers=given.task_managers or _scaled(given.root) or os.cpu_count() or 1,
                task_manager_memory=given.task_manager_memory,
                cassandra_heap=given.cassandra_heap,
                cassandra_commit_log=given.cassandra_commit_log,
            ),
            detached=detached,
            progress=self.steps.line,
        )
        self.api = self.stack.server("api")
        self.shop = self.stack.server("shop")

    @property
    def window_url(self) -> str:
        """Where the shop window is."""
        return f"http://{LOOPBACK}:{self.flask_port}/"

    # --- steps -------------------------------------------------------------------------------

    def start_servers(self) -> None:
        """Start Kafka, Cassandra and Flink, or find them running."""
        if not self.api.alive:
            preflight.check_ports({"FLASK_PORT": self.flask_port})
        self.stack.start()

    def create_topics(self) -> None:
        """Create the topics that are missing."""
        with self.steps.step("topics") as notes:
            for name, (partitions, config) in TOPICS.items():
                if self.stack.kafka.create_topic(name, partitions, config):
                    notes.append(f"{name} ({partitions})")

    def create_schema(self) -> None:
        """Create the keyspace and the tables that are missing."""
        from connectors.cassandra_schema import create_schema
        from connectors.cassandra_session import CassandraOptions, connect

        with self.steps.step("schema"):
            options = CassandraOptions(
                hosts=(self.stack.cassandra.host,),
                port=self.stack.cassandra.port,
                keyspace=self.keyspace,
            )
            cluster, session = connect(options, role="schema")
            try:
                replication: dict[str, str | int] = {
                    "class": "SimpleStrategy",
                    "replication_factor": 1,
                }
                create_schema(session, self.keyspace, replication)
            finally:
                cluster.shutdown()

    def submit(self, *, savepoint: str | None = None) -> str:
        """Submit the job, from the newest savepoint or checkpoint if there is one."""
        flink, stack = self.stack.flink, self.stack
        with self.steps.step("job") as notes:
            running = flink.running_job()
            if running is not None:
                notes.append(f"{running} runs already")
                return running
            # In thread mode a TaskManager's interpreter keeps the modules of the job before.
            if flink.replace_task_managers(older_than=_code_changed_at()):
                notes.append("new TaskManagers for new code,")
            savepoint = savepoint or flink.latest_restore_path()
            job_id = flink.run(
                "job/main.py",
                [
                    *("--kafka-bootstrap", stack.kafka.bootstrap),
                    *("--cassandra-hosts", stack.cassandra.host),
                    *("--cassandra-port", str(stack.cassandra.port)),
                    *("--cassandra-keyspace", self.keyspace),
                ],
                parallelism=len(flink.task_managers),
                savepoint=savepoint,
            )
            try:
                flink.wait_running(job_id)
            except StackError:
                # Else it would restart for ever, and the next `up` would take it for a job.
                flink.cancel(job_id)
                raise
            notes.append(job_id)
            if savepoint:
                notes.append(f"from {Path(savepoint).name}")
            self._prune(job_id, savepoint)
            return job_id

    def _prune(self, job_id: str, restored: str | None) -> None:
        """Delete snapshots that no restart will ask for: all but this job's and its origin."""
        flink = self.stack.flink
        kept = {job_id, Path(restored).parent.name if restored else ""}
        for folder in flink.checkpoint_dir.iterdir():
            if folder.name not in kept:
                shutil.rmtree(folder, ignore_errors=True)
        savepoints = sorted(
            flink.savepoint_dir.glob("savepoint-*"), key=lambda one: one.stat().st_mtime_ns
        )
        for folder in savepoints[:-_KEPT_SAVEPOINTS]:
            if str(folder) != restored:
                shutil.rmtree(folder, ignore_errors=True)

    def publish_catalogue(self) -> None:
        """Publish the demo catalogue, once: the topic keeps it."""
        from local import demo_catalogue

        with self.steps.step("demo catalogue") as notes:
            if sum(self.stack.kafka.end_offsets(CATALOGUE).values()):
                notes.append("is there already")
            else:
                count = demo_catalogue.publish(self.stack.kafka.bootstrap, CATALOGUE)
                notes.append(f"{count:,} products")

    def start_api(self) -> None:
        """Start the HTTP service and wait until it answers."""
        from local import demo_shop

        with self.steps.step("HTTP service") as notes:
            notes.append(self.window_url)
            if self.api.alive:
                return
            env = {
                **os.environ,
                "RECOMMENDER_CASSANDRA_HOSTS": self.stack.cassandra.host,
                "RECOMMENDER_CASSANDRA_PORT": str(self.stack.cassandra.port),
                "RECOMMENDER_CASSANDRA_KEYSPACE": self.keyspace,
                "RECOMMENDER_KAFKA_BOOTSTRAP": self.stack.kafka.bootstrap,
                "RECOMMENDER_KAFKA_EVENTS_TOPIC": EVENTS,
                "RECOMMENDER_KAFKA_CATALOGUE_TOPIC": CATALOGUE,
                "RECOMMENDER_API_BIND": f"{LOOPBACK}:{self.flask_port}",
                "RECOMMENDER_API_WORKERS": "1",
                "RECOMMENDER_FLINK_URL": self.stack.flink.rest_url,
                "RECOMMENDER_SHOP_USERS": ",".join(demo_shop.user_id(one) for one in range(8)),
            }
            command = [sys.executable, "-m", "gunicorn", "-c", "api/gunicorn.conf.py"]
            self.api.spawn([*command, "api.wsgi:app"], env=env)

            def ready() -> bool:
                try:
                    return bool(requests.get(f"{self.window_url}health/ready", timeout=2).ok)
                except requests.RequestException:
                    return False

            self.api.wait_ready(ready, 40, remedy=f"read {self.api.log_file}")

    def start_shop(self, rate: float) -> None:
        """Start the demo shop."""
        with self.steps.step("demo shop") as notes:
            notes.append(f"{rate:g} events/s")
            if not self.shop.alive:
                self.shop.spawn(
                    [
                        *(sys.executable, "-m", "local.demo_shop"),
                        *("--bootstrap", self.stack.kafka.bootstrap, "--rate", str(rate)),
                    ]
                )

    def up(self) -> None:
        """Everything but the shop."""
        self.start_servers()
        self.create_topics()
        self.create_schema()
        self.publish_catalogue()
        self.submit()
        self.start_api()

    def stop_shop(self) -> None:
        """Stop the demo shop; what it sent stays in Kafka."""
        self.shop.stop(25)

    def down(self) -> None:
        """Stop the job with a savepoint, then all processes."""
        if not self.stack.living():
            print("nothing runs")
            return
        self.stop_shop()
        flink = self.stack.flink
        try:
            job_id = flink.running_job() if flink.job_manager.alive else None
            if job_id is not None:
                with self.steps.step("savepoint") as notes:
                    notes.append(Path(flink.stop_with_savepoint(job_id, 90)).name)
        except (StackError, TimeoutError, requests.RequestException) as error:
            print(f"  no savepoint, the newest checkpoint is kept: {str(error)[:500]}")
        with self.steps.step("servers stopped"):
            self.stack.stop()


# --- commands ------------------------------------------------------------------------------------


def _up(given: argparse.Namespace) -> int:
    app = App(given, detached=True)
    app.up()
    app.steps.done(
        f"up: shop window {app.window_url}, Flink {app.stack.flink.rest_url}, recommendations "
        f"{app.window_url}v1/users/user-0000/recommendations,"
    )
    return 0


def _run(given: argparse.Namespace) -> int:
    from local.live import Watch, show

    app = App(given, detached=False)
    interrupted = False
    try:
        app.up()
        app.start_shop(given.rate)
        app.steps.done(f"up: shop window {app.window_url},")
        show(Watch(app.stack, app.flask_port, app.keyspace))
    except KeyboardInterrupt:
        interrupted = True
        print("\nstopping ...", flush=True)
    finally:
        try:
            app.down()
        finally:
            app.stack.stop()
    return 0 if interrupted else 1


def _down(given: argparse.Namespace) -> int:
    App(given, detached=True).down()
    return 0


def _status(given: argparse.Namespace) -> int:
    from local.live import Watch, lines

    app = App(given, detached=True)
    living = app.stack.living()
    if not living:
        print("nothing runs; `make up` or `make run` starts it")
        return 1
    print("running      " + ", ".join(living))
    watch = Watch(app.stack, app.flask_port, app.keyspace)
    watch.look()
    time.sleep(2)
    print("\n".join(lines(watch.look())))
    return 0


def _reset(given: argparse.Namespace) -> int:
    root = given.root.resolve()
    if not given.yes:
        answer = input(f"Stop everything and delete all data in {root}? [y/N] ")
        if answer.strip().lower() not in ("y", "yes"):
            return 1
    if not root.exists():
        return 0
    if not (root / "ports.json").exists():
        raise StackError("reset", f"{root} is no stack folder", "name the right one with --root")
    App(given, detached=True).stack.stop()
    shutil.rmtree(root)
    print(f"{root} is deleted")
    return 0


def _resume(given: argparse.Namespace) -> int:
    """Without high availability a JobManager's jobs end with it; their checkpoints do not."""
    app = App(given, detached=True)
    if not app.stack.living():
        raise StackError("resume", "nothing runs", "`make up` starts from the newest checkpoint")
    app.start_servers()
    app.submit()
    app.start_api()
    app.steps.done("resumed")
    return 0


def _scale(given: argparse.Namespace) -> int:
    app = App(given, detached=True)
    flink = app.stack.flink
    if not flink.job_manager.alive:
        raise StackError("scale", "Flink does not run", "`make up` first")
    if given.n < 1:
        raise StackError("scale", f"{given.n} TaskManagers cannot run a job", "make scale N=2")
    savepoint = None
    job_id = flink.running_job()
    if job_id is not None:
        with app.steps.step("savepoint") as notes:
            savepoint = flink.stop_with_savepoint(job_id)
            notes.append(Path(savepoint).name)
    with app.steps.step("TaskManagers") as notes:
        for task_manager in flink.task_managers:
            task_manager.launch()
        flink.wait_task_managers()
        while len(flink.task_managers) > given.n:
            flink.remove_task_manager()
        while len(flink.task_managers) < given.n:
            flink.add_task_manager()
        (app.stack.root / "task-managers").write_text(str(given.n))
        notes.append(str(given.n))
    app.submit(savepoint=savepoint)
    app.steps.done(f"scaled to {given.n}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m local", description=__doc__)
    env = os.environ.get
    parser.add_argument(
        *("--root",),
        type=Path,
        default=Path(env("RECOMMENDER_STACK_ROOT", str(DEFAULT_ROOT.relative_to(PROJECT)))),
        help="folder of data, logs and pids (default: %(default)s)",
    )
    parser.add_argument("--kafka-port", type=int, default=9092)
    parser.add_argument("--cassandra-port", type=int, default=9042)
    parser.add_argument("--flink-port", type=int, default=8081)
    parser.add_argument("--flask-port", type=int, default=8080)
    for name in ("kafka-controller-port", "cassandra-storage-port", "flink-rpc-port"):
        parser.add_argument(f"--{name}", type=int, default=0, help="0: a free one, remembered")
    parser.add_argument("--task-managers", type=int, default=0, help="0: one a core")
    parser.add_argument("--task-manager-memory", default="1600m")
    parser.add_argument("--cassandra-heap", default="1536m")
    parser.add_argument(
        *("--cassandra-commit-log",),
        choices=("periodic", "group", "batch"),
        default="periodic",
        help="when a write is acknowledged: before (periodic) or after its fsync",
    )
    parser.add_argument("--keyspace", default="recommender")
    commands = parser.add_subparsers(dest="command", required=True)

    def add(
        name: str, do: Callable[[argparse.Namespace], int], text: str
    ) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(do=do)
        return command

    add("up", _up, "start everything in the background")
    run = add("run", _run, "start everything and a demo shop; live status until Ctrl-C")
    run.add_argument("--rate", type=float, default=50.0, help="demo events a second")
    add("down", _down, "stop the job with a savepoint, then everything")
    add("status", _status, "show the status once")
    reset = add("reset", _reset, "stop everything and delete the data")
    reset.add_argument("--yes", action="store_true", help="do not ask")
    add("resume", _resume, "restart what is dead, resume the job from its newest checkpoint")
    scale = add("scale", _scale, "run the job with another number of TaskManagers")
    scale.add_argument("n", type=int)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; a StackError becomes its message and exit status 1."""
    given = _parser().parse_args(arguments)
    try:
        status: int = given.do(given)
    except StackError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return status
