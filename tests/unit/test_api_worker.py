"""The worker: where its threads stay, who accepts, and that sparing calls changes no answer."""

from __future__ import annotations

import io
import logging
import socket
import threading
from collections import deque
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from gunicorn.http.body import ChunkedReader, LengthReader
from gunicorn.workers.gthread import _DEFER, ThreadWorker

from api.worker import MAX_YIELD_SECONDS, SparingSocket, StayingThreadWorker


@pytest.fixture
def sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    yield ours, theirs
    ours.close()
    theirs.close()


class Connection(SimpleNamespace):
    """As gunicorn's, told apart by identity."""

    __hash__ = object.__hash__  # type: ignore[assignment]


def worker(*, connections: int = 1, threads: int = 2, alive: bool = True) -> StayingThreadWorker:
    made = StayingThreadWorker.__new__(StayingThreadWorker)
    made.alive = alive
    made.nr_conns = connections
    made.cfg = SimpleNamespace(threads=threads, is_ssl=False)
    made.log = logging.getLogger("worker")
    made.keepalived_conns = deque()
    made._until = {}
    return made


def connection(sock: socket.socket, read_ahead: bytes = b"", *, http2: bool = False) -> Any:
    unreader = SimpleNamespace(buf=io.BytesIO(read_ahead))
    return Connection(
        sock=sock, is_http2=http2, initialized=True, parser=SimpleNamespace(unreader=unreader)
    )


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


