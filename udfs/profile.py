"""A user's profile: two exponentially decayed sums of vectors, the last interactions, the bought.

The decayed sum of weights w_i and unit vectors v_i at event times t_i, read at time T, is

    S(T) = sum_i w_i · 2 ** (-(T - t_i) / h) · v_i        (h: half-life)

It is kept by forward decay (Cormode, Shkapenyuk, Srivastava and Xu, "Forward Decay", ICDE 2009):
relative to a fixed landmark L the terms are w_i · 2 ** ((t_i - L) / h) · v_i, which never change
with T, so any order of the same events gives the same sum, and a hot user's many small steps do
not each round it. The landmark moves by whole half-lives, which scales the sum by a power of two:
exactly.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import accumulate
from typing import Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from udfs.schemas import EVENT_TYPES, MAX_INT32, Event

FloatMatrix = NDArray[np.float32]

VERSION: Final = 3
# version, flags, space bytes, dimensions, interactions, waiting, exclusions, reference ts (ms),
# fast and slow landmark (ms), generation (µs), last touch (ms), oldest event (ms), erased until,
# erasure requested (ms), erased (µs), retry (ms), item bytes, exclusion bytes
_HEADER: Final = struct.Struct("<BBHHHHHqqqqqqqqqqII")
# Of formats v1 and v2: without the flags, and without what stands between touch and item bytes.
_OLD_HEADER: Final = struct.Struct("<BHHHHHqqqqqII")
_PARTIAL: Final = 1
_OPTED_OUT: Final = 2
_TIMESTAMP: Final = struct.Struct("<q")
_LENGTH: Final = struct.Struct("<H")
_HASH_BYTES: Final = 8

_KIND_OF: Final = {name: kind for kind, name in enumerate(EVENT_TYPES)}
SEARCH_KIND: Final = _KIND_OF["search"]
_SCROLL: Final = _KIND_OF["scroll"]
PURCHASE_KIND: Final = _KIND_OF["purchase"]
_EXCLUDING: Final = frozenset({"purchase", "dislike", "return"})
# The kind of an exclusion of format v1, which did not tell bought from disliked.
_UNKNOWN: Final = 0xFF
# A scroll that the person left at once; kinds from 32 on are the profile's own.
BOUNCE: Final = "bounce"
_BOUNCE: Final = 32
_WAITING: Final = 0x80
_KIND_MASK: Final = 0x7F
# What a profile keeps of a query: enough to embed it again in another space.
MAX_QUERY_CHARACTERS: Final = 512
# The largest number of interactions that the header's counters hold, with the slack of the log.
MAX_INTERACTIONS: Final = 30_000
# Some 30,000 years: no decay at all, and in milliseconds still an int64.
MAX_HALF_LIFE_S: Final = 1e12
# A landmark moves when the newest event is so many half-lives ahead: far from float32's range.
_REBASE_HALF_LIVES: Final = 16


# The blend of two unit vectors is nothing where it is shorter than this.
LEAST_BLEND: Final = 1e-5


class ProfileVersionError(ValueError):
    """The packed profile was written in a format that this code cannot read."""


@dataclass(frozen=True)
class ProfileConfig:
    """Constants of the profile; every one is an option of the job."""

    fast_half_life_s: float = 30 * 60.0
    """Half-life of the fast sum, seconds of event time: what the person does right now."""
    slow_half_life_s: float = 14 * 86_400.0
    """Half-life of the slow sum, seconds of event time: what the person likes."""
    fast_share: float = 0.5
    """Share of the fast direction in the lookup's query vector, 0 to 1."""
    interactions: int = 50
    """How many of the newest interactions are kept: for late products, rebuilds, duplicates."""
    exclusions: int = 500
    """How many of the newest bought or disliked products are kept out of the lists."""
    weights: Mapping[str, float] = field(
        default_factory=lambda: {
            "click": 1.0,
            "search": 1.5,
            "scroll": 0.2,
            "purchase": 3.0,
            "add_to_cart": 2.0,
            "dislike": -2.0,
            "return": -2.0,
        }
    )
    """Weight of an event's vector by its type; negative pushes away."""
    bounce_ms: int = 1000
    """A scroll that dwelt shorter than this is a bounce, milliseconds; 0: none is."""
    bounce_weight: float = -0.2
    """Weight of a bounce, in place of the scroll's."""

    def __post_init__(self) -> None:
        """Refuse constants without a meaning."""
        for half_life_s in (self.fast_half_life_s, self.slow_half_life_s):
            if not 0 < half_life_s <= MAX_HALF_LIFE_S:
                msg = f"half-lives must be above 0 and at most {MAX_HALF_LIFE_S:g} seconds"
                raise ValueError(msg)
        if not 0 <= self.fast_share <= 1:
            msg = f"fast_share must be within 0 and 1, not {self.fast_share}"
            raise ValueError(msg)
        for name in ("interactions", "exclusions"):
            if not 1 <= getattr(self, name) <= MAX_INTERACTIONS:
                msg = f"{name} must be within 1 and {MAX_INTERACTIONS}"
                raise ValueError(msg)
        if set(self.weights) != set(EVENT_TYPES):
            msg = f"weights must name exactly {', '.join(EVENT_TYPES)}"
            raise ValueError(msg)
        if not 0 <= self.bounce_ms <= MAX_INT32:
            msg = f"bounce_ms must be within 0 and {MAX_INT32}, not {self.bounce_ms}"
            raise ValueError(msg)
        for name, weight in {**self.weights, BOUNCE: self.bounce_weight}.items():
            if not math.isfinite(weight):
                msg = f"the weight of {name} must be finite, not {weight}"
                raise ValueError(msg)

    @property
    def kind_weights(self) -> list[float]:
        """Weight of a packed interaction by the code of its kind."""
        weights = [0.0] * (_BOUNCE + 1)
        for name, weight in self.weights.items():
            weights[_KIND_OF[name]] = weight
        weights[_BOUNCE] = self.bounce_weight
        return weights

    @property
    def half_lives_ms(self) -> tuple[int, int]:
        """Half-lives of the fast and the slow sum, whole milliseconds."""
        return (
            max(1, round(1000 * self.fast_half_life_s)),
            max(1, round(1000 * self.slow_half_life_s)),
        )


