"""The products as a shop shows them: by category, the newest first, and found by what is typed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import islice
from typing import Final, Literal, NamedTuple
from zlib import crc32

import numpy as np

from api.catalogue_memory import CatalogueMemory
from connectors.product_rows import ProductRow
from udfs.lexical_index import BLEND_MATCHES, BLEND_WEIGHT
from udfs.query_encoder import encode_query
from udfs.tokenizer import split_words

# How a product was found: it holds the words, or its vector is near to that of the text.
Match = Literal["words", "meaning"]
# Products that are near in meaning stand below those with the words, so many at most: the nearest
# always exist, however far they are.
MEANING_LIMIT: Final = 24


class Hit(NamedTuple):
    """A product that a search has found."""

    row: ProductRow
    match: Match


class CategorySize(NamedTuple):
    """A category and how many products it has, and how many of them are in stock."""

    category: str
    products: int
    in_stock: int


class Shelves:
    """Every product that the catalogue's topic tells of, sorted; safe for several threads.

    `change` is what a `CatalogueMemory` calls for each product.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # In the order of their changes, the newest last.
        self._rows: dict[str, ProductRow] = {}
        self._of_category: dict[str, set[str]] = {}
        # A category's ids in the order in which they are shown; absent after a change.
        self._sorted: dict[str, list[str]] = {}

    def change(self, product_id: str, row: ProductRow | None) -> None:
        """Take a product's new state; None: it is deleted."""
        with self._lock:
            old = self._rows.pop(product_id, None)
            if old is not None and (row is None or row.category != old.category):
                self._of_category[old.category].discard(product_id)
                self._sorted.pop(old.category, None)
                if not self._of_category[old.category]:
                    del self._of_category[old.category]
            if row is None:
                return
            self._rows[product_id] = row
            of_category = self._of_category.setdefault(row.category, set())
            if product_id not in of_category:
                of_category.add(product_id)
                self._sorted.pop(row.category, None)

    def categories(self) -> list[CategorySize]:
        """Return all categories, by name."""
        with self._lock:
            return [
                CategorySize(
                    category, len(found), sum(self._rows[product].in_stock for product in found)
                )
                for category, found in sorted(self._of_category.items())
            ]

    def browse(self, category: str | None, limit: int, *, in_stock: bool) -> list[ProductRow]:
        """Return the first ``limit`` products of a category, or of all in turn.

        The order says nothing of the products and is the same in every worker.
        """
        with self._lock:
            names = sorted(self._of_category, key=_order) if category is None else [category]
            shelves = [self._shelf(name, in_stock=in_stock) for name in names]
            return list(islice(_in_turn(shelves), limit))

    def newest(self, limit: int, *, in_stock: bool) -> list[ProductRow]:
        """Return the ``limit`` products that were changed last, the newest first."""
        with self._lock:
            rows = (row for row in reversed(self._rows.values()) if row.in_stock or not in_stock)
            return list(islice(rows, limit))

    def search(
        self,
        memory: CatalogueMemory,
        query: str,
        category: str | None,
        *,
        in_stock: bool,
    ) -> list[Hit]:
        """Return the products for what somebody typed, best first, some hundred at most.

        First those that hold its words, each by the blend of words and vector that
        `udfs.lexical_index` recommends; then the nearest of the others.
        """
        # Before the catalogue is locked: the first text loads the encoder.
        encode_query(query)
        near: dict[str, float] = {}
        cosines: dict[str, float] = {}
        with memory.vectors() as catalogue:
            slots, shares = catalogue.matches(query, BLEND_MATCHES)
            found = map(catalogue.slots.product_id, slots.tolist())
            words = dict(zip(found, shares.tolist(), strict=True))
            vector = catalogue.query_vector(query)
            if vector is not None:
                ids, scores = catalogue.search(vector[None, :], MEANING_LIMIT + len(words))[0]
                near = dict(zip(ids, scores.tolist(), strict=True))
                for one in words:
                    product = catalogue.product_vector(one)
                    cosines[one] = 0.0 if product is None else float(np.dot(vector, product))
        best = sorted(words, key=lambda one: -(cosines.get(one, 0.0) + BLEND_WEIGHT * words[one]))
        rows = memory.rows
        hits = [Hit(rows[one], "words") for one in best if one in rows]
        if not in_stock:
            # First, since they hold all the words: behind a hundred others nobody would find them.
            hits = [*(Hit(row, "words") for row in self._sold_out(query)), *hits]
        others = [rows.get(one) for one in near if one not in words]
        hits += [Hit(row, "meaning") for row in others[:MEANING_LIMIT] if row is not None]
        return [
            one
            for one in hits
            if (one.row.in_stock or not in_stock) and category in (None, one.row.category)
        ]

    def _sold_out(self, query: str) -> list[ProductRow]:
        """Return the products out of stock that hold all words; the lookup knows none of them."""
        words = set(split_words(query))
        with self._lock:
            sold_out = [row for row in self._rows.values() if not row.in_stock]
        return [
            row
            for row in sold_out
            if words and words <= {*split_words(row.title), *split_words(row.category)}
        ]

    def _shelf(self, category: str, *, in_stock: bool) -> Iterator[ProductRow]:
        ids = self._sorted.get(category)
        if ids is None:
            ids = sorted(self._of_category.get(category, ()), key=_order)
            self._sorted[category] = ids
        rows = (self._rows[product] for product in ids)
        return (row for row in rows if row.in_stock or not in_stock)


def _order(name: str) -> tuple[int, str]:
    """Sort names so that neither the alphabet nor a number in them shows."""
    return crc32(name.encode("utf-8", "surrogatepass")), name


def _in_turn(shelves: list[Iterator[ProductRow]]) -> Iterator[ProductRow]:
    while shelves:
        left = []
        for shelf in shelves:
            row = next(shelf, None)
            if row is not None:
                yield row
                left.append(shelf)
        shelves = left
