"""The job under test: the events before a target go through ``udfs.recommend``."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from evaluation.files import DataError, FileProduct, Log
from evaluation.protocol import Items, Prediction, Training, Walk
from udfs.catalogue import Catalogue
from udfs.query_encoder import SPACE, encode_query, encode_texts
from udfs.recommend import USERS_PER_BATCH, RecommendConfig, Touched, recommend
from udfs.schemas import PendingEvent, Product, RejectedError, SavedList, decode_vector

# The longest list that a RecommendConfig allows.
_LONGEST: Final = 1000


@dataclass(frozen=True)
class Vectors:
    """The vectors of the products that have one, all of one space."""

    space: str
    product_ids: list[str]
    matrix: NDArray[np.float32]
    """Shape (products, d), rows of length 1."""


def vectors_before_split(training: Training, products: Mapping[str, FileProduct]) -> Vectors:
    """Give the training items their vectors; here vectors from behaviour have their place.

    A product of the catalogue file that has a vector keeps it, and it is for the file's owner to
    say that nothing after the split went into it. The others get the text vector of title and
    category. A product with neither vector nor text has none, and cannot be recommended.

    Raises:
        DataError: The file has vectors of several spaces or lengths, or no product has a vector.
    """
    given: dict[str, NDArray[np.float32]] = {}
    spaces: set[str] = set()
    texts: dict[str, str] = {}
    for product_id in training.product_ids:
        product = products.get(product_id)
        if product is None:
            continue
        if product.embedding is not None and product.space is not None:
            try:
                given[product_id] = decode_vector(product.embedding)
            except RejectedError as error:
                msg = f"the vector of product {product_id}: {error}"
                raise DataError(msg) from error
            spaces.add(product.space)
        elif text := f"{product.title} {product.category}".strip():
            texts[product_id] = text
    if len(spaces) > 1 or len({len(vector) for vector in given.values()}) > 1:
        msg = (
            f"the catalogue's vectors are of several spaces or lengths: {', '.join(sorted(spaces))}"
        )
        raise DataError(msg)
    space = spaces.pop() if spaces else SPACE
    if space == SPACE:  # text vectors would mean nothing among those of another space
        encoded = encode_texts(list(texts.values()))
        given.update(
            (product_id, vector)
            for product_id, vector in zip(texts, encoded, strict=True)
            if vector.any()
        )
    if not given:
        msg = (
            "no product of the training part has a vector or a text to make one of: name a"
            " catalogue with titles, categories or embeddings"
        )
        raise DataError(msg)
    return Vectors(space, list(given), np.stack(list(given.values())))


def fill_catalogue(vectors: Vectors) -> Catalogue:
    """Make the job's catalogue of the products that may be recommended."""
    encodes = vectors.space == SPACE
    catalogue = Catalogue(
        encoder=encode_query if encodes else None, encoder_space=SPACE if encodes else None
    )
    for product_id, vector in zip(vectors.product_ids, vectors.matrix, strict=True):
        product = Product(product_id=product_id, space=vectors.space, embedding="")
        catalogue.upsert(product, vector)
    return catalogue


class Ours:
    """Each walk is a user of the job: tick by tick, what came since the last target moves it.

    The walks of a chunk go through their targets side by side, so that one call of ``recommend``
    is a tick of many users, as in the job. The profile is packed and unpacked between ticks, as
    in the job. ``now_us`` is the newest event time of the tick: the replay's wall clock.

    The time of a prediction is that of its call divided by its users: the last targets of long
    walks are alone in theirs.
    """

    name: ClassVar[str] = "ours"
    uses_history: ClassVar[bool] = True

    def __init__(
        self,
        log: Log,
        products: Mapping[str, FileProduct],
        config: RecommendConfig | None = None,
    ) -> None:
        """Take what the job would be given: events, products, constants.

        Args:
            log: Where the walks' events are.
            products: The catalogue file.
            config: The job's constants; ``list_length`` is replaced by the k of the evaluation.
        """
        self._log = log
        self._products = products
        self._config = config or RecommendConfig()

    def fit(self, training: Training) -> None:
        """Fill the catalogue with the training items."""
        self._catalogue = fill_catalogue(vectors_before_split(training, self._products))
        self._item_of = {product_id: item for item, product_id in enumerate(training.product_ids)}

    def predict(self, walks: Sequence[Walk], k: int) -> Iterator[Prediction]:
        """Answer every target of every walk, tick by tick."""
        for start in range(0, len(walks), USERS_PER_BATCH):
            yield from self._replay(start, walks[start : start + USERS_PER_BATCH], k)

    def _replay(self, offset: int, walks: Sequence[Walk], k: int) -> Iterator[Prediction]:
        packed: list[bytes | None] = [None] * len(walks)
        config = dataclasses.replace(self._config, list_length=k)
        for turn in range(max(len(walk.targets) for walk in walks)):
            active = [at for at, walk in enumerate(walks) if turn < len(walk.targets)]
            touched = [Touched(str(at), packed[at], self._events(walks[at], turn)) for at in active]
            now_us = 1000 * max(user.events[-1].event.ts for user in touched if user.events)
            started = time.perf_counter_ns()
            lists = self._lists(touched, config, now_us)
            micros = (time.perf_counter_ns() - started) / 1000 / len(active)
            for at, user in zip(active, touched, strict=True):
                assert user.profile is not None
                packed[at] = user.profile.pack()
            shown = {at: lists.get(str(at), _EMPTY) for at in active}
            unseen = self._unseen(walks, packed, turn, shown, k, now_us)
            for at in active:
                yield Prediction(offset + at, turn, shown[at], unseen[at], micros)

    def _events(self, walk: Walk, turn: int) -> list[PendingEvent]:
        """What came between the turn's target and the one before it, that one included."""
        first = int(walk.targets[turn - 1]) if turn else 0
        rows = walk.rows[first : int(walk.targets[turn])].tolist()
        return [PendingEvent(self._log.event(row), b"") for row in rows]

    def _lists(
        self, touched: Sequence[Touched], config: RecommendConfig, now_us: int
    ) -> dict[str, Items]:
        saved: list[SavedList] = []
        for batch in recommend(touched, self._catalogue, config, now_us):
            saved.extend(batch.lists)
        return {
            one.user_id: np.array([self._item_of[p] for p in one.product_ids], dtype=np.int32)
            for one in saved
        }

    def _unseen(
        self,
        walks: Sequence[Walk],
        packed: Sequence[bytes | None],
        turn: int,
        shown: Mapping[int, Items],
        k: int,
        now_us: int,
    ) -> dict[int, Items]:
        """The lists without what came before; one that loses places is asked for again, longer."""
        unseen: dict[int, Items] = {}
        longer: dict[int, list[int]] = {}
        seen: dict[int, Items] = {}
        for at, items in shown.items():
            before = walks[at].items[: walks[at].targets[turn]]
            seen[at] = np.unique(before[before >= 0])
            unseen[at] = items[~np.isin(items, seen[at])]
            if len(unseen[at]) < len(items):
                # Lengths in powers of two: few calls, and none much longer than it must be.
                length = min(_LONGEST, 1 << (k + len(seen[at]) - 1).bit_length())
                longer.setdefault(length, []).append(at)
        for length, users in longer.items():
            config = dataclasses.replace(self._config, list_length=length)
            touched = [Touched(str(at), packed[at]) for at in users]
            for user_id, items in self._lists(touched, config, now_us).items():
                at = int(user_id)
                unseen[at] = items[~np.isin(items, seen[at])][:k]
        return unseen


_EMPTY: Final = np.zeros(0, dtype=np.int32)