class VectorSource(Protocol):
    """Where the profile update finds the vectors of what a user touched, all of one space."""

    @property
    def space(self) -> str | None:
        """Name of the active embedding space; None while there is no product."""

    @property
    def dimensions(self) -> int:
        """Length of its vectors."""

    def product_vector(self, product_id: str) -> FloatMatrix | None:
        """Unit vector (d,) of a product; None while the catalogue does not have it."""

    def query_vector(self, query: str) -> FloatMatrix | None:
        """Unit vector (d,) of a search; None where it has none in the active space."""


class Profile:
    """One user's state, kept as the columns of its packed form so that a touch costs little.

    The interactions are a log: new ones are appended, and when it holds twice ``interactions`` it
    is cut to the newest. The newest n of a union are among the newest n of its parts, so the cut
    loses none of them, whatever the order of arrival.
    """

    __slots__ = (
        "_exclusion_items",
        "_exclusion_kinds",
        "_exclusion_lengths",
        "_exclusion_times",
        "_hashes",
        "_items",
        "_kinds",
        "_lengths",
        "_times",
        "erased_until_ms",
        "erased_us",
        "erasure_ms",
        "generation_us",
        "landmarks_ms",
        "oldest_ms",
        "opted_out",
        "partial",
        "reference_ms",
        "retry_ms",
        "space",
        "sums",
        "touched_ms",
        "waiting",
    )

    def __init__(self) -> None:
        """Make the profile of a user who has done nothing yet."""
        self.space = ""
        self.sums: FloatMatrix = np.zeros((2, 0), dtype=np.float32)
        """Fast and slow sums relative to their landmarks, shape (2, d)."""
        self.landmarks_ms = (0, 0)
        self.reference_ms = 0
        """Time of the newest event that moved the sums, epoch milliseconds."""
        self.generation_us = 0
        """Write timestamp of the newest saved list, epoch microseconds."""
        self.touched_ms = 0
        """Wall clock of the newest tick that brought an event, epoch milliseconds."""
        self.waiting = 0
        """How many interactions still wait for their product's vector."""
        self.oldest_ms = 0
        """Time of the oldest event ever accepted of the user, epoch milliseconds; 0: none was."""
        self.erased_until_ms = 0
        """Events up to this time, epoch milliseconds, were erased and must not come back."""
        self.erasure_ms = 0
        """Time of the erase event, epoch milliseconds; 0 where there was none."""
        self.erased_us = 0
        """Write timestamp of the last erasure, epoch microseconds."""
        self.retry_ms = 0
        """When the user's one retry is due, epoch milliseconds; 0 where none is."""
        self.partial = False
        """Whether the newest list was made from a part of the catalogue."""
        self.opted_out = False
        """Whether the user objected to having a profile."""
        self._hashes = b""
        self._times = b""
        self._kinds = b""
        self._lengths = b""
        self._items = b""
        self._exclusion_times = b""
        self._exclusion_kinds = b""
        self._exclusion_lengths = b""
        self._exclusion_items = b""

    @classmethod
    def unpack(cls, packed: bytes | None) -> Profile:
        """Read a packed profile; None is a new user.

        Raises:
            ProfileVersionError: Another version, or not as long as its header says.
        """
        profile = cls()
        if packed is None:
            return profile
        version = packed[0] if packed else 0
        header = _HEADER if version == VERSION else _OLD_HEADER
        if not 1 <= version <= VERSION or len(packed) < header.size:
            msg = f"profile of version {version}, this reads 1 to {VERSION}"
            raise ProfileVersionError(msg)
        if version == VERSION:
            (
                _,
                flags,
                space_bytes,
                dimensions,
                n,
                profile.waiting,
                x,
                profile.reference_ms,
                fast_landmark_ms,
                slow_landmark_ms,
                profile.generation_us,
                profile.touched_ms,
                profile.oldest_ms,
                profile.erased_until_ms,
                profile.erasure_ms,
                profile.erased_us,
                profile.retry_ms,
                item_bytes,
                exclusion_bytes,
            ) = header.unpack_from(packed)
            profile.partial = bool(flags & _PARTIAL)
            profile.opted_out = bool(flags & _OPTED_OUT)
        else:
            (
                _,
                space_bytes,
                dimensions,
                n,
                profile.waiting,
                x,
                profile.reference_ms,
                fast_landmark_ms,
                slow_landmark_ms,
                profile.generation_us,
                profile.touched_ms,
                item_bytes,
                exclusion_bytes,
            ) = header.unpack_from(packed)
        size = header.size + space_bytes + 8 * dimensions + 19 * n + item_bytes
        size += (10 if version == 1 else 11) * x + exclusion_bytes
        if size != len(packed):
            msg = f"profile of {len(packed)} bytes, its header says {size}"
            raise ProfileVersionError(msg)
        profile.landmarks_ms = (fast_landmark_ms, slow_landmark_ms)
        a = header.size
        b = a + space_bytes
        profile.space = packed[a:b].decode()
        a, b = b, b + 8 * dimensions
        profile.sums = np.frombuffer(packed, dtype="<f4", count=2 * dimensions, offset=a).reshape(
            2, dimensions
        )
        a, b = b, b + 8 * n
        profile._hashes = packed[a:b]
        a, b = b, b + 8 * n
        profile._times = packed[a:b]
        a, b = b, b + n
        profile._kinds = packed[a:b]
        a, b = b, b + 2 * n
        profile._lengths = packed[a:b]
        a, b = b, b + item_bytes
        profile._items = packed[a:b]
        a, b = b, b + 8 * x
        profile._exclusion_times = packed[a:b]
        if version == 1:
            profile._exclusion_kinds = bytes((_UNKNOWN,)) * x
        else:
            a, b = b, b + x
            profile._exclusion_kinds = packed[a:b]
        a, b = b, b + 2 * x
        profile._exclusion_lengths = packed[a:b]
        a, b = b, b + exclusion_bytes
        profile._exclusion_items = packed[a:b]
        if version < VERSION:
            profile.oldest_ms = min(struct.unpack(f"<{n}q", profile._times), default=0)
        return profile

    def pack(self) -> bytes:
        """Write the profile in format v3: the header, then its columns one after the other."""
        space = self.space.encode()
        return b"".join(
            (
                _HEADER.pack(
                    VERSION,
                    self.partial * _PARTIAL + self.opted_out * _OPTED_OUT,
                    len(space),
                    self.sums.shape[1],
                    len(self._kinds),
                    self.waiting,
                    len(self._exclusion_times) // 8,
                    self.reference_ms,
                    *self.landmarks_ms,
                    self.generation_us,
                    self.touched_ms,
                    self.oldest_ms,
                    self.erased_until_ms,
                    self.erasure_ms,
                    self.erased_us,
                    self.retry_ms,
                    len(self._items),
                    len(self._exclusion_items),
                ),
                space,
                self.sums.tobytes(),
                self._hashes,
                self._times,
                self._kinds,
                self._lengths,
                self._items,
                self._exclusion_times,
                self._exclusion_kinds,
                self._exclusion_lengths,
                self._exclusion_items,
            )
        )

    def erased(self, erasure_ms: int, until_ms: int, erased_us: int) -> Profile:
        """Make what is kept of a user whose profile is erased: no more than keeps it so.

        Args:
            erasure_ms: Time of the erase event, epoch milliseconds.
            until_ms: Events up to this time, epoch milliseconds, must not come back.
            erased_us: Write timestamp of the deletion, epoch microseconds, above ``generation_us``.
        """
        kept = Profile()
        kept.opted_out = self.opted_out
        kept.oldest_ms = self.oldest_ms
        kept.erasure_ms = max(erasure_ms, self.erasure_ms)
        kept.erased_until_ms = max(until_ms, self.erased_until_ms)
        # The next list is written above the deletion.
        kept.generation_us = kept.erased_us = erased_us
        return kept

    def objected(self, at_us: int) -> Profile:
        """Make what is kept of a user who opts out at a write timestamp, epoch microseconds."""
        kept = self.erased(0, 0, self.erased_us)
        kept.generation_us = at_us
        kept.opted_out = True
        return kept

    def note_time(self, ts_ms: int) -> None:
        """Take note of the time of an accepted event, epoch milliseconds."""
        if ts_ms < self.oldest_ms or not self.oldest_ms:
            self.oldest_ms = ts_ms

    def is_erased(self, ts_ms: int, kafka_ms: int) -> bool:
        """Tell whether an event was erased, by its time and its record's, epoch milliseconds.

        A record's time of 0 is unknown.
        """
        return ts_ms <= self.erased_until_ms or 0 < kafka_ms <= self.erased_until_ms

    def can_advance(self, source: VectorSource) -> bool:
        """Tell whether an update without new events would move this profile."""
        if _is_foreign(self, source):
            return bool(self._kinds)
        return self.waiting > 0 and any(
            kind >= _WAITING and _find(source, kind & _KIND_MASK, item.decode()) is not None
            for _, _, kind, item in self._rows()
        )

    def interactions(self) -> list[tuple[int, str, str]]:
        """List what is known of the last interactions: (event time ms, type, product id or query).

        Oldest first.
        """
        rows = sorted(self._rows(), key=lambda row: (row[1], row[0]))
        return [(time, kind_name(kind & _KIND_MASK), item.decode()) for _, time, kind, item in rows]

    def newest_ms(self) -> int:
        """Event time of the newest interaction, epoch milliseconds; 0 where there is none."""
        n = len(self._kinds)
        return max(struct.unpack(f"<{n}q", self._times), default=0)

    def newest(self, count: int) -> Iterator[tuple[int, int, bool, str]]:
        """Give the newest interactions: (event time ms, kind's code, waits, product id or query).

        Newest first; of those with equal times, the last to arrive first.
        """
        n = len(self._kinds)
        times = struct.unpack(f"<{n}q", self._times)
        ends = list(accumulate(struct.unpack(f"<{n}H", self._lengths), initial=0))
        order = sorted(range(n), key=times.__getitem__)[: -count - 1 : -1]
        kinds, items = self._kinds, self._items
        for at in order:
            kind = kinds[at]
            item = items[ends[at] : ends[at + 1]].decode()
            yield times[at], kind & _KIND_MASK, kind >= _WAITING, item

    def excluded(self) -> list[str]:
        """List the bought, returned and disliked products."""
        if not self._exclusion_lengths:
            return []
        return [item.decode() for item in _split(self._exclusion_lengths, self._exclusion_items)]

    def exclusions(self) -> list[tuple[int, bool, str]]:
        """List why products are kept out: (event time ms, whether it was a purchase, product id).

        In no order; a product stands there once for each time it was bought.
        """
        if not self._exclusion_lengths:
            return []
        n = len(self._exclusion_kinds)
        items = _split(self._exclusion_lengths, self._exclusion_items)
        return [
            (time, kind == PURCHASE_KIND, item.decode())
            for time, kind, item in zip(
                struct.unpack(f"<{n}q", self._exclusion_times),
                self._exclusion_kinds,
                items,
                strict=True,
            )
        ]

    def _rows(self) -> list[tuple[bytes, int, int, bytes]]:
        n = len(self._kinds)
        return list(
            zip(
                [self._hashes[i : i + _HASH_BYTES] for i in range(0, _HASH_BYTES * n, _HASH_BYTES)],
                struct.unpack(f"<{n}q", self._times),
                self._kinds,
                _split(self._lengths, self._items),
                strict=True,
            )
        )

    def _set_rows(self, rows: Sequence[tuple[bytes, int, int, bytes]]) -> None:
        self._hashes = b"".join(row[0] for row in rows)
        self._times = struct.pack(f"<{len(rows)}q", *(row[1] for row in rows))
        self._kinds = bytes(row[2] for row in rows)
        self._lengths = struct.pack(f"<{len(rows)}H", *(len(row[3]) for row in rows))
        self._items = b"".join(row[3] for row in rows)
        self.waiting = sum(row[2] >> 7 for row in rows)

    def _knows(self, event_hash: bytes, item: bytes) -> int | None:
        """Return the time of the interaction of that id about that item; None: there is none."""
        at = self._hashes.find(event_hash)
        while at >= 0:
            place, rest = divmod(at, _HASH_BYTES)
            if not rest:  # a match across two entries is none
                lengths = struct.unpack(f"<{place + 1}H", self._lengths[: 2 * (place + 1)])
                end = sum(lengths)
                if self._items[end - lengths[place] : end] == item:
                    (known_ms,) = _TIMESTAMP.unpack_from(self._times, _TIMESTAMP.size * place)
                    return int(known_ms)
            at = self._hashes.find(event_hash, at + 1)
        return None

    def _cut(self, newest: int) -> None:
        rows = self._rows()
        order = sorted(range(len(rows)), key=lambda at: (rows[at][1], rows[at][0]))
        # In the order of arrival, which tells what came last where times are equal.
        self._set_rows([rows[at] for at in sorted(order[-newest:])])

    def _exclude(self, event: Event, limit: int) -> None:
        item = (event.product_id or "").encode()
        self._exclusion_times += _TIMESTAMP.pack(event.ts)
        self._exclusion_kinds += bytes((_KIND_OF[event.type],))
        self._exclusion_lengths += _LENGTH.pack(len(item))
        self._exclusion_items += item
        n = len(self._exclusion_kinds)
        if n < 2 * limit:
            return
        # Of a product that is there more than once, the newest time; what was ever disliked or
        # returned stays so. A purchase has the lowest code of these.
        newest: dict[bytes, tuple[int, int]] = {}
        times = struct.unpack(f"<{n}q", self._exclusion_times)
        names = _split(self._exclusion_lengths, self._exclusion_items)
        for time, kind, name in zip(times, self._exclusion_kinds, names, strict=True):
            old_time, old_kind = newest.get(name, (time, kind))
            newest[name] = max(time, old_time), max(kind, old_kind)
        kept = sorted((time, name, kind) for name, (time, kind) in newest.items())[-limit:]
        self._exclusion_times = struct.pack(f"<{len(kept)}q", *(time for time, _, _ in kept))
        self._exclusion_kinds = bytes(kind for _, _, kind in kept)
        self._exclusion_lengths = struct.pack(f"<{len(kept)}H", *(len(name) for _, name, _ in kept))
        self._exclusion_items = b"".join(name for _, name, _ in kept)


