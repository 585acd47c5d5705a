"""Operator uids: the names by which a savepoint finds its state. Never change one that shipped."""

from __future__ import annotations

from typing import Final

RECOMMENDER: Final = "recommender"
CATALOGUE: Final = "catalogue"
DEAD_LETTERS_SINK: Final = "dead-letters-sink"
CATALOGUE_LETTERS_SINK: Final = "catalogue-letters-sink"
PRODUCTS_SINK: Final = "products-sink"
RELATED_SINK: Final = "related-sink"
# Not "trending-sink", under which savepoints have lists of the products of the topic `catalogue`.
TRENDING_SINK: Final = "trending-scopes-sink"
TRENDING_CHANGES: Final = "trending-changes"
