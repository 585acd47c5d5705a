"""The product catalogue as the job holds it: vectors a space, stock, and the index to search."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from udfs.facts import ProductFacts
from udfs.index import Boosts, ExactIndex, NearestNeighbours, SlotTable
from udfs.inverted import fitting
from udfs.lexical_index import LexicalIndex
from udfs.schemas import (
    Product,
    ProductChange,
    ProductDetails,
    Reason,
    RejectedError,
    SpaceNotice,
)

FloatMatrix = NDArray[np.float32]
Slots = NDArray[np.int32]
QueryEncoder = Callable[[str], FloatMatrix | None]
# What the broadcast state must put (bytes) or remove (None) under a key, to be the durable copy.
StateChange = tuple[str, bytes | None]

# Slots and categories are cleared of what is gone when there are twice as many as then, and these.
_LEAST_NUMBERED: Final = 4096

VERSION: Final = 3
_READABLE: Final = (1, 2, 3)
_ACTIVE_KEY: Final = "a"
_PRODUCT_PREFIX: Final = "p"
_ANNOUNCED_KEY: Final = "s"
_ANNOUNCED_VERSION: Final = 1
# Length of the text part of a product's vector in a space that begins with the texts' space.
TEXT_PART_LENGTH: Final = math.sqrt(0.5)


class CatalogueVersionError(ValueError):
    """A broadcast state entry was written in a format that this code cannot read."""


class _Entry(msgspec.Struct, array_like=True):
    """Broadcast state of one product, format v3: a msgpack array of these fields.

    Vectors, by space, and weights are little-endian float32. Format v1 ends behind the vectors,
    v2 behind the price.
    """

    version: int
    in_stock: bool
    vectors: dict[str, bytes]
    title: str = ""
    category: str = ""
    price: float | None = None
    related: list[str] = []
    weights: bytes = b""
    rebuy_days: float | None = None
    rebuy_share: float = 0.0
    first_seen_ms: int = 0


class _Announced(msgspec.Struct, array_like=True):
    """Broadcast state of the newest announced space, format v1: msgpack."""

    version: int
    space: str
    started_ms: int
    partitions: int
    complete: list[int]
    """Partitions in which the notice stands that it is complete, ascending."""

    def is_complete(self) -> bool:
        return len(self.complete) >= self.partitions


_entry_encoder = msgspec.msgpack.Encoder()
_announced_decoder = msgspec.msgpack.Decoder(_Announced)
_entry_decoder = msgspec.msgpack.Decoder(_Entry)


class Catalogue:
    """Products by id, with one active embedding space that alone is searched.

    A product published in another space keeps its old vector beside the new one. The new space
    becomes the active one in one step, and the vectors of the others are dropped: at no time do
    two spaces mix, and at no time is there nothing to search. It does so

    - where notices announced it: when they say in all partitions that it is complete; once there
      was a notice, no other space takes over;
    - else once it holds at least ``switch_share`` of the active one's products.
    """

    def __init__(
        self,
        *,
        encoder: QueryEncoder | None = None,
        encoder_space: str | None = None,
        encoder_dimensions: int = 0,
        switch_share: float = 0.9,
        dimensions: int = 0,
    ) -> None:
        """Make an empty catalogue.

        Args:
            encoder: Embeds a search query; None where searches shall move nobody.
            encoder_space: The space in which ``encoder`` has a meaning; it also has one in each
                whose name begins with this and a plus sign: there its vectors are the first part.
            encoder_dimensions: Length of its vectors, which those of its spaces must have, or in
                the longer ones at least; 0: any.
            switch_share: Share of the active space's products that a new space needs, 0 to 1.
            dimensions: The vector length that every product must have; 0: a space's first product
                decides for that space.
        """
        if not 0 < switch_share <= 1:
            msg = f"switch_share must be above 0 and at most 1, not {switch_share}"
            raise ValueError(msg)
        self._encoder = encoder
        self._encoder_space = encoder_space
        self._encoder_dimensions = encoder_dimensions
        self._switch_share = switch_share
        self._required_dimensions = dimensions
        self._vectors: dict[str, dict[str, FloatMatrix]] = {}
        # Of each space that has a product. The first of a dict is no place to ask: where many
        # were deleted from its front, each look walks over all of them.
        self._lengths: dict[str, int] = {}
        self._most_numbered = _LEAST_NUMBERED
        self._details: dict[str, ProductDetails] = {}
        self.slots = SlotTable()
        """Numbers the products for boosts and facts."""
        self.facts = ProductFacts(self.slots)
        """What is known of products beside their vectors."""
        self._lexical = LexicalIndex()
        self._announced: _Announced | None = None
        self._active: str | None = None
        self._index: NearestNeighbours | None = None
        self._active_vectors: dict[str, FloatMatrix] = {}

    def __len__(self) -> int:
        """Number of products, in stock or not."""
        return len(self._details)

    def detail(self, product_id: str) -> ProductDetails | None:
        """Return a product without its vectors; None where there is none."""
        return self._details.get(product_id)

    @property
    def searchable(self) -> int:
        """Number of products that a lookup can return."""
        return len(self._index) if self._index is not None else 0

    @property
    def space(self) -> str | None:
        """Name of the active embedding space; None while there is no product to learn it from."""
        return self._active if self._active_vectors else None

    @property
    def dimensions(self) -> int:
        """Vector length of the active space; 0 while there is none."""
        return self._lengths.get(self._active or "", 0)

    def product_vector(self, product_id: str) -> FloatMatrix | None:
        """Unit vector (d,) of a product in the active space; None where there is none yet."""
        return self._active_vectors.get(product_id)

    def own_vector(self, product_id: str) -> FloatMatrix | None:
        """Unit vector (d,) of a product in the active space; None where its text only places it."""
        vector = self.product_vector(product_id)
        text = self._vectors.get(self._encoder_space or "", {}).get(product_id)
        if vector is None or text is None or not self._begins_with_text(self._active or ""):
            return vector
        return None if _is_of_text(vector, text) else vector

    def query_vector(self, query: str) -> FloatMatrix | None:
        """Unit vector (d,) of a search; None where it has none in the active space."""
        if self._encoder is None or self.space is None:
            return None
        is_text = self.space == self._encoder_space
        if not is_text and not self._begins_with_text(self.space):
            return None
        vector = self._encoder(query)
        # A state of earlier days may hold a space of another length than its name says.
        if vector is None or len(vector) > self.dimensions:
            return None
        if is_text:
            return vector if len(vector) == self.dimensions else None
        filled = np.zeros(self.dimensions, dtype=np.float32)
        filled[: len(vector)] = vector
        return filled

    def matches(self, query: str, limit: int) -> tuple[Slots, FloatMatrix]:
        """Find the products in stock that hold a search's words; see :class:`LexicalIndex`.

        Returns:
            Their slots and scores, both of shape (at most ``limit``,), best first.
        """
        return self._lexical.matches(query, limit)

    def search(self, queries: FloatMatrix, k: int) -> list[tuple[list[str], FloatMatrix]]:
        """Find the k products in stock nearest to each query: their ids and scores, best first."""
        found, scores = self.search_slots(queries, k)
        listed = [[slot for slot in row if slot >= 0] for row in found.tolist()]
        return [
            (list(map(self.slots.product_id, row)), given[: len(row)])
            for row, given in zip(listed, scores, strict=True)
        ]

    def search_slots(
        self, queries: FloatMatrix, k: int, boosts: Sequence[Boosts] = ()
    ) -> tuple[NDArray[np.intp], FloatMatrix]:
        """Find the k best products in stock; see :class:`NearestNeighbours`."""
        if self._index is None:
            shape = len(queries), k
            return np.full(shape, -1, dtype=np.intp), np.full(shape, -np.inf, dtype=np.float32)
        return self._index.search_slots(queries, k, boosts)

    def newcomers(self, since_ms: int, limit: int) -> NDArray[np.intp]:
        """Find the products in stock that were first seen after a time, the newest first.

        Where most of the catalogue is that new it has just been loaded, and nothing in it is.

        Args:
            since_ms: Epoch milliseconds.
            limit: The most products to return.

        Returns:
            Their slots, shape (at most ``limit``,).
        """
        slots = self.facts.seen_since(since_ms)
        if not len(slots) or self._index is None or 2 * len(slots) > len(self):
            return np.zeros(0, dtype=np.intp)
        return slots[self._index.holds(slots)][:limit]

    def vectors(self, slots: NDArray[np.intp]) -> FloatMatrix:
        """Vectors of products in stock by slot: shape (*slots.shape, d), zeros for others."""
        if self._index is None:
            return np.zeros((*slots.shape, self.dimensions), dtype=np.float32)
        return self._index.vectors(slots)

    def upsert(
        self,
        product: Product,
        vector: FloatMatrix,
        *,
        changed_us: int = 0,
        changes: list[ProductChange] | None = None,
    ) -> list[StateChange]:
        """Insert or replace a product; the change holds for every later lookup.

        Args:
            product: The validated product.
            vector: Its unit vector, shape (d,).
            changed_us: The time of the change, epoch microseconds.
            changes: Takes what became of this and, by a switch of spaces, of other products.

        Returns:
            What the broadcast state must store.

        Raises:
            RejectedError: The vector has another length than its space.
        """
        product_id, space = product.product_id, product.space
        self._check_length(space, len(vector))
        self._vectors.setdefault(space, {})[product_id] = vector
        self._lengths[space] = len(vector)
        self._set_details(
            product_id,
            ProductDetails(
                product_id, product.title, product.category, product.price, product.in_stock
            ),
            changed_us,
            changes,
        )
        self.facts.put(product, changed_us // 1000)
        if len(self.slots) + self.facts.category_count > self._most_numbered:
            self._renumber()
        if self._should_switch(space):
            return list(self._switch(space, changed_us, changes))
        if space == self._encoder_space and self._active is not None:
            self._place_by_text(product_id, vector, self._active)
        self._refresh(product_id)
        return [self._changed(product_id)]

    def delete(
        self,
        product_id: str,
        *,
        changed_us: int = 0,
        changes: list[ProductChange] | None = None,
    ) -> list[StateChange]:
        """Remove a product from every space (a tombstone); an absent one is no error."""
        if product_id not in self._details:
            return []
        self._set_details(product_id, None, changed_us, changes)
        self.facts.remove(product_id)
        for space, vectors in list(self._vectors.items()):
            vectors.pop(product_id, None)
            if not vectors:
                self._lengths.pop(space, None)
                if space != self._active:
                    del self._vectors[space]
        self._lexical.remove(self.slots.get(product_id))
        if self._index is not None:
            self._index.remove(product_id)
        # Fewer products in the active space can be what a staged space was waiting for.
        for space in list(self._vectors):
            if self._should_switch(space):
                switched = self._switch(space, changed_us, changes)
                return [(_PRODUCT_PREFIX + product_id, None), *switched]
        return [(_PRODUCT_PREFIX + product_id, None)]

    def notice(
        self,
        notice: SpaceNotice,
        partition: int,
        *,
        changed_us: int = 0,
        changes: list[ProductChange] | None = None,
    ) -> list[StateChange]:
        """Take note that a space is being published, or is complete; the latter may switch to it.

        Args:
            notice: What the catalogue topic says.
            partition: The partition that says so.
            changed_us: The time of the change, epoch microseconds.
            changes: Takes what a switch of spaces made of products.

        Returns:
            What the broadcast state must store.
        """
        known = self._announced
        if known is not None and notice.started_ms < known.started_ms:
            return []
        same = known is not None and (known.space, known.started_ms) == (
            notice.space,
            notice.started_ms,
        )
        complete = set(known.complete) if known is not None and same else set()
        if notice.complete:
            complete.add(partition)
        self._announced = _Announced(
            _ANNOUNCED_VERSION,
            notice.space,
            notice.started_ms,
            notice.partitions,
            sorted(complete),
        )
        stored: list[StateChange] = [(_ANNOUNCED_KEY, _entry_encoder.encode(self._announced))]
        if self._vectors.get(notice.space) and self._should_switch(notice.space):
            stored.extend(self._switch(notice.space, changed_us, changes))
        return stored

    def load(self, items: Iterable[tuple[str, bytes]]) -> None:
        """Fill an empty catalogue from the broadcast state, after a restore.

        Raises:
            CatalogueVersionError: An entry of a format that this code cannot read.
        """
        active: str | None = None
        for key, value in items:
            if key == _ACTIVE_KEY:
                active = value.decode()
                continue
            if key == _ANNOUNCED_KEY:
                self._announced = _read_announced(value)
                continue
            try:
                entry = _entry_decoder.decode(value)
            except msgspec.MsgspecError as error:
                msg = f"catalogue entry {key!r}: {error}"
                raise CatalogueVersionError(msg) from error
            if entry.version not in _READABLE:
                msg = f"catalogue entry of version {entry.version}, this reads {_READABLE}"
                raise CatalogueVersionError(msg)
            product_id = key[len(_PRODUCT_PREFIX) :]
            self._details[product_id] = ProductDetails(
                product_id, entry.title, entry.category, entry.price, entry.in_stock
            )
            self.facts.put(_product_of(product_id, entry), entry.first_seen_ms)
            for space, raw in entry.vectors.items():
                vector = np.frombuffer(raw, dtype="<f4")
                if not self._can_hold_text(space, len(vector)):
                    continue  # of the days when any length was accepted; the product waits
                self._vectors.setdefault(space, {})[product_id] = vector
                self._lengths[space] = len(vector)
        if active is not None:
            self._activate(active)

    def _should_switch(self, space: str) -> bool:
        if self._active == space:
            return False
        if self._active is None:
            return True
        announced = self._announced
        if announced is not None:
            return announced.space == space and announced.is_complete()
        needed = self._switch_share * len(self._active_vectors)
        return len(self._vectors[space]) >= max(1.0, needed)

    def _check_length(self, space: str, length: int) -> None:
        """Refuse a vector of another length than its space has, or must have.

        Raises:
            RejectedError: With the length that it must have.
        """
        known = self._lengths.get(space, length)
        if length != (self._required_dimensions or known) or length != known:
            expected = self._required_dimensions or known
            detail = f"{length} dimensions in a space of {expected}: {space}"
        elif not self._can_hold_text(space, length):
            detail = f"{length} dimensions, the texts have {self._encoder_dimensions}: {space}"
        else:
            return
        raise RejectedError(Reason.WRONG_LENGTH, detail)

    def _can_hold_text(self, space: str, length: int) -> bool:
        """Tell whether vectors of a length can be of a space that is the texts', or begins so."""
        texts = self._encoder_dimensions
        if not texts:
            return True
        if space == self._encoder_space:
            return length == texts
        return length >= texts or not self._begins_with_text(space)

    def _renumber(self) -> None:
        """Drop the slots and categories of products that are gone and that no other names."""
        kept = np.zeros(len(self.slots), dtype=bool)
        kept[self.slots.find(self._details)] = True
        self.facts.mark_related(kept)
        renumbered = self.slots.keep(kept)
        self.facts.renumber(renumbered)
        if self._index is not None:
            self._index.renumber(renumbered)
        self._lexical.renumber(renumbered)
        numbered = len(self.slots) + self.facts.category_count
        self._most_numbered = max(_LEAST_NUMBERED, 2 * numbered)

    def _begins_with_text(self, space: str) -> bool:
        return self._encoder_space is not None and space.startswith(f"{self._encoder_space}+")

    def _place_by_text(self, product_id: str, text: FloatMatrix, space: str) -> None:
        """Give a product of the texts' space a place in one that begins with it, if it has none.

        A service that writes one product need not know what the whole catalogue was learned from.
        """
        vectors = self._vectors[space]
        if not self._begins_with_text(space) or not vectors:
            return
        known = vectors.get(product_id)
        length = self._lengths[space]
        if length < len(text) or (known is not None and not _is_of_text(known, text)):
            return
        placed = np.zeros(length, dtype=np.float32)
        # As long as the text part of the others, so that a search does not prefer it.
        placed[: len(text)] = text * np.float32(TEXT_PART_LENGTH)
        vectors[product_id] = placed

    def _activate(self, space: str) -> None:
        self._active = space
        self._active_vectors = self._vectors.setdefault(space, {})
        self._index = None
        for product_id in self._active_vectors:
            self._refresh(product_id)

    def _set_details(
        self,
        product_id: str,
        new: ProductDetails | None,
        changed_us: int,
        changes: list[ProductChange] | None,
    ) -> None:
        old = self._details.get(product_id)
        if new is not None:
            self._details[product_id] = new
        else:
            self._details.pop(product_id, None)
        if changes is not None:
            changes.append(ProductChange(old, new, changed_us))

    def _switch(
        self, space: str, changed_us: int, changes: list[ProductChange] | None
    ) -> Iterator[StateChange]:
        for product_id, text in self._vectors.get(self._encoder_space or "", {}).items():
            self._place_by_text(product_id, text, space)
        stale = {product for vectors in self._vectors.values() for product in vectors}
        self._vectors = {space: self._vectors[space]}
        self._lengths = {space: self._lengths[space]}
        for product_id in stale - self._vectors[space].keys():
            # It has no vector in the space that is searched now.
            self.facts.remove(product_id)
            self._lexical.remove(self.slots.get(product_id))
            self._set_details(product_id, None, changed_us, changes)
            yield _PRODUCT_PREFIX + product_id, None
        self._activate(space)
        yield _ACTIVE_KEY, space.encode()
        for product_id in self._vectors[space]:
            yield self._changed(product_id)

    def _refresh(self, product_id: str) -> None:
        vector = self._active_vectors.get(product_id)
        if vector is None:
            return
        if self._index is None or self._index.dimensions != len(vector):
            # The first product of a space, or of one that was emptied and came back otherwise.
            self._index = ExactIndex(len(vector), self.slots)
        if self._details[product_id].in_stock:
            self._index.upsert(product_id, vector)
            self._index = fitting(self._index)
            known = self._details[product_id]
            self._lexical.upsert(self.slots.add(product_id), known.title, known.category)
        else:
            self._index.remove(product_id)
            self._lexical.remove(self.slots.get(product_id))

    def _changed(self, product_id: str) -> StateChange:
        vectors = {
            space: np.ascontiguousarray(vectors[product_id], dtype="<f4").tobytes()
            for space, vectors in self._vectors.items()
            if product_id in vectors
        }
        known = self._details[product_id]
        facts = self.facts.product(product_id)
        related = facts.related or {}
        entry = _Entry(
            VERSION,
            known.in_stock,
            vectors,
            known.title,
            known.category,
            known.price,
            list(related),
            np.array(list(related.values()), dtype="<f4").tobytes(),
            facts.rebuy_days,
            facts.rebuy_share,
            self.facts.first_seen_ms(product_id),
        )
        return _PRODUCT_PREFIX + product_id, _entry_encoder.encode(entry)


