"""What an event log says of products: which follow which, and what is bought again.

Pure functions from arrays to arrays, for the command that publishes it; the job itself only reads
what was published. The same input gives the same output.

Products i and j that stand at positions p < q of one sequence (a session, an invoice), at most
``window`` apart, co-occur with weight

    c(i, j) += 2 ** (-age / h) / (q - p)          c(j, i) += backward · 2 ** (-age / h) / (q - p)

the sequential rules of Ludewig and Jannach ("Evaluation of Session-based Recommendation
Algorithms", UMUAI 2018) with a share for the other direction, and younger pairs counting more. The
products related to i are the j with the largest

    related(i, j) = (c(i, j) / (n_i ** a · n_j ** b)) ** sharpness

where n is the decayed number of uses; all divided by the median of the products' largest, so that
1 is a typical best neighbour in any log.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from udfs.product_record import VERSION, RelatedRow

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_DAY_MS: Final = 86_400_000
# Pairs that are summed at once: bounds the memory to a few hundred MB.
_PAIRS_AT_ONCE: Final = 8_000_000
# Added to the decayed uses, so that what was used once, long ago, is not sure of its neighbours.
_LEAST_USES: Final = 0.05


@dataclass(frozen=True)
class BehaviourConfig:
    """Constants of what is learned from a log."""

    window: int = 12
    """Positions of a sequence within which products co-occur."""
    backward: float = 0.6
    """What a pair counts from the later product to the earlier, in shares of the other way."""
    half_life_days: float = 60.0
    """Half-life of a pair's weight, days before the log's end."""
    source_exponent: float = 0.7
    """Power of the uses of the product that others are related to."""
    target_exponent: float = 0.3
    """Power of the uses of the related product: pushes what is popular anyway."""
    sharpness: float = 0.7
    """Power of the whole: below 1, several weak hints outweigh a strong one."""
    neighbours: int = 50
    """Related products kept of each product."""
    repeat_factor: float = 3.0
    """Weight of a product for those who just touched it, a unit of repeat rate; its own
    co-occurrence is added."""
    repeat_window: int = 10
    """Positions back in a sequence within which the same product is a repeat."""
    rebuy_share: float = 0.1
    """A product is bought again where at least this share of its purchases was followed by one."""
    rebuy_days: float = 2.0
    """Days after which such a product may be shown again to who bought it."""
    rebuy_prior: float = 3.0
    """Purchases that a product's category counts in its share."""
    category_prior: float = 20.0
    """Purchases that the whole log counts in a category's share."""

    def __post_init__(self) -> None:
        """Refuse constants without a meaning."""
        for name in ("window", "neighbours", "repeat_window"):
            if getattr(self, name) < 1:
                msg = f"{name} must be positive, not {getattr(self, name)}"
                raise ValueError(msg)
        for name in ("half_life_days", "sharpness", "rebuy_prior", "category_prior"):
            if not getattr(self, name) > 0:
                msg = f"{name} must be positive, not {getattr(self, name)}"
                raise ValueError(msg)
        for name in ("backward", "source_exponent", "target_exponent", "repeat_factor",
                     "rebuy_share", "rebuy_days"):  # fmt: skip
            if not getattr(self, name) >= 0:
                msg = f"{name} must not be negative, not {getattr(self, name)}"
                raise ValueError(msg)


class Log(NamedTuple):
    """Interactions, each with its sequence, sorted by sequence and then by time."""

    sequences: Ints
    """Number of the session, or of whatever else belongs together, shape (n,)."""
    items: Ints
    """Product of each, 0 to products - 1, shape (n,)."""
    times_ms: Ints
    """Event time, epoch milliseconds, shape (n,)."""
    weights: Floats
    """What each counts, 0 to 1, shape (n,)."""
    products: int
    """Number of products."""


class Related(NamedTuple):
    """The related products of each product, best first, as rows one after the other."""

    starts: Ints
    """Where each product's row starts, and the end, shape (products + 1,)."""
    items: Ints
    """Related products."""
    weights: NDArray[np.float32]
    """1 is a typical best neighbour."""
    repeats: NDArray[np.float32]
    """Weight of each product for those who just touched it, shape (products,)."""

    def of(self, item: int) -> tuple[Ints, NDArray[np.float32]]:
        """Related products of one product and their weights, best first."""
        row = slice(int(self.starts[item]), int(self.starts[item + 1]))
        return self.items[row], self.weights[row]


