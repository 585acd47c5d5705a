"""What is left to do for a product when its records come again after a failure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from connectors.product_rows import ProductRow, is_row, product_writes
from udfs.product_record import ProductRecord
from udfs.product_updates import Outcome, Update, apply_updates
from udfs.schemas import Product

NOW_US = 1_732_300_000_000_000
UPDATED_AT = NOW_US // 1000


def said(**fields: Any) -> Update:
    return Update(Product("p", **fields), None, b"")


def related(after_ms: int, *names: str) -> Update:
    return said(updated_at=UPDATED_AT + after_ms, related=dict.fromkeys(names, 1.0))


DELETION = Update(None, None, b"")


def outcome_of(
    base: ProductRecord | None, *updates: Update, after_us: int = 0, deleted_us: int = 0
) -> Outcome:
    return apply_updates(
        base,
        updates,
        now_us=NOW_US + after_us,
        deleted_us=deleted_us,
        encode_text=lambda *_: None,
    )


def test_what_is_related_is_passed_on_though_the_row_has_what_followed_it() -> None:
    first, second = related(100, "q"), said(updated_at=UPDATED_AT + 200)
    row = outcome_of(None, first, second).after
    # Its record may come in one tick with what made it late, or before.
    for replay in ([first], [first, second]):
        outcome = outcome_of(row, *replay)
        assert outcome.late == 1
        assert outcome.related is not None
        assert outcome.related.related == {"q": 1.0}


@pytest.mark.parametrize(
    ("updates", "left"),
    [
        ([related(100, "old"), related(300, "new")], "new"),
        ([related(300, "new"), related(100, "old")], "new"),
        ([related(100, "old"), related(150, "newer")], "newer"),
        ([related(150, "newer"), related(100, "old")], "newer"),
    ],
)
def test_of_late_records_the_newest_says_what_is_related(
    updates: Sequence[Update], left: str
) -> None:
    row = outcome_of(None, said(updated_at=UPDATED_AT + 200)).after
    outcome = outcome_of(row, *updates)
    assert outcome.related is not None
    assert list(outcome.related.related) == [left]


def test_a_deletion_takes_what_late_records_say_too() -> None:
    row = outcome_of(None, said(updated_at=UPDATED_AT + 200)).after
    outcome = outcome_of(row, related(100, "old"), DELETION)
    assert outcome.deletes_related
    assert outcome.related is None


class Tables:
    """`products` and `products_by_scope`, with the times of what is there or was deleted."""

    def __init__(self) -> None:
        self.row: ProductRecord | None = None
        self._scopes: dict[tuple[str, str], tuple[int, bool]] = {}

    def save(self, outcome: Outcome, *, killed: bool = False) -> None:
        """Write what is to be done; killed between the scopes and the row."""
        change = outcome.change(b"{}")
        if change is None:
            return
        old, new, *between = (
            None if one is None else ProductRow.of(one, 0)
            for one in (change.old, change.new, *change.between)
        )
        for write in product_writes(old, new, change.changed_us, change.record, between):
            if is_row(write):
                self.row = self.row if killed else outcome.after
                continue
            inserts = write.statement.startswith("insert")
            at_us = write.values[-1 if inserts else 0]
            scope, price = write.values[:2] if inserts else write.values[1:3]
            # A deletion wins against what is as old.
            if (at_us, not inserts) >= (self._scopes.get((scope, repr(price)), (0, True))[0], 0):
                self._scopes[scope, repr(price)] = (at_us, inserts)

    @property
    def scopes(self) -> set[tuple[str, str]]:
        return {scope for scope, (_, is_there) in self._scopes.items() if is_there}


A, B = said(category="A", price=1.0), said(category="B", price=2.0)


@pytest.mark.parametrize("before", [[], [said(category="B", price=2.0)]], ids=["new", "known"])
@pytest.mark.parametrize("second", [[B], [DELETION], [DELETION, B], []], ids=len)
def test_a_writer_that_fails_before_the_row_leaves_no_scope_for_ever(
    before: Sequence[Update], second: Sequence[Update]
) -> None:
    tables, expected = Tables(), Tables()
    for made in (tables, expected):
        made.save(outcome_of(None, *before))
    tables.save(outcome_of(tables.row, A, after_us=10), killed=True)
    # The record comes again, in one tick with what followed it.
    deleted_us = 0
    for made in (tables, expected):
        outcome = outcome_of(made.row, A, *second, after_us=20, deleted_us=deleted_us)
        made.save(outcome)
    assert tables.row == expected.row
    last = [A, *second][-1].said
    assert (tables.row and tables.row.category) == (last and last.category)
    categories = {scope for scope, _ in tables.scopes if scope.startswith("category:")}
    assert categories == (set() if last is None else {f"category:{last.category}"})
    assert len(tables.scopes) == (0 if last is None else 2)


@pytest.mark.parametrize(("kafka_ms", "seen_ms"), [(5_000, 5_000), (None, 9_000), (9_500, 9_000)])
def test_a_product_is_as_old_as_its_first_record_in_kafka(
    kafka_ms: int | None, seen_ms: int
) -> None:
    said = Product("p", title="kettle")
    first = Update(said, None, b"") if kafka_ms is None else Update(said, None, b"", kafka_ms)
    later = Update(said, None, b"", 7_000)
    outcome = apply_updates(
        None, [first, later], now_us=9_000_000, deleted_us=0, encode_text=lambda *_: None
    )
    assert outcome.after is not None
    assert outcome.after.first_seen_ms == seen_ms
