"""Every server is killed while events flow: the short form of `make chaos`."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from connectors.cassandra_schema import bucket_of, catalogue_scope, category_scope
from local.stack import Stack
from tests.chaos import LIST_LENGTH, Chaos, Shop
from tests.integration.helpers import SPACE, Pipeline, click, clustered_vectors, now_ms
from tests.verification import (
    VECTOR_TOLERANCE,
    CatalogueItem,
    StoredCatalogue,
    StoredList,
    StoredRow,
    Vector,
    expected_users,
    replay,
    unit,
    verify,
    verify_catalogue,
)
from udfs.product_record import ProductRecord, encode
from udfs.product_updates import Update, apply_updates
from udfs.schemas import Product, decode_product, encode_product, encode_vector


def merged(
    base: ProductRecord | None, name: str, values: Iterable[bytes | None]
) -> ProductRecord | None:
    """What the job makes of records of one product, whenever they come."""
    updates = [
        Update(None, None, b"") if value is None else Update(*decode_product(name, value), b"")
        for value in values
    ]
    after = apply_updates(
        base, updates, now_us=0, deleted_us=0, encode_text=lambda _title, _category: None
    ).after
    return None if after is None else msgspec.structs.replace(after, updated_us=0)


@pytest.mark.timeout(600)
def test_nothing_is_lost_doubled_or_wrong_after_a_kill_of_each_server(stack: Stack) -> None:
    with Pipeline.create(stack, "recovery", list_length=LIST_LENGTH) as pipeline:
        chaos = Chaos(pipeline, rate=100, users=200, products=400, say=print)
        chaos.start(parallelism=2)

        chaos.kill_task_manager(0)
        chaos.kill_kafka(away_s=1)
        chaos.poison()
        chaos.kill_cassandra(away_s=5)
        chaos.kill_job_manager()
        chaos.rescale(1)

        verdict = chaos.account()
        assert verdict.problems() == ""
        assert verdict.events > 1000
        assert verdict.vectors_compared == verdict.users == 200
        assert verdict.max_vector_error < VECTOR_TOLERANCE
        assert verdict.products > 380
        assert chaos.changes > 300


def test_what_the_shop_says_ends_the_same_where_a_part_is_merged_twice() -> None:
    vectors = {f"p{at}": one for at, one in enumerate(clustered_vectors(6))}
    rng = random.Random(0)
    for seed in range(40):
        shop = Shop(vectors, ["p3", "p4", "p5"], seed)
        records = [shop() for _ in range(120)]
        for name in vectors:
            said = encode_product(Product(name, SPACE, encode_vector(vectors[name]), title=name))
            own = [value for key, value in records if key == name]
            states = [merged(None, name, [said])]
            for value in own:
                states.append(merged(states[-1], name, [value]))
            for _ in range(10):
                start = rng.randrange(len(own) + 1)
                end = rng.randrange(start, len(own) + 1)
                again = merged(states[end], name, own[start:end])
                assert again == states[end]


def test_the_comparison_finds_each_fault_of_a_product() -> None:
    vectors = {f"p{at}": one for at, one in enumerate(clustered_vectors(40))}
    shop = Shop(vectors, [f"p{at}" for at in range(20, 40)])
    first = [
        (
            name,
            encode_product(Product(name, SPACE, encode_vector(vector), title=name)),
        )
        for name, vector in vectors.items()
    ]
    records = [*first, *(shop() for _ in range(3000))]
    said = replay(records)
    # What the job's own rules make of the same records, as it is saved.
    rows, whole, scopes = {}, {}, {}
    for name in vectors:
        after = merged(None, name, [value for key, value in records if key == name])
        if after is not None:
            whole[name] = json.loads(encode(after))
            shown = ("title", "category", "price", "in_stock")
            rows[name] = {field: whole[name][field] for field in shown}
            price = whole[name]["price"]
            names = category_scope(whole[name]["category"]), catalogue_scope(bucket_of(name))
            if whole[name]["in_stock"]:
                scopes[name] = {(scope, price) for scope in names}
    similar = {}
    for name, product in said.items():
        near = {
            other: float(one.vectors[SPACE] @ product.vectors[SPACE])
            for other, one in said.items()
            if one.in_stock and other != name
        }
        similar[name] = sorted(near.items(), key=lambda one: -one[1])[:20]
    right = StoredCatalogue(rows, whole, scopes, whole, similar)

    assert 20 < len(said) < 40
    assert verify_catalogue(said, right, SPACE) == {}
    name = next(iter(said))
    old = {**whole, name: {**whole[name], "price": 999.0}}
    less = {one: found for one, found in whole.items() if one != name}
    shifted = [(one, score + 0.01) for one, score in similar[name]]
    for wrong, problem in (
        (replace(right, rows={**rows, name: {**rows[name], "title": "old"}}), "row"),
        (replace(right, rows={one: row for one, row in rows.items() if one != name}), "row"),
        (replace(right, records=old), "record"),
        (replace(right, emitted=old), "the topic says"),
        (replace(right, emitted=less), "the topic says"),
        (replace(right, scopes={**scopes, name: {("all:0", 1.0)}}), "in scopes"),
        (replace(right, similar={**similar, name: shifted}), "off by"),
        (replace(right, similar={**similar, name: similar[name][:-1]}), "similar products"),
    ):
        assert problem in verify_catalogue(said, wrong, SPACE)[name]
    stranger = replace(right, emitted={**whole, "gone": {}})
    assert list(verify_catalogue(said, stranger, SPACE)) == ["gone"]


def test_the_comparison_finds_each_fault() -> None:
    catalogue = {
        f"p{at}": CatalogueItem(unit(one)) for at, one in enumerate(clustered_vectors(200))
    }
    events = [click("u", f"p{at}", ts=now_ms() - 60_000 * at) for at in range(10)]
    events.append(click("u", "p50", "purchase"))
    rows = [StoredRow(event, event.ts // 86_400_000) for event in events]
    user = expected_users(events, catalogue)["u"]
    assert user.vector is not None

    def stored(vector: Vector, *excluded: str, k: int = 100) -> StoredList:
        scores = {
            one: float(item.vector @ vector)
            for one, item in catalogue.items()
            if one not in excluded
        }
        ids = tuple(sorted(scores, key=lambda one: -scores[one])[:k])
        return StoredList(ids, np.array([scores[one] for one in ids]), SPACE, 0, 0)

    right = stored(user.vector, "p50")

    def problems(saved: list[StoredRow], one: StoredList | None) -> str:
        lists = {} if one is None else {"u": one}
        return verify(events, saved, lists, catalogue, k=100, space=SPACE).problems()

    assert problems(rows, right) == ""
    assert "lost" in problems(rows[1:], right)
    assert "duplicated" in problems([*rows, rows[0]], right)
    stranger = replace(rows[0], event=click("u", "p0"))
    assert "unexpected" in problems([*rows, stranger], right)
    other = replace(rows[0], event=msgspec.structs.replace(rows[0].event, session_id="other"))
    assert "altered" in problems([other, *rows[1:]], right)
    another = replace(rows[0], event=msgspec.structs.replace(rows[0].event, product_id="p1"))
    assert "lost" in problems([another, *rows[1:]], right)
    assert "unexpected" in problems([another, *rows[1:]], right)
    assert "no list" in problems(rows, None)
    assert "must not be shown" in problems(rows, stored(user.vector))
    assert "99 products, not 100" in problems(rows, stored(user.vector, "p50", k=99))
    assert "space" in problems(rows, replace(right, space="other"))
    second = right.product_ids[1]
    assert "scores off" in problems(rows, stored(user.vector, "p50", second))
    # As if one event had been counted twice: only the vector differs, and only a little.
    twice = expected_users([*events, click("u", "p3", ts=events[3].ts)], catalogue)["u"].vector
    assert twice is not None
    assert "a vector is off" in problems(rows, stored(twice, "p50"))
