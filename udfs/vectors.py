"""Vectors and facts for a catalogue that has none: from text, from behaviour, or from both.

One space holds what has text, what has behaviour and what has both. A product's vector is

    v = [sqrt(s) · t, sqrt(1 - s) · b]        s: the text's share

with t the text's unit vector (:mod:`udfs.query_encoder`) and b the unit vector factorised from the
log (:mod:`udfs.behaviour`), so that a cosine is the two cosines' weighted mean. A search is
[t, 0]: it is near to what its words are near to, and all products are on one scale for it. What
the log does not know has in the place of b the direction that a ridge regression from t to b over
the products with both predicts (Schein et al., "Methods and Metrics for Cold-Start
Recommendations", SIGIR 2002, call the task; the map is that of Gantner et al., "Learning
Attribute-to-Feature Mappings for Cold-Start Recommendations", ICDM 2010).

Pure functions: the command that publishes and the evaluation call the same. The same input gives
the same output, and another input another space: vectors of two factorisations mean nothing to
each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import blake2b
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from udfs.behaviour import (
    BehaviourConfig,
    Rebuys,
    Related,
    behaviour_vectors,
    make_log,
    product_fields,
    rebuys,
    related_products,
    split_sessions,
)
from udfs.profile import ProfileConfig
from udfs.query_encoder import DIMENSIONS as TEXT_DIMENSIONS
from udfs.query_encoder import SPACE as TEXT_SPACE
from udfs.query_encoder import encode_products
from udfs.schemas import EVENT_TYPES, MAX_DIMENSIONS

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]

# Below this a vector's length is rounding.
_LEAST_LENGTH: Final = 1e-6


class Source(StrEnum):
    """What vectors are made from."""

    TEXT = "text"
    BEHAVIOUR = "behaviour"
    BOTH = "both"


class Sequences(StrEnum):
    """What is one sequence of a log, within which products follow each other."""

    USER = "user"
    SESSION = "session"


@dataclass(frozen=True)
class VectorsConfig:
    """Constants of the vectors; every one is an option of the command."""

    source: Source = Source.BOTH
    """What the vectors are made from; what is related is learned from any log."""
    dimensions: int = 64
    """Length of the behaviour part."""
    text_share: float = 0.5
    """Share of the text part in a product's squared length, above 0 and below 1."""
    ridge: float = 1.0
    """Regularisation of the map from text to behaviour, in products."""
    sequences: Sequences = Sequences.USER
    """What is one sequence of the log."""
    session_gap_s: float = 1800.0
    """Events without a session id: the pause of a user that ends one, seconds."""
    seed: int = 0
    """Of the factorisation's random start."""
    behaviour: BehaviourConfig = field(default_factory=BehaviourConfig)
    """Constants of what is learned from the log."""

    def __post_init__(self) -> None:
        """Refuse constants without a meaning."""
        if not 1 <= self.dimensions <= MAX_DIMENSIONS - TEXT_DIMENSIONS:
            largest = MAX_DIMENSIONS - TEXT_DIMENSIONS
            msg = f"dimensions must be within 1 and {largest}, not {self.dimensions}"
            raise ValueError(msg)
        if not 0 < self.text_share < 1:
            msg = f"text_share must be above 0 and below 1, not {self.text_share}"
            raise ValueError(msg)
        for name in ("ridge", "session_gap_s"):
            if not 0 < getattr(self, name) < math.inf:
                msg = f"{name} must be above 0, not {getattr(self, name)}"
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


