"""The sending connection, with a socket that takes as much as the test says."""

from __future__ import annotations

import ssl
from collections import deque
from threading import Lock
from typing import Any

import pytest
from cassandra.io import libevreactor

from connectors.cassandra_connection import CONNECTION_CLASS


class Socket:
    def __init__(self) -> None:
        self.sent = b""
        self.room: int | OSError = 1_000_000

    def send(self, data: bytes) -> int:
        if isinstance(self.room, OSError):
            raise self.room
        taken = min(self.room, len(data))
        self.room -= taken
        self.sent += data[:taken]
        if not taken:
            raise BlockingIOError(11, "full")
        return taken


class Loop:
    woken = 0

    def notify(self) -> None:
        self.woken += 1


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Loop:
    made = Loop()
    monkeypatch.setattr(libevreactor, "_global_loop", made)
    return made


def connection(socket: Socket) -> Any:
    """A connection that is made but for its network."""
    made = object.__new__(CONNECTION_CLASS)
    made.deque, made._deque_lock, made._sending = deque(), Lock(), Lock()
    made._socket, made._socket_writable = socket, True
    made.defuncts = []
    made.defunct = made.defuncts.append
    return made


def test_a_request_leaves_at_once_and_wakes_nobody(loop: Loop) -> None:
    made = connection(Socket())
    made.push(b"request")
    assert (made._socket.sent, list(made.deque), loop.woken) == (b"request", [], 0)


@pytest.mark.parametrize("room", [0, 3])
def test_what_the_socket_does_not_take_waits_in_order(loop: Loop, room: int) -> None:
    made = connection(Socket())
    made._socket.room = room
    made.push(b"first")
    made.push(b"second")
    assert made._socket.sent + b"".join(made.deque) == b"firstsecond"
    assert loop.woken == 2

    made._socket.room = 1_000_000
    # Still behind what waits.
    made.push(b"third")
    made.handle_write(None, libevreactor.libev.EV_WRITE)
    assert made._socket.sent == b"firstsecondthird"
    assert not made.deque


def test_a_broken_socket_is_found_by_the_event_loop(loop: Loop) -> None:
    made = connection(Socket())
    made._socket.room = error = ConnectionResetError(104, "reset")
    made.push(b"request")
    assert (made.defuncts, list(made.deque), loop.woken) == ([], [b"request"], 1)
    made.handle_write(None, libevreactor.libev.EV_WRITE)
    assert made.defuncts == [error]


def test_tls_is_left_to_the_event_loop(loop: Loop) -> None:
    made = connection(Socket())
    made.ssl_context = ssl.create_default_context()
    made.push(b"request")
    assert (made._socket.sent, list(made.deque), loop.woken) == (b"", [b"request"], 1)
