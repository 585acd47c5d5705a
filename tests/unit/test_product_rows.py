"""Product rows: any sequence of changes leaves the tables as its last one says."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from connectors.cassandra_schema import CQL, bucket_of, catalogue_scope, category_scope
from connectors.product_rows import ProductRow, is_row, product_writes

AT_US = 1_732_300_000_000_000
ROWS = st.none() | st.builds(
    ProductRow,
    st.just("p"),
    st.sampled_from(["", "t"]),
    st.sampled_from(["", "A", "B"]),
    st.none() | st.sampled_from([0.0, -0.0, 1.5, 1e9]),
    st.booleans(),
    st.just(1),
)


class Tables:
    """What the writes leave: keys as Cassandra compares them, where NaN equals NaN."""

    def __init__(self) -> None:
        self.products: dict[str, tuple[Any, ...]] = {}
        self.scopes: set[tuple[str, str, str]] = set()

    def apply(self, name: str, values: tuple[Any, ...]) -> None:
        assert len(values) == CQL[name].count("?")
        # The time is first where something is deleted, and last where it is inserted.
        at_us = values[-1] if name.startswith("insert") else values[0]
        values = values[:-1] if name.startswith("insert") else values[1:]
        assert at_us == AT_US
        if name == "insert_product":
            self.products[values[0]] = values
        elif name == "delete_product":
            del self.products[values[0]]
        elif name == "insert_product_in_scope":
            self.scopes.add((values[0], repr(values[1]), values[2]))
        else:
            assert name == "delete_product_in_scope"
            self.scopes.remove((values[0], repr(values[1]), values[2]))


@given(st.lists(ROWS, max_size=6))
def test_tables_hold_the_last_state(states: list[ProductRow | None]) -> None:
    tables = Tables()
    old: ProductRow | None = None
    for new in states:
        writes = product_writes(old, new, AT_US, b"{}")
        # What a failure leaves undone is done again from the row: it stands last.
        assert [is_row(write) for write in writes[:-1]] == [False] * (len(writes) - 1)
        assert not writes or is_row(writes[-1])
        for name, values in writes:
            tables.apply(name, values)
        old = new
    if old is None:
        assert not tables.products
        assert not tables.scopes
        return
    assert [values[:3] for values in tables.products.values()] == [("p", old.title, old.category)]
    stored = tables.products["p"][3]
    assert math.isnan(stored) if old.price is None else stored == old.price
    price = "nan" if old.price is None else repr(old.price)
    expected = {
        (category_scope(old.category), price, "p"),
        (catalogue_scope(bucket_of("p")), price, "p"),
    }
    assert tables.scopes == (expected if old.in_stock else set())


def test_unchanged_key_is_not_deleted() -> None:
    row = ProductRow("p", "t", "A", 1.0, True, 1)
    names = [
        name for name, _ in product_writes(row, ProductRow("p", "t2", "A", 1.0, True, 2), AT_US)
    ]
    assert "delete_product_in_scope" not in names
