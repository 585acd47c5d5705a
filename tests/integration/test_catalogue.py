"""The catalogue operator on real servers: whole and partial records, restarts, refused rows."""

from __future__ import annotations

import json
from typing import Any

import pytest

from connectors.cassandra_schema import bucket_of, catalogue_scope, category_scope
from local.cli import PRODUCTS, RELATED
from local.stack import Stack
from tests.integration.helpers import Pipeline, eventually, now_ms, poisoned_products
from udfs.product_record import ProductRecord, SpaceSwitch, decode_record, decode_switch
from udfs.schemas import SPACE_KEY, TEXT_SPACE, SpaceNotice, encode_space_notice

pytestmark = pytest.mark.timeout(240)


def wire(product_id: str, **fields: Any) -> bytes:
    return json.dumps({"product_id": product_id, **fields}).encode()


def emitted(pipeline: Pipeline) -> dict[str, ProductRecord | None]:
    """What the topic `products` says, by product."""
    return {
        key: None if value is None else decode_record(key.encode().decode("latin-1"), value)
        for key, value in pipeline.newest(PRODUCTS).items()
        if key != SPACE_KEY
    }


def stored(pipeline: Pipeline) -> dict[str, ProductRecord]:
    """What the rows say, by product."""
    rows = pipeline.query("SELECT product_id, title, price, in_stock, record FROM {}.products")
    found = {}
    for row in rows:
        record = decode_record(row.product_id.encode().decode("latin-1"), row.record)
        assert (row.title, row.in_stock) == (record.title, record.in_stock)
        assert row.price == record.price or record.price is None
        found[row.product_id] = record
    return found


def scopes(pipeline: Pipeline) -> set[tuple[str, str]]:
    rows = pipeline.query("SELECT scope, product_id FROM {}.products_by_scope")
    return {(row.scope, row.product_id) for row in rows}


def wait_for(pipeline: Pipeline, expected: dict[str, dict[str, Any] | None]) -> None:
    """Wait until rows and topic say this of each product; None: it is deleted."""

    def complaint() -> str:
        topic, rows = emitted(pipeline), stored(pipeline)
        for name, fields in expected.items():
            made = topic.get(name, "nothing")
            if fields is None:
                if made is not None or name in rows:
                    return f"{name}: {made}, row {rows.get(name)}\n{pipeline.failures()}"
            elif not isinstance(made, ProductRecord) or any(
                getattr(made, field) != value for field, value in fields.items()
            ):
                return f"{name}: {made}, not {fields}\n{pipeline.failures()}"
            elif rows.get(name) != made:
                return f"{name}: row {rows.get(name)}, topic {made}\n{pipeline.failures()}"
        return ""

    eventually(complaint, 60)


def test_partial_updates_outlive_a_job_that_starts_without_a_savepoint(stack: Stack) -> None:
    with Pipeline.create(stack, "partial") as pipeline:
        pipeline.say("p", wire("p", title="usb hub", category="USB", price=3.0))
        pipeline.say("é", wire("é", space="shop-v1", embedding=[3, 4], related={"p": 1.0}))
        pipeline.say("gone", wire("gone"))
        pipeline.say("p", wire("p", partial=True, price=2.5))
        pipeline.say("gone", None)
        pipeline.submit(parallelism=2)
        wait_for(
            pipeline,
            {
                "p": {"title": "usb hub", "price": 2.5, "is_text": True},
                "é": {"vectors": {"shop-v1": "mpkZP83MTD8="}},
                "gone": None,
            },
        )
        assert list(emitted(pipeline)["p"].vectors) == [TEXT_SPACE]  # type: ignore[union-attr]
        related = pipeline.newest(RELATED)
        assert json.loads(related["é"] or b"")["related"] == {"p": 1.0}
        assert related["gone"] is None

        pipeline.say("p", wire("p", partial=True, category="HUB", updated_at=now_ms()))
        wait_for(pipeline, {"p": {"category": "HUB", "price": 2.5}})
        assert {scope for scope, name in scopes(pipeline) if name == "p"} == {
            category_scope("HUB"),
            catalogue_scope(bucket_of("p")),
        }
        stack.flink.cancel(pipeline.job)

        # The whole record may be gone from the topic by now; the row still has what it said.
        pipeline.say("p", wire("p", partial=True, in_stock=False))
        pipeline.submit(parallelism=1)
        wait_for(
            pipeline,
            {"p": {"title": "usb hub", "category": "HUB", "price": 2.5, "in_stock": False}},
        )
        assert not [scope for scope, name in scopes(pipeline) if name == "p"]


def test_a_row_of_an_earlier_version_is_a_base(stack: Stack) -> None:
    with Pipeline.create(stack, "earlier") as pipeline:
        pipeline.query(
            "INSERT INTO {}.products (product_id, title, category, price, in_stock, updated_at)"
            " VALUES ('p', 'usb hub', 'USB', 3.0, true, toTimestamp(now()))"
        )
        pipeline.say("p", wire("p", partial=True, price=2.0))
        pipeline.submit()
        wait_for(pipeline, {"p": {"title": "usb hub", "price": 2.0, "is_text": True}})


def test_bad_products_are_dead_letters_and_a_space_is_announced_once(stack: Stack) -> None:
    with Pipeline.create(stack, "badproducts", partitions=2) as pipeline:
        pipeline.poison(poisoned_products())
        pipeline.say("good", wire("good", title="mouse"))
        started_ms = now_ms()
        for partition in range(2):
            notice = SpaceNotice("shop-v2", started_ms, 2, complete=True, force=True)
            pipeline.say(SPACE_KEY, encode_space_notice(notice), partition)
        pipeline.submit(parallelism=2)
        wait_for(pipeline, {"good": {"title": "mouse"}})
        pipeline.wait_poison()
        switches = [one for one in pipeline.records(PRODUCTS) if one.key == SPACE_KEY.encode()]
        assert [decode_switch(one.value or b"") for one in switches] == [
            SpaceSwitch(1, "shop-v2", started_ms, force=True)
        ]


def test_what_fails_amid_many_changes_is_done_again(stack: Stack) -> None:
    with Pipeline.create(stack, "killed") as pipeline:
        names = [f"p{number}" for number in range(300)]
        for name in names:
            pipeline.say(name, wire(name, title=name, price=1.0))
        pipeline.submit(parallelism=2)
        wait_for(pipeline, {name: {"price": 1.0} for name in names})
        for price in range(2, 12):
            for name in names:
                pipeline.say(name, wire(name, partial=True, price=float(price)))
            if price == 6:
                stack.flink.kill_task_manager(0)
                stack.flink.start_task_manager(0)
        wait_for(pipeline, {name: {"title": name, "price": 11.0} for name in names})
        found = pipeline.query("SELECT product_id, price FROM {}.products_by_scope")
        assert len(found) == 2 * len(names)
        assert {row.price for row in found} == {11.0}