def _split(lengths: bytes, joined: bytes) -> list[bytes]:
    ends = list(accumulate(struct.unpack(f"<{len(lengths) // 2}H", lengths)))
    return [joined[a:b] for a, b in zip([0, *ends], ends, strict=False)]


def kind_name(kind: int) -> str:
    """Name the kind of a packed interaction: an event type, or ``bounce``."""
    return BOUNCE if kind == _BOUNCE else EVENT_TYPES[kind]


def hash_event_id(event_id: str) -> bytes:
    """Hash an event id to the 8 bytes by which a duplicate is known (BLAKE2b)."""
    return blake2b(event_id.encode(), digest_size=_HASH_BYTES).digest()


@dataclass
class _Contributions:
    """Weighted vectors to be added, each to the sums of one profile of the batch."""

    owners: list[int] = field(default_factory=list)
    times_ms: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    vectors: list[FloatMatrix] = field(default_factory=list)

    def add(self, owner: int, time_ms: int, weight: float, vector: FloatMatrix) -> None:
        self.owners.append(owner)
        self.times_ms.append(time_ms)
        self.weights.append(weight)
        self.vectors.append(vector)


class Moves(NamedTuple):
    """What became of the events of a batch."""

    duplicates: list[tuple[int, int, bool]]
    """Those known already: (profile, place among its events, whether the time is another one).

    Ascending. Of another time, its row would be a second one."""
    waiting: list[str]
    """Product id of each event whose product has no vector yet."""


