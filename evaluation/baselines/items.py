"""Item-to-item methods: which items occur together in sessions or with users."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array

from evaluation.baselines.common import Baseline, Floats, Query, Scored, nothing
from evaluation.protocol import Items, Training

# Items whose co-occurrences are computed at once: bounds the memory of a large catalogue.
_CHUNK: Final = 2048


def group_matrix(training: Training, *, counted: bool = False) -> csr_array:
    """Groups × items: 1 where the item occurs in the group, or how often it does (``counted``)."""
    matrix = csr_array(
        (np.ones(len(training.items)), training.items, training.starts),
        shape=(training.groups, len(training.product_ids)),
        copy=True,  # summing duplicates works in place
    )
    matrix.sum_duplicates()
    if not counted:
        matrix.data[:] = 1.0
    return matrix


@dataclass
class ItemItem(Baseline):
    """Item-item cosine; the query is the sum over the last items.

    The similarity of items i and j is |G_i ∩ G_j| / sqrt((|G_i| + r)(|G_j| + r)) over the groups
    with i and with j; r damps chance co-occurrence of rare items. An item is no neighbour of its
    own. With the last item alone it is the item-KNN of Hidasi et al. ("Session-based
    recommendations with recurrent neural networks", ICLR 2016): :class:`LastItem`.
    """

    name: ClassVar[str] = "item_item"
    uses_history: ClassVar[bool] = True
    last: int = 5
    """How many of the newest items are the query."""
    damping: float = 20.0
    """r, in groups."""
    neighbours: int = 1000
    """How many of an item's most similar items are kept: a sum over five rows needs more than the
    published 100."""

    def _learn(self, training: Training) -> None:
        groups = group_matrix(training)
        support = np.asarray(groups.sum(axis=0))
        scale = 1 / np.sqrt(support + self.damping)
        together = _co_occurrences(groups)
        self._rows = _pruned(together, scale, self.neighbours, diagonal=np.zeros(len(support)))

    def score(self, query: Query) -> Scored:
        """Sum the similarities to the last items."""
        return _sum(self._rows, query.items[-self.last :])


@dataclass
class LastItem(ItemItem):
    """The neighbours of the last item."""

    name: ClassVar[str] = "last_item"
    uses_history: ClassVar[bool] = False
    last: int = 1


@dataclass
class NearItems(ItemItem):
    """Item-item cosine over what stood near: a stronger form than the one of the literature.

    Only pairs at most ``window`` events apart count, by 1 / distance, and each step back of the
    query counts ``decay`` times as much. Where the order of a session means something, as that of
    an invoice's lines does, this is the best of the item-item family that we know of.
    """

    name: ClassVar[str] = "near_items"
    uses_history: ClassVar[bool] = True
    window: int = 8
    """Events."""
    decay: float = 0.8
    """Weight of a step back in the query."""

    def _learn(self, training: Training) -> None:
        together = _near_co_occurrences(training, self.window)
        scale = 1 / np.sqrt(training.counts + self.damping)
        diagonal = np.zeros(len(training.counts))
        self._rows = _pruned([together], scale, self.neighbours, diagonal)

    def score(self, query: Query) -> Scored:
        """Sum the similarities to the last items, the newest most."""
        return _sum(self._rows, query.items[-self.last :], self.decay)


@dataclass
class AssociationRules(Baseline):
    """Association rules of size two, from the last item.

    The score of j after i is how often they occur together, counted over all pairs of events of a
    group (Ludewig and Jannach, "Evaluation of session-based recommendation algorithms", UMUAI
    2018, equation 1; its normalisation is the same for all j).
    """

    name: ClassVar[str] = "association_rules"
    uses_history: ClassVar[bool] = False
    rules: int = 100
    """How many rules of an item are kept, the most frequent."""

    def _learn(self, training: Training) -> None:
        groups = group_matrix(training, counted=True)
        # An item's pairs with itself: n (n − 1) for n events, not n².
        pairs = groups.multiply(groups).sum(axis=0) - groups.sum(axis=0)
        ones = np.ones(len(training.product_ids))
        together = _co_occurrences(groups)
        self._rows = _pruned(together, ones, self.rules, diagonal=np.asarray(pairs))

    def score(self, query: Query) -> Scored:
        """Count the pairs with the last item."""
        return _sum(self._rows, query.items[-1:])


def _co_occurrences(groups: csr_array) -> Iterator[csr_array]:
    """Rows of groupsᵀ groups, some at a time."""
    by_item = groups.T.tocsr()
    for start in range(0, by_item.shape[0], _CHUNK):
        yield (by_item[start : start + _CHUNK] @ groups).tocsr()


def _near_co_occurrences(training: Training, window: int) -> csr_array:
    """Items × items: the sum of 1 / d over pairs of a group that are d ≤ window events apart."""
    n = len(training.product_ids)
    group_of = np.repeat(np.arange(training.groups), np.diff(training.starts))
    total = csr_array((n, n))
    for distance in range(1, window + 1):
        same = group_of[distance:] == group_of[:-distance]
        a, b = training.items[:-distance][same], training.items[distance:][same]
        values = np.full(2 * len(a), 1 / distance)
        pairs = coo_array((values, (np.r_[a, b], np.r_[b, a])), shape=(n, n))
        total = total + pairs.tocsr()
    return total


def _pruned(
    together: Iterable[csr_array],
    scale: NDArray[np.float64],
    keep: int,
    diagonal: NDArray[np.float64],
) -> list[Scored]:
    """The best ``keep`` of each row of scale · together · scale, with another diagonal."""
    rows: list[Scored] = []
    for part in together:
        for first, last in itertools.pairwise(part.indptr.tolist()):
            item = len(rows)
            others = part.indices[first:last].astype(np.int32)
            scores = part.data[first:last] * scale[others] * scale[item]
            scores[others == item] = diagonal[item]
            positive = np.flatnonzero(scores > 0)
            order = np.lexsort((others[positive], -scores[positive]))[:keep]
            kept = positive[order]
            rows.append(Scored(others[kept], scores[kept]))
    return rows


def _sum(rows: Sequence[Scored], items: Items, decay: float = 1.0) -> Scored:
    """Sum the rows of the items, oldest first; each step back counts ``decay`` times as much."""
    if not len(items):
        return nothing()
    found: list[Scored] = [rows[item] for item in items.tolist()]
    if len(found) == 1:
        return found[0]
    steps_back = range(len(found) - 1, -1, -1)
    joined = np.concatenate([row.items for row in found])
    weighted = [row.scores * decay**back for back, row in zip(steps_back, found, strict=True)]
    candidates, place = np.unique(joined, return_inverse=True)
    scores = np.bincount(place, weights=np.concatenate(weighted), minlength=len(candidates))
    summed: Floats = scores.astype(np.float64)
    return Scored(np.asarray(candidates, dtype=np.int32), summed)
