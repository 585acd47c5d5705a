"""Trending and newest lists: what the job saves equals an independent recomputation."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable

import pytest

from connectors.cassandra_schema import ALL_SCOPE, NEWEST_SCOPE, category_scope, newest_scope
from local.stack import Stack
from tests.integration.helpers import (
    SPACE,
    Pipeline,
    click,
    clustered_vectors,
    eventually,
    now_ms,
    poisoned_events,
)
from udfs.schemas import MAX_FUTURE_MS, Event, Product

pytestmark = pytest.mark.timeout(240)

HALF_LIFE_MS = 3_600_000
WEIGHTS = {"click": 1.0, "add_to_cart": 2.0, "purchase": 3.0}
LENGTH = 5
OPTIONS = ("--tick-ms", "200", "--trending-half-life-hours", "1")
VECTORS = clustered_vectors(12)
# An id may hold what separates elsewhere.
NAMES = [*(f"p{number}" for number in range(10)), "comma, 'quote' ü"]


def category_of(name: str) -> str:
    return "cameras" if NAMES.index(name) % 2 else "phones"


def upsert(pipeline: Pipeline, *names: str, in_stock: bool = True) -> None:
    pipeline.upsert(
        (Product(one, SPACE, "", title=one, category=category_of(one), in_stock=in_stock), vector)
        for one, vector in zip(names, VECTORS, strict=False)
    )


def saved(pipeline: Pipeline, scope: str) -> tuple[list[tuple[str, float]], int]:
    for row in pipeline.query(
        "SELECT scope, items, toUnixTimestamp(generated_at) AS at FROM {}.trending"
    ):
        if row.scope == scope:
            return [(one[0], one[1]) for one in row.items or ()], row.at
    return [], 0


def expected(
    events: list[Event], at_ms: int, keep: Callable[[str], bool]
) -> list[tuple[str, float]]:
    """Decayed counts as the definition has them, without landmarks."""
    counts: dict[str, float] = defaultdict(float)
    for event in events:
        weight = WEIGHTS.get(event.type, 0.0)
        if event.product_id is not None and keep(event.product_id) and weight:
            counts[event.product_id] += weight * 2.0 ** (-(at_ms - event.ts) / HALF_LIFE_MS)
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:LENGTH]


def wait_trending(pipeline: Pipeline, scope: str, keep: Callable[[str], bool]) -> None:
    def complaint() -> str:
        found, at = saved(pipeline, scope)
        wanted = expected(pipeline.ledger.acknowledged, at or now_ms(), keep)
        if [one for one, _ in found] != [one for one, _ in wanted]:
            return f"{scope}: {found}, not {wanted}\n{pipeline.failures()}"
        wrong = [
            (name, score, right)
            for (name, score), (_, right) in zip(found, wanted, strict=True)
            if score != pytest.approx(right, rel=0.01)
        ]
        return f"{scope}: {wrong}" if wrong else ""

    eventually(complaint, 60)


def wait_newest(pipeline: Pipeline, scope: str, wanted: list[str]) -> None:
    def complaint() -> str:
        found = [one for one, _ in saved(pipeline, scope)[0]]
        return "" if found == wanted else f"{scope}: {found}, not {wanted}\n{pipeline.failures()}"

    eventually(complaint, 60)


def mixed_events(round_: int) -> list[Event]:
    """Events of each product: all kinds and ages, none of them in the order of its time."""
    now = now_ms()
    kinds = [*WEIGHTS, "scroll", "dislike"]
    found = []
    for at, name in enumerate(NAMES):
        for number in range(3 * at + round_ + 1):
            # Seven kinds of age: below one epoch's carry, so that a new epoch has them too.
            age = (number * 7 + at) % 7 * HALF_LIFE_MS
            kind = kinds[(number + round_) % len(kinds)]
            more = {"dwell_ms": 10} if kind == "scroll" else {}
            found.append(click(f"u{number % 5}", name, kind, ts=now - age, **more))
    return found


def test_lists_equal_a_recomputation_and_survive_a_stop(stack: Stack) -> None:
    with Pipeline.create(stack, "trending", *OPTIONS, "--trending-length", str(LENGTH)) as pipeline:
        old, new = NAMES[:-2], NAMES[-2:]
        upsert(pipeline, *old)
        # The time of first sight is counted in seconds.
        time.sleep(1.1)
        upsert(pipeline, *new[:1])
        time.sleep(1.1)
        upsert(pipeline, *new[1:])
        pipeline.submit()
        pipeline.poison({"garbage": poisoned_events()["garbage"]})
        future = click("u1", "p0", "purchase", ts=now_ms() + 2 * MAX_FUTURE_MS)
        pipeline.send([future, *mixed_events(0)])
        pipeline.ledger.acknowledged.remove(future)
        gone: set[str] = set()

        def cameras(name: str) -> bool:
            return category_of(name) == "cameras" and name not in gone

        def all_of_them() -> None:
            wait_trending(pipeline, ALL_SCOPE, lambda name: name not in gone)
            wait_trending(pipeline, category_scope("cameras"), cameras)

        all_of_them()
        newest = [*reversed(new), *sorted(old)]
        wait_newest(pipeline, NEWEST_SCOPE, newest[:LENGTH])
        wait_newest(
            pipeline, newest_scope("cameras"), [one for one in newest if cameras(one)][:LENGTH]
        )

        # Out of stock, and deleted: both are the best of their lists.
        upsert(pipeline, NAMES[-1], in_stock=False)
        pipeline.delete(NAMES[-2])
        gone.update(NAMES[-2:])
        all_of_them()
        wait_newest(pipeline, NEWEST_SCOPE, newest[2 : LENGTH + 2])

        savepoint = stack.flink.stop_with_savepoint(pipeline.job)
        pipeline.send(mixed_events(1))
        pipeline.query("TRUNCATE {}.trending")
        pipeline.submit(parallelism=2, savepoint=savepoint)
        # The counts of before the stop are in the sums, and nothing was counted twice.
        all_of_them()
        # Back in stock it has its count, and is not new.
        upsert(pipeline, NAMES[-1])
        gone.remove(NAMES[-1])
        all_of_them()
        wait_newest(pipeline, NEWEST_SCOPE, [NAMES[-1], *newest[2 : LENGTH + 1]])

        # A scope that nothing is left of is saved as empty.
        for name in NAMES:
            if cameras(name):
                pipeline.delete(name)
                gone.add(name)
        all_of_them()
        assert saved(pipeline, category_scope("cameras"))[0] == []


def test_lists_that_cannot_be_saved_do_not_hold_up_the_recommender(stack: Stack) -> None:
    with Pipeline.create(stack, "apart", *OPTIONS) as pipeline:
        upsert(pipeline, *NAMES)
        pipeline.submit()
        pipeline.send([click("u1", "p1")])
        pipeline.wait_saved()
        eventually(lambda: "" if saved(pipeline, ALL_SCOPE)[0] else pipeline.failures(), 60)

        pipeline.query("DROP TABLE {}.trending")
        pipeline.send([click("u2", "p2")])
        eventually(lambda: "" if stack.flink.restarts(pipeline.job) else "no restart", 60)
        pipeline.send([click("u3", "p3")])
        pipeline.wait_saved()
        pipeline.wait_list("u3", lambda found: "p3" in found.product_ids, "p3 is not listed")
        # Its counter began with the job: the recommender was not restarted.
        pipeline.wait_metric("events", 3)

        pipeline.create_tables()
        pipeline.send([click("u4", "p4")])
        wait_trending(pipeline, ALL_SCOPE, lambda _name: True)