def update_profiles(
    profiles: Sequence[Profile],
    events: Sequence[Sequence[Event]],
    source: VectorSource,
    config: ProfileConfig,
) -> Moves:
    """Move each profile by its new events, in place: one pass of NumPy for the whole batch.

    An event is its id and its item, the product or the query. One that is among the profile's
    interactions is a duplicate and moves nothing. One whose product has no vector yet waits among
    the interactions and is applied at the first call that finds the vector. A profile of another
    space is rebuilt from its newest interactions.

    Args:
        profiles: The profiles of a batch, each of another user.
        events: For each profile its new events, in any order.
        source: The vectors of the active space.
        config: The constants.
    """
    duplicates: list[tuple[int, int, bool]] = []
    unknown: list[str] = []
    found = _Contributions()
    weights = config.kind_weights
    product_vector, query_vector = source.product_vector, source.query_vector
    limit = 2 * config.interactions
    for owner, (profile, news) in enumerate(zip(profiles, events, strict=True)):
        if _is_foreign(profile, source):
            _rebuild(profile, source, config)
        if profile.waiting:
            _apply_waiting(owner, profile, source, weights, found)
        for place, event in enumerate(news):
            event_hash = blake2b(event.event_id.encode(), digest_size=_HASH_BYTES).digest()
            kind = _KIND_OF[event.type]
            is_search = kind == SEARCH_KIND
            if is_search:
                item = (event.query or "")[:MAX_QUERY_CHARACTERS]
            else:
                item = event.product_id or ""
            encoded = item.encode()
            known_ms = profile._knows(event_hash, encoded)
            if known_ms is not None:
                duplicates.append((owner, place, event.ts != known_ms))
                continue
            profile.note_time(event.ts)
            if is_search:
                vector = query_vector(item)
                missing = source.space is None
            else:
                vector = product_vector(item)
                missing = vector is None
                if event.type in _EXCLUDING:
                    profile._exclude(event, config.exclusions)
                elif (
                    kind == _SCROLL
                    and event.dwell_ms is not None
                    and event.dwell_ms < config.bounce_ms
                ):
                    kind = _BOUNCE
            if vector is not None:
                found.add(owner, event.ts, weights[kind], vector)
            elif missing:
                kind |= _WAITING
                profile.waiting += 1
                if not is_search:
                    unknown.append(item)
            profile._hashes += event_hash
            profile._times += _TIMESTAMP.pack(event.ts)
            profile._kinds += bytes((kind,))
            profile._lengths += _LENGTH.pack(len(encoded))
            profile._items += encoded
            if len(profile._kinds) >= limit:
                profile._cut(config.interactions)
    if found.owners:
        _add(profiles, found, config)
    return Moves(duplicates, unknown)


