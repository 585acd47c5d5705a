"""All three servers as one thing: checked, started side by side, and always stopped."""

from __future__ import annotations

import atexit
import contextlib
import json
import re
import signal
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from local import preflight
from local.cassandra_server import CassandraServer, CommitLog
from local.errors import StackError
from local.flink_cluster import FlinkCluster
from local.kafka_broker import KafkaBroker
from local.processes import PROJECT, Guardian, ServerProcess, free_ports

DEFAULT_ROOT = PROJECT / "build" / "stack"
_MEMORY = re.compile(r"^(\d+)([mg])$")
# Outside of the heap: metaspace, code, stacks, direct buffers, as measured on idle servers.
_NATIVE_MIB = {"kafka": 250, "cassandra": 600, "client": 600}

_PORTS = (
    *("kafka_port", "cassandra_port", "flink_port"),
    *("kafka_controller_port", "cassandra_storage_port", "flink_rpc_port"),
)


def mib(memory: str) -> int:
    """`1536m` or `2g` as a number of MiB."""
    found = _MEMORY.match(memory)
    if not found:
        msg = f"{memory!r} is no memory size: write 1536m or 2g"
        raise ValueError(msg)
    return int(found.group(1)) * (1024 if found.group(2) == "g" else 1)


@dataclass(frozen=True)
class StackConfig:
    """What a stack is made of; a port of 0 becomes a free one, remembered in the root folder."""

    root: Path = DEFAULT_ROOT
    kafka_port: int = 0
    cassandra_port: int = 0
    flink_port: int = 0
    kafka_controller_port: int = 0
    cassandra_storage_port: int = 0
    flink_rpc_port: int = 0
    prometheus_ports: str = "9250-9350"
    task_managers: int = 2
    task_manager_memory: str = "1600m"
    job_manager_memory: str = "1024m"
    kafka_heap: str = "512m"
    cassandra_heap: str = "1536m"
    cassandra_commit_log: CommitLog = "periodic"
    flink_settings: Mapping[str, str | int | bool] = field(default_factory=dict)

    @property
    def memory_mib(self) -> int:
        """What all servers together need."""
        return (
            sum(_NATIVE_MIB.values())
            + mib(self.kafka_heap)
            + mib(self.cassandra_heap)
            + mib(self.job_manager_memory)
            + mib(self.task_manager_memory) * self.task_managers
        )

    def with_ports(self) -> StackConfig:
        """The same with every port chosen: as given, else as remembered, else free."""
        file = self.root / "ports.json"
        try:
            remembered: dict[str, int] = json.loads(file.read_text())
        except (OSError, ValueError):
            remembered = {}
        known: dict[str, int] = {name: getattr(self, name) for name in _PORTS}
        ports = {name: known[name] or remembered.get(name, 0) for name in _PORTS}
        missing = [name for name, port in ports.items() if not port]
        chosen = free_ports(len(missing), avoid=ports.values()) if missing else []
        ports.update(zip(missing, chosen, strict=True))
        self.root.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(ports, indent=1))
        return replace(
            self,
            kafka_port=ports["kafka_port"],
            cassandra_port=ports["cassandra_port"],
            flink_port=ports["flink_port"],
            kafka_controller_port=ports["kafka_controller_port"],
            cassandra_storage_port=ports["cassandra_storage_port"],
            flink_rpc_port=ports["flink_rpc_port"],
        )


