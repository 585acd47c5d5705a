"""Kill every server while events flow, then account for every event: ``python -m tests.chaos``.

One stream of clicks, searches, purchases and dislikes goes on through all faults, and another one
changes the catalogue: whole records, partial updates, stock, deletions and products that come
back. When both have ended, the tables and the topic of products are compared with a replay of the
catalogue's topic, and so are the lists of each product. Then each user does one thing more, so that
each list is of the final catalogue, and everything that Kafka acknowledged is looked for in
Cassandra and recomputed (:mod:`tests.verification`).

What the kills can and cannot show: a killed process loses its memory, not what it has given to the
operating system. Kafka writes to the page cache before it acknowledges, so a kill loses nothing;
a machine that loses its power could. Cassandra's commit log is synchronised in groups here
(``commitlog_sync: group``): with the default, periodic, even a kill of the process can lose what
was acknowledged within the last moments, because the server does not replay what stands after the
last marker of its log.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import msgspec

from local.cli import CATALOGUE
from local.errors import StackError
from local.stack import Stack, StackConfig
from tests.integration.helpers import (
    SPACE,
    Ledger,
    Letter,
    MissingError,
    Pipeline,
    SteadyStream,
    click,
    clustered_vectors,
    eventually,
    now_ms,
    poisoned_events,
    poisoned_products,
)
from tests.verification import (
    VECTOR_TOLERANCE,
    CatalogueItem,
    Verdict,
    identity,
    verify_catalogue,
)
from udfs.query_encoder import encode_texts
from udfs.schemas import Event, Reason, encode_vector

# Longer than the vectors, so that each user's vector can be recovered from the scores.
LIST_LENGTH: Final = 100
_QUERIES: Final = (
    "wireless mouse",
    "red running shoes",
    "coffee grinder",
    "tent for two",
    "4k monitor",
    "ergonomic office chair",
)
_KINDS: Final = {
    "click": 50,
    "scroll": 25,
    "add_to_cart": 8,
    "purchase": 4,
    "dislike": 3,
    "search": 10,
}
# Where Cassandra moves to; the job knows both addresses from the start, as it would know a name
# that leads to the one and later to the other.
_HOST: Final = "127.0.0.1"
_OTHER_HOST: Final = "127.0.0.9"
# Event times run back by up to this much, so events of a user come out of order.
_JITTER_MS: Final = 5_000
# Changes of the catalogue a second; so few that it is mostly not taken for one that is being read.
_CHANGES: Final = 10
_HOUR_MS: Final = 3_600_000


@lru_cache(maxsize=100)
def encode(query: str) -> Any:
    """Embed a query; None where it has no vector."""
    vector = encode_texts([query])[0]
    return vector if vector.any() else None


@dataclass(frozen=True)
class Fault:
    """One line of the table."""

    name: str
    acknowledged: int
    """Events that Kafka had acknowledged when it began."""
    seconds: float
    """From the fault until the job works and checkpoints again, with the time away."""
    note: str = ""


class Crowd:
    """The made-up users: each call makes one event, or sends it twice, or an order of three."""

    def __init__(self, users: int, products: int, seed: int = 1) -> None:
        self._rng = random.Random(seed)
        self.users = [f"user-{number}" for number in range(users)]
        # Active and quiet users, but none with more interactions in the log's window of
        # duplicates than it holds.
        self._ends = [number**0.6 for number in range(1, users + 1)]
        # The last tenth is never liked: a sum that cancels out has no direction to compare. Half
        # of it is disliked, half of it is never touched and may be deleted.
        self._liked = range(products - products // 10)
        self._disliked = range(self._liked.stop, products - products // 20)
        self.untouched = range(self._disliked.stop, products)

    def __call__(self) -> Sequence[Event]:
        rng = self._rng
        user = rng.choices(self.users, cum_weights=self._ends)[0]
        kind = rng.choices(list(_KINDS), list(_KINDS.values()))[0]
        among = self._disliked if kind == "dislike" else self._liked
        event = click(
            user,
            None if kind == "search" else f"p{rng.choice(among)}",
            kind,
            ts=now_ms() - rng.randrange(_JITTER_MS),
            query=rng.choice(_QUERIES) if kind == "search" else None,
            session_id="s" if rng.random() < 0.5 else None,
        )
        chance = rng.random()
        if chance < 0.02:
            return (event, event)
        if chance < 0.04:
            # A client that sends again gives the same id and, where it is careless, a new time.
            return (event, msgspec.structs.replace(event, ts=event.ts + 1_500))
        if kind == "purchase" and chance < 0.5:
            # The lines of an order have its id.
            others = rng.sample(self._liked, 2)
            lines = (msgspec.structs.replace(event, product_id=f"p{one}") for one in others)
            return (event, *lines)
        return (event,)


class Shop:
    """Changes the catalogue: each call makes one record of its topic.

    Every other product always has its ``updated_at``, some of them late, and the others never: with
    both of one product, records that are merged once more after a failure can be late by then. So
    can one that comes back, if it is older than a partial update before it.
    Products that users touch keep their vectors and stay, since what a user did counts with the
    vector of its time. No title holds a word that is searched for.

    Args:
        vectors: All products, as they were published, shapes (d,).
        free: Those that no user touches.
    """

    def __init__(self, vectors: Mapping[str, Any], free: Sequence[str], seed: int = 2) -> None:
        self._rng = random.Random(seed)
        self._vectors = vectors
        self._all = sorted(vectors)
        self.free = frozenset(free)
        self._free = sorted(free)
        self._gone: set[str] = set()
        self.number = 0

    def __call__(self) -> tuple[str, bytes | None]:
        rng = self._rng
        self.number += 1
        name = rng.choice(self._free if rng.random() < 0.3 else self._all)
        is_free, chance = name in self.free, rng.random()
        if is_free and name not in self._gone and chance < 0.25:
            self._gone.add(name)
            return name, None
        comes_back = name in self._gone and chance < 0.8
        # Of one that is gone, a partial update is a dead letter.
        if comes_back or (name not in self._gone and chance > 0.8):
            self._gone.discard(name)
            said = {**self._texts(name), **self._sold()}
            # One that comes back brings a vector; without one, the vector that was there stays.
            if comes_back or rng.random() < 0.5:
                said |= self._vector(name)
        else:
            kinds: list[Callable[[], dict[str, Any]]] = [
                lambda: self._texts(name),
                self._sold,
                lambda: {"in_stock": self._in_stock()},
            ]
            if is_free:
                kinds.append(lambda: self._vector(name))
            said = {"partial": True, **rng.choice(kinds)()}
        if int(name[1:]) % 2:
            is_late = not comes_back and rng.random() < 0.1
            said["updated_at"] = now_ms() - (_HOUR_MS if is_late else 0)
        return name, json.dumps({"product_id": name, **said}).encode()

    def _texts(self, name: str) -> dict[str, Any]:
        return {
            "title": f"{name} revision{self.number}",
            "category": f"category{self._rng.randrange(5)}",
        }

    def _sold(self) -> dict[str, Any]:
        price = None if self._rng.random() < 0.1 else round(self._rng.uniform(1, 100), 2)
        return {"price": price, "in_stock": self._in_stock()}

    def _in_stock(self) -> bool:
        return self._rng.random() < 0.7

    def _vector(self, name: str) -> dict[str, Any]:
        other = self._rng.choice(self._free) if name in self.free else name
        return {"space": SPACE, "embedding": encode_vector(self._vectors[other])}


class Chaos:
    """The streams, the faults, and the account at the end."""

    def __init__(
        self,
        pipeline: Pipeline,
        *,
        rate: int,
        users: int,
        products: int,
        say: Callable[[str], None] = lambda _text: None,
    ) -> None:
        self.pipeline = pipeline
        self.faults: list[Fault] = []
        self._say = say
        self._flink = pipeline.stack.flink
        self._crowd = Crowd(users, products)
        self._vectors = {f"p{at}": one for at, one in enumerate(clustered_vectors(products))}
        self._shop = Shop(self._vectors, [f"p{number}" for number in self._crowd.untouched])
        ledger = Ledger(pipeline.stack.kafka.bootstrap)
        topic = pipeline.topics[CATALOGUE]

        def act() -> None:
            for event in self._crowd():
                pipeline.post(event)

        def change() -> None:
            name, value = self._shop()
            ledger.send(topic, name.encode(), value)

        self._stream = SteadyStream(pipeline.ledger, act, rate)
        self._changes = SteadyStream(ledger, change, _CHANGES)

    @property
    def changes(self) -> int:
        """How often the shop has changed something."""
        return self._shop.number

    # --- the run -----------------------------------------------------------------------------

    def start(self, parallelism: int) -> None:
        """Publish the catalogue, submit the job and begin the streams."""
        self.pipeline.publish(self._vectors)
        self.pipeline.submit(parallelism)
        self.pipeline.wait_products()
        self._stream.start()
        self._progress("the first events", 90)
        # Behind a checkpoint: the first records have no time, see `Shop`.
        self._changes.start()

    @contextlib.contextmanager
    def _fault(self, name: str, note: str = "") -> Iterator[None]:
        acknowledged, begin = len(self.pipeline.ledger.acknowledged), time.monotonic()
        self._say(f"{name} ...")
        try:
            yield
        except (AssertionError, StackError, TimeoutError) as error:
            msg = f"{name}: {error}\n{self.pipeline.failures()}"
            raise MissingError(msg) from error
        fault = Fault(name, acknowledged, time.monotonic() - begin, note)
        self.faults.append(fault)
        self._say(f"{name}: works again after {fault.seconds:.1f} s")

    def _progress(self, after: str, timeout: float) -> None:
        """Wait until what was acknowledged by now, and more, is saved and a checkpoint stands."""
        flink, pipeline = self._flink, self.pipeline
        target = len({identity(event) for event in pipeline.ledger.acknowledged}) + 1
        completed = flink.checkpoints(pipeline.job).completed

        def complaint() -> str:
            state = flink.job(pipeline.job)["state"]
            checkpoints = flink.checkpoints(pipeline.job)
            if state != "RUNNING" or checkpoints.completed <= completed:
                return f"after {after}: the job is {state}, no checkpoint since: {checkpoints}"
            saved = pipeline.count_events()
            return "" if saved >= target else f"after {after}: {saved} of {target} events are saved"

        eventually(complaint, timeout, every=0.5)

    def _restored(self, before: int, timeout: float) -> None:
        def complaint() -> str:
            now = self._flink.checkpoints(self.pipeline.job).restored
            return "" if now > before else "the job was not restored from a checkpoint"

        eventually(complaint, timeout)

    # --- the faults --------------------------------------------------------------------------

    def kill_task_manager(self, index: int, timeout: float = 120) -> None:
        """Kill -9 a TaskManager and start a replacement."""
        with self._fault("kill -9 TaskManager"):
            before = self._flink.checkpoints(self.pipeline.job).restored
            self._flink.kill_task_manager(index)
            self._flink.start_task_manager(index)
            self._restored(before, timeout)
            self._progress("the restart", timeout)

    def kill_job_manager(self, timeout: float = 120) -> None:
        """Kill -9 the JobManager; then what ``make resume`` does."""
        flink, pipeline = self._flink, self.pipeline
        with self._fault("kill -9 JobManager"):
            flink.job_manager.kill()
            flink.job_manager.start()
            flink.wait_task_managers()

            def slots() -> str:
                free = flink.free_slots()
                wanted = pipeline.parallelism
                return "" if free >= wanted else f"{free} of {wanted} slots are free"

            eventually(slots, timeout)
            path = flink.latest_restore_path()
            if path is None or pipeline.job not in path:
                msg = f"no retained checkpoint of the lost job {pipeline.job}, the newest: {path}"
                raise MissingError(msg)
            pipeline.submit(pipeline.parallelism, savepoint=path)
            self._progress("the resume", timeout)

    def kill_kafka(self, away_s: float, timeout: float = 120) -> None:
        """Kill -9 Kafka, and restart it."""
        with self._fault("kill -9 Kafka", f"{away_s:.0f} s away"):
            self.pipeline.stack.kafka.kill()
            time.sleep(away_s)
            self.pipeline.stack.kafka.start()
            self._progress("the return of Kafka", timeout)

    def kill_cassandra(self, away_s: float, timeout: float = 180) -> None:
        """Kill -9 Cassandra, and restart it; the job must wait without a restart."""
        job = self.pipeline.job
        with self._fault("kill -9 Cassandra", f"{away_s:.0f} s away"):
            before = self._flink.restarts(job)
            self.pipeline.stack.cassandra.kill()
            time.sleep(away_s)
            self.pipeline.stack.cassandra.start()
            self._progress("the return of Cassandra", timeout)
            after = self._flink.restarts(job)
            if after != before:
                msg = f"the job was restarted {after - before} times instead of waiting"
                raise MissingError(msg)

    def starve(self, away_s: float, timeout: float = 240) -> None:
        """Kill -9 Cassandra, and a TaskManager while the others wait for it.

        They must end their wait for Flink: its watchdog kills a TaskManager whose task has not
        ended 180 s after its cancellation.
        """
        flink = self._flink
        with self._fault("Cassandra, TaskManager", f"{away_s:.0f} s away"):
            self.pipeline.stack.cassandra.kill()
            # Until every writer waits.
            time.sleep(15)
            waiting = [one.process.pid for one in flink.task_managers[1:]]
            flink.kill_task_manager(0)
            begin = time.monotonic()
            flink.start_task_manager(0)
            while time.monotonic() < begin + away_s:
                now = [one.process.pid for one in flink.task_managers[1:]]
                if now != waiting:
                    msg = f"a TaskManager ended {time.monotonic() - begin:.0f} s after the other"
                    raise MissingError(msg)
                time.sleep(1)
            self.pipeline.stack.cassandra.start()
            self._progress("the return of both", timeout)

    def move_cassandra(self, timeout: float = 180) -> None:
        """Kill -9 Cassandra and start it under another address; the job must follow it."""
        job, cassandra = self.pipeline.job, self.pipeline.stack.cassandra
        other = _OTHER_HOST if cassandra.host == _HOST else _HOST
        with self._fault("Cassandra moves", other):
            before = self._flink.restarts(job)
            cassandra.kill()
            cassandra.host = other
            cassandra.start()
            self._progress("the move of Cassandra", timeout)
            after = self._flink.restarts(job)
            if after != before:
                msg = f"the job was restarted {after - before} times instead of following"
                raise MissingError(msg)

    def poison(self, timeout: float = 90) -> None:
        """Send each kind of bad event and product."""
        with self._fault("poisoned records"):
            before = self._flink.restarts(self.pipeline.job)
            self.pipeline.poison(poisoned_events())
            self.pipeline.poison(poisoned_products())
            self.pipeline.wait_poison(timeout, self._is_of_shop)
            self._progress("the poison", timeout)
            if self._flink.restarts(self.pipeline.job) != before:
                msg = "a poisoned record restarted the job"
                raise MissingError(msg)

    def rescale(self, parallelism: int, timeout: float = 120) -> None:
        """Stop with a savepoint, and restore at another parallelism."""
        pipeline = self.pipeline
        with self._fault("rescale", f"{pipeline.parallelism} to {parallelism}"):
            path = self._flink.stop_with_savepoint(pipeline.job)
            pipeline.submit(parallelism, savepoint=path)
            self._progress("the rescale", timeout)

    def _is_of_shop(self, letter: Letter) -> bool:
        """Tell whether a letter is a partial update of a product that the shop deletes.

        Which there are is not told: after a failure, one can be merged once more behind a deletion
        or an insertion that followed it.
        """
        return (
            letter.headers["topic"] == self.pipeline.topics[CATALOGUE]
            and letter.headers["reason"] == Reason.UNKNOWN_PRODUCT.value
            and (letter.key or b"").decode() in self._shop.free
        )

    # --- the account -------------------------------------------------------------------------

    def account(self, timeout: float = 180) -> Verdict:
        """End the streams and compare all that is saved with the recomputation."""
        pipeline = self.pipeline
        self._stream.stop()
        self._changes.stop()
        said = pipeline.said()
        pipeline.catalogue = {
            name: CatalogueItem(one.vectors[SPACE], one.in_stock) for name, one in said.items()
        }
        pipeline.wait_saved(timeout)
        pipeline.wait_products(timeout)
        wrong: dict[str, str] = {}

        def difference() -> str:
            nonlocal wrong
            wrong = verify_catalogue(said, pipeline.stored_catalogue(), SPACE)
            return f"{len(wrong)} products differ" if wrong else ""

        # Lists by product are looked at in rounds, 20 products a second and subtask.
        with contextlib.suppress(MissingError):
            eventually(difference, 60 + len(said) / 5, every=2.0)
        # Each list anew, from the final catalogue.
        known = {event.user_id for event in pipeline.ledger.acknowledged}
        pipeline.send([click(user, "p0") for user in sorted(known)])
        pipeline.wait_saved(timeout)
        pipeline.wait_poison(timeout, self._is_of_shop)
        verdicts: list[Verdict] = []

        def complaint() -> str:
            verdicts.append(pipeline.verdict(encode))
            verdicts[-1].products, verdicts[-1].wrong_products = len(said), wrong
            # These were waited for.
            return replace(verdicts[-1], wrong_products={}).problems()

        # What is wrong after that is the result.
        with contextlib.suppress(MissingError):
            eventually(complaint, 20, every=1.0)
        return verdicts[-1]


def summary(chaos: Chaos, verdict: Verdict) -> dict[str, Any]:
    """The last line of the run."""
    return {
        "kills": [fault.name for fault in chaos.faults],
        "events": verdict.events,
        "lost": len(verdict.lost) + len(verdict.altered),
        "duplicated": len(verdict.duplicated) + len(verdict.unexpected),
        "max_vector_error": float(f"{verdict.max_vector_error:.3g}"),
        "wrong_lists": len(verdict.wrong_lists),
        "wrong_products": len(verdict.wrong_products),
    }


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--rate", type=int, default=300, help="events a second (default 300)")
    parser.add_argument("--users", type=int, default=2000, help="users (default 2000)")
    parser.add_argument("--products", type=int, default=1500, help="products (default 1500)")
    parser.add_argument("--away", type=float, default=30, help="s without Cassandra (default 30)")
    parser.add_argument(
        "--starve",
        type=float,
        default=230,
        help="s without Cassandra and with a TaskManager killed; above Flink's 180 s (default 230)",
    )
    parser.add_argument(
        "--only", action="append", default=[], help="a fault by its method's name (repeatable)"
    )
    parser.add_argument("--pause", type=float, default=5, help="s between faults (default 5)")
    return parser.parse_args(arguments)


def _faults(given: argparse.Namespace) -> list[tuple[Any, ...]]:
    """The faults in their order: a method of `Chaos` and its arguments."""
    every: list[tuple[Any, ...]] = [
        ("kill_task_manager", 0),
        ("kill_kafka", 5),
        ("poison",),
        ("kill_cassandra", given.away),
        ("kill_job_manager",),
        ("rescale", 1),
        ("rescale", 2),
        ("starve", given.starve),
        ("move_cassandra",),
        ("kill_task_manager", 1),
    ]
    return [one for one in every if not given.only or one[0] in given.only]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all faults; 0 if nothing was lost, doubled or wrong."""
    given = _parse(arguments)
    # The drivers' own complaints while their server is away are expected.
    logging.getLogger().setLevel(logging.ERROR)
    begin = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - begin:7.1f} s  {text}", flush=True)

    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        config = StackConfig(
            root=Path(folder),
            task_managers=2,
            cassandra_commit_log="group",
            prometheus_ports="9470-9570",
        )
        say("starting Kafka, Cassandra and Flink ...")
        with Stack(config) as stack, _pipeline(stack) as pipeline:
            chaos = Chaos(
                pipeline, rate=given.rate, users=given.users, products=given.products, say=say
            )
            say(f"the job; then {given.rate} events/s of {given.users} users")
            chaos.start(parallelism=2)
            for name, *values in _faults(given):
                getattr(chaos, name)(*values)
                time.sleep(given.pause)
            say("end of the stream; comparing ...")
            verdict = chaos.account()

    print(f"\n{'fault':<24}{'':<12}{'after events':>13}{'works again after':>20}")
    for line in chaos.faults:
        print(f"{line.name:<24}{line.note:<12}{line.acknowledged:>13,}{line.seconds:>18.1f} s")
    print(
        f"\n{verdict.events:,} events of {verdict.users:,} users acknowledged by Kafka;"
        f" {verdict.vectors_compared:,} vectors compared (tolerance {VECTOR_TOLERANCE:g}),"
        f" largest difference of a score {verdict.max_score_error:.1e};"
        f" {len(pipeline.poisoned)} poisoned records whole among the dead letters;"
        f" {verdict.products:,} products compared with a replay of {chaos.changes:,} changes"
    )
    problems = verdict.problems()
    if problems:
        print(problems)
    print(json.dumps(summary(chaos, verdict)))
    return 0 if verdict.right else 1


def _pipeline(stack: Stack) -> Pipeline:
    hosts = ("--cassandra-hosts", f"{_HOST},{_OTHER_HOST}")
    return Pipeline.create(stack, "chaos", *hosts, list_length=LIST_LENGTH, partitions=8)


if __name__ == "__main__":
    sys.exit(main())
