"""One tick: move the touched users' profiles, look up their neighbours, say what must be saved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from udfs.catalogue import Catalogue
from udfs.profile import Profile, ProfileConfig, update_profiles
from udfs.ranking import RankedList, RankingConfig, rank
from udfs.schemas import Event, PendingEvent, SaveBatch, SavedList, record_value
from udfs.variants import Experiment

# Users a batch: many enough that NumPy and the matrix product work in bulk, few enough that the
# writes of one batch overlap the computation of the next.
USERS_PER_BATCH: Final = 1024
# Of the bought and disliked, how many are saved with a list: what a read fills a list up with must
# lack them too, and the newest are what a person would notice.
SAVED_EXCLUSIONS: Final = 50
# Users' minutes that are counted at a time; when others come, the older half leaves.
CAPPED_MINUTES: Final = 100_000
_MS_A_MINUTE: Final = 60_000


@dataclass
class Touched:
    """A user of the current tick: the profile as in the state, and what came since."""

    user_id: str
    packed: bytes | None
    events: list[PendingEvent] = field(default_factory=list)
    due_ms: int = 0
    """The timer that stores the moved profile, epoch milliseconds."""
    profile: Profile | None = None
    """The moved profile, once the user has been flushed."""
    flushed: bool = False
    """Whether all of ``events`` up to now are saved."""


class MoveCap:
    """Counts the events of each user and minute, so that a bot's do not all move its profile.

    The counts are of this process alone: after a restart they begin anew.

    Args:
        most: Events of a user and minute of their own times that move the profile.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._counts: dict[tuple[str, int], int] = {}

    def takes(self, event: Event) -> bool:
        """Count an event; whether it may move the profile."""
        minute = (event.user_id, event.ts // _MS_A_MINUTE)
        counts = self._counts
        if minute not in counts and len(counts) >= CAPPED_MINUTES:
            for old in list(islice(counts, CAPPED_MINUTES // 2)):
                del counts[old]
        counts[minute] = count = counts.get(minute, 0) + 1
        return count <= self._most


@dataclass(frozen=True)
class RecommendConfig:
    """Constants of the lookup."""

    list_length: int = 20
    """Recommendations a user."""
    profile: ProfileConfig = field(default_factory=ProfileConfig)
    """Constants of the profile."""
    ranking: RankingConfig = field(default_factory=RankingConfig)
    """Constants of the ranking, of users without a variant."""
    experiment: Experiment = field(default_factory=Experiment)
    """Variants that are compared online."""

    def __post_init__(self) -> None:
        """Refuse a list without a place."""
        if not 1 <= self.list_length <= 1000:
            msg = f"list_length must be within 1 and 1000, not {self.list_length}"
            raise ValueError(msg)


def recommend(
    touched: Sequence[Touched],
    catalogue: Catalogue,
    config: RecommendConfig,
    now_us: int,
    *,
    complete: bool = True,
    unknown: list[str] | None = None,
    cap: MoveCap | None = None,
) -> Iterator[SaveBatch]:
    """Process one tick for all touched users, in batches; the last one is marked.

    Each user's ``profile`` is set to the moved profile, with ``generation_us`` of the new list: at
    least ``now_us`` and above every earlier one, so that the newest list wins in Cassandra also
    where the clock went back.

    An event that is known already moves nothing. With the time of the first it is saved again,
    into the same row: Cassandra may have refused it, and a person has sent it back. With another
    time it would be a second row, and is left out. What a user had erased is not taken, and what
    comes from one who objects, or beyond the cap, is saved and moves nothing. Where all events of
    a user are beyond the cap, no list is made.

    Args:
        touched: The users of the tick, each once.
        catalogue: The products.
        config: The constants.
        now_us: The wall clock, epoch microseconds.
        complete: Whether the catalogue is all there; else the profiles are marked ``partial``.
        unknown: Takes the product id of each event whose product the catalogue does not know.
        cap: Says which events may move a profile; None: all.
    """
    for start in range(0, len(touched), USERS_PER_BATCH):
        users = touched[start : start + USERS_PER_BATCH]
        profiles = [user.profile or Profile.unpack(user.packed) for user in users]
        batch = SaveBatch(last=start + USERS_PER_BATCH >= len(touched))
        events = [
            _moving(user, profile, batch, cap)
            for user, profile in zip(users, profiles, strict=True)
        ]
        had_events = [bool(moving) for moving in events]
        moves = update_profiles(profiles, events, catalogue, config.profile)
        batch.duplicates = len(moves.duplicates)
        batch.updates = sum(map(len, events)) - batch.duplicates
        for owner, place, is_second_row in reversed(moves.duplicates):
            if is_second_row:
                del users[owner].events[place]
        if unknown is not None:
            unknown.extend(one for one in moves.waiting if not catalogue.knows(one))
        batch.variants = _variants(users, config.experiment)
        # All that came is beyond the cap: what would be looked up is known.
        looked_up = [
            at
            for at, user in enumerate(users)
            if had_events[at] or not (batch.capped and user.events)
        ]
        batch.lists = _look_up(
            [users[at] for at in looked_up],
            [profiles[at] for at in looked_up],
            catalogue,
            config,
            now_us,
            batch.variants,
        )
        batch.events = [pending for user in users for pending in user.events]
        for user, profile, moved in zip(users, profiles, had_events, strict=True):
            if moved:
                profile.touched_ms = now_us // 1000
            profile.partial = not complete and not profile.opted_out
            user.events = []
            user.profile = profile
            user.flushed = True
        yield batch


def _moving(user: Touched, profile: Profile, batch: SaveBatch, cap: MoveCap | None) -> list[Event]:
    """Return the events that move a user, which come first; erased ones leave the user's events."""
    if profile.erased_until_ms:
        kept = [
            pending
            for pending in user.events
            if not profile.is_erased(pending.event.ts, record_value(pending.record)[1])
        ]
        batch.erased += len(user.events) - len(kept)
        user.events = kept
    if profile.opted_out:
        batch.opted_out += len(user.events)
        for pending in user.events:
            profile.note_time(pending.event.ts)
        return []
    if cap is None:
        return [pending.event for pending in user.events]
    moving: list[PendingEvent] = []
    capped: list[PendingEvent] = []
    for pending in user.events:
        (moving if cap.takes(pending.event) else capped).append(pending)
    for pending in capped:
        profile.note_time(pending.event.ts)
    batch.capped += len(capped)
    # Those that move come first, as their places are counted among themselves.
    user.events = moving + capped
    return [pending.event for pending in moving]


def _variants(users: Sequence[Touched], experiment: Experiment) -> dict[str, str]:
    """Name the variant of each user; empty where there are none."""
    if not experiment.variants:
        return {}
    names = [variant.name for variant in experiment.variants]
    return {user.user_id: names[experiment.variant_of(user.user_id)] for user in users}


def _rank(
    users: Sequence[Touched],
    profiles: Sequence[Profile],
    catalogue: Catalogue,
    config: RecommendConfig,
    now_us: int,
    variants: Mapping[str, str],
) -> list[RankedList | None]:
    """Rank with the constants of each user's variant."""
    k, now_ms = config.list_length, now_us // 1000
    if not variants:
        return rank(profiles, catalogue, k, config.ranking, config.profile, now_ms)
    ranked: list[RankedList | None] = [None] * len(users)
    for variant in config.experiment.variants:
        group = [at for at, user in enumerate(users) if variants[user.user_id] == variant.name]
        found = rank(
            [profiles[at] for at in group], catalogue, k, variant.ranking, config.profile, now_ms
        )
        for at, one in zip(group, found, strict=True):
            ranked[at] = one
    return ranked


def _look_up(
    users: Sequence[Touched],
    profiles: Sequence[Profile],
    catalogue: Catalogue,
    config: RecommendConfig,
    now_us: int,
    variants: Mapping[str, str],
) -> list[SavedList]:
    space = catalogue.space
    if space is None or not users:
        return []
    ranked = _rank(users, profiles, catalogue, config, now_us, variants)
    lists = []
    for user, profile, found in zip(users, profiles, ranked, strict=True):
        if found is None:
            continue
        # What may be bought again is back: whoever reads the list must not take it out, nor keep
        # it from what fills the list up.
        excluded = dict.fromkeys(reversed(profile.excluded()))
        for product_id in found.back:
            excluded.pop(product_id, None)
        profile.generation_us = max(now_us, profile.generation_us + 1)
        lists.append(
            SavedList(
                user.user_id,
                found.product_ids,
                found.scores,
                space,
                profile.reference_ms,
                profile.generation_us,
                found.reasons,
                list(excluded)[:SAVED_EXCLUSIONS],
                variants.get(user.user_id, ""),
            )
        )
    return lists