def _is_foreign(profile: Profile, source: VectorSource) -> bool:
    """Tell whether the sums are of another space than the active one, if there is one."""
    return source.space is not None and (
        profile.space != source.space or profile.sums.shape[1] != source.dimensions
    )


def _rebuild(profile: Profile, source: VectorSource, config: ProfileConfig) -> None:
    """Forget the sums and mark the newest interactions as waiting for vectors of the new space."""
    profile.space = source.space or ""
    profile.sums = np.zeros((2, source.dimensions), dtype=np.float32)
    profile.landmarks_ms = (0, 0)
    profile.reference_ms = 0
    if profile._kinds:
        profile._cut(config.interactions)
        profile._kinds = bytes(kind | _WAITING for kind in profile._kinds)
        profile.waiting = len(profile._kinds)


def _find(source: VectorSource, kind: int, item: str) -> FloatMatrix | None:
    return source.query_vector(item) if kind == SEARCH_KIND else source.product_vector(item)


def _apply_waiting(
    owner: int,
    profile: Profile,
    source: VectorSource,
    weights: Sequence[float],
    found: _Contributions,
) -> None:
    kinds = bytearray(profile._kinds)
    for at, (_, time_ms, kind, item) in enumerate(profile._rows()):
        if kind < _WAITING:
            continue
        kind &= _KIND_MASK
        vector = _find(source, kind, item.decode())
        if vector is not None:
            found.add(owner, time_ms, weights[kind], vector)
        elif kind != SEARCH_KIND or source.space is None:
            continue  # a query without a vector in this space will not get one by waiting
        kinds[at] = kind
        profile.waiting -= 1
    profile._kinds = bytes(kinds)


