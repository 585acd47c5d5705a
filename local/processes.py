"""Server processes that are found again: one pid file each, stopped for certain, logs kept.

A process is known by its pid AND its start time, so a pid file left by a crash never makes us
kill a stranger that got the same number. Nothing depends on being the parent: `make down` in
another shell stops what `make up` started.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from local.errors import StackError

PROJECT = Path(__file__).resolve().parent.parent
LOOPBACK = "127.0.0.1"
_LOG_LINES = 15


def wait_until(
    done: Callable[[], bool], timeout: float, *, every: float = 0.1, what: str = "the condition"
) -> None:
    """Poll `done` until it is true; raise TimeoutError after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not done():
        if time.monotonic() > deadline:
            msg = f"{what} was not met within {timeout:.0f} s"
            raise TimeoutError(msg)
        time.sleep(every)


def is_listening(port: int, host: str = LOOPBACK) -> bool:
    """Whether something accepts connections on the port."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((host, port)) == 0


def is_free(port: int, host: str = LOOPBACK) -> bool:
    """Whether a server could bind the port now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def free_ports(count: int, *, avoid: Iterable[int] = ()) -> list[int]:
    """Pick free ports below the range that the kernel hands to outgoing connections.

    A port from that range could be taken by a client while its server is down for a restart.
    """
    taken = set(avoid)
    found: list[int] = []
    start = 10_000 + (os.getpid() * 101 + time.monotonic_ns() // 1_000_000) % 20_000
    for offset in range(20_000):
        port = 10_000 + (start - 10_000 + offset) % 20_000
        if port not in taken and is_free(port):
            found.append(port)
            if len(found) == count:
                return found
    raise StackError("network", "no free ports on loopback", "stop other local servers")


def tail(path: Path, lines: int = _LOG_LINES) -> str:
    """The last lines of a log file, empty when there is none."""
    try:
        with path.open("rb") as log:
            log.seek(max(0, path.stat().st_size - 16_384))
            text = log.read().decode("utf-8", "replace")
    except OSError:
        return ""
    return "\n".join(line[:240] for line in text.splitlines()[-lines:])


def _started_at(pid: int) -> float | None:
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return float(process.create_time())
    except psutil.Error:
        return None


@dataclass
class ServerProcess:
    """One server: how it is started, where its pid and log stand, and how it is ended."""

    name: str
    run_dir: Path
    log_file: Path
    _popen: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def pid_file(self) -> Path:
        """Where the pid and the start time are kept."""
        return self.run_dir / f"{self.name}.pid"

    @property
    def pid(self) -> int | None:
        """The pid of the living process, or None."""
        if self._popen is not None:
            self._popen.poll()
        try:
            known = json.loads(self.pid_file.read_text())
            pid, started = int(known["pid"]), float(known["started"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        now = _started_at(pid)
        return pid if now is not None and abs(now - started) < 1.5 else None

    @property
    def started(self) -> float | None:
        """When the living process was started (epoch seconds), or None."""
        pid = self.pid
        return _started_at(pid) if pid is not None else None

    @property
    def alive(self) -> bool:
        """Whether the process lives."""
        return self.pid is not None

    def spawn(
        self,
        command: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        """Start the process in a session of its own, so that Ctrl-C reaches only us."""
        self.run_dir.mkdir(parents=True, exist_ok=True)
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        with self.log_file.open("ab") as log:
            self._popen = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=dict(env) if env is not None else None,
                cwd=cwd or PROJECT,
                start_new_session=True,
            )
        pid = self._popen.pid
        started = _started_at(pid)
        temporary = self.pid_file.with_suffix(".tmp")
        temporary.write_text(json.dumps({"pid": pid, "started": started or time.time()}))
        temporary.replace(self.pid_file)

    def kill(self) -> None:
        """End the process at once (SIGKILL) and wait until it is gone."""
        self._end(signal.SIGKILL, 10)

    def stop(self, timeout: float = 20) -> None:
        """Ask the process to end (SIGTERM); after `timeout` seconds it is killed."""
        try:
            self._end(signal.SIGTERM, timeout)
        except TimeoutError:
            self._end(signal.SIGKILL, 10)
        self.pid_file.unlink(missing_ok=True)

    def _end(self, how: signal.Signals, timeout: float) -> None:
        pid = self.pid
        if pid is None:
            return
        # The whole session: gunicorn has workers, and process mode has Python workers.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if how == signal.SIGKILL:
                os.killpg(pid, how)
            else:
                os.kill(pid, how)
        wait_until(lambda: not self.alive, timeout, every=0.05, what=f"the end of {self.name}")
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)

    def wait_ready(
        self,
        ready: Callable[[], bool],
        timeout: float,
        *,
        remedy: str = "",
        log: Path | None = None,
    ) -> None:
        """Wait until the server answers; a server that died or stays silent raises StackError."""
        log_file = log if log is not None and log.exists() else self.log_file
        deadline = time.monotonic() + timeout
        while not ready():
            if not self.alive:
                raise StackError(self.name, "ended while starting", remedy, tail(log_file))
            if time.monotonic() > deadline:
                problem = f"did not answer within {timeout:.0f} s"
                raise StackError(self.name, problem, remedy, tail(log_file))
            time.sleep(0.1)


class Guardian:
    """A small process that ends the servers when we die, however we die.

    It holds the other end of a pipe: when this process is gone (SIGKILL too), the kernel closes
    the pipe and the guardian kills every process that has a pid file in the run folder. The
    usual way, PR_SET_PDEATHSIG, fires when the starting THREAD ends, and servers are started by
    threads here.
    """

    def __init__(self, run_dir: Path) -> None:
        self._popen = subprocess.Popen(
            [sys.executable, "-m", "local.guardian", str(run_dir)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=PROJECT,
            start_new_session=True,
        )

    def release(self) -> None:
        """Close the pipe; the guardian ends what is left, then itself."""
        if self._popen.stdin is not None:
            self._popen.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(30)
