"""The service under gunicorn, as the integration tests start it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests

from local.processes import LOOPBACK, PROJECT, free_ports
from tests.integration.helpers import eventually


class Service:
    """A running gunicorn."""

    def __init__(self, process: subprocess.Popen[bytes], url: str, log: Path) -> None:
        self.process = process
        self.url = url
        self.log = log

    def ask(self, method: str, path: str, **given: Any) -> requests.Response:
        return requests.request(method, self.url + path, timeout=30, **given)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(40)

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]


@contextmanager
def serving(
    stack: Any, folder: Path, readiness: int = 200, /, **variables: str
) -> Iterator[Service]:
    """Start gunicorn with two workers and ``variables``; wait until both say ``readiness``."""
    (port,) = free_ports(1)
    log = folder / "service.log"
    environment = {
        **os.environ,
        "RECOMMENDER_CASSANDRA_HOSTS": stack.cassandra.host,
        "RECOMMENDER_CASSANDRA_PORT": str(stack.cassandra.port),
        "RECOMMENDER_KAFKA_BOOTSTRAP": stack.kafka.bootstrap,
        "RECOMMENDER_API_BIND": f"{LOOPBACK}:{port}",
        "RECOMMENDER_API_WORKERS": "2",
        **variables,
    }
    command = [sys.executable, "-m", "gunicorn", "-c", "api/gunicorn.conf.py"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=PROJECT, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
    service = Service(process, f"http://{LOOPBACK}:{port}", log)

    def down() -> str:
        assert process.poll() is None, log.read_text()
        try:
            # Each worker answers for itself.
            answers = [service.ask("GET", "/health/ready").status_code for _ in range(6)]
        except requests.RequestException as error:
            return str(error)
        return "" if set(answers) == {readiness} else f"/health/ready answers {answers}"

    try:
        eventually(down, 60)
        yield service
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
