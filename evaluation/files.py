"""Event and catalogue files, one JSON object of the wire formats a line, plain or gzip."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, Final, TypeVar, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from udfs.schemas import EVENT_TYPES, Event, Identifier, encode_event

SESSION_GAP_MS: Final = 30 * 60 * 1000
"""A pause of a user after which events without a session id begin a new session, milliseconds."""

_KIND_OF: Final = {name: kind for kind, name in enumerate(EVENT_TYPES)}


class DataError(ValueError):
    """A file cannot be used; the message names the file, the line and the remedy."""


class FileProduct(msgspec.Struct, frozen=True, gc=False):
    """One product of a catalogue file: the wire format's Product, whose vector may be missing.

    ``embedding`` and ``space`` are given both or neither. A line of the ``catalogue`` topic is
    also a line of a catalogue file.
    """

    product_id: Identifier
    space: Identifier | None = None
    embedding: list[float] | str | None = None
    title: str = ""
    category: str = ""
    price: Annotated[float, msgspec.Meta(ge=0)] | None = None
    in_stock: bool = True


_event_decoder = msgspec.json.Decoder(Event)
_product_decoder = msgspec.json.Decoder(FileProduct)
_product_encoder = msgspec.json.Encoder()
_Line = TypeVar("_Line", Event, FileProduct)


@dataclass(frozen=True)
class Log:
    """An event log as columns, in order of event time; equal times keep the order of the file."""

    event_ids: list[str]
    users: list[str]
    """User ids by code."""
    items: list[str]
    """Product ids by code."""
    user_of: NDArray[np.int32]
    """User code of each event, shape (n,)."""
    item_of: NDArray[np.int32]
    """Item code of each event, −1 for a search, shape (n,)."""
    kinds: NDArray[np.int8]
    """Index into ``EVENT_TYPES``, shape (n,)."""
    times_ms: NDArray[np.int64]
    """Event times, epoch milliseconds, shape (n,)."""
    session_of: NDArray[np.int32]
    """Session code of each event, shape (n,); a session belongs to one user."""
    queries: dict[int, str]
    """The query of each search, by event."""
    duplicates: int = 0
    """Events left out because their user had sent the same id and product before."""

    def __len__(self) -> int:
        """Number of events."""
        return len(self.times_ms)

    def event(self, row: int) -> Event:
        """Make the event of a row as it stood in the file, but for what moves no profile."""
        item = int(self.item_of[row])
        return Event(
            event_id=self.event_ids[row],
            user_id=self.users[self.user_of[row]],
            type=EVENT_TYPES[self.kinds[row]],
            ts=int(self.times_ms[row]),
            product_id=self.items[item] if item >= 0 else None,
            query=self.queries.get(row),
        )


def read_events(path: Path) -> Log:
    """Read an event log.

    Events without a session id form sessions by pauses of :data:`SESSION_GAP_MS`.

    Raises:
        DataError: The file cannot be read, has no event, or a line is none (with its number).
    """
    ids: list[str] = []
    users: dict[str, int] = {}
    items: dict[str, int] = {}
    sessions: dict[tuple[int, str], int] = {}
    user_of: list[int] = []
    item_of: list[int] = []
    kinds: list[int] = []
    times: list[int] = []
    session_of: list[int] = []
    queries: dict[int, str] = {}
    seen: set[tuple[int, str, str | None]] = set()
    duplicates = 0
    for number, event in _decode_lines(path, _event_decoder):
        if event.type == "search":
            if event.query is None or not event.query.strip():
                msg = f"{path}, line {number}: a search needs query"
                raise DataError(msg)
        elif event.product_id is None:
            msg = f"{path}, line {number}: a {event.type} needs product_id"
            raise DataError(msg)
        user = users.setdefault(event.user_id, len(users))
        # An order's lines share its id.
        item = event.query if event.type == "search" else event.product_id
        identity = (user, event.event_id, item)
        if identity in seen:
            duplicates += 1
            continue
        seen.add(identity)
        if event.query is not None:
            queries[len(ids)] = event.query
        ids.append(event.event_id)
        user_of.append(user)
        product = event.product_id if event.type != "search" else None
        item_of.append(-1 if product is None else items.setdefault(product, len(items)))
        kinds.append(_KIND_OF[event.type])
        times.append(event.ts)
        session = event.session_id
        session_of.append(
            -1 if session is None else sessions.setdefault((user, session), len(sessions))
        )
    if not ids:
        msg = f"{path} holds no event"
        raise DataError(msg)
    times_ms = np.array(times, dtype=np.int64)
    order = np.argsort(times_ms, kind="stable")
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    sorted_users = np.array(user_of, dtype=np.int32)[order]
    return Log(
        event_ids=[ids[row] for row in order.tolist()],
        users=list(users),
        items=list(items),
        user_of=sorted_users,
        item_of=np.array(item_of, dtype=np.int32)[order],
        kinds=np.array(kinds, dtype=np.int8)[order],
        times_ms=times_ms[order],
        session_of=_name_sessions(
            np.array(session_of, dtype=np.int32)[order], sorted_users, times_ms[order]
        ),
        queries={int(place[row]): query for row, query in queries.items()},
        duplicates=duplicates,
    )


def _name_sessions(
    session_of: NDArray[np.int32], user_of: NDArray[np.int32], times_ms: NDArray[np.int64]
) -> NDArray[np.int32]:
    """Give the events without a session (−1) one by the pauses of their user."""
    unnamed = np.flatnonzero(session_of < 0)
    if not len(unnamed):
        return session_of
    by_user = unnamed[np.argsort(user_of[unnamed], kind="stable")]
    users, times = user_of[by_user], times_ms[by_user]
    begins = np.r_[True, (users[1:] != users[:-1]) | (np.diff(times) > SESSION_GAP_MS)]
    named = session_of.copy()
    named[by_user] = session_of.max() + np.cumsum(begins)
    return named


def read_catalogue(path: Path) -> dict[str, FileProduct]:
    """Read a catalogue file: the last line of a product holds.

    Raises:
        DataError: The file cannot be read, has no product, or a line is none (with its number).
    """
    products: dict[str, FileProduct] = {}
    for number, product in _decode_lines(path, _product_decoder):
        if (product.embedding is None) != (product.space is None):
            msg = f"{path}, line {number}: embedding and space are given both or neither"
            raise DataError(msg)
        if product.price is not None and not math.isfinite(product.price):
            msg = f"{path}, line {number}: price is not finite"
            raise DataError(msg)
        products[product.product_id] = product
    if not products:
        msg = f"{path} holds no product"
        raise DataError(msg)
    return products


def write_events(path: Path, events: Iterable[Event]) -> int:
    """Write an event log; return the number of events."""
    return _write_lines(path, (encode_event(event) for event in events))


def write_catalogue(path: Path, products: Iterable[FileProduct]) -> int:
    """Write a catalogue file; return the number of products."""
    return _write_lines(path, (_product_encoder.encode(product) for product in products))


def _decode_lines(path: Path, decoder: msgspec.json.Decoder[_Line]) -> Iterator[tuple[int, _Line]]:
    try:
        with _open(path, "rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    yield number, decoder.decode(line)
                except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                    msg = f"{path}, line {number}: {error}"
                    raise DataError(msg) from error
    except (OSError, EOFError, zlib.error) as error:
        msg = f"{path} cannot be read: {error}"
        raise DataError(msg) from error


def _write_lines(path: Path, lines: Iterable[bytes]) -> int:
    written = 0
    with _open(path, "wb") as file:
        for line in lines:
            file.write(line + b"\n")
            written += 1
    return written


def _open(path: Path, mode: str) -> IO[bytes]:
    if path.suffix != ".gz":
        return cast("IO[bytes]", path.open(mode))
    # A fast level: these files are read and written whole, and gzip is most of that time. No
    # name and time in the header: the same events give the same file.
    if mode == "rb":
        return cast("IO[bytes]", gzip.open(path, mode))
    return cast("IO[bytes]", gzip.GzipFile(path, mode, compresslevel=4, mtime=0))
