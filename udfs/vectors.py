"""What a log says of a catalogue's products, those included that it does not know.

A product that the log does not know takes what is related to it from the k products nearest by
text (:mod:`udfs.query_encoder`) that it does know, with weights that are a power of their cosines,
so that it has related products, and is among those of others:

    related(new, j) = sum over m of p(new, m) · related(m, j)
    related(i, new) = w · sum over m of p(new, m) · related(i, m)       at most a few of each i

(the attribute-to-feature mapping by neighbours of Gantner et al., "Learning Attribute-to-Feature
Mappings for Cold-Start Recommendations", ICDM 2010).

Pure functions: the command that publishes and the evaluation call the same. The same input gives
the same output.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from udfs.behaviour import (
    BehaviourConfig,
    Rebuys,
    Related,
    make_log,
    rebuys,
    related_products,
    related_row,
    split_sessions,
)
from udfs.index import ExactIndex
from udfs.product_record import RelatedRow
from udfs.profile import ProfileConfig
from udfs.query_encoder import DIMENSIONS as TEXT_DIMENSIONS
from udfs.query_encoder import encode_products
from udfs.schemas import EVENT_TYPES, MAX_RELATED

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
Progress = Callable[[str, int], None]

# Below this a sum of weights is rounding.
_LEAST_SUM: Final = 1e-6
# What is computed at once, products: bounds the memory, and is what progress is told of.
_TEXTS_AT_ONCE: Final = 4096
_ROWS_AT_ONCE: Final = 4096


class Sequences(StrEnum):
    """What is one sequence of a log, within which products follow each other."""

    USER = "user"
    SESSION = "session"


@dataclass(frozen=True)
class VectorsConfig:
    """Constants of what is learned; every one is an option of the command."""

    text_neighbours: int = 10
    """Products nearest by text from which a new one takes what is related to it."""
    closeness_exponent: float = 4.0
    """Power of their cosines in what each counts."""
    new_weight: float = 1.0
    """What a new product counts among the related ones of others; 0: it is among none."""
    new_related: int = 10
    """Most new products among the related ones of a product."""
    sequences: Sequences = Sequences.SESSION
    """What is one sequence of the log."""
    session_gap_s: float = 1800.0
    """Events without a session id: the pause of a user that ends one, seconds."""
    behaviour: BehaviourConfig = field(default_factory=BehaviourConfig)
    """Constants of what is learned from the log."""

    def __post_init__(self) -> None:
        """Refuse constants without a meaning."""
        if not self.text_neighbours >= 1:
            msg = f"text_neighbours must be positive, not {self.text_neighbours}"
            raise ValueError(msg)
        if not 0 < self.session_gap_s < math.inf:
            msg = f"session_gap_s must be above 0, not {self.session_gap_s}"
            raise ValueError(msg)
        for name in ("closeness_exponent", "new_weight"):
            if not 0 <= getattr(self, name) <= 100:
                msg = f"{name} must be within 0 and 100, not {getattr(self, name)}"
                raise ValueError(msg)
        most = MAX_RELATED - 1 - self.behaviour.neighbours
        if not 0 <= self.new_related <= most:
            # A product may name itself, beside these.
            msg = f"new_related must be within 0 and {most}, not {self.new_related}"
            raise ValueError(msg)


class Interactions(NamedTuple):
    """Events with a product, in any order, as columns of one length."""

    users: Ints
    """Number of the user of each, shape (n,)."""
    items: Ints
    """Number of its product, 0 to products - 1, shape (n,)."""
    times_ms: Ints
    """Event time, epoch milliseconds, shape (n,)."""
    kinds: Ints
    """Index into :data:`udfs.schemas.EVENT_TYPES`, shape (n,)."""
    sessions: Ints
    """Number of the session, -1 where the event names none, shape (n,)."""


@dataclass(frozen=True)
class Learned:
    """What a log says of a catalogue's products, by their numbers."""

    product_ids: Sequence[str]
    """Product id of each number."""
    related: Related
    """What follows what."""
    bought_again: Rebuys | None
    """What is bought again; None where the log has no purchases."""

    def row(self, item: int) -> RelatedRow:
        """Give the record of a product for the topic `related`; with nothing learned, an empty one.

        Args:
            item: Number of the product.
        """
        return related_row(item, self.product_ids, self.related, self.bought_again)


def learn(
    product_ids: Sequence[str],
    titles: Sequence[str],
    categories: Sequence[str],
    interactions: Interactions,
    config: VectorsConfig | None = None,
    progress: Progress | None = None,
) -> Learned:
    """Learn from a log, and from texts where it knows nothing.

    Args:
        product_ids: All products of the catalogue.
        titles: Their titles; empty where there is none.
        categories: Their categories; empty where there is none.
        interactions: The log.
        config: The constants.
        progress: Told what is done, and how many products of it.

    Raises:
        ValueError: The columns are not of one length, or number products that are not there.
    """
    config = config or VectorsConfig()
    told = progress or _untold
    if not len(product_ids) == len(titles) == len(categories):
        msg = f"{len(product_ids)} products, {len(titles)} titles, {len(categories)} categories"
        raise ValueError(msg)
    text = _encode(titles, categories, told)
    log = make_log(
        _sequences(interactions, config),
        interactions.items,
        interactions.times_ms,
        _weights()[interactions.kinds],
        len(product_ids),
    )
    told("related products", 0)
    related = related_products(log, config.behaviour)
    similar = _similar(text, np.diff(related.starts) > 0, config, told)
    related = with_new_products(related, similar, config)
    told("related products", len(product_ids))
    return Learned(product_ids, related, _rebuys(interactions, categories, config))