def _add(profiles: Sequence[Profile], found: _Contributions, config: ProfileConfig) -> None:
    """Move the landmarks of the touched profiles where that is due and add what is new."""
    owners = np.array(found.owners)
    times = np.array(found.times_ms, dtype=np.int64)
    starts = np.flatnonzero(np.r_[True, owners[1:] != owners[:-1]])
    touched = [profiles[owner] for owner in owners[starts].tolist()]
    newest = np.maximum.reduceat(times, starts)
    half_lives = np.array(config.half_lives_ms, dtype=np.int64)
    old_landmarks = np.array([profile.landmarks_ms for profile in touched], dtype=np.int64)
    # Whole half-lives from the landmark to the newest event; (profiles, 2), fast and slow.
    ahead = (newest[:, None] - old_landmarks) // half_lives
    steps = np.where(ahead > _REBASE_HALF_LIVES, ahead, 0)
    landmarks = old_landmarks + steps * half_lives
    per_owner = np.diff(np.r_[starts, len(owners)])
    exponents = (times[:, None] - np.repeat(landmarks, per_owner, axis=0)) / half_lives
    factors = np.array(found.weights)[:, None] * np.exp2(exponents)
    vectors = np.array(found.vectors)
    added = np.add.reduceat(
        factors.astype(np.float32)[:, :, None] * vectors[:, None, :], starts, axis=0
    )
    old_sums = np.array([profile.sums for profile in touched])
    scales = np.exp2(-np.minimum(steps, 1000)).astype(np.float32)
    sums = old_sums * scales[:, :, None] + added
    for profile, total, landmark, reference in zip(
        touched, sums, landmarks.tolist(), newest.tolist(), strict=True
    ):
        profile.sums = total
        profile.landmarks_ms = (landmark[0], landmark[1])
        profile.reference_ms = max(profile.reference_ms, reference)


