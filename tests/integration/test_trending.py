"""Trending and newest lists: what the job saves equals an independent recomputation."""

from __future__ import annotations

import json
import time
import uuid
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from connectors.cassandra_schema import ALL_SCOPE, NEWEST_SCOPE, category_scope, newest_scope
from job.trending import time_sql
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
from udfs.lenient import time_ms
from udfs.schemas import MAX_FUTURE_MS, MAX_TIMESTAMP_MS, Event, Product

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


# As a whole number and as text, with a zone and without, and what is none.
TIMES = [
    "1732300000123", "1732300000123.0", "1.7323E12", "17323000001235e-1", "1732300000123.5",
    "2024-11-22T18:26:40Z", "2024-11-22T18:26:40.123456Z", "2024-11-22 20:26:40,07+02:00",
    "2024-11-22T12:56:40.9-0530", "2024-11-22t18:26z", "2024-02-29T23:59:59.999+23:59",
    "2024-02-30T00:00:00Z", "2023-02-29T00:00:00Z", "2024-11-22T24:00:00Z",
    "2024-11-22T18:26:60Z", "2024-11-22T18:26:40", "2024-11-22T18:26:40+24:00", "2024-11-22",
    "yesterday", "", "-5", "1e400", "99999999999999999999", "true", "1732300000123\n", "0x10",
]  # fmt: skip


def test_sql_reads_times_as_the_job_does() -> None:
    from pyflink.table import EnvironmentSettings, TableEnvironment

    tables = TableEnvironment.create(EnvironmentSettings.in_batch_mode())
    # No zone of the machine's may matter.
    tables.get_config().set("table.local-time-zone", "Asia/Kolkata")
    rows = tables.from_elements(list(enumerate(TIMES)), ["n", "ts"])
    tables.create_temporary_view("times", rows)
    found = tables.execute_sql(f"SELECT n, {time_sql('ts')} FROM times").collect()
    read = {row[0]: row[1] for row in found}

    def by_the_job(text: str) -> int | None:
        try:
            at = time_ms(text)
        except ValueError:
            return None
        return at if isinstance(at, int) and at <= MAX_TIMESTAMP_MS else None

    wanted = {text: by_the_job(text) for text in TIMES}
    in_range = {
        text: at if at is not None and at <= MAX_TIMESTAMP_MS else None
        for text, at in ((TIMES[n], at) for n, at in read.items())
    }
    assert in_range == wanted
    assert sum(at is not None for at in wanted.values()) == 9


def wire(**changed: object) -> bytes:
    fields = {"event_id": uuid.uuid4().hex, "user_id": "u1", "type": "click", "product_id": "p1"}
    return json.dumps({**fields, "ts": now_ms(), **changed}).encode()


def test_a_repeat_counts_once_and_other_forms_count_as_what_they_mean(stack: Stack) -> None:
    names = [*(f"p{number}" for number in range(6)), "632910392"]
    with Pipeline.create(stack, "repeats", *OPTIONS, partitions=1) as pipeline:
        pipeline.upsert(
            (Product(one, SPACE, "", title=one, category="phones"), vector)
            for one, vector in zip(names, VECTORS, strict=False)
        )
        pipeline.submit()

        def post(key: str, value: bytes) -> None:
            pipeline.ledger.send(pipeline.topics["events"], key.encode(), value)

        at = now_ms()
        iso = datetime.fromtimestamp(at / 1000, UTC).isoformat(timespec="milliseconds")
        # p0: one event four times, also with new times, and one of another user with that id.
        for late in (0, 0, 1500, 2500):
            post("u1", wire(event_id="e1", product_id="p0", ts=at + late))
        post("u2", wire(event_id="e1", product_id="p0", user_id="u2"))
        # p1, p2: two lines of one order.
        for line in ("p1", "p2"):
            post("u1", wire(event_id="order-1", type="purchase", product_id=line))
        # Of each form one, with numbers as ids.
        post("12345", wire(user_id=12345, product_id=632910392, event_id=7, ts=float(at)))
        post("12345", wire(user_id=12345, product_id="632910392", event_id="7", ts=str(at)))
        post("u3", wire(user_id="u3", product_id="p3", ts=iso))
        post("u3", wire(user_id="u3", product_id="p3", ts=iso.replace("+00:00", "Z")))
        # What the recommender refuses does not count: p4 and p5 stay without one.
        for refused in (
            wire(product_id="p4", ts=at // 1000),
            wire(product_id="p4", ts=at * 1000),
            wire(product_id="p4", ts=at + 2 * MAX_FUTURE_MS),
            wire(product_id="p4", ts=iso[:19]),
            wire(product_id="p4", ts=at + 0.5),
            wire(product_id="p4", ts=None),
            wire(product_id="p4", event_id=""),
            wire(product_id="p4", event_id=None),
            wire(product_id="p4", event_id="x" * 129),
        ):
            post("u1", refused)
        post("undefined", wire(product_id="p5", user_id=" Undefined "))
        post("0", wire(product_id="p5", user_id=0))
        post("", wire(product_id="p5", user_id=None))
        # The last: what came before it has been read.
        post("u9", wire(product_id="p3", user_id="u9"))
        pipeline.ledger.flush()

        wanted = {"p0": 2, "p1": 3, "p2": 3, "632910392": 1, "p3": 3}

        def complaint() -> str:
            found = {name: round(score, 1) for name, score in saved(pipeline, ALL_SCOPE)[0]}
            right = found.keys() == wanted.keys() and all(
                found[name] == pytest.approx(count, rel=0.05) for name, count in wanted.items()
            )
            return "" if right else f"{found}, not {wanted}\n{pipeline.failures()}"

        eventually(complaint, 60)


def test_a_record_with_shifted_columns_does_not_reach_the_lists(stack: Stack) -> None:
    with Pipeline.create(stack, "shifted", *OPTIONS, partitions=1) as pipeline:
        upsert(pipeline, *NAMES[:3])
        shifted = Product("shifted", SPACE, "", title="x", category="c" * 70_000)
        pipeline.upsert([(shifted, VECTORS[3])])
        pipeline.upsert([(Product("p3", SPACE, "", title="p3", category="phones"), VECTORS[3])])
        pipeline.submit()
        pipeline.send([click("u1", "shifted"), click("u1", "p3"), click("u1", "p1")])
        pipeline.wait_saved()
        wait_trending(pipeline, ALL_SCOPE, lambda name: name != "shifted")
        newest = [one for one, _ in saved(pipeline, NEWEST_SCOPE)[0]]
        assert sorted(newest) == [*NAMES[:3], "p3"]
        assert stack.flink.restarts(pipeline.job) == 0, pipeline.failures()


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