def with_new_products(
    related: Related, similar: sparse.csr_matrix, config: VectorsConfig
) -> Related:
    """Give new products related ones, and put them among those of others.

    Args:
        related: What follows what.
        similar: What of each new product comes from which known one, (products, products); rows
            of known products are empty.
        config: The constants.
    """
    products = len(related.starts) - 1
    known = sparse.csr_matrix((related.weights, related.items, related.starts), similar.shape)
    back = similar.T.tocsr()
    parts: list[sparse.csr_matrix] = []
    for start in range(0, products, _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        shown = _best_of_rows(config.new_weight * (known[rows] @ back), config.new_related)
        taken = _best_of_rows(similar[rows] @ known, config.behaviour.neighbours)
        parts.append(_best_of_rows(known[rows] + shown + taken, MAX_RELATED))
    starts = np.r_[0, np.cumsum(np.concatenate([np.diff(part.indptr) for part in parts]))]
    return Related(
        starts,
        np.concatenate([part.indices for part in parts]).astype(np.int64),
        np.concatenate([part.data for part in parts]).astype(np.float32),
        related.repeats,
    )


def _best_of_rows(matrix: sparse.csr_matrix, count: int) -> sparse.csr_matrix:
    """Keep the largest entries above 0 of each row, the largest first."""
    matrix = matrix.tocsr()
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    order = np.lexsort((matrix.indices, -matrix.data, rows))
    place = np.arange(len(order)) - np.repeat(matrix.indptr[:-1], np.diff(matrix.indptr))
    kept = order[(place < count) & (matrix.data[order] > 0)]
    lengths = np.bincount(rows[kept], minlength=matrix.shape[0])
    starts = np.r_[0, np.cumsum(lengths)]
    return sparse.csr_matrix((matrix.data[kept], matrix.indices[kept], starts), matrix.shape)


def _similar(
    text: Floats, known: NDArray[np.bool_], config: VectorsConfig, told: Progress
) -> sparse.csr_matrix:
    """Say which known products each new one is like: rows of sum 1, (products, products)."""
    shape = (len(text), len(text))
    with_text = text.any(axis=1)
    sources = np.flatnonzero(known & with_text)
    targets = np.flatnonzero(~known & with_text)
    if not len(sources) or not len(targets):
        nobody = np.zeros(0, dtype=np.int64)
        return sparse.csr_matrix((np.zeros(0, dtype=np.float32), (nobody, nobody)), shape)
    index = ExactIndex(text.shape[1])
    for at in sources.tolist():
        index.upsert(str(at), text[at])
    k = min(config.text_neighbours, len(sources))
    columns: list[Ints] = []
    weights: list[Floats] = []
    for start in range(0, len(targets), _ROWS_AT_ONCE):
        slots, cosines = index.search_slots(text[targets[start : start + _ROWS_AT_ONCE]], k)
        columns.append(sources[slots])
        weights.append(np.maximum(cosines, 0) ** np.float32(config.closeness_exponent))
        left = max(0, len(targets) - start - _ROWS_AT_ONCE)
        told("products like the new ones", len(text) - left)
    weight = np.vstack(weights)
    total = weight.sum(axis=1, keepdims=True)
    weight = np.divide(weight, total, out=np.zeros_like(weight), where=total > _LEAST_SUM)
    rows = np.repeat(targets, k)
    return sparse.csr_matrix((weight.ravel(), (rows, np.vstack(columns).ravel())), shape)


def _encode(titles: Sequence[str], categories: Sequence[str], told: Progress) -> Floats:
    text = np.zeros((len(titles), TEXT_DIMENSIONS), dtype=np.float32)
    for start in range(0, len(titles), _TEXTS_AT_ONCE):
        part = slice(start, start + _TEXTS_AT_ONCE)
        text[part] = encode_products(titles[part], categories[part])
        told("texts", min(len(titles), start + _TEXTS_AT_ONCE))
    return text


def _untold(_what: str, _done: int) -> None:
    """Tell nobody."""


def _sequences(interactions: Interactions, config: VectorsConfig) -> Ints:
    if config.sequences is Sequences.USER:
        return interactions.users
    sessions = interactions.sessions.copy()
    unnamed = np.flatnonzero(sessions < 0)
    if len(unnamed):
        gap_ms = round(1000 * config.session_gap_s)
        split = split_sessions(interactions.users[unnamed], interactions.times_ms[unnamed], gap_ms)
        sessions[unnamed] = sessions.max() + 1 + split
    return sessions


def _weights() -> NDArray[np.float64]:
    """What an event counts by its type, as in the job's profiles."""
    weights = ProfileConfig().weights
    return np.array([weights[name] for name in EVENT_TYPES])


def _rebuys(
    interactions: Interactions, categories: Sequence[str], config: VectorsConfig
) -> Rebuys | None:
    bought = np.flatnonzero(interactions.kinds == EVENT_TYPES.index("purchase"))
    if not len(bought):
        return None
    numbers = {name: number for number, name in enumerate(dict.fromkeys(categories))}
    return rebuys(
        interactions.users[bought],
        interactions.items[bought],
        interactions.times_ms[bought],
        np.array([numbers[name] for name in categories], dtype=np.int64),
        config.behaviour,
    )