def make_log(sequences: Ints, items: Ints, times_ms: Ints, weights: Floats, products: int) -> Log:
    """Sort interactions into sequences; of equal times the order stays.

    Args:
        sequences: Any numbers, shape (n,).
        items: 0 to products - 1, shape (n,).
        times_ms: Epoch milliseconds, shape (n,).
        weights: Weight of each event's type; what is not above 0 is left out, above 1 counts 1.
        products: Number of products.

    Raises:
        ValueError: The shapes differ, or an item is out of its range.
    """
    if not sequences.shape == items.shape == times_ms.shape == weights.shape == (len(items),):
        msg = "sequences, items, times_ms and weights must be of one length"
        raise ValueError(msg)
    if len(items) and not 0 <= items.min() <= items.max() < products:
        msg = f"items must be within 0 and {products - 1}"
        raise ValueError(msg)
    kept = np.flatnonzero(weights > 0)
    order = kept[np.lexsort((times_ms[kept], sequences[kept]))]
    return Log(
        sequences[order],
        items[order],
        times_ms[order],
        np.minimum(weights[order], 1.0),
        products,
    )


def split_sessions(users: Ints, times_ms: Ints, gap_ms: int) -> Ints:
    """Number the sessions of a log without any: a pause longer than ``gap_ms`` ends one.

    Args:
        users: Number of the user, shape (n,).
        times_ms: Epoch milliseconds, shape (n,).
        gap_ms: The longest pause within a session.

    Returns:
        Session of each event, shape (n,).
    """
    order = np.lexsort((times_ms, users))
    new = np.ones(len(users), dtype=bool)
    new[1:] = (np.diff(users[order]) != 0) | (np.diff(times_ms[order]) > gap_ms)
    sessions = np.empty(len(users), dtype=np.int64)
    sessions[order] = np.cumsum(new) - 1
    return sessions


def co_occurrence(log: Log, config: BehaviourConfig) -> sparse.csr_matrix:
    """Sum the co-occurrence c(i, j) of all pairs: (products, products)."""
    total = sparse.csr_matrix((log.products, log.products))
    for rows, columns, weights in _pairs(log, config):
        part = sparse.coo_matrix((weights, (rows, columns)), shape=total.shape)
        total = total + part.tocsr()
    return total


def _pairs(log: Log, config: BehaviourConfig) -> Iterator[tuple[Ints, Ints, Floats]]:
    own = log.weights * _ages_decay(log, config)
    rows: list[Ints] = []
    columns: list[Ints] = []
    weights: list[Floats] = []
    collected = 0
    for distance in range(1, min(config.window, len(log.items) - 1) + 1):
        earlier = np.flatnonzero(log.sequences[:-distance] == log.sequences[distance:])
        if not len(earlier):
            break
        later = earlier + distance
        weight = log.weights[earlier] * own[later] / distance
        rows += [log.items[earlier], log.items[later]]
        columns += [log.items[later], log.items[earlier]]
        weights += [weight, config.backward * weight]
        collected += 2 * len(earlier)
        if collected >= _PAIRS_AT_ONCE:
            yield np.concatenate(rows), np.concatenate(columns), np.concatenate(weights)
            rows, columns, weights, collected = [], [], [], 0
    if collected:
        yield np.concatenate(rows), np.concatenate(columns), np.concatenate(weights)


def _ages_decay(log: Log, config: BehaviourConfig) -> Floats:
    ages_days = (log.times_ms.max(initial=0) - log.times_ms) / _DAY_MS
    decayed: Floats = np.exp2(-ages_days / config.half_life_days)
    return decayed


