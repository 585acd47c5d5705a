"""Batches that nobody waits for: few at once, made late, and no failure stops the others."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from connectors.background_sender import AT_ONCE, BackgroundSender

NO_REPLICA = RuntimeError("a replica is away")


class Server:
    """Takes batches, and answers them when it is told to, or at once."""

    def __init__(self) -> None:
        self.at_once = False
        self.fails: Callable[[str], bool] = lambda _: False
        self.unanswered: list[tuple[str, Callable[[Any], None], Callable[[Any], None]]] = []
        self.sent: list[str] = []
        self.made = 0
        self.errors: list[BaseException] = []

    def series(self, name: str, length: int = 3) -> Iterator[str]:
        for number in range(length):
            self.made += 1
            yield f"{name}/{number}"

    def send(self, batch: str) -> Server:
        self.sent.append(batch)
        return self

    def add_callbacks(self, done: Callable[[Any], None], failed: Callable[[Any], None]) -> None:
        self.unanswered.append((self.sent[-1], done, failed))
        if self.at_once:
            self.answer()

    def answer(self) -> None:
        batch, done, failed = self.unanswered.pop(0)
        if self.fails(batch):
            failed(NO_REPLICA)
        else:
            done(None)


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def sender(server: Server) -> BackgroundSender:
    return BackgroundSender(server.send, server.errors.append)


def test_few_are_under_way_and_the_others_are_not_even_made(
    server: Server, sender: BackgroundSender
) -> None:
    for number in range(100):
        sender.add(server.series(str(number)))
    assert server.made == len(server.unanswered) == AT_ONCE
    most = 0
    while server.unanswered:
        server.answer()
        most = max(most, len(server.unanswered))
        assert server.made <= len(server.sent) + 1
    assert most == AT_ONCE
    assert sorted(server.sent) == sorted(f"{n}/{at}" for n in range(100) for at in range(3))


def test_batches_of_a_series_follow_one_another(server: Server, sender: BackgroundSender) -> None:
    sender.add(server.series("a"))
    for number in range(3):
        assert server.sent[-1] == f"a/{number}"
        assert len(server.unanswered) == 1
        server.answer()
    assert len(server.sent) == 3


def test_failure_ends_its_series_alone(server: Server, sender: BackgroundSender) -> None:
    server.fails = lambda batch: batch in ("3/0", "7/1")
    for number in range(30):
        sender.add(server.series(str(number)))
    while server.unanswered:
        server.answer()
    assert server.errors == [NO_REPLICA] * 2
    assert {"3/1", "7/2"}.isdisjoint(server.sent)
    assert len(server.sent) == 3 * 30 - 3


def test_what_cannot_be_sent_is_a_failure_too(server: Server) -> None:
    def send(_: str) -> Server:
        raise NO_REPLICA

    sender = BackgroundSender(send, server.errors.append)
    for number in range(2 * AT_ONCE):
        sender.add(server.series(str(number)))
    assert len(server.errors) == 2 * AT_ONCE


@pytest.mark.parametrize("fails", [False, True])
def test_answers_at_once_do_not_nest(
    server: Server, sender: BackgroundSender, *, fails: bool
) -> None:
    for number in range(5000):
        sender.add(server.series(str(number)))
    server.at_once = True
    server.fails = lambda _: fails
    server.answer()
    while server.unanswered:
        server.answer()
    assert len(server.errors) == (5000 if fails else 0)
    assert len(server.sent) == (5000 if fails else 15_000)


def test_answers_of_several_threads_lose_no_turn(server: Server, sender: BackgroundSender) -> None:
    for number in range(400):
        sender.add(server.series(str(number)))

    def answer() -> None:
        while len(server.sent) < 1200 or server.unanswered:
            with contextlib.suppress(IndexError):
                server.answer()

    threads = [threading.Thread(target=answer, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(server.sent) == len(set(server.sent)) == 1200


def test_what_has_not_begun_is_forgotten_at_the_end(
    server: Server, sender: BackgroundSender
) -> None:
    for number in range(3 * AT_ONCE):
        sender.add(server.series(str(number)))
    sender.close()
    while server.unanswered:
        server.answer()
    assert len(server.sent) == 3 * AT_ONCE
    assert server.sent[-1].startswith(tuple(str(number) for number in range(AT_ONCE)))
