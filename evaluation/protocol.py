"""Who is tested on what: the split, what is learned before it, and the walks through the rest.

Everything before the split is the training part, and only that is learned from. After it:

- ``session``: each session that starts at or after the split is walked through. At each position
  from the second, the item is predicted from what came before it in the session; a second figure
  predicts the same items also from all that the user did before the session began. A session that
  began before the split gives its events before the split to the training part; its later events
  are neither learned nor tested, but are part of the user's history.
- ``user``: each event at or after the split is predicted from everything its user did before it.

The predicted events are clicks, carts and purchases. Searches, scrolls and dislikes are shown to
whoever can use them, and never asked for. A predicted item that the training part does not hold
cannot be ranked: it is skipped and counted. A repeat counts; ``new`` is a prediction whose item is
not among what it was made from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import ClassVar, Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from evaluation.files import DataError, Log
from udfs.schemas import EVENT_TYPES

PREDICTED_TYPES: Final = ("click", "add_to_cart", "purchase")

Items = NDArray[np.int32]


class Unit(StrEnum):
    """What is walked through."""

    SESSION = "session"
    USER = "user"


@dataclass(frozen=True)
class Training:
    """What may be learned: clicks, carts and purchases before the split.

    An item is its place by popularity: 0 is the item with the most events, ties by product id.
    Groups are what belongs together, sessions or users by the unit, in order of their last event.
    """

    product_ids: list[str]
    counts: NDArray[np.int64]
    """Events of each item, shape (items,), never rising."""
    items: Items
    """The groups' items one after another, each group's in order of time, shape (events,)."""
    times_ms: NDArray[np.int64]
    """Their times, epoch milliseconds, shape (events,)."""
    starts: NDArray[np.int64]
    """Where each group starts in ``items``, and the end, shape (groups + 1,)."""
    split_ms: int
    """The split, epoch milliseconds: every time is before it."""

    @property
    def groups(self) -> int:
        """Number of groups."""
        return len(self.starts) - 1

    def ends_ms(self) -> NDArray[np.int64]:
        """Time of each group's last event, shape (groups,)."""
        ends: NDArray[np.int64] = self.times_ms[self.starts[1:] - 1]
        return ends


@dataclass(frozen=True)
class Walk:
    """One session or user to replay, with the positions to predict."""

    unit: int
    """What the bootstrap resamples: the number of the session or user."""
    rows: NDArray[np.int64]
    """Events in order, rows of the log, shape (n,)."""
    items: Items
    """Their items as in :class:`Training`; −1 where not learned, or no predicted type."""
    times_ms: NDArray[np.int64]
    """Their times, epoch milliseconds, shape (n,)."""
    session_start: int
    """Position of the session's first event; what is before it is the user's history."""
    targets: NDArray[np.int64]
    """Positions to predict, each from the events before it, rising."""
    new: NDArray[np.bool_]
    """Whether the target's product is not among the events before it."""


@dataclass(frozen=True)
class Counts:
    """What was not predicted, and how much was."""

    events: int
    training_events: int
    training_items: int
    units: int
    """Sessions or users tested."""
    predictions: int
    unknown_items: int
    """Skipped: the item is not in the training part."""
    without_history: int
    """Skipped: nothing came before (``user`` only; a session's first event is never asked for)."""
    straddling: int
    """Events at or after the split whose session began before it (``session`` only)."""


@dataclass(frozen=True)
class Task:
    """What a run predicts."""

    training: Training
    walks: list[Walk]
    with_history: list[Walk]
    """The same targets with the user's history before them; empty where nobody has one."""
    counts: Counts


class Prediction(NamedTuple):
    """What a recommender answers at one target of a walk."""

    walk: int
    """Place of the walk among those that were asked for."""
    target: int
    """Place among the walk's targets."""
    shown: Items
    """The list, best first, at most k items."""
    unseen: Items
    """The list of items that are not among the events before the target, at most k."""
    micros: float
    """Time the list took, microseconds."""


class Recommender(Protocol):
    """A method under test. It sees the events before a target, never the target."""

    name: ClassVar[str]
    uses_history: ClassVar[bool]
    """Whether what came before the session can change its lists."""

    def fit(self, training: Training) -> None:
        """Learn from the training part."""

    def predict(self, walks: Sequence[Walk], k: int) -> Iterator[Prediction]:
        """Answer every target of every walk, in any order."""