def decayed_sums(profile: Profile, config: ProfileConfig, at_ms: int) -> NDArray[np.float64]:
    """Read the fast and the slow sum S(T) at a time, epoch milliseconds: shape (2, d)."""
    ages = at_ms - np.array(profile.landmarks_ms, dtype=np.int64)
    scales = np.exp2(-ages / np.array(config.half_lives_ms))
    read: NDArray[np.float64] = profile.sums.astype(np.float64) * scales[:, None]
    return read


def query_vectors(profiles: Sequence[Profile], config: ProfileConfig) -> FloatMatrix:
    """Blend each profile's fast and slow directions into its lookup vector.

    Args:
        profiles: Profiles of one space of d dimensions.
        config: The constants.

    Returns:
        Shape (profiles, d), rows of length 1; a row of zeros where the profile points nowhere.
    """
    return blended(stacked_sums(profiles), config).astype(np.float32)


def stacked_sums(profiles: Sequence[Profile]) -> NDArray[np.float64]:
    """Stack the fast and slow sums of profiles of one space, each as at its landmark: (n, 2, d)."""
    if not profiles:
        return np.zeros((0, 2, 0))
    # float64: the squares of a sum that has decayed for days leave the range of float32.
    return np.array([profile.sums for profile in profiles], dtype=np.float64)


