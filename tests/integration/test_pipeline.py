"""The whole job on real Kafka, Flink and Cassandra: what goes in, what must stand there then."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from local.stack import Stack
from tests.integration.helpers import (
    DIMENSIONS,
    Pipeline,
    click,
    clustered_vectors,
    eventually,
    now_ms,
    poisoned_events,
    poisoned_products,
)
from tests.verification import VECTOR_TOLERANCE, CatalogueItem, unit
from udfs.query_encoder import encode_texts
from udfs.schemas import Event

PRODUCTS = 300
pytestmark = pytest.mark.timeout(240)

# Longer than the vectors, so that the user's vector can be recovered from the scores.
LIST_LENGTH = 100
QUICK = ("--tick-ms", "200", "--waiting-retry-max-ms", "1000")


def encode(query: str) -> Any:
    vector = encode_texts([query])[0]
    return vector if vector.any() else None


def products(count: int = PRODUCTS, first: int = 0, seed: int = 1) -> dict[str, Any]:
    vectors = clustered_vectors(count, seed)
    return {f"p{first + number}": vector for number, vector in enumerate(vectors)}


def random_events(users: int, count: int, seed: int = 1) -> Iterator[Event]:
    """Events in any order of their times, some of them twice."""
    rng = random.Random(seed)
    kinds = ["click", "scroll", "add_to_cart", "purchase", "dislike", "search"]
    for number in range(count):
        user = f"u{rng.randrange(users)}"
        kind = rng.choices(kinds, (50, 20, 10, 8, 2, 10))[0]
        # What is disliked is never liked: a sum that cancels out has no direction to compare.
        product = rng.randrange(250, 300) if kind == "dislike" else rng.randrange(250)
        event = click(
            user,
            None if kind == "search" else f"p{product}",
            kind,
            event_id=f"e{number}",
            ts=now_ms() - rng.randrange(3 * 3_600_000),
            query=rng.choice(["wireless mouse", "red running shoes"]) if kind == "search" else None,
            dwell_ms=rng.randrange(9000) if kind == "scroll" else None,
            quantity=2 if kind == "purchase" else None,
            session_id="ünïcode" if number % 3 else None,
        )
        yield event
        if number % 20 == 0:
            yield event


def test_events_are_saved_once_and_lists_are_exact_also_for_those_before_the_catalogue(
    stack: Stack,
) -> None:
    with Pipeline.create(stack, "exact", *QUICK, list_length=LIST_LENGTH) as pipeline:
        users = [f"u{number}" for number in range(60)]
        pipeline.send(random_events(users=60, count=1200))
        pipeline.send([click(user, "last") for user in users])
        pipeline.submit(parallelism=2)
        pipeline.wait_saved()
        assert pipeline.lists() == {}

        # Without another event. A list is of the catalogue as far as it had come, so one product
        # that all have touched comes when the others are there.
        pipeline.publish(products())
        pipeline.wait_products()
        pipeline.publish({"last": clustered_vectors(1, seed=8)[0]})
        verdict = pipeline.wait_right(encode)

        assert verdict.events == 1260
        assert verdict.vectors_compared == 60
        assert verdict.max_vector_error < VECTOR_TOLERANCE
        assert sum(stack.flink.metric(pipeline.job, "duplicates")) == 60


def test_bad_records_arrive_among_the_dead_letters_and_good_ones_go_on(stack: Stack) -> None:
    with Pipeline.create(stack, "bad", *QUICK) as pipeline:
        pipeline.publish(products())
        pipeline.submit(parallelism=2)
        pipeline.wait_products()
        pipeline.send([click("before", "p1"), click("bad", "p1")])

        pipeline.poison(poisoned_products())
        pipeline.poison(poisoned_events())
        # The largest that is allowed.
        long_query = click("bad", None, "search", query="wireless mouse " * 4300)
        pipeline.send([click("after", "p2"), click("bad", "p2"), long_query])

        letters = pipeline.wait_poison()
        assert {letter.headers["topic"] for letter in letters} == {
            pipeline.topics["events"],
            pipeline.topics["catalogue"],
        }
        assert all(letter.headers["detail"] and letter.headers["failed_at"] for letter in letters)
        for topic in ("events", "catalogue"):
            letter = next(one for one in letters if one.origin[0] == pipeline.topics[topic])
            assert int(letter.headers["timestamp"]) == pipeline.kafka_time(letter.origin)
        # One of the subtasks speaks for all, and nothing was replayed.
        assert len(letters) == len(pipeline.poisoned)
        verdict = pipeline.wait_right(encode)
        assert verdict.events == 5
        assert stack.flink.restarts(pipeline.job) == 0, pipeline.failures()


def test_shown_catalogue_follows_the_topic(stack: Stack) -> None:
    with Pipeline.create(stack, "shown", *QUICK, partitions=1) as pipeline:
        vectors = products(count=20)
        pipeline.publish(vectors)
        pipeline.submit(parallelism=2)

        def shown() -> dict[str, bool]:
            found = pipeline.query("SELECT product_id, title, in_stock FROM {}.products")
            assert all(row.title == row.product_id for row in found)
            return {row.product_id: row.in_stock for row in found}

        def in_scopes() -> dict[str, int]:
            rows = pipeline.query("SELECT product_id FROM {}.products_by_scope")
            return dict(Counter(row.product_id for row in rows))

        # Without any event.
        eventually(lambda: "" if len(shown()) == 20 else f"{len(shown())} of 20 products", 30)
        assert in_scopes() == dict.fromkeys(vectors, 2)
        pipeline.publish({"p3": vectors["p3"]}, in_stock=False)
        pipeline.delete("p4")
        expected = {one: one != "p3" for one in vectors if one != "p4"}
        eventually(lambda: "" if shown() == expected else f"{shown()}", 30)
        assert in_scopes() == dict.fromkeys(vectors.keys() - {"p3", "p4"}, 2)


def test_erased_user_is_gone_and_others_stay(stack: Stack) -> None:
    with Pipeline.create(stack, "erased", *QUICK) as pipeline:
        pipeline.publish(products())
        pipeline.submit(parallelism=2)
        pipeline.wait_products()
        users = ["gone", "stays", "too"]
        month_ms = 30 * 86_400_000
        pipeline.send(
            click(user, f"p{number}", ts=now_ms() - age)
            for user in users
            for number, age in enumerate((0, month_ms, 100 * 86_400_000))
        )
        pipeline.send(click(user, "p7", "purchase") for user in users)
        pipeline.wait_right()

        pipeline.erase("gone")
        select = "SELECT done_at FROM {}.erasures WHERE user_id = 'gone'"
        eventually(lambda: "" if pipeline.query(select) else "no word of the erasure", 30)
        assert {row.event.user_id for row in pipeline.rows()} == {"stays", "too"}
        assert pipeline.list_of("gone") is None

        # They may come back, as somebody new: p7 is no longer known as bought.
        pipeline.send([click("gone", "p7")])
        again = pipeline.wait_list("gone", lambda _: True, "a list of somebody new")
        assert again.product_ids[0] == "p7"
        pipeline.wait_right()


def test_idle_user_leaves_the_state(stack: Stack) -> None:
    ttl_s = 4
    days = str(ttl_s / 86_400)
    with Pipeline.create(
        stack, "ttl", *QUICK, "--profile-ttl-days", days, list_length=LIST_LENGTH
    ) as pipeline:
        # A catalogue that grows has its users looked up again, which counts as a sign of life.
        pipeline.fill(products(count=LIST_LENGTH))
        pipeline.submit()
        pipeline.wait_products()
        pipeline.send([click("u", "p0"), click("u", "p1", "purchase")])
        pipeline.wait_list("u", lambda one: "p1" not in one.product_ids, "p1 is bought")

        time.sleep(ttl_s + 1)  # nothing can be seen before the next event
        pipeline.send([click("u", "p0")])
        # What was bought is forgotten with the rest, and the vector is that of one click.
        again = pipeline.wait_list("u", lambda one: "p1" in one.product_ids, "p1 is forgotten")
        # A vector of float16 is not of length 1 exactly.
        assert again.scores[0] == pytest.approx(1, abs=1e-4)


def test_each_change_of_the_catalogue_holds_for_the_next_lookup(stack: Stack) -> None:
    with Pipeline.create(
        stack, "changes", *QUICK, list_length=LIST_LENGTH, partitions=1
    ) as pipeline:
        vectors = products()
        pipeline.publish(vectors)
        pipeline.submit()
        pipeline.wait_products()

        pipeline.send([click("u", "p0")])
        first = pipeline.wait_list("u", lambda _: True, "a first list")
        assert first.product_ids[0] == "p0"
        best = first.product_ids[1]
        pipeline.wait_right()

        # Out of stock, and back.
        pipeline.publish({best: vectors[best]}, in_stock=False)
        pipeline.wait_products()
        pipeline.send([click("u", "p0", "scroll")])
        pipeline.wait_list("u", lambda one: best not in one.product_ids, f"{best} is out of stock")
        pipeline.wait_right()
        pipeline.publish({best: vectors[best]})
        pipeline.wait_products()
        pipeline.send([click("u", "p0", "scroll")])
        pipeline.wait_list("u", lambda one: best in one.product_ids, f"{best} is back")

        # Deleted.
        pipeline.delete(best)
        pipeline.wait_products()
        pipeline.send([click("u", "p0", "scroll")])
        pipeline.wait_list("u", lambda one: best not in one.product_ids, f"{best} is deleted")
        pipeline.wait_right()

        # Another vector, which no metric shows, and a new product.
        worst = min(vectors, key=lambda one: float(vectors[one] @ vectors["p0"]))
        near = vectors["p0"] + 0.01 * np.eye(DIMENSIONS, dtype=np.float32)[0]
        pipeline.publish({worst: near, "new": -vectors["p0"]})
        pipeline.wait_products()

        def moved_near() -> str:
            pipeline.send([click("u", "p0", "scroll")])
            found = pipeline.list_of("u")
            is_near = found is not None and worst in found.product_ids[:3]
            return "" if is_near else f"{worst} has not moved near"

        eventually(moved_near, 30, every=1.0)
        pipeline.wait_right()

        # A duplicate moves once: were it counted three times, the recomputation would differ.
        twin = click("u", "p7", "add_to_cart")
        pipeline.send([twin, twin, twin, click("u", "p0", "scroll")])
        pipeline.wait_right()
        pipeline.wait_metric("duplicates", 2)

        # A purchase and a dislike leave the list.
        pipeline.send([click("u", "p7", "purchase"), click("u", "p9", "dislike")])
        pipeline.wait_right()

        # A search moves: in this space queries have vectors.
        pipeline.send([click("u", None, "search", query="mechanical keyboard")])
        pipeline.wait_right(encode)

        # A product that comes after its event moves the vector without another event.
        late = clustered_vectors(1, seed=9)[0]
        pipeline.send([click("u", "late", "add_to_cart")])
        before = pipeline.wait_right(encode)
        pipeline.publish({"late": late})
        pipeline.wait_list("u", lambda one: "late" in one.product_ids, "the late product moved it")
        verdict = pipeline.wait_right(encode)
        assert verdict.events == before.events
        assert verdict.vectors_compared == 1


def test_a_new_space_takes_over_at_once_and_never_mixes(stack: Stack) -> None:
    old, new = "old-v1", "new-v2"
    with Pipeline.create(stack, "spaces", *QUICK, partitions=1) as pipeline:
        pipeline.publish(products(100), space=old)
        users = [f"u{number}" for number in range(8)]
        pipeline.submit()
        pipeline.wait_products()
        pipeline.send(
            [click(user, f"p{3 * at + n}") for at, user in enumerate(users) for n in (0, 1)]
        )
        pipeline.wait_right(space=old)

        # Half of the products in the new space, and it is announced: the old one stays, in full.
        other = {product: vector[:32] for product, vector in products(100, seed=5).items()}
        first_half = dict(list(other.items())[:50])
        pipeline.publish(first_half, space=new, remember=False)
        pipeline.announce(new)
        pipeline.publish({"marker": products(1, seed=7)["p0"]}, space=old)
        pipeline.wait_products()
        pipeline.send([click(user, "p50", "scroll") for user in users])
        pipeline.wait_right(space=old)

        pipeline.delete("marker")
        pipeline.publish(dict(list(other.items())[50:]), space=new, remember=False)
        spaces: set[str] = set()

        def switched() -> str:
            pipeline.send([click(user, "p60", "scroll") for user in users])
            spaces.update(one.space for one in pipeline.lists().values())
            return "" if new in spaces else f"the lists are of {spaces}"

        eventually(switched, 30, every=1.0)
        assert spaces <= {old, new}
        # Rebuilt from the last interactions, as if there had never been another space.
        pipeline.catalogue = {
            product: CatalogueItem(unit(vector)) for product, vector in other.items()
        }
        pipeline.wait_metric("catalogue_size", 100)
        pipeline.send([click(user, "p61", "scroll") for user in users])
        pipeline.wait_right(space=new)


def test_tick_zero_looks_up_at_every_event(stack: Stack) -> None:
    with Pipeline.create(stack, "tick0", "--tick-ms", "0", list_length=LIST_LENGTH) as pipeline:
        pipeline.publish(products())
        pipeline.submit()
        pipeline.wait_products()

        pipeline.send(random_events(users=10, count=200, seed=2))
        verdict = pipeline.wait_right(encode)

        assert verdict.events == 200
        assert verdict.vectors_compared == 10
        # One a record, the ten duplicates included.
        pipeline.wait_metric("lookups", 210)


def test_process_mode_gives_the_same(stack: Stack) -> None:
    options = (*QUICK, "--execution-mode", "process")
    with Pipeline.create(stack, "process", *options, list_length=LIST_LENGTH) as pipeline:
        pipeline.publish(products())
        pipeline.send(random_events(users=10, count=100, seed=3))
        pipeline.submit(settings={"python.execution-mode": "process"})
        pipeline.wait_products()
        pipeline.wait_saved()

        # Each list once more, as the whole catalogue is there now.
        pipeline.send([click(f"u{number}", "p5") for number in range(10)])
        pipeline.poison({"garbage": poisoned_events()["garbage"]})
        verdict = pipeline.wait_right(encode)
        pipeline.wait_poison()

        assert verdict.events == 110
        assert verdict.vectors_compared == 10


def test_the_wrong_execution_mode_fails_loudly(stack: Stack) -> None:
    with Pipeline.create(stack, "mode", "--execution-mode", "process") as pipeline:
        pipeline.submit(running=False)

        def failed() -> str:
            found = "\n".join(stack.flink.exceptions(pipeline.job))
            wanted = "Python runs in thread mode, the job is configured for process"
            return "" if wanted in found else f"no {wanted!r} among the failures: {found[:500]}"

        eventually(failed, 60)