class Stack:
    """Kafka, Cassandra and Flink under one root folder (data, logs, pids, configuration).

    Example::

        with Stack(StackConfig(root)) as stack:
            job = stack.flink.run("job/main.py", ["--kafka-bootstrap", stack.kafka.bootstrap])

    In the foreground (the default) the servers end with this process, however it ends. With
    `detached=True` they stay until `stop`, which any later process can call.
    """

    def __init__(
        self,
        config: StackConfig | None = None,
        *,
        detached: bool = False,
        progress: Callable[[str, float], None] | None = None,
    ) -> None:
        config = config or StackConfig()
        config = replace(config, root=config.root.resolve())
        self.config = config.with_ports()
        self._detached = detached
        self._progress = progress or (lambda _step, _seconds: None)
        self._guardian: Guardian | None = None
        self._old_handler: Any = None
        config = self.config
        root = config.root
        self.root = root
        self.kafka = KafkaBroker(
            root, config.kafka_port, config.kafka_controller_port, config.kafka_heap
        )
        self.cassandra = CassandraServer(
            root,
            config.cassandra_port,
            config.cassandra_storage_port,
            config.cassandra_heap,
            config.cassandra_commit_log,
        )
        self.flink = FlinkCluster(
            root,
            rest_port=config.flink_port,
            rpc_port=config.flink_rpc_port,
            prometheus_ports=config.prometheus_ports,
            task_managers=config.task_managers,
            task_manager_memory=config.task_manager_memory,
            job_manager_memory=config.job_manager_memory,
            settings=config.flink_settings,
        )

    def server(self, name: str) -> ServerProcess:
        """A further process of this stack (the shop, the HTTP service) by its name."""
        return ServerProcess(name, self.root / "run", self.root / "logs" / f"{name}.log")

    def living(self) -> list[str]:
        """The names of all processes with a pid file that live."""
        found = sorted((self.root / "run").glob("*.pid"))
        return [file.stem for file in found if self.server(file.stem).alive]

    def check(self) -> None:
        """Raise StackError for what is missing: Java, jars, memory, ports."""
        preflight.find_java()
        for name in ("kafka", "cassandra", "flink"):
            preflight.check_jars(name)
        ports: dict[str, int] = {}
        if not self.kafka.process.alive:
            ports["KAFKA_PORT"] = self.kafka.port
            ports["KAFKA_CONTROLLER_PORT"] = self.kafka.controller_port
        if not self.cassandra.process.alive:
            ports["CASSANDRA_PORT"] = self.cassandra.port
            ports["CASSANDRA_STORAGE_PORT"] = self.cassandra.storage_port
        if not self.flink.job_manager.alive:
            ports["FLINK_PORT"] = self.flink.rest_port
            ports["FLINK_RPC_PORT"] = self.flink.rpc_port
        preflight.check_ports(ports)
        if len(ports) == 6:
            preflight.check_memory(self.config.memory_mib)

    def start(self) -> Stack:
        """Start what does not live, side by side, and wait until all answer."""
        self.check()
        begin = time.monotonic()
        if not self._detached:
            self.root.joinpath("run").mkdir(parents=True, exist_ok=True)
            self._guardian = Guardian(self.root / "run")
            atexit.register(self.stop)
            if threading.current_thread() is threading.main_thread():
                self._old_handler = signal.signal(signal.SIGTERM, _exit_on_signal)
        servers: dict[str, Callable[[], None]] = {
            "kafka": self.kafka.start,
            "cassandra": self.cassandra.start,
            "flink": self.flink.start,
        }

        def timed(name: str) -> None:
            servers[name]()
            self._progress(name, time.monotonic() - begin)

        try:
            with ThreadPoolExecutor(len(servers)) as pool:
                tasks = [pool.submit(timed, name) for name in servers]
                for task in tasks:
                    task.result()
        except BaseException:
            if not self._detached:
                self.stop()
            raise
        return self

    def stop(self) -> None:
        """Stop all processes of this root folder, what depends on others first."""
        rest = [
            name
            for name in self.living()
            if name not in ("kafka", "cassandra", "jobmanager")
            and not name.startswith("taskmanager-")
        ]
        with _no_interrupt():
            try:
                self._stop_all([self.server(name).stop for name in rest])
                self._stop_all([self.flink.stop])
                self._stop_all([self.kafka.stop, self.cassandra.stop])
            finally:
                for file in (self.root / "run").glob("*.pid"):
                    with contextlib.suppress(TimeoutError):
                        self.server(file.stem).kill()
                    file.unlink(missing_ok=True)
                if self._guardian is not None:
                    self._guardian.release()
                    self._guardian = None
                    atexit.unregister(self.stop)
                if self._old_handler is not None:
                    signal.signal(signal.SIGTERM, self._old_handler)
                    self._old_handler = None

    @staticmethod
    def _stop_all(steps: list[Callable[[], None]]) -> None:
        if steps:
            with ThreadPoolExecutor(len(steps)) as pool:
                for task in [pool.submit(step) for step in steps]:
                    task.result()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def _exit_on_signal(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


class _no_interrupt:  # noqa: N801 - used like a function
    """Ctrl-C while stopping is ignored: half a stop leaves servers behind."""

    def __enter__(self) -> None:
        self._old: Any = None
        if threading.current_thread() is threading.main_thread():
            self._old = signal.signal(signal.SIGINT, signal.SIG_IGN)

    def __exit__(self, *_: object) -> None:
        if self._old is not None:
            signal.signal(signal.SIGINT, self._old)


__all__ = ["DEFAULT_ROOT", "Stack", "StackConfig", "StackError", "mib"]
