"""The job under test: the events before a target go through ``udfs.recommend``."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evaluation.files import DataError, FileProduct, Log
from evaluation.protocol import Items, Prediction, Training, Walk
from udfs.catalogue import Catalogue
from udfs.product_record import VERSION, ProductRecord, RelatedRow
from udfs.query_encoder import DIMENSIONS, SPACE, encode_products, encode_query
from udfs.recommend import USERS_PER_BATCH, RecommendConfig, Touched, recommend
from udfs.schemas import PendingEvent, RejectedError, SavedList, decode_vector, encode_vector
from udfs.vectors import Interactions, VectorsConfig, learn

# The longest list that a RecommendConfig allows.
_LONGEST: Final = 1000


class Stock(NamedTuple):
    """The products that may be recommended, as the job would be given them."""

    products: list[ProductRecord]
    """Each with one vector, all of one space."""
    related: list[RelatedRow]


def learn_before_split(
    log: Log,
    training: Training,
    products: Mapping[str, FileProduct],
    config: VectorsConfig | None = None,
) -> Stock:
    """Give the training items vectors, and learn what is related to them.

    Vectors of the catalogue file are kept, and it is for the file's owner to say that nothing
    after the split went into them. Where the file has none, or the space is that of texts, a
    product without one gets its text's, as in the job. What is related and what is bought again is
    learned from the events before the split, by the function of the vectors command. A product
    without a vector cannot be recommended.

    Args:
        log: The whole log; what is not before the split is not looked at.
        training: The items.
        products: The catalogue file.
        config: Constants of the command; None: its defaults.

    Raises:
        DataError: The file has vectors of several spaces or lengths, or no product has a vector.
    """
    ids = training.product_ids
    known = [products.get(product_id, FileProduct(product_id)) for product_id in ids]
    titles, categories = [one.title for one in known], [one.category for one in known]
    learned = learn(ids, titles, categories, _interactions(log, training), config)
    none = np.zeros((len(ids), DIMENSIONS), dtype=np.float32)
    space, vectors = _given_vectors(known) or (SPACE, none)
    missing = np.flatnonzero(~vectors.any(axis=1))
    if space == SPACE and len(missing):
        vectors[missing] = encode_products(
            [titles[at] for at in missing], [categories[at] for at in missing]
        )
    kept = np.flatnonzero(vectors.any(axis=1)).tolist()
    if not kept:
        msg = (
            "no product of the training part has a vector: name a catalogue with titles, categories"
            " or embeddings"
        )
        raise DataError(msg)
    made = [
        ProductRecord(
            version=VERSION,
            product_id=ids[at],
            title=titles[at],
            category=categories[at],
            price=None,
            in_stock=True,
            vectors={space: encode_vector(vectors[at])},
            is_text=space == SPACE and known[at].embedding is None,
            first_seen_ms=0,
            updated_us=0,
        )
        for at in kept
    ]
    return Stock(made, [learned.row(at) for at in kept])


def _given_vectors(known: Sequence[FileProduct]) -> tuple[str, NDArray[np.float32]] | None:
    """The file's own vectors with their space, zeros where a product has none; None: no vector."""
    found: dict[int, NDArray[np.float32]] = {}
    spaces: set[str] = set()
    for at, product in enumerate(known):
        if product.embedding is not None and product.space is not None:
            try:
                found[at] = decode_vector(product.embedding)
            except RejectedError as error:
                msg = f"the vector of product {product.product_id}: {error}"
                raise DataError(msg) from error
            spaces.add(product.space)
    if not found:
        return None
    lengths = {len(vector) for vector in found.values()}
    if len(spaces) > 1 or len(lengths) > 1:
        msg = (
            f"the catalogue's vectors are of several spaces or lengths: {', '.join(sorted(spaces))}"
        )
        raise DataError(msg)
    vectors = np.zeros((len(known), lengths.pop()), dtype=np.float32)
    for at, vector in found.items():
        vectors[at] = vector
    return spaces.pop(), vectors


def _interactions(log: Log, training: Training) -> Interactions:
    """Take the events before the split that touched a training item."""
    item_of = {product_id: item for item, product_id in enumerate(training.product_ids)}
    numbers = np.array([*(item_of.get(product_id, -1) for product_id in log.items), -1])
    items = numbers[log.item_of]  # a search, -1, is nowhere
    rows = np.flatnonzero((items >= 0) & (log.times_ms < training.split_ms))
    return Interactions(
        users=log.user_of[rows].astype(np.int64),
        items=items[rows],
        times_ms=log.times_ms[rows],
        kinds=log.kinds[rows].astype(np.int64),
        sessions=log.session_of[rows].astype(np.int64),
    )


def fill_catalogue(stock: Stock) -> Catalogue:
    """Make the job's catalogue of the products that may be recommended."""
    catalogue = Catalogue(encoder=encode_query, encoder_space=SPACE, encoder_dimensions=DIMENSIONS)
    catalogue.load(stock.products, stock.related, None)
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
        vectors: VectorsConfig | None = None,
    ) -> None:
        """Take what the job would be given: events, products, constants.

        Args:
            log: Where the walks' events are.
            products: The catalogue file.
            config: The job's constants; ``list_length`` is replaced by the k of the evaluation.
            vectors: Constants of the vectors command, see :func:`learn_before_split`.
        """
        self._log = log
        self._products = products
        self._config = config or RecommendConfig()
        self._vectors = vectors

    def fit(self, training: Training) -> None:
        """Fill the catalogue with the training items."""
        stock = learn_before_split(self._log, training, self._products, self._vectors)
        self._catalogue = fill_catalogue(stock)
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
