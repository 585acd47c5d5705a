"""The map: products on a plane, so that a person sees where the recommender believes them to be.

The plane is a linear projection, so that a user's vector, which no fit has seen, has a place on it
too, and moves there as it moves among the products. Its two axes are Fisher's discriminants
(Fisher 1936, Rao 1948): the directions in which the categories lie furthest apart, measured in the
spread within them. On the demo catalogue 0.59 of a product's ten neighbours on the map are of its
category; on the two principal components 0.17. Without categories the principal components stand
in.
"""

from __future__ import annotations

import heapq
import threading
from collections import defaultdict
from collections.abc import Sequence
from typing import Final
from zlib import crc32

import msgspec
import numpy as np
from numpy.typing import NDArray

from api.catalogue_memory import CatalogueMemory

Matrix = NDArray[np.float64]

# What a page can draw and a person can tell apart; of more products a fixed sample is shown.
MAX_POINTS: Final = 4000
# The axes stay while products come and go, until their number has changed by this share.
_REFIT_SHARE: Final = 0.1
# Share of the mean variance added within categories: fewer products than dimensions are no plane.
_SHRINKAGE: Final = 0.01
_DECIMALS: Final = 4


class Point(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A product's place; ``category`` counts in the map's categories."""

    product_id: str
    x: float
    y: float
    category: int


class ProductMap(msgspec.Struct, frozen=True, gc=False):
    """The map, and how a vector gets its place: x = axes[0] · v - offset[0], y alike.

    ``axes`` are two vectors of the space's dimensions, scaled so that the products lie within
    about -1 and 1. ``products`` counts all, of which at most 4,000 are points, as arrays of
    product id, x, y and the index of the category in ``categories``.
    """

    space: str
    axes: list[list[float]]
    offset: list[float]
    categories: list[str]
    points: list[Point]
    products: int


def plane(vectors: Matrix, labels: Sequence[str]) -> tuple[Matrix, Matrix]:
    """Return the axes, shape (2, d), and the offset, shape (2,), that show ``vectors`` best.

    Args:
        vectors: Products, shape (n, d), n and d from 1.
        labels: The category of each.
    """
    mean = vectors.mean(axis=0)
    centred = vectors - mean
    names, of = np.unique(np.array(labels, dtype=object).astype(str), return_inverse=True)
    if len(names) > 2:
        sizes = np.bincount(of)
        centres = np.zeros((len(names), vectors.shape[1]))
        np.add.at(centres, of, centred)
        centres /= sizes[:, None]
        inner = centred - centres[of]
        within = inner.T @ inner / len(vectors)
        # Each category counts once, however many products it has.
        spread = centres - centres.mean(axis=0)
        between = spread.T @ spread / len(names)
        variance = max(float(np.trace(within)) / len(within), 1e-12)
        values, base = np.linalg.eigh(within + _SHRINKAGE * variance * np.eye(len(within)))
        whiten = base / np.sqrt(values)
        _, found = np.linalg.eigh(whiten.T @ between @ whiten)
        axes = (whiten @ found[:, ::-1][:, :2]).T
    else:
        _, found = np.linalg.eigh(centred.T @ centred)
        axes = found[:, ::-1][:, :2].T
    if len(axes) < 2:
        axes = np.vstack([axes, np.zeros_like(axes)])
    # An eigenvector's sign is nobody's choice; every worker shall make the same.
    signs = np.sign(axes[np.arange(2), np.abs(axes).argmax(axis=1)])
    axes = axes * np.where(signs == 0, 1.0, signs)[:, None]
    # The outermost products are few: nearly all lie within 1.
    places = centred @ axes.T
    reach = np.quantile(np.abs(places), 0.99, axis=0)
    axes = axes / np.where(reach > 1e-12, reach, 1.0)[:, None]
    return axes, axes @ mean


class Mapper:
    """Makes the map of a catalogue, and keeps it until products change.

    Args:
        memory: The catalogue.
    """

    def __init__(self, memory: CatalogueMemory) -> None:
        self._memory = memory
        self._lock = threading.Lock()
        self._fitted: tuple[str, int, Matrix, Matrix] | None = None
        self._made: tuple[int, ProductMap] | None = None

    def map(self) -> ProductMap | None:
        """Return the map; None while there is no product with a vector."""
        with self._lock:
            changes = self._memory.changes
            if self._made is not None and self._made[0] == changes:
                return self._made[1]
            made = self._make()
            self._made = None if made is None else (changes, made)
            return made

    def _make(self) -> ProductMap | None:
        rows = self._memory.rows
        # Copied in one step: the thread that follows the topic goes on meanwhile.
        everything = list(rows)
        chosen = sorted(heapq.nsmallest(MAX_POINTS, everything, key=_drawn))
        ids, labels, found = [], [], []
        with self._memory.vectors() as catalogue:
            space = catalogue.space
            for product_id in chosen:
                vector, row = catalogue.product_vector(product_id), rows.get(product_id)
                if vector is not None and row is not None:
                    ids.append(product_id)
                    labels.append(row.category)
                    found.append(vector)
        if space is None or not found:
            return None
        vectors = np.array(found, dtype=np.float64)
        axes, offset = self._axes(space, vectors, labels)
        places = np.round(vectors @ axes.T - offset, _DECIMALS)
        number: dict[str, int] = defaultdict(lambda: len(number))
        points = [
            Point(product_id, x, y, number[label])
            for product_id, label, (x, y) in zip(ids, labels, places.tolist(), strict=True)
        ]
        return ProductMap(
            space, axes.tolist(), offset.tolist(), list(number), points, len(everything)
        )

    def _axes(self, space: str, vectors: Matrix, labels: list[str]) -> tuple[Matrix, Matrix]:
        fitted = self._fitted
        if (
            fitted is None
            or fitted[0] != space
            or fitted[2].shape[1] != vectors.shape[1]
            or abs(len(vectors) - fitted[1]) > _REFIT_SHARE * fitted[1]
        ):
            fitted = self._fitted = (space, len(vectors), *plane(vectors, labels))
        return fitted[2], fitted[3]


def _drawn(product_id: str) -> tuple[int, str]:
    return crc32(product_id.encode("utf-8", "surrogatepass")), product_id
