"""What the servers that keep data share: their folders and their life cycle."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

from local.processes import LOOPBACK, ServerProcess, tail


class DataServer(ABC):
    """One server process on a port, whose data outlives it."""

    def __init__(
        self, name: str, conf_file: str, root: Path, port: int, heap: str, host: str = LOOPBACK
    ) -> None:
        self.host = host
        self.port = port
        self.heap = heap
        self._data = root / "data" / name
        self._conf = root / "conf" / name / conf_file
        self._log = root / "logs" / f"{name}.log"
        self.process = ServerProcess(name, root / "run", root / "logs" / f"{name}.out")

    @abstractmethod
    def _spawn(self) -> None:
        """Write the configuration and start the process; the folders are there."""

    @abstractmethod
    def answers(self) -> bool:
        """Whether the server answers a client."""

    def launch(self) -> None:
        """Start the process (a no-op if it lives) without waiting for it."""
        if self.process.alive:
            return
        for folder in (self._conf.parent, self._data, self._log.parent):
            folder.mkdir(parents=True, exist_ok=True)
        self._spawn()

    def wait_ready(self, timeout: float = 120) -> None:
        """Wait until the server answers."""
        remedy = f"read {self._log}; `make reset` deletes its data"
        self.process.wait_ready(self.answers, timeout, remedy=remedy, log=self._log)

    def start(self, timeout: float = 120) -> None:
        """Start the server (a no-op if it lives) and wait until it answers."""
        self.launch()
        self.wait_ready(timeout)

    def kill(self) -> None:
        """SIGKILL; `start` brings it back on the same port with its data."""
        self.process.kill()

    def stop(self) -> None:
        """Orderly end: it flushes what it holds."""
        self.process.stop(30)

    def log_tail(self) -> str:
        """The last lines of the server's log."""
        return tail(self._log)
