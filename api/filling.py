"""How a list is made: what is personal and may be shown, then what fills it up, by one rule."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import msgspec

from api.shelf import Shelf
from connectors.cassandra_schema import (
    ALL_SCOPE,
    CATALOGUE_BUCKETS,
    NEWEST_SCOPE,
    catalogue_scope,
    category_scope,
    newest_scope,
)
from connectors.product_rows import ProductRow
from connectors.recommendation_store import RecommendationStore, StoreError
from connectors.request_budget import is_over

Source = Literal[
    "personal",
    "trending_category",
    "trending",
    "newest",
    "catalogue",
    "similar",
    "bought_together",
]

# Scores are float32: what follows the sixth decimal is the conversion, not the score.
SCORE_DECIMALS: Final = 6
# Categories of a user whose trending products come before those of all.
_OWN_CATEGORIES: Final = 3
# Products whose details are looked up at once.
_CHUNK: Final = 50


class Item(msgspec.Struct, frozen=True, gc=False):
    """One product of a list; ``score`` compares within one ``source`` only."""

    product_id: str
    title: str
    category: str
    price: float | None
    score: float
    reason: str
    source: Source


@dataclass(frozen=True, slots=True)
class Filter:
    """What a product must be to be shown, beyond in stock."""

    category: str | None = None
    min_price: float | None = None
    max_price: float | None = None

    @property
    def by_price(self) -> bool:
        """Whether it looks at the price; a product without one is then left out."""
        return self.min_price is not None or self.max_price is not None

    @property
    def plain(self) -> bool:
        """Whether it asks for nothing but being in stock."""
        return self.category is None and not self.by_price

    def admits(self, row: ProductRow) -> bool:
        """Tell whether a product may be shown."""
        if not row.in_stock or (self.category is not None and row.category != self.category):
            return False
        if not self.by_price:
            return True
        return (
            row.price is not None
            and (self.min_price is None or row.price >= self.min_price)
            and (self.max_price is None or row.price <= self.max_price)
        )


@dataclass(frozen=True, slots=True)
class Candidates:
    """Where further products come from; ``read`` is called when they are needed."""

    source: Source
    reason: str
    read: Callable[[], Sequence[tuple[str, float]]]


class ListBuilder:
    """Collects the items of one answer, each product once, until there are enough.

    Args:
        shelf: What is known of products.
        limit: Items at most.
        wanted: What may be shown.
        excluded: Products that may not, whatever they are.
    """

    def __init__(
        self,
        shelf: Shelf,
        limit: int,
        wanted: Filter,
        excluded: Iterable[str] = (),
    ) -> None:
        self._shelf = shelf
        self._limit = limit
        self._wanted = wanted
        self._seen = set(excluded)
        self.items: list[Item] = []

    @property
    def full(self) -> bool:
        """Whether there are enough."""
        return len(self.items) >= self._limit

    def add(self, source: Source, candidates: Sequence[tuple[str, float, str]]) -> None:
        """Take of (product id, score, reason), best first, what may be shown and is new."""
        seen, items, limit, admits = self._seen, self.items, self._limit, self._wanted.admits
        # Nearly every answer: one look instead of a call for each item.
        plain = self._wanted.plain
        fresh = [one for one in candidates if one[0] not in seen]
        for start in range(0, len(fresh), _CHUNK):
            part = fresh[start : start + _CHUNK]
            rows = self._shelf.products([one[0] for one in part])
            for product_id, score, reason in part:
                row = rows.get(product_id)
                if row is None or product_id in seen:
                    continue
                if not (row.in_stock if plain else admits(row)):
                    continue
                if len(items) >= limit:
                    return
                seen.add(product_id)
                items.append(
                    Item(
                        product_id,
                        row.title,
                        row.category,
                        row.price,
                        round(score, SCORE_DECIMALS),
                        reason,
                        source,
                    )
                )

    def fill(self, sources: Iterable[Candidates]) -> StoreError | None:
        """Take from ``sources`` in their order until there are enough, or the time is over.

        A source that does not answer is left out while there is no item yet. Where none of them
        gives one, the products in memory that fit stand in.

        Returns:
            The first failure, if a source has not answered.

        Raises:
            StoreError: No source answers, and nothing is in memory.
        """
        failure: StoreError | None = None
        answered = False
        for one in sources:
            if self.full or (self.items and is_over()):
                return failure
            try:
                self.add(one.source, [(*found, one.reason) for found in one.read()])
            except StoreError as error:
                failure = failure or error
                if self.items:
                    # A shorter list is better than none.
                    return failure
            else:
                answered = True
        if failure is not None and not self.items:
            known = self._shelf.known(self._wanted.admits, self._limit + len(self._seen))
            self.add("catalogue", [(product_id, 0.0, "in the catalogue") for product_id in known])
            if not self.items and not answered:
                raise failure
        return failure

    def categories(self) -> list[str]:
        """Return the categories that are most frequent among the items so far."""
        counts = Counter(item.category for item in self.items if item.category)
        return [category for category, _ in counts.most_common(_OWN_CATEGORIES)]


def fallbacks(
    shelf: Shelf,
    store: RecommendationStore,
    wanted: Filter,
    limit: int,
    categories: Sequence[str] = (),
) -> Iterator[Candidates]:
    """Yield what fills a list up: trending of its categories, trending, newest, the catalogue.

    The last is the promise that no list is short while enough products exist: all that is in
    stock and of the asked price, the cheapest first.

    Args:
        shelf: Public lists.
        store: Where the catalogue is read.
        wanted: The filter; with a category, that one alone is meant.
        limit: Products that may be needed: the answer's items and those that it may not have.
        categories: Of the user, where the filter names none.
    """

    def listed(scope: str) -> Callable[[], Sequence[tuple[str, float]]]:
        def read() -> Sequence[tuple[str, float]]:
            found = shelf.trending(scope)
            return () if found is None else found.items

        return read

    def catalogue(scope: str) -> Callable[[], Sequence[tuple[str, float]]]:
        def read() -> Sequence[tuple[str, float]]:
            # More than are missing, since some may be in the list or excluded already.
            found = store.products_in(
                scope, least=wanted.min_price, most=wanted.max_price, limit=limit + _CHUNK
            )
            return [(product_id, 0.0) for product_id in found]

        return read

    for category in categories if wanted.category is None else (wanted.category,):
        reason = f"trending in {category}"
        yield Candidates("trending_category", reason, listed(category_scope(category)))
    yield Candidates("trending", "trending", listed(ALL_SCOPE))
    if wanted.category is not None:
        reason = f"new in {wanted.category}"
        yield Candidates("newest", reason, listed(newest_scope(wanted.category)))
    yield Candidates("newest", "new", listed(NEWEST_SCOPE))
    if wanted.category is not None:
        reason = f"in {wanted.category}"
        yield Candidates("catalogue", reason, catalogue(category_scope(wanted.category)))
        return
    for bucket in range(CATALOGUE_BUCKETS):
        yield Candidates("catalogue", "in the catalogue", catalogue(catalogue_scope(bucket)))