class Learned:
    """What a log and the texts of its products say, applied to any product of the catalogue."""

    def __init__(
        self,
        space: str,
        config: VectorsConfig,
        product_ids: Sequence[str],
        behaviour: Floats | None,
        mapping: NDArray[np.float64] | None,
        related: Related | None,
        bought_again: Rebuys | None,
    ) -> None:
        """Keep what :func:`learn` found; None is what it did not look for."""
        self.space = space
        self._config = config
        self._product_ids = product_ids
        self._number = {product_id: at for at, product_id in enumerate(product_ids)}
        self._behaviour = behaviour
        self._mapping = mapping
        self._related = related
        self._bought_again = bought_again

    @property
    def dimensions(self) -> int:
        """Length of the vectors."""
        source = self._config.source
        text = 0 if source is Source.BEHAVIOUR else TEXT_DIMENSIONS
        return text + (0 if source is Source.TEXT else self._config.dimensions)

    def vectors(
        self, product_ids: Sequence[str], titles: Sequence[str], categories: Sequence[str]
    ) -> Floats:
        """Make the products' vectors, whatever part of the catalogue they are.

        Args:
            product_ids: Any products, shape (n,).
            titles: Their titles; empty where there is none.
            categories: Their categories; empty where there is none.

        Returns:
            Shape (n, dimensions), rows of length 1; zeros for a product of which too little is
            known.
        """
        if self._config.source is Source.TEXT:
            return encode_products(titles, categories)
        behaviour = self._behaviour_of(product_ids)
        if self._config.source is Source.BEHAVIOUR:
            return behaviour
        text = encode_products(titles, categories)
        unknown = np.flatnonzero(~behaviour.any(axis=1))
        if self._mapping is not None and len(unknown):
            behaviour[unknown] = _unit(text[unknown] @ self._mapping)
        share = self._config.text_share
        return _unit(np.hstack([math.sqrt(share) * text, math.sqrt(1 - share) * behaviour]))

    def facts(self, product_id: str) -> dict[str, Any]:
        """Give the fields ``related``, ``rebuy_days`` and ``rebuy_share`` of a wire product.

        Empty where the log does not know the product.
        """
        at = self._number.get(product_id)
        if at is None or self._related is None:
            return {}
        return product_fields(at, self._product_ids, self._related, self._bought_again)

    def _behaviour_of(self, product_ids: Sequence[str]) -> Floats:
        found = np.zeros((len(product_ids), self._config.dimensions), dtype=np.float32)
        if self._behaviour is not None:
            known = [self._number.get(product_id, -1) for product_id in product_ids]
            numbers = np.array(known, dtype=np.intp)
            rows = np.flatnonzero(numbers >= 0)
            found[rows] = self._behaviour[numbers[rows]]
        return found


def learn(
    product_ids: Sequence[str],
    titles: Sequence[str],
    categories: Sequence[str],
    interactions: Interactions | None,
    config: VectorsConfig | None = None,
) -> Learned:
    """Learn from a log all that a catalogue publishes.

    Args:
        product_ids: The products that the interactions number; others are not needed.
        titles: Their titles; empty where there is none.
        categories: Their categories; empty where there is none.
        interactions: The log; None where there is none, then from text alone.
        config: The constants.

    Raises:
        ValueError: Vectors from behaviour are asked for, and there is no log; or the columns are
            not of one length, or number products that are not there.
    """
    config = config or VectorsConfig()
    if interactions is None:
        if config.source is not Source.TEXT:
            msg = f"vectors from {config.source} need an event log"
            raise ValueError(msg)
        return Learned(TEXT_SPACE, config, [], None, None, None, None)
    log = make_log(
        _sequences(interactions, config),
        interactions.items,
        interactions.times_ms,
        _weights()[interactions.kinds],
        len(product_ids),
    )
    related = related_products(log, config.behaviour)
    bought_again = _rebuys(interactions, categories, config)
    if config.source is Source.TEXT:
        return Learned(TEXT_SPACE, config, product_ids, None, None, related, bought_again)
    space = _space(product_ids, titles, categories, interactions, config)
    behaviour = behaviour_vectors(log, config.behaviour, config.dimensions, config.seed)
    mapping = None
    if config.source is Source.BOTH:
        mapping = ridge_map(encode_products(titles, categories), behaviour, config.ridge)
    return Learned(space, config, product_ids, behaviour, mapping, related, bought_again)


def ridge_map(text: Floats, behaviour: Floats, ridge: float) -> NDArray[np.float64]:
    """Fit the linear map from text to behaviour over the products with both.

    argmin over W of |T W - B|² + ridge · |W|² (Hoerl and Kennard, Technometrics 1970).

    Args:
        text: Shape (n, t); rows of zeros have no text.
        behaviour: Shape (n, b); rows of zeros have none.
        ridge: Regularisation, in products.

    Returns:
        Shape (t, b).
    """
    both = text.any(axis=1) & behaviour.any(axis=1)
    known = text[both].astype(np.float64)
    gram = known.T @ known + ridge * np.eye(text.shape[1])
    mapped: NDArray[np.float64] = np.linalg.solve(gram, known.T @ behaviour[both])
    return mapped


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


def _space(
    product_ids: Sequence[str],
    titles: Sequence[str],
    categories: Sequence[str],
    interactions: Interactions,
    config: VectorsConfig,
) -> str:
    """Name the space by all that its vectors come from."""
    digest = blake2b(digest_size=6)
    for column in interactions:
        digest.update(column.astype("<i8").tobytes())
    for names in (product_ids, titles, categories):
        for name in names:
            encoded = name.encode("utf-8", "surrogatepass")
            digest.update(len(encoded).to_bytes(4, "little") + encoded)
    digest.update(repr(config).encode())
    part = f"behaviour{config.dimensions}-{digest.hexdigest()}"
    return part if config.source is Source.BEHAVIOUR else f"{TEXT_SPACE}+{part}"


def _unit(vectors: NDArray[Any]) -> Floats:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > _LEAST_LENGTH)
    return unit.astype(np.float32)
