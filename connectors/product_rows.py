"""The rows of a product: which writes bring its tables from one state to the next."""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

import msgspec

from connectors.cassandra_schema import bucket_of, catalogue_scope, category_scope
from udfs.product_record import ProductRecord
from udfs.schemas import ProductDetails

# A price that is none, as a clustering key: it sorts behind infinity, outside of every range.
NO_PRICE: Final = math.nan


class ProductRow(msgspec.Struct, frozen=True, gc=False):
    """A product as it is shown; ``price`` without currency, ``updated_at`` epoch milliseconds."""

    product_id: str
    title: str
    category: str
    price: float | None
    in_stock: bool
    updated_at: int

    @classmethod
    def of(cls, product: ProductRecord | ProductDetails, updated_at: int) -> ProductRow:
        """Return the row of a product."""
        return cls(
            product.product_id,
            product.title,
            product.category,
            product.price,
            product.in_stock,
            updated_at,
        )


class Write(NamedTuple):
    """One statement of `connectors.cassandra_schema.CQL` with its values."""

    statement: str
    values: tuple[Any, ...]


def product_writes(old: ProductRow | None, new: ProductRow | None, at_us: int) -> list[Write]:
    """Return the writes that replace ``old`` by ``new``.

    They touch different rows, so their order does not matter, and they may be repeated. Deletes
    come first: a failure in between leaves a product out rather than twice in.

    Args:
        old: What the tables hold of the product; None: nothing.
        new: What they shall hold; None: the product is deleted.
        at_us: The time of the change, epoch microseconds: the newest wins, whatever the order in
            which changes arrive.
    """
    before = _keys(old) if old is not None else {}
    after = _keys(new) if new is not None else {}
    writes = [
        Write("delete_product_in_scope", (at_us, *values))
        for key, values in before.items()
        if key not in after
    ]
    if new is None:
        if old is not None:
            writes.append(Write("delete_product", (at_us, old.product_id)))
        return writes
    price = math.nan if new.price is None else new.price
    writes.append(
        Write(
            "insert_product",
            (
                new.product_id,
                new.title,
                new.category,
                # None would write a tombstone, and leaving it out would keep an old price.
                price,
                new.in_stock,
                new.updated_at,
                at_us,
            ),
        )
    )
    writes += [Write("insert_product_in_scope", (*values, at_us)) for values in after.values()]
    return writes


def _keys(row: ProductRow) -> dict[tuple[str, str, str], tuple[Any, ...]]:
    """The rows of a product in `products_by_scope`, by a key that compares (NaN does not)."""
    if not row.in_stock:
        return {}
    price = NO_PRICE if row.price is None else row.price
    return {
        (scope, repr(price), row.product_id): (scope, price, row.product_id)
        for scope in (
            category_scope(row.category),
            catalogue_scope(bucket_of(row.product_id)),
        )
    }
