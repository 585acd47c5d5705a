"""The rows of a product: which writes bring its tables from one state to the next."""

from __future__ import annotations

import math
from collections.abc import Iterable
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


def product_writes(
    old: ProductRow | None,
    new: ProductRow | None,
    at_us: int,
    record: bytes = b"",
    between: Iterable[ProductRow | None] = (),
) -> list[Write]:
    """Return the writes that replace ``old`` by ``new``.

    They touch different rows and may be repeated. The last one, to `products`, is to stand after
    the others (`is_row`): the row says what the scopes hold, so what a failure leaves undone is
    done again from it. Of the others deletes come first: a failure in between leaves a product out
    rather than twice in.

    Args:
        old: What the tables hold of the product; None: nothing.
        new: What they shall hold; None: the product is deleted.
        at_us: The time of the change, epoch microseconds: the newest wins, whatever the order in
            which changes arrive.
        record: The whole of the product, see :mod:`udfs.product_record`.
        between: What the scopes may hold of it besides, left by a writer that failed.
    """
    earlier = [one for one in (old, *between) if one is not None]
    before = {key: values for one in earlier for key, values in _keys(one).items()}
    after = _keys(new) if new is not None else {}
    writes = [
        Write("delete_product_in_scope", (at_us, *values))
        for key, values in before.items()
        if key not in after
    ]
    writes += [Write("insert_product_in_scope", (*values, at_us)) for values in after.values()]
    if new is not None:
        # None would write a tombstone, and leaving it out would keep an old price.
        price = NO_PRICE if new.price is None else new.price
        shown = (new.product_id, new.title, new.category, price, new.in_stock, new.updated_at)
        writes.append(Write("insert_product", (*shown, record, at_us)))
    elif earlier:
        writes.append(Write("delete_product", (at_us, earlier[0].product_id)))
    return writes


def is_row(write: Write) -> bool:
    """Tell whether a write of :func:`product_writes` is the one to `products`."""
    return write.statement in ("insert_product", "delete_product")


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
