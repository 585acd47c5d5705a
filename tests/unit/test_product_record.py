"""How the records of a product merge: partial after whole, duplicates, replays, text vectors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.golden.make import RECORD_V1, RELATED_V1, SWITCH_V1
from tests.unit.builders import record_vectors
from udfs.product_record import (
    MAX_SPACES,
    FloatVector,
    ProductRecord,
    RelatedRow,
    decode_record,
    decode_related,
    decode_switch,
    encode,
    merge,
    most_held,
    related_of,
    same,
)
from udfs.product_updates import Outcome, Update, apply_updates
from udfs.schemas import (
    TEXT_SPACE,
    PartialProduct,
    Product,
    Reason,
    RejectedError,
    decode_product,
    encode_vector,
)

GOLDEN = Path(__file__).parents[1] / "golden"
NOW_MS = 1_732_300_000_000
TITLES = st.sampled_from(["", "hub", "mouse", "zz"])
NO_TIME: st.SearchStrategy[int | None] = st.none()
CATEGORIES = st.sampled_from(["", "USB"])


def encode_text(title: str, category: str) -> FloatVector | None:
    """A vector that tells texts apart; "zz" is no known word."""
    if title in ("", "zz") and not category:
        return None
    seed = sum(map(ord, f"{title} {category}"))
    vector = np.random.default_rng(seed).standard_normal(64).astype(np.float32)
    return vector / np.float32(np.linalg.norm(vector))


def text_of(title: str, category: str) -> str | None:
    vector = encode_text(title, category)
    return None if vector is None else encode_vector(vector)


@st.composite
def said(draw: st.DrawFn, times: st.SearchStrategy[int | None] = NO_TIME) -> Any:
    """A whole record or a partial update of the product p."""
    fields: dict[str, Any] = {}
    for name, values in (
        ("title", TITLES),
        ("category", CATEGORIES),
        ("price", st.none() | st.sampled_from([0.0, 1.5])),
        ("in_stock", st.booleans()),
    ):
        if draw(st.booleans()):
            fields[name] = draw(values)
    space = draw(st.none() | st.sampled_from(["a", "b", "c", TEXT_SPACE]))
    if space is not None:
        length = 64 if space == TEXT_SPACE else 2
        fields |= {"space": space, "embedding": [draw(st.sampled_from([1.0, -2.0]))] * length}
    kind = draw(st.sampled_from([Product, PartialProduct]))
    return kind("p", **fields, updated_at=draw(times))


def apply(base: ProductRecord | None, updates: list[Any], at_us: int = 1) -> Outcome:
    wire = [Update(one, None, b"") for one in updates]
    return apply_updates(base, wire, now_us=at_us, deleted_us=0, encode_text=encode_text)


def result(base: ProductRecord | None, updates: list[Any]) -> ProductRecord | None:
    return apply(base, updates).after


def whole(title: str = "hub", **fields: Any) -> ProductRecord:
    made = result(None, [Product("p", title=title, **fields)])
    assert made is not None
    return made


PRESENT = msgspec.UNSET


@given(said(), said())
def test_a_partial_after_a_whole_is_the_whole_with_fields_replaced(first: Any, then: Any) -> None:
    if not isinstance(first, Product) or not isinstance(then, PartialProduct):
        return
    base, made = result(None, [first]), result(None, [first, then])
    assert base is not None
    assert made is not None
    for name in ("title", "category", "price", "in_stock"):
        given_value = getattr(then, name)
        expected = getattr(base, name) if given_value is PRESENT else given_value
        assert getattr(made, name) == expected
    if then.space is None:
        kept = {space: text for space, text in base.vectors.items() if not base.is_text}
        assert kept.items() <= made.vectors.items()
    else:
        assert list(made.vectors)[-1] == then.space


@given(st.lists(said(), max_size=8))
def test_a_product_holds_the_two_newest_spaces_that_the_shop_sent(updates: list[Any]) -> None:
    made = result(None, [Product("p"), *updates])
    assert made is not None
    assert len(made.vectors) <= MAX_SPACES
    sent = list(dict.fromkeys(one.space for one in reversed(updates) if one.space is not None))
    assert set(sent[:MAX_SPACES]) <= set(made.vectors)
    if sent:
        assert list(made.vectors)[-1] == sent[0]
    for vector in record_vectors(made).values():
        assert np.linalg.norm(vector.astype(np.float64)) == pytest.approx(1, abs=1e-6)


@given(st.lists(said(), max_size=8))
def test_a_text_vector_is_that_of_the_newest_text(updates: list[Any]) -> None:
    made = result(None, [Product("p"), *updates])
    assert made is not None
    if made.is_text:
        assert made.vectors.get(TEXT_SPACE) == text_of(made.title, made.category)
    assert made.is_text or made.vectors
    own = {one.space for one in updates if one.space is not None}
    assert made.is_text == (TEXT_SPACE not in own and len(own) < MAX_SPACES)


def test_a_text_vector_is_made_again_when_its_text_changes_alone() -> None:
    calls: list[str] = []

    def counted(title: str, category: str) -> FloatVector | None:
        calls.append(title)
        return encode_text(title, category)

    base = None
    for update in (
        Product("p", title="hub"),
        PartialProduct("p", price=2.0),
        Product("p", title="hub", in_stock=False),
        PartialProduct("p", title="mouse"),
        PartialProduct("p", space="a", embedding=[1.0]),
        PartialProduct("p", title="hub"),
    ):
        base = merge(base, update, seen_ms=1, at_us=1, encode_text=counted)
    assert calls == ["hub", "mouse", "hub"]
    assert base is not None
    # In its place: the space that the shop publishes stays the newest.
    assert list(base.vectors) == [TEXT_SPACE, "a"]


def test_a_shops_own_text_vector_is_not_made_again() -> None:
    own = whole(space=TEXT_SPACE, embedding=[1.0] * 64)
    changed = result(own, [PartialProduct("p", title="mouse")])
    assert changed is not None
    assert not changed.is_text
    assert changed.vectors == own.vectors


TIMES = st.one_of(st.none(), st.integers(NOW_MS, NOW_MS + 3))


@given(st.lists(said(), max_size=8), st.data())
def test_a_replay_of_what_came_last_ends_at_the_same_record(updates: list[Any], data: Any) -> None:
    updates = [Product("p"), *updates]
    made = result(None, updates)
    suffix = updates[data.draw(st.integers(0, len(updates))) :]
    assert same(result(made, suffix), made)
    for cut in range(len(suffix) + 1):
        assert same(result(result(made, suffix[:cut]), suffix), made)


@given(st.lists(said(st.integers(NOW_MS, NOW_MS + 3)), max_size=8), st.data())
def test_a_replay_with_the_shops_times_ends_at_the_same_record(
    updates: list[Any], data: Any
) -> None:
    updates = [Product("p", updated_at=NOW_MS), *updates]
    made = result(None, updates)
    suffix = updates[data.draw(st.integers(0, len(updates))) :]
    assert same(result(made, suffix), made)


@given(st.lists(said(TIMES), max_size=6))
def test_the_same_record_twice_is_as_once(updates: list[Any]) -> None:
    twice = [one for update in updates for one in (update, update)]
    assert result(None, [Product("p"), *twice]) == result(None, [Product("p"), *updates])


@given(st.lists(said(TIMES), max_size=8))
def test_what_is_older_than_the_shops_newest_time_is_late(updates: list[Any]) -> None:
    newest, late, base = 0, 0, whole()
    for update in updates:
        outcome = apply(base, [update])
        is_late = update.updated_at is not None and update.updated_at < newest
        assert outcome.late == is_late
        assert not is_late or outcome.after == base
        late += is_late
        newest = max(newest, update.updated_at or 0)
        assert outcome.after is not None
        assert outcome.after.updated_at == newest
        base = outcome.after
    assert apply(whole(), updates).late == late


def test_a_partial_update_of_what_is_not_there_is_rejected() -> None:
    outcome = apply(None, [PartialProduct("p", price=1.0), Product("p", price=2.0)])
    ((_, error),) = outcome.rejected
    assert error.reason is Reason.UNKNOWN_PRODUCT
    assert (outcome.accepted, outcome.after and outcome.after.price) == (1, 2.0)
    after_deletion = apply(whole(), [None, PartialProduct("p", price=1.0)])
    assert len(after_deletion.rejected) == 1
    assert after_deletion.after is None


def test_the_time_of_writing_never_goes_back() -> None:
    base = whole()
    later = apply_updates(
        replace(base, updated_us=500),
        [Update(PartialProduct("p", price=9.0), None, b"")],
        now_us=100,
        deleted_us=0,
        encode_text=encode_text,
    )
    assert later.after is not None
    assert later.after.updated_us == later.at_us == 501
    deleted = apply_updates(
        later.after, [Update(None, None, b"")], now_us=100, deleted_us=0, encode_text=encode_text
    )
    assert (deleted.deleted_us, deleted.at_us) == (502, 502)
    again = apply_updates(
        None,
        [Update(Product("p"), None, b"")],
        now_us=100,
        deleted_us=deleted.deleted_us,
        encode_text=encode_text,
    )
    assert again.at_us == 503


def test_a_duplicate_changes_no_row_and_stays_as_it_was_written() -> None:
    base = whole(price=1.0)
    outcome = apply(base, [Product("p", title="hub", price=1.0)], at_us=9)
    assert outcome.change(b"{}") is None
    assert outcome.after is base
    assert outcome.accepted == 1
    change = apply(base, [Product("p", title="hub", price=2.0)], at_us=9).change(b"{}")
    assert change is not None
    assert (change.old and change.old.price, change.new and change.new.price) == (1.0, 2.0)
    assert (change.changed_us, change.record) == (9, b"{}")


def test_a_deletion_takes_what_was_related_and_a_later_record_brings_it_again() -> None:
    related = Product("p", related={"q": 1.0})
    assert apply(None, [related]).related == RelatedRow(1, "p", {"q": 1.0})
    gone = apply(whole(), [related, None])
    assert (gone.after, gone.related, gone.deletes_related) == (None, None, True)
    back = apply(whole(), [None, related])
    assert back.related == RelatedRow(1, "p", {"q": 1.0})
    assert back.after is not None
    # A price says nothing of what is related.
    priced = apply(whole(), [Product("p", price=3.0)])
    assert (priced.related, priced.deletes_related) == (None, False)


def test_what_a_record_says_of_related_products() -> None:
    assert related_of(Product("p", related={"q": 1.0}, rebuy_days=3.0, rebuy_share=0.5)) == (
        RelatedRow(1, "p", {"q": 1.0}, 3.0, 0.5)
    )
    assert related_of(Product("p", related={})) == RelatedRow(1, "p", {})
    assert related_of(Product("p")) is None


def test_most_held_of_as_many_is_the_first_by_name() -> None:
    assert most_held({"b": 2, "a": 2, "c": 1}) == "a"
    assert most_held({}) is None


# --- the formats ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected", "decode"),
    [
        ("record_v1", RECORD_V1, lambda raw: decode_record("p3 Ã©", raw)),
        ("related_v1", RELATED_V1, lambda raw: decode_related("p3 Ã©", raw)),
        ("switch_v1", SWITCH_V1, decode_switch),
    ],
)
def test_golden_files_are_read(name: str, expected: Any, decode: Any) -> None:
    raw = (GOLDEN / f"{name}.bin").read_bytes()
    assert decode(raw) == expected
    assert encode(expected) == raw
    shown = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    assert msgspec.to_builtins(expected) == shown


def test_the_golden_partial_update_is_read() -> None:
    said, vector = decode_product("p3", (GOLDEN / "partial_v1.bin").read_bytes())
    assert vector is None
    shown = json.loads((GOLDEN / "partial_v1.json").read_text(encoding="utf-8"))
    assert msgspec.to_builtins(said) == shown


@pytest.mark.parametrize(
    ("key", "changes", "reason"),
    [
        ("q", {}, Reason.KEY_MISMATCH),
        ("p", {"version": 2}, Reason.INVALID_FIELD),
        ("p", {"title": None}, Reason.INVALID_FIELD),
        ("", {"product_id": ""}, Reason.INVALID_FIELD),
    ],
)
def test_what_is_no_record_is_refused(key: str, changes: dict[str, Any], reason: Reason) -> None:
    raw = json.dumps({**json.loads(encode(whole())), **changes}).encode()
    with pytest.raises(RejectedError) as caught:
        decode_record(key, raw)
    assert caught.value.reason is reason


@pytest.mark.parametrize("decode", [decode_record, decode_related])
def test_what_is_not_json_is_refused(decode: Any) -> None:
    with pytest.raises(RejectedError) as caught:
        decode("p", b"{")
    assert caught.value.reason is Reason.NOT_JSON


def test_a_weight_of_a_related_row_has_its_limits() -> None:
    raw = encode(RelatedRow(1, "p", {"q": 1001.0}))
    with pytest.raises(RejectedError, match="<= 1000"):
        decode_related("p", raw)