def related_products(log: Log, config: BehaviourConfig) -> Related:
    """Find the products that follow each product, and how likely it is touched again itself."""
    counts = co_occurrence(log, config)
    decayed = log.weights * _ages_decay(log, config)
    uses = _LEAST_USES + np.bincount(log.items, decayed, log.products)
    rows = np.repeat(np.arange(log.products), np.diff(counts.indptr))
    columns = counts.indices.astype(np.int64)
    weights = counts.data / (
        uses[rows] ** config.source_exponent * uses[columns] ** config.target_exponent
    )
    weights = weights**config.sharpness
    own = rows == columns
    repeats = np.zeros(log.products)
    repeats[rows[own]] = weights[own]
    weights[own] = 0  # last in its row
    order = np.lexsort((columns, -weights, rows))  # rows are in order: the starts hold
    starts = counts.indptr.astype(np.int64)
    place = np.arange(len(order)) - np.repeat(starts[:-1], np.diff(starts))
    kept = order[(place < config.neighbours) & (weights[order] > 0)]
    lengths = np.bincount(rows[kept], minlength=log.products)
    starts = np.r_[0, np.cumsum(lengths)]
    best = weights[kept[starts[:-1][lengths > 0]]]
    unit = float(np.median(best)) if len(best) else 1.0
    return Related(
        starts,
        columns[kept],
        (weights[kept] / unit).astype(np.float32),
        (config.repeat_factor * _repeat_rate(log, config) + repeats / unit).astype(np.float32),
    )


def _repeat_rate(log: Log, config: BehaviourConfig) -> float:
    """Share of the interactions, but the first of each sequence, that repeat a recent one."""
    again = np.zeros(len(log.items), dtype=bool)
    for distance in range(1, min(config.repeat_window, len(log.items) - 1) + 1):
        same = log.sequences[:-distance] == log.sequences[distance:]
        again[distance:] |= same & (log.items[:-distance] == log.items[distance:])
    follow = np.count_nonzero(log.sequences[1:] == log.sequences[:-1])
    return float(again.sum() / max(1, follow))


class Rebuys(NamedTuple):
    """Which products are bought again by the same person."""

    shares: NDArray[np.float32]
    """Share of a product's purchases that were followed by another, shrunk, shape (products,)."""
    days: NDArray[np.float32]
    """Days until it may be shown again; infinite where it is not bought again."""


def rebuys(
    users: Ints,
    items: Ints,
    times_ms: Ints,
    categories: Ints,
    config: BehaviourConfig,
) -> Rebuys:
    """Learn from purchases which products are bought again.

    Purchases of one product by one user on one day are one. A product's share is shrunk to its
    category's, and that to the share of the whole log, by counting as many purchases of these as
    the priors say (the beta-binomial estimate).

    Args:
        users: Number of the user of each purchase, shape (n,).
        items: Product of each purchase, shape (n,).
        times_ms: Epoch milliseconds, shape (n,).
        categories: Number of each product's category, shape (products,).
        config: The constants.
    """
    products = len(categories)
    bought = np.unique(np.stack([users, items, times_ms // _DAY_MS], axis=1), axis=0)
    followed = np.zeros(len(bought), dtype=bool)
    followed[:-1] = (bought[1:, :2] == bought[:-1, :2]).all(axis=1)
    purchases = np.bincount(bought[:, 1], minlength=products).astype(np.float64)
    again = np.bincount(bought[followed, 1], minlength=products).astype(np.float64)
    overall = again.sum() / max(1.0, purchases.sum())
    prior = config.category_prior
    of_category = (np.bincount(categories, again) + prior * overall) / (
        np.bincount(categories, purchases) + prior
    )
    shares = (again + config.rebuy_prior * of_category[categories]) / (
        purchases + config.rebuy_prior
    )
    days = np.where(shares >= config.rebuy_share, config.rebuy_days, np.inf)
    return Rebuys(shares.astype(np.float32), days.astype(np.float32))


def related_row(
    item: int, product_ids: Sequence[str], related: Related, bought_again: Rebuys | None
) -> RelatedRow:
    """Make the record of the topic `related` from what was learned of a product.

    Weights have four digits, so that they are short on the wire.

    Args:
        item: Number of the product.
        product_ids: Product id of each number.
        related: What follows what.
        bought_again: What is bought again; None where the log has no purchases.
    """
    items, weights = related.of(item)
    named = {
        product_ids[other]: _short(weight)
        for other, weight in zip(items.tolist(), weights.tolist(), strict=True)
    }
    if related.repeats[item] > 0:
        named[product_ids[item]] = _short(related.repeats[item])
    row = RelatedRow(VERSION, product_ids[item], named)
    if bought_again is None or not np.isfinite(bought_again.days[item]):
        return row
    return msgspec.structs.replace(
        row,
        rebuy_days=_short(bought_again.days[item]),
        rebuy_share=_short(bought_again.shares[item]),
    )


def _short(value: float) -> float:
    return float(f"{value:.4g}")