def parse_split(text: str) -> int:
    """Read an ISO date or time, UTC unless it says otherwise, as epoch milliseconds.

    Raises:
        DataError: It is none.
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        msg = f"the split must be an ISO time such as 2022-03-01 or 2022-03-01T12:00Z, not {text!r}"
        raise DataError(msg) from error
    return round(moment.replace(tzinfo=moment.tzinfo or UTC).timestamp() * 1000)


def make_task(log: Log, split_ms: int, unit: Unit) -> Task:
    """Split a log.

    Raises:
        DataError: The split is outside the log, or leaves nothing to learn or to predict.
    """
    first, last = int(log.times_ms[0]), int(log.times_ms[-1])
    if not first < split_ms <= last:
        msg = f"the split {_iso(split_ms)} is outside the log, {_iso(first)} to {_iso(last)}"
        raise DataError(msg)
    group_of = log.session_of if unit is Unit.SESSION else log.user_of
    predicted = np.isin(log.kinds, [EVENT_TYPES.index(name) for name in PREDICTED_TYPES])
    before = log.times_ms < split_ms
    training, item_of = _train(log, np.flatnonzero(before & predicted), group_of, split_ms)
    known = np.where(predicted, item_of[log.item_of], -1).astype(np.int32)
    by_user = _by(log.user_of)
    if unit is Unit.SESSION:
        walks, with_history, skipped = _session_walks(log, known, predicted, split_ms, by_user)
        straddling = int((~before).sum()) - sum(len(walk.rows) for walk in walks)
    else:
        walks, skipped = _user_walks(log, known, predicted, split_ms, by_user)
        with_history, straddling = [], 0
    walks_asked = [walk for walk in walks if len(walk.targets)]
    if not walks_asked:
        msg = (
            f"nothing to predict: {len(walks)} {unit}s at or after {_iso(split_ms)}, but none has"
            " an item of the training part after its first event"
        )
        raise DataError(msg)
    return Task(
        training=training,
        walks=walks_asked,
        with_history=[walk for walk in with_history if len(walk.targets)],
        counts=Counts(
            events=len(log),
            training_events=len(training.items),
            training_items=len(training.product_ids),
            units=len(walks_asked),
            predictions=sum(len(walk.targets) for walk in walks_asked),
            unknown_items=skipped.unknown,
            without_history=skipped.first,
            straddling=straddling,
        ),
    )


@dataclass
class _Skipped:
    unknown: int = 0
    first: int = 0


def _train(
    log: Log, rows: NDArray[np.int64], group_of: NDArray[np.int32], split_ms: int
) -> tuple[Training, NDArray[np.int32]]:
    """What may be learned, and the place of each item code in it (one more, the last, is −1)."""
    if not len(rows):
        msg = f"no {', '.join(PREDICTED_TYPES)} before {_iso(split_ms)}: nothing to learn from"
        raise DataError(msg)
    counts = np.bincount(log.item_of[rows], minlength=len(log.items))
    codes = sorted(
        np.flatnonzero(counts).tolist(), key=lambda code: (-counts[code], log.items[code])
    )
    # One place more than there are codes: a search's −1 reads the last.
    item_of = np.full(len(log.items) + 1, -1, dtype=np.int32)
    item_of[codes] = np.arange(len(codes))
    groups = group_of[rows]
    # Rows are in order of time: a group's last row decides its place.
    last_row = np.full(int(group_of.max()) + 1, -1, dtype=np.int64)
    last_row[groups] = rows
    order = np.lexsort((rows, last_row[groups]))
    rows, groups = rows[order], groups[order]
    return (
        Training(
            product_ids=[log.items[code] for code in codes],
            counts=counts[codes],
            items=item_of[log.item_of[rows]],
            times_ms=log.times_ms[rows],
            starts=np.r_[np.flatnonzero(np.r_[True, groups[1:] != groups[:-1]]), len(rows)],
            split_ms=split_ms,
        ),
        item_of,
    )


def _by(codes: NDArray[np.int32]) -> list[NDArray[np.int64]]:
    """Rows of each code, in order."""
    order = np.argsort(codes, kind="stable")
    ends = np.cumsum(np.bincount(codes))
    return np.split(order, ends[:-1])


def _session_walks(
    log: Log,
    known: Items,
    predicted: NDArray[np.bool_],
    split_ms: int,
    by_user: Sequence[NDArray[np.int64]],
) -> tuple[list[Walk], list[Walk], _Skipped]:
    walks: list[Walk] = []
    with_history: list[Walk] = []
    skipped = _Skipped()
    any_history = False
    for rows in _by(log.session_of):
        if not len(rows) or log.times_ms[rows[0]] < split_ms:
            continue
        asked = predicted[rows]
        asked[0] = False
        targets = np.flatnonzero(asked & (known[rows] >= 0))
        skipped.unknown += int(asked.sum()) - len(targets)
        unit = len(walks)
        walks.append(_walk(log, known, unit, rows, 0, targets))
        of_user = by_user[log.user_of[rows[0]]]
        earlier = of_user[: np.searchsorted(of_user, rows[0])]
        any_history = any_history or bool(len(earlier))
        joined = np.r_[earlier, rows]
        with_history.append(_walk(log, known, unit, joined, len(earlier), targets + len(earlier)))
    return walks, with_history if any_history else [], skipped


def _user_walks(
    log: Log,
    known: Items,
    predicted: NDArray[np.bool_],
    split_ms: int,
    by_user: Sequence[NDArray[np.int64]],
) -> tuple[list[Walk], _Skipped]:
    walks: list[Walk] = []
    skipped = _Skipped()
    for rows in by_user:
        if not len(rows) or log.times_ms[rows[-1]] < split_ms:
            continue
        asked = predicted[rows] & (log.times_ms[rows] >= split_ms)
        skipped.first += int(asked[0])
        asked[0] = False
        targets = np.flatnonzero(asked & (known[rows] >= 0))
        skipped.unknown += int(asked.sum()) - len(targets)
        walks.append(_walk(log, known, len(walks), rows, 0, targets))
    return walks, skipped


def _walk(
    log: Log,
    known: Items,
    unit: int,
    rows: NDArray[np.int64],
    session_start: int,
    targets: NDArray[np.int64],
) -> Walk:
    products = log.item_of[rows]
    # New: the first event of its product in the walk.
    first = np.zeros(len(rows), dtype=np.bool_)
    first[np.unique(products, return_index=True)[1]] = True
    return Walk(
        unit=unit,
        rows=rows,
        items=known[rows],
        times_ms=log.times_ms[rows],
        session_start=session_start,
        targets=targets,
        new=first[targets],
    )


def _iso(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="minutes")
