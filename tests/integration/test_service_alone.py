"""The service under gunicorn with its stores away: what needs none of them."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import psutil
import pytest
import requests
import yaml
from prometheus_client.parser import text_string_to_metric_families

from api.access import ApiKey, hash_key
from local.processes import LOOPBACK, PROJECT
from tests.integration.helpers import eventually
from tests.integration.service import Service, serving

THREADS = 3
KEY = "rk_scrapes"
INGEST = "rk_sends"
# Nobody listens there.
NOWHERE: Any = SimpleNamespace(
    cassandra=SimpleNamespace(host=LOOPBACK, port=1), kafka=SimpleNamespace(bootstrap="127.0.0.1:1")
)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    keys = folder / "keys.json"
    keys.write_bytes(
        msgspec.json.encode(
            [
                ApiKey("prometheus", hash_key(KEY), ("metrics",)),
                ApiKey("shop", hash_key(INGEST), ("ingest",)),
            ]
        )
    )
    with serving(
        NOWHERE,
        folder,
        503,
        RECOMMENDER_API_KEYS_FILE=str(keys),
        RECOMMENDER_API_THREADS=str(THREADS),
        RECOMMENDER_API_HEADER_SECONDS="1",
        RECOMMENDER_API_WRITE_TIMEOUT_SECONDS="3",
        RECOMMENDER_API_CLIENT_SECONDS="8",
        RECOMMENDER_API_CATALOGUE_MAX_PRODUCTS="0",
    ) as running:
        yield running


def metrics(service: Service) -> str:
    response = service.ask("GET", "/metrics", headers={"Authorization": f"Bearer {KEY}"})
    assert response.status_code == 200
    return response.text


def events(service: Service) -> dict[str, float]:
    """The counter of events by outcome, over all workers that there have been."""
    return {
        sample.labels["outcome"]: sample.value
        for family in text_string_to_metric_families(metrics(service))
        for sample in family.samples
        if sample.name == "recommender_api_events_total"
    }


@pytest.mark.parametrize("name", ["prometheus.yml", "prometheus-kubernetes.yml"])
def test_secured_service_is_scraped_as_the_shipped_configuration_says(
    service: Service, tmp_path: Path, name: str
) -> None:
    config = yaml.safe_load((PROJECT / "flink-conf" / "prometheus" / name).read_text())
    (job,) = (one for one in config["scrape_configs"] if one["job_name"] == "recommender-api")
    # The key in the file that the configuration names, below another root.
    file = tmp_path / job["authorization"]["credentials_file"].lstrip("/")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(KEY + "\n")
    # As Prometheus does: the file's text without space around it, behind the type.
    authorization = f"{job['authorization'].get('type', 'Bearer')} {file.read_text().strip()}"
    url = f"{job.get('scheme', 'http')}://{service.url.removeprefix('http://')}"
    path = job.get("metrics_path", "/metrics")

    answer = requests.get(url + path, headers={"Authorization": authorization}, timeout=30)

    assert answer.status_code == 200
    assert "recommender_api_requests_total" in answer.text
    assert requests.get(url + path, timeout=30).status_code == 401


_HALF_A_BODY = (
    b"POST /v1/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer rk_sends\r\n"
    b'Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"user_id":'
)


@pytest.mark.parametrize(
    "half",
    [
        b"",
        b"G",
        b"GET /health/live HTTP/1.1\r\nHost: x\r\nX-Never: ",
        _HALF_A_BODY,
    ],
    ids=["nothing", "a letter", "half a head", "half a body"],
)
def test_clients_that_stop_in_the_middle_of_a_request_do_not_hold_the_threads(
    service: Service, half: bytes
) -> None:
    host, port = service.url.removeprefix("http://").split(":")
    with ExitStack() as clients:
        # As many for each of the two workers as it has threads, and then some.
        for _ in range(4 * THREADS):
            client = clients.enter_context(socket.create_connection((host, int(port))))
            client.sendall(half)
        answers = [service.ask("GET", "/health/live").status_code for _ in range(8)]
    assert answers == [200] * 8


@pytest.mark.parametrize(
    "last", [b"GET /health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", b"GET\r\n\r\n"]
)
def test_clients_that_do_not_close_their_side_do_not_stop_the_workers(
    service: Service, last: bytes
) -> None:
    host, port = service.url.removeprefix("http://").split(":")
    workers = psutil.Process(service.process.pid).children()
    with ExitStack() as clients:
        # Two seconds for each would be more than a worker may be silent, and a request waits.
        for _ in range(60):
            client = clients.enter_context(socket.create_connection((host, int(port))))
            client.sendall(last)
        answers = [service.ask("GET", "/health/live").status_code for _ in range(8)]
    assert answers == [200] * 8
    assert set(psutil.Process(service.process.pid).children()) == set(workers)


def test_events_of_a_killed_worker_stay_counted_and_those_in_its_buffer_are_lost(
    service: Service,
) -> None:
    click = {"user_id": "u", "type": "click", "product_id": "p"}
    headers = {"Authorization": f"Bearer {INGEST}"}
    before = events(service)

    sent = 40
    for _ in range(sent):
        response = service.ask("POST", "/v1/events", json=[click] * 5, headers=headers)
        assert response.status_code == 202

    def not_counted() -> str:
        found = events(service)
        return "" if found["sent"] - before["sent"] == 5 * sent else str(found)

    # A worker counts once a second.
    eventually(not_counted, 30)
    workers = [one.pid for one in psutil.Process(service.process.pid).children()]
    assert len(workers) == 2
    for pid in workers:
        os.kill(pid, signal.SIGKILL)

    def forgotten() -> str:
        try:
            found = events(service)
        except requests.RequestException as error:
            return str(error)
        lost = found["lost"] - before["lost"]
        counted = found["sent"] - before["sent"]
        return "" if (lost, counted) == (5 * sent, 5 * sent) else str(found)

    # Kafka was never there.
    eventually(forgotten, 60)