def blended(sums: NDArray[np.float64], config: ProfileConfig) -> NDArray[np.float64]:
    """Blend the directions of sums (n, 2, d) into unit vectors (n, d), or zeros."""
    shares = np.array([config.fast_share, 1 - config.fast_share])
    # Two directions that cancel each other out leave rounding, which points anywhere.
    return _unit((_unit(sums) * shares[:, None]).sum(axis=1), LEAST_BLEND)


def vector_factors(
    profiles: Sequence[Profile],
    owners: NDArray[np.intp],
    times_ms: NDArray[np.int64],
    sums: NDArray[np.float64],
    config: ProfileConfig,
) -> NDArray[np.float64]:
    """Factor of an event of weight 1 in its profile's query vector, by its time.

    The query vector is linear in the vectors of the events: their decayed sums are divided by
    their lengths, blended, and divided by the blend's length.

    Args:
        profiles: The profiles.
        owners: Which of them each event belongs to, shape (e,).
        times_ms: Time of each event, shape (e,).
        sums: As :func:`stacked_sums` gives them.
        config: The constants.

    Returns:
        Shape (e,); without a meaning for an event that has no vector.
    """
    norms = np.linalg.norm(sums, axis=2)
    shares = np.array([config.fast_share, 1 - config.fast_share])
    scales = np.divide(shares, norms, out=np.zeros_like(norms), where=norms > 1e-30)
    lengths = np.linalg.norm((sums * scales[:, :, None]).sum(axis=1), axis=1)[:, None]
    scales = np.divide(scales, lengths, out=np.zeros_like(scales), where=lengths > LEAST_BLEND)
    landmarks = np.array([profile.landmarks_ms for profile in profiles], dtype=np.int64)
    ages = (times_ms[:, None] - landmarks.reshape(-1, 2)[owners]) / np.array(config.half_lives_ms)
    factors: NDArray[np.float64] = (np.exp2(np.clip(ages, -1000, 1000)) * scales[owners]).sum(
        axis=1
    )
    return factors


def _unit(vectors: NDArray[np.float64], least: float = 1e-30) -> NDArray[np.float64]:
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    unit: NDArray[np.float64] = np.divide(
        vectors, norms, out=np.zeros_like(vectors), where=norms > least
    )
    return unit
