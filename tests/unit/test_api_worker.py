"""The worker's threads: they stay with a connection only where nobody else can need them."""

from __future__ import annotations

import io
import socket
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from gunicorn.workers.gthread import ThreadWorker

from api.worker import StayingThreadWorker


@pytest.fixture
def sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    yield ours, theirs
    ours.close()
    theirs.close()


def worker(*, connections: int = 1, threads: int = 2, alive: bool = True) -> StayingThreadWorker:
    made = StayingThreadWorker.__new__(StayingThreadWorker)
    made.alive = alive
    made.nr_conns = connections
    made.cfg = SimpleNamespace(threads=threads, is_ssl=False)
    return made


def connection(sock: socket.socket, read_ahead: bytes = b"", *, http2: bool = False) -> Any:
    unreader = SimpleNamespace(buf=io.BytesIO(read_ahead))
    return SimpleNamespace(sock=sock, is_http2=http2, parser=SimpleNamespace(unreader=unreader))


def handled(
    monkeypatch: pytest.MonkeyPatch, made: StayingThreadWorker, conn: Any, results: list[Any]
) -> tuple[Any, int]:
    """What `handle` returns when gunicorn's returns ``results``, and how many of them it took."""
    left = list(results)

    def handle(_self: object, _conn: object) -> Any:
        conn.sock.recv(1)
        return left.pop(0)

    monkeypatch.setattr(ThreadWorker, "handle", handle)
    return made.handle(conn), len(results) - len(left)


def test_thread_takes_requests_that_come_at_once(
    sockets: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = sockets
    theirs.sendall(b"123")
    assert handled(monkeypatch, worker(), connection(ours), [True] * 3) == (True, 3)


def test_connection_that_is_not_kept_is_given_back_at_once(
    sockets: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = sockets
    theirs.sendall(b"123")
    deferred = object()
    conn = connection(ours)
    assert handled(monkeypatch, worker(), conn, [False, True]) == (False, 1)
    assert handled(monkeypatch, worker(), conn, [deferred, True]) == (deferred, 1)


@pytest.mark.parametrize(
    ("made", "conn"),
    [
        (worker(connections=3, threads=2), {}),
        (worker(alive=False), {}),
        (worker(), {"http2": True}),
        (worker(), {"read_ahead": b"GET"}),
    ],
)
def test_thread_does_not_stay_where_it_must_not(
    sockets: tuple[socket.socket, socket.socket],
    monkeypatch: pytest.MonkeyPatch,
    made: StayingThreadWorker,
    conn: dict[str, Any],
) -> None:
    ours, theirs = sockets
    theirs.sendall(b"123")
    assert handled(monkeypatch, made, connection(ours, **conn), [True] * 3) == (True, 1)


@pytest.mark.parametrize("change", [{"alive": False}, {"nr_conns": 3}])
def test_waiting_thread_leaves_when_it_is_needed(
    sockets: tuple[socket.socket, socket.socket],
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any],
) -> None:
    monkeypatch.setattr("api.worker.STAY_SECONDS", 3600.0)
    ours, _theirs = sockets
    made = worker(threads=2)
    left = threading.Event()

    def wait() -> None:
        assert not made._next_comes(connection(ours))
        left.set()

    threading.Thread(target=wait, daemon=True).start()
    assert not left.wait(0.1)
    for name, value in change.items():
        setattr(made, name, value)
    assert left.wait(10)


def test_silent_connection_goes_back_to_the_poller(
    sockets: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.worker.STAY_SECONDS", 0.05)
    assert not worker()._next_comes(connection(sockets[0]))