def test_connection_that_is_not_kept_has_ended_before_the_main_thread_closes_it(
    sockets: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.worker.END_SECONDS", 0.01, raising=False)
    ours, theirs = sockets
    theirs.sendall(b"GET")
    handled(monkeypatch, worker(), connection(ours), [False])
    # The client sees the end, and keeps its own side open: nobody has to wait for it any more.
    assert theirs.recv(1) == b""
    ours.setblocking(False)
    assert ours.recv(1) == b""


def test_connection_that_is_closed_already_ends_too(
    sockets: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    conn = connection(sockets[0])
    monkeypatch.setattr(ThreadWorker, "handle", lambda _self, conn: conn.sock.close() or False)
    assert worker().handle(conn) is False


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


class TestSlowClient:
    """What a client may take; the clock is the test's."""

    @pytest.fixture(autouse=True)
    def clock(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr("api.worker.time.monotonic", lambda: self.now)

    def handled_while(
        self,
        monkeypatch: pytest.MonkeyPatch,
        made: StayingThreadWorker,
        conn: Any,
        meanwhile: Any,
        *,
        kept: bool = False,
    ) -> None:
        """Handle a request of ``conn``, and call ``meanwhile`` while a thread is at it."""

        def handle(_self: object, _conn: object) -> bool:
            meanwhile()
            return kept

        monkeypatch.setattr(ThreadWorker, "handle", handle)
        made.handle(conn)

    def test_connection_without_the_head_of_a_request_is_shut_down_in_time(
        self, sockets: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ours, theirs = sockets
        made = worker()
        seen: list[bytes | None] = []

        def meanwhile() -> None:
            for seconds in (made.header_seconds, 0.1):
                self.now += seconds
                made.murder_keepalived()
                theirs.setblocking(False)
                try:
                    seen.append(theirs.recv(1))
                except BlockingIOError:
                    seen.append(None)
            # What the thread at it sees.
            assert ours.recv(1) == b""

        self.handled_while(monkeypatch, made, connection(SparingSocket(ours)), meanwhile)  # type: ignore[arg-type]
        assert seen == [None, b""]

    def test_a_request_that_has_begun_may_take_longer_and_not_for_ever(
        self, sockets: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ours, theirs = sockets
        made = worker()
        conn = connection(ours)

        def answer(_self: object, _req: object, _conn: object) -> None:
            self.now += made.client_seconds
            made.murder_keepalived()
            theirs.sendall(b"x")
            assert ours.recv(1) == b"x"
            self.now += 0.1
            made.murder_keepalived()
            assert ours.recv(1) == b""

        monkeypatch.setattr(ThreadWorker, "handle_request", answer)
        self.handled_while(monkeypatch, made, conn, lambda: made.handle_request(None, conn))

    def test_a_connection_that_waits_for_its_next_request_is_left_alone(
        self, sockets: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ours, theirs = sockets
        made = worker(connections=3, threads=2)
        self.handled_while(monkeypatch, made, connection(ours), lambda: None, kept=True)
        self.now += 1e6
        made.murder_keepalived()
        theirs.sendall(b"x")
        assert ours.recv(1) == b"x"

    def test_silent_new_connection_goes_to_the_poller_and_no_thread_waits_for_it(
        self, sockets: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        waited: list[float] = []
        conn = connection(sockets[0])
        conn.initialized = False
        conn.wait_for_data = lambda seconds: waited.append(seconds)
        monkeypatch.setattr(ThreadWorker, "handle", lambda _self, _conn: pytest.fail("handled"))
        assert worker().handle(conn) is _DEFER
        assert sum(waited) <= 0.1


class Recorded:
    """A socket that keeps what is called."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def sendall(self, data: bytes) -> None:
        self.calls.append(data)

    def gettimeout(self) -> float | None:
        return None

    def setblocking(self, flag: bool) -> None:
        self.calls.append(flag)

    def fileno(self) -> int:
        self.calls.append("fileno")
        return 7


class TestSparingSocket:
    def test_head_leaves_with_the_first_of_the_body(self) -> None:
        plain = Recorded()
        sparing = SparingSocket(plain)
        for _ in range(2):
            sparing.begin()
            sparing.sendall(b"head ")
            sparing.sendall(b"body")
            sparing.sendall(b"more")
            sparing.flush()
        assert plain.calls == [b"head body", b"more"] * 2

    def test_head_without_a_body_leaves_at_the_end_and_once(self) -> None:
        plain = Recorded()
        sparing = SparingSocket(plain)
        sparing.begin()
        sparing.sendall(b"head")
        assert plain.calls == []
        sparing.flush()
        sparing.flush()
        assert plain.calls == [b"head"]

    def test_whoever_uses_the_socket_itself_finds_the_head_sent(self) -> None:
        plain = Recorded()
        sparing = SparingSocket(plain)
        sparing.begin()
        sparing.sendall(b"head")
        assert sparing.fileno() == 7
        assert plain.calls == [b"head", "fileno"]

    def test_only_a_change_of_the_mode_is_passed_on(self) -> None:
        plain = Recorded()
        sparing = SparingSocket(plain)
        sparing.setblocking(True)
        assert plain.calls == []
        sparing.setblocking(False)
        assert plain.calls == [False]


class TestRequest:
    def conn(self, sock: Any, reader: Any) -> Any:
        mesg = SimpleNamespace(body=SimpleNamespace(reader=reader))
        return Connection(sock=sock, parser=SimpleNamespace(mesg=mesg))

    def test_answer_is_sent_also_after_a_failure(self, monkeypatch: pytest.MonkeyPatch) -> None:
        plain = Recorded()
        conn = self.conn(plain, None)

        def fails(_self: object, _req: object, conn: Any) -> None:
            conn.sock.sendall(b"head")
            msg = "fails"
            raise KeyError(msg)

        monkeypatch.setattr(ThreadWorker, "handle_request", fails)
        with pytest.raises(KeyError, match="fails"):
            worker().handle_request(None, conn)
        assert plain.calls == [b"head"]
        assert conn.sock is plain

    @pytest.mark.parametrize(
        ("reader", "drained"),
        [
            (LengthReader(None, 0), False),
            (LengthReader(None, 5), True),
            (ChunkedReader.__new__(ChunkedReader), True),
        ],
    )
    def test_only_a_body_is_drained(
        self, monkeypatch: pytest.MonkeyPatch, reader: Any, drained: bool
    ) -> None:
        seen: list[object] = []

        def drain(_self: object, conn: object, _keepalive: object) -> bool:
            seen.append(conn)
            return False

        monkeypatch.setattr(ThreadWorker, "_keepalive_after", drain)
        conn = self.conn(None, reader)
        assert worker()._keepalive_after(conn, keepalive=True) is not drained
        assert bool(seen) is drained
        # A connection that is not kept is gunicorn's business.
        assert not worker()._keepalive_after(conn, keepalive=False)


@pytest.mark.parametrize(
    ("workers", "connections", "waits"), [(2, 0, False), (1, 3, False), (2, 1, True), (2, 99, True)]
)
def test_worker_with_connections_lets_others_accept_first(
    monkeypatch: pytest.MonkeyPatch, workers: int, connections: int, waits: bool
) -> None:
    done: list[Any] = []
    monkeypatch.setattr("time.sleep", done.append)
    monkeypatch.setattr(ThreadWorker, "accept", lambda _self, listener: done.append(listener))
    made = worker(connections=connections)
    made.cfg.workers = workers
    made.accept("listener")
    assert done[-1] == "listener"
    assert (len(done) == 2) is waits
    assert all(0 < pause <= MAX_YIELD_SECONDS for pause in done[:-1])