def _is_of_text(vector: FloatMatrix, text: FloatMatrix) -> bool:
    """Tell whether a vector (d,) of a space that begins with text says nothing beyond its text."""
    return not vector[len(text) :].any()


def _read_announced(value: bytes) -> _Announced:
    try:
        announced = _announced_decoder.decode(value)
    except msgspec.MsgspecError as error:
        msg = f"announced space: {error}"
        raise CatalogueVersionError(msg) from error
    if announced.version != _ANNOUNCED_VERSION:
        msg = f"announced space of version {announced.version}, this reads {_ANNOUNCED_VERSION}"
        raise CatalogueVersionError(msg)
    return announced


def _product_of(product_id: str, entry: _Entry) -> Product:
    """Read what an entry says of a product beside its vectors.

    Raises:
        CatalogueVersionError: The related products and their weights are not as many.
    """
    weights = np.frombuffer(entry.weights, dtype="<f4") if len(entry.weights) % 4 == 0 else ()
    if len(weights) != len(entry.related):
        msg = f"catalogue entry of {product_id!r}: {len(entry.related)} related products"
        raise CatalogueVersionError(msg)
    return Product(
        product_id,
        "",
        "",
        category=entry.category,
        related={
            other: float(weight) for other, weight in zip(entry.related, weights, strict=True)
        },
        rebuy_days=entry.rebuy_days,
        rebuy_share=entry.rebuy_share,
    )
