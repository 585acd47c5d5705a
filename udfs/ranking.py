"""Scores the products for many users at once: related products, repeats, rebuys and the vector.

The score of product p for user u, whose newest interactions i = 0, 1, … (each product or query
once, newest first) stand at positions n_i, is

    score(u, p) = sum_i a_i (1 + n_i) ** -e · related(i, p)
                + sum_{i is a search} a_i (1 + n_i) ** -e · m · match(i, p)
                + sum_{i = p} min(1, a_i) (1 + n_i) ** -e' · repeat(p)
                + rebuy · share(p) · sum over purchases j of p  2 ** (-age_j / h)
                + v_u · (q_u · v_p)

with a_i the weight of the interaction's type times its decay with age (the same two half-lives as
the profile's vector q_u), scaled so that the largest a_i (1 + n_i) ** -e is 1. v_u is the vector's
share: 1 for who has touched nothing with related products, ``vector_share`` for who has touched
nothing else. A position counts the newer interactions, each by its weight and at most 1, so that
scrolling past does not push a click out of sight. match(i, p) is the lexical score of a search
(`udfs.lexical_index`), for its best matches alone; after nothing but one search the score is so the
blend that `make bench-search` measures, cosine + m · match.

Only products of which something is known are scored for a user, the candidates: those with a
term beside the vector's, and the nearest to the vector. In a small catalogue every product is one
(`udfs.index`). In a large one (`udfs.inverted`) the nearest are looked for where they could enter
the list: where the k-th best of the others has less than v_u |q_u|, which no product exceeds by its
vector alone. So a list is that of a full scan, but for what an approximate search misses.

Weighting the co-occurrence of single interactions by recency is what sequential rules do (Ludewig
and Jannach, "Evaluation of Session-based Recommendation Algorithms", UMUAI 2018); the positions'
decay is that of STAN (Garg et al., SIGIR 2019), as a power.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from udfs.catalogue import Catalogue
from udfs.facts import NOWHERE
from udfs.index import Boosts
from udfs.lexical_index import BLEND_MATCHES, BLEND_WEIGHT, MAX_CANDIDATES
from udfs.profile import (
    PURCHASE_KIND,
    SEARCH_KIND,
    Profile,
    ProfileConfig,
    blended,
    stacked_sums,
    vector_factors,
)

FloatMatrix = NDArray[np.float32]
Rows = NDArray[np.intp]

_DAY_MS: Final = 86_400_000
# Interactions of the log that are read for each that is used: the others repeat one, or are light.
_READ_AHEAD: Final = 3
# Bits a user that tell most products from the listed ones, a power of two.
_FILTER_BITS: Final = 1024
VIEWED: Final = "viewed"
BOUGHT: Final = "bought"
SEARCHED: Final = "searched"
# Where no single interaction speaks for a product.
BY_PROFILE: Final = "profile"
# Listed since the catalogue has it newly.
NEW: Final = "new"
# New products that a list's places are filled from, the newest.
_NEWCOMERS: Final = 1000
# A reason stands with every item of a list: of a long search its beginning, in characters.
_REASON_CHARS: Final = 64
_VERBS: Final = {SEARCH_KIND: SEARCHED, PURCHASE_KIND: BOUGHT}


@dataclass(frozen=True)
class RankingConfig:
    """Constants of the ranking; every one is an option of the job."""

    recent: int = 12
    """How far back interactions are used as queries of their own, in positions."""
    position_exponent: float = 1.25
    """How fast an interaction's related products fade with its position: (1 + n) ** -exponent."""
    repeat_exponent: float = 0.65
    """The same for showing again what was just touched and not bought."""
    vector_share: float = 0.1
    """Share of the profile's vector beside related products, 0 to 1."""
    rebuy_weight: float = 3.0
    """Weight of a purchase for buying the same again, where the product says it is; 0: never."""
    rebuy_half_life_days: float = 120.0
    """Half-life of a purchase in this, days."""
    related_weight: float = 1.0
    """Weight of related products; 0: none are used."""
    lexical_weight: float = BLEND_WEIGHT
    """Weight of a search's words found in titles and categories, beside its vector; 0: none."""
    search_matches: int = BLEND_MATCHES
    """How many products a search's words speak for, the best."""
    category_limit: int = 0
    """Most products of one category in a list, while others are among the candidates; 0: any."""
    duplicate_cosine: float = 1.0
    """Of products whose vectors are closer than this the best alone is shown, while others are
    among the candidates; 1: all are."""
    new_share: float = 0.0
    """Share of a list's places for new products, the nearest to the user's vector, 0 to 0.5."""
    new_days: float = 14.0
    """A product is new for so long after its first sight, days."""
    candidates: int = 3
    """Candidates that a list is chosen from where the two above are set, in lengths of the list."""

    def __post_init__(self) -> None:
        """Refuse constants without a meaning."""
        if not 1 <= self.recent <= 100:
            msg = f"recent must be within 1 and 100, not {self.recent}"
            raise ValueError(msg)
        if not 0 < self.vector_share <= 1:
            msg = f"vector_share must be above 0 and at most 1, not {self.vector_share}"
            raise ValueError(msg)
        for name in ("position_exponent", "repeat_exponent", "rebuy_weight", "related_weight",
                     "lexical_weight"):  # fmt: skip
            if not 0 <= getattr(self, name) <= 100:
                msg = f"{name} must be within 0 and 100, not {getattr(self, name)}"
                raise ValueError(msg)
        if not 1 <= self.search_matches <= MAX_CANDIDATES:
            msg = f"search_matches must be within 1 and {MAX_CANDIDATES}, not {self.search_matches}"
            raise ValueError(msg)
        if not 0 <= self.category_limit <= 1000:
            msg = f"category_limit must be within 0 and 1000, not {self.category_limit}"
            raise ValueError(msg)
        if not 0 < self.duplicate_cosine <= 1:
            msg = f"duplicate_cosine must be above 0 and at most 1, not {self.duplicate_cosine}"
            raise ValueError(msg)
        if not 0 <= self.new_share <= 0.5:
            msg = f"new_share must be within 0 and 0.5, not {self.new_share}"
            raise ValueError(msg)
        if not 0 < self.new_days <= 36_500:
            msg = f"new_days must be above 0, not {self.new_days}"
            raise ValueError(msg)
        if not 1 <= self.candidates <= 100:
            msg = f"candidates must be within 1 and 100, not {self.candidates}"
            raise ValueError(msg)
        if not 0 < self.rebuy_half_life_days <= 36_500:
            msg = f"rebuy_half_life_days must be above 0, not {self.rebuy_half_life_days}"
            raise ValueError(msg)


class RankedList(NamedTuple):
    """What one user is shown, best first."""

    product_ids: list[str]
    scores: FloatMatrix
    reasons: list[str]
    back: list[str]
    """What was bought and may be bought again by now, whether it is shown or not."""


@dataclass
class _Interactions:
    """The newest interactions of all users, as columns in the order of the users."""

    users: Rows
    """Which profile, ascending, shape (e,)."""
    kinds: list[int]
    """Code of each interaction's kind."""
    items: list[str]
    """Product id or query."""
    slots: Rows
    """Product's slot, -1 for a search and for a product never seen."""
    vectors: FloatMatrix
    """Shape (e, d); zeros where there is none."""
    weights: FloatMatrix
    """What its related products count, shape (e,)."""
    repeat_weights: FloatMatrix
    """What the product itself counts, shape (e,)."""
    shares: FloatMatrix
    """What its vector counts in the user's query vector, shape (e,)."""


def rank(
    profiles: Sequence[Profile],
    catalogue: Catalogue,
    k: int,
    config: RankingConfig,
    profile_config: ProfileConfig,
    now_ms: int = 0,
) -> list[RankedList | None]:
    """Find the best products of each user and why, in one pass of NumPy for all of them.

    Args:
        profiles: Profiles of the catalogue's active space.
        catalogue: The products.
        k: How many a list has; fewer only where fewer exist.
        config: The constants.
        profile_config: Weights and half-lives of the interactions.
        now_ms: The wall clock, epoch milliseconds, by which a product is new.

    Returns:
        A list for each profile; None for one that points nowhere.
    """
    sums = stacked_sums(profiles)
    interactions = _newest(profiles, catalogue, sums, config, profile_config)
    related, of_related = _related(interactions, catalogue, config)
    matched, of_matched = _matched(interactions, catalogue, config)
    repeats, of_repeats = _repeats(interactions, catalogue)
    excluded, rebuys = _bought(profiles, catalogue, config)
    vector_shares = _vector_shares(interactions, len(profiles), catalogue, config)
    queries = blended(sums, profile_config).astype(np.float32) * vector_shares[:, None]
    pointing = queries.any(axis=1)
    for boosts in (related, matched, repeats, rebuys):
        pointing[boosts.queries] = True
    diverse = config.category_limit > 0 or config.duplicate_cosine < 1
    listed, scores = catalogue.search_slots(
        queries,
        k * config.candidates if diverse else k,
        (related, matched, repeats, rebuys, excluded),
    )
    if diverse:
        listed, scores = _diversified(listed, scores, k, catalogue, config)
    introduced = np.zeros(listed.shape, dtype=bool)
    if config.new_share:
        since_ms = now_ms - round(config.new_days * _DAY_MS)
        newcomers = catalogue.newcomers(since_ms, _NEWCOMERS)
        if len(newcomers):
            places = max(1, round(k * config.new_share))
            introduced = _introduce(listed, scores, queries, newcomers, places, excluded, catalogue)
    evidence = _Evidence(listed, len(catalogue.slots), interactions, vector_shares)
    evidence.add(related, of_related)
    evidence.add(matched, of_matched)
    evidence.add(repeats, of_repeats)
    evidence.add_vectors(catalogue)
    reasons = evidence.reasons(rebuys, catalogue)
    for user, place in np.argwhere(introduced).tolist():
        reasons[user][place] = NEW
    lengths = (listed != NOWHERE).sum(axis=1).tolist()
    names = catalogue.slots.names(listed)
    back: list[list[str]] = [[] for _ in profiles]
    for user, slot in zip(rebuys.queries.tolist(), rebuys.slots.tolist(), strict=True):
        back[user].append(catalogue.slots.product_id(slot))
    return [
        RankedList(ids[:length], row[:length], why[:length], again) if points else None
        for ids, row, why, length, points, again in zip(
            names, scores, reasons, lengths, pointing.tolist(), back, strict=True
        )
    ]


def _newest(
    profiles: Sequence[Profile],
    catalogue: Catalogue,
    sums: NDArray[np.float64],
    config: RankingConfig,
    profile_config: ProfileConfig,
) -> _Interactions:
    """Collect the newest interactions of each profile, each product or query once."""
    kind_weights = profile_config.kind_weights
    steps = [min(1.0, abs(weight)) for weight in kind_weights]
    recent, limit = config.recent, _READ_AHEAD * config.recent
    counts: list[int] = []
    newest_ms: list[int] = []
    items: list[str] = []
    kinds: list[int] = []
    times: list[int] = []
    positions: list[float] = []
    weights: list[float] = []
    # Every event counts in the profile's vector, also where it repeats an interaction.
    event_of: list[int] = []
    event_times: list[int] = []
    event_weights: list[float] = []
    for profile in profiles:
        first = len(items)
        newest_ms.append(profile.newest_ms())
        position = 0.0
        seen: dict[str | tuple[str], int] = {}
        for time_ms, kind, waits, item in profile.newest(limit):
            weight = kind_weights[kind]
            key = (item,) if kind == SEARCH_KIND else item
            number = seen.get(key)
            if number is None:
                if not weight:
                    continue
                if position >= recent:
                    break
                number = seen[key] = len(items)
                items.append(item)
                kinds.append(kind)
                times.append(time_ms)
                positions.append(position)
                weights.append(weight)
                position += steps[kind]
            elif weight * weights[number] > 0 and abs(weight) > abs(weights[number]):
                # It was clicked after it was put into the cart: that still counts.
                weights[number] = weight
                kinds[number] = kind
            if not waits:
                event_of.append(number)
                event_times.append(time_ms)
                event_weights.append(weight)
        counts.append(len(items) - first)
    count = len(items)
    users = np.repeat(np.arange(len(profiles)), counts)
    of_kind = np.array(kinds, dtype=np.int64)
    searches = of_kind == SEARCH_KIND
    slots = np.array(catalogue.slots.find(items), dtype=np.intp).reshape(count)
    slots[searches] = NOWHERE
    typed = np.array(weights)
    ages_ms = np.array(newest_ms)[users] - np.array(times, dtype=np.int64)
    fading = _decay(ages_ms, profile_config)
    placed = 1.0 + np.array(positions)
    own = typed * fading * placed**-config.position_exponent
    largest = np.zeros(len(profiles))
    np.maximum.at(largest, users, np.abs(own))
    again = np.clip(typed, 0, 1) * fading * placed**-config.repeat_exponent
    again[of_kind == PURCHASE_KIND] = 0
    vectors = catalogue.vectors(slots)
    for at in np.flatnonzero(searches).tolist():
        found = catalogue.query_vector(items[at])
        if found is not None:
            vectors[at] = found
    events = np.array(event_of, dtype=np.intp)
    shares = np.array(event_weights) * vector_factors(
        profiles, users[events], np.array(event_times, dtype=np.int64), sums, profile_config
    )
    shares_of = np.bincount(events, shares, count)
    # Beyond its sums' landmarks an event without a vector would count without limit.
    shares_of[~vectors.any(axis=1)] = 0
    return _Interactions(
        users=users,
        kinds=kinds,
        items=items,
        slots=slots,
        vectors=vectors,
        weights=(own / np.maximum(largest[users], 1e-30)).astype(np.float32),
        repeat_weights=again.astype(np.float32),
        shares=shares_of.astype(np.float32),
    )


def _decay(ages_ms: NDArray[np.int64], config: ProfileConfig) -> NDArray[np.float64]:
    """What an interaction of such an age counts, in shares of a new one: shape (e,)."""
    fast_ms, slow_ms = config.half_lives_ms
    fast, slow = np.exp2(-ages_ms / fast_ms), np.exp2(-ages_ms / slow_ms)
    blended: NDArray[np.float64] = config.fast_share * fast + (1 - config.fast_share) * slow
    return blended


def _related(
    interactions: _Interactions, catalogue: Catalogue, config: RankingConfig
) -> tuple[Boosts, Rows]:
    """Boost the products related to each interaction; also, of which interaction each boost is."""
    slots, weights = catalogue.facts.related(interactions.slots)
    own = np.float32(config.related_weight) * interactions.weights
    of, column = np.nonzero((slots != NOWHERE) & (own != 0)[:, None])
    return (
        Boosts(interactions.users[of], slots[of, column], weights[of, column] * own[of]),
        of,
    )


def _matched(
    interactions: _Interactions, catalogue: Catalogue, config: RankingConfig
) -> tuple[Boosts, Rows]:
    """Boost the products that hold the words of each search; also, of which each boost is."""
    own = np.float32(config.lexical_weight) * interactions.weights
    queries: list[NDArray[np.intp]] = []
    slots = [np.zeros(0, dtype=np.int32)]
    weights = [np.zeros(0, dtype=np.float32)]
    for at, kind in enumerate(interactions.kinds):
        if kind == SEARCH_KIND and own[at]:
            found, scores = catalogue.matches(interactions.items[at], config.search_matches)
            queries.append(np.full(len(found), at, dtype=np.intp))
            slots.append(found)
            weights.append(scores * own[at])
    of = np.concatenate(queries) if queries else np.zeros(0, dtype=np.intp)
    users = interactions.users[of]
    return Boosts(users, np.concatenate(slots), np.concatenate(weights)), of


def _repeats(interactions: _Interactions, catalogue: Catalogue) -> tuple[Boosts, Rows]:
    """Boost what was just touched itself, as far as the product says that it is touched again."""
    weights = catalogue.facts.repeats(interactions.slots) * interactions.repeat_weights
    of = np.flatnonzero(weights)
    return (
        Boosts(interactions.users[of], interactions.slots[of].astype(np.int32), weights[of]),
        of,
    )


def _bought(
    profiles: Sequence[Profile], catalogue: Catalogue, config: RankingConfig
) -> tuple[Boosts, Boosts]:
    """Keep out what was bought, returned or disliked; bring back what is bought again.

    Ages are those at the user's newest interaction: a list is made then, not when it is read.

    Returns:
        Boosts of minus infinity, and those of the products that are back.
    """
    users: list[int] = []
    items: list[str] = []
    ages: list[int] = []
    bought: list[bool] = []
    for user, profile in enumerate(profiles):
        rows = profile.exclusions()
        if rows:
            now_ms = profile.newest_ms()
            users.extend([user] * len(rows))
            for time_ms, purchase, item in rows:
                items.append(item)
                ages.append(now_ms - time_ms)
                bought.append(purchase)
    slots = np.array(catalogue.slots.find(items), dtype=np.int64)
    known = slots != NOWHERE
    pairs = np.array(users, dtype=np.int64)[known] * len(catalogue.slots) + slots[known]
    age_days = np.array(ages, dtype=np.float64)[known] / _DAY_MS
    pair, of = np.unique(pairs, return_inverse=True)
    newest = np.full(len(pair), np.inf)
    np.minimum.at(newest, of, age_days)
    only_bought = np.ones(len(pair), dtype=bool)
    only_bought[of[~np.array(bought, dtype=bool)[known]]] = False
    owners, slots = np.divmod(pair, max(1, len(catalogue.slots)))
    days, shares = catalogue.facts.rebuys(slots)
    back = only_bought & (newest >= days) & (config.rebuy_weight > 0)
    recency = np.bincount(
        of, np.exp2(-np.maximum(age_days, 0) / config.rebuy_half_life_days), len(pair)
    )
    weights = (config.rebuy_weight * shares * recency).astype(np.float32)
    out = ~back
    narrow = slots.astype(np.int32)
    minus = np.full(int(out.sum()), -np.inf, dtype=np.float32)
    return (
        Boosts(owners[out].astype(np.intp), narrow[out], minus),
        Boosts(owners[back].astype(np.intp), narrow[back], weights[back]),
    )


def _vector_shares(
    interactions: _Interactions, users: int, catalogue: Catalogue, config: RankingConfig
) -> FloatMatrix:
    """How much of each user's score the vector makes, shape (users,)."""
    weights = np.abs(interactions.weights).astype(np.float64)
    weights[~interactions.vectors.any(axis=1)] = 0
    has_related = catalogue.facts.has_related(interactions.slots) & (config.related_weight > 0)
    total = np.bincount(interactions.users, weights, users)
    without = np.bincount(interactions.users, np.where(has_related, 0, weights), users)
    share = np.divide(without, total, out=np.ones(users), where=total > 0)
    blended: FloatMatrix = (config.vector_share + (1 - config.vector_share) * share).astype(
        np.float32
    )
    return blended


def _diversified(
    listed: Rows, scores: FloatMatrix, k: int, catalogue: Catalogue, config: RankingConfig
) -> tuple[Rows, FloatMatrix]:
    """Choose k of the candidates (users, c), best first: those too many or too alike come last.

    A greedy choice by maximal marginal relevance (Carbonell and Goldstein, SIGIR 1998) whose
    penalty is all or nothing, so that it needs no loop over the places.
    """
    surplus = np.zeros(listed.shape, dtype=bool)
    if config.duplicate_cosine < 1:
        vectors = catalogue.vectors(listed)
        closeness = vectors @ vectors.transpose(0, 2, 1)
        better = np.tri(listed.shape[1], k=-1, dtype=bool)
        surplus |= ((closeness > config.duplicate_cosine) & better).any(axis=2)
    if config.category_limit:
        categories = catalogue.facts.categories(listed).astype(np.int64)
        # Which of its category each is among those that are left, by sorting rows and categories.
        keys = np.arange(len(listed))[:, None] * (categories.max(initial=0) + 2) + categories + 1
        at = np.flatnonzero(~surplus & (categories != NOWHERE))
        order = at[np.argsort(keys.ravel()[at], kind="stable")]
        ordered = keys.ravel()[order]
        starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(order) else order
        lengths = np.diff(np.r_[starts, len(order)])
        place = np.arange(len(order)) - np.repeat(starts, lengths)
        surplus.ravel()[order[place >= config.category_limit]] = True
    surplus[listed == NOWHERE] = True
    order = np.argsort(surplus, axis=1, kind="stable")[:, :k]
    order.sort(axis=1)  # what fills the list up takes its place by its score
    return np.take_along_axis(listed, order, axis=1), np.take_along_axis(scores, order, axis=1)


def _introduce(
    listed: Rows,
    scores: FloatMatrix,
    queries: FloatMatrix,
    newcomers: Rows,
    places: int,
    excluded: Boosts,
    catalogue: Catalogue,
) -> NDArray[np.bool_]:
    """Put the new products nearest to each user's vector into the lists, in place.

    They take the places of the last, and stand evenly spread over the list, so that they are seen.
    A list that has new products by their own scores needs fewer, and one that is not full, none:
    then every product is in it.

    Args:
        listed: Slots, best first, shape (users, k).
        scores: Their scores, shape (users, k).
        queries: The users' vectors, shape (users, d).
        newcomers: Slots of the new products, shape (n,).
        places: How many of each list are for them.
        excluded: What must not be shown.
        catalogue: The products.

    Returns:
        Which places have been given to new products, shape (users, k).
    """
    k = listed.shape[1]
    nearness: FloatMatrix = queries @ catalogue.vectors(newcomers).T
    order = np.argsort(newcomers)

    def leave_out(users: Rows, slots: NDArray[np.integer[Any]]) -> None:
        at = np.minimum(np.searchsorted(newcomers, slots, sorter=order), len(newcomers) - 1)
        new = newcomers[order[at]] == slots
        nearness[users[new], order[at[new]]] = -np.inf

    leave_out(np.repeat(np.arange(len(listed)), k), listed.ravel())
    own = np.isin(listed, newcomers)
    leave_out(excluded.queries, excluded.slots)
    wanted = np.clip(places - own.sum(axis=1), 0, len(newcomers))
    wanted[listed[:, -1] == NOWHERE] = 0
    best = np.argsort(-nearness, axis=1, kind="stable")[:, :places]
    introduced = np.zeros(listed.shape, dtype=bool)
    for user in np.flatnonzero(wanted).tolist():
        chosen = best[user, : wanted[user]]
        chosen = chosen[nearness[user, chosen] > -np.inf]
        count = len(chosen)
        if not count:
            continue
        # Of the products that were there by their own scores, new or not, the last ones go.
        spots = (np.arange(count) + 1) * k // (count + 1)
        others = np.setdiff1d(np.arange(k), spots)
        listed[user, others] = listed[user, : k - count]
        scores[user, others] = scores[user, : k - count]
        listed[user, spots] = newcomers[chosen]
        scores[user, spots] = nearness[user, chosen]
        introduced[user, spots] = True
    return introduced


class _Evidence:
    """What each interaction contributed to each listed product: shape (users, k, interactions)."""

    def __init__(
        self, listed: Rows, slots: int, interactions: _Interactions, vector_shares: FloatMatrix
    ) -> None:
        self._listed = listed
        self._slots = slots
        known = np.flatnonzero(listed.ravel() != NOWHERE)
        keys = (np.arange(len(listed))[:, None] * slots + listed).ravel()[known]
        order = np.argsort(keys)
        self._keys, self._places = keys[order], known[order]
        """What is listed, user · slots + slot, ascending; and its place, user · k + place."""
        self._filter = np.zeros((len(listed), _FILTER_BITS), dtype=bool)
        self._filter[np.arange(len(listed))[:, None], listed & (_FILTER_BITS - 1)] = True
        self._interactions = interactions
        users = interactions.users
        starts = np.searchsorted(users, np.arange(len(listed)))
        self._number = np.arange(len(users)) - starts[users]
        """Place of each interaction among its user's."""
        self._starts = starts
        width = int(self._number.max(initial=-1)) + 1
        self._vector_shares = vector_shares
        self._table: FloatMatrix = np.zeros((*listed.shape, width), dtype=np.float32)

    def add(self, boosts: Boosts, of: Rows) -> None:
        """Add boosts; ``of`` tells the interaction of each."""
        users, slots = boosts.queries, boosts.slots
        # Few of the boosted products are listed: what differs from all of a user's in its last
        # bits is left out first.
        near = np.flatnonzero(self._filter[users, slots & (_FILTER_BITS - 1)])
        keys = users[near] * self._slots + slots[near]
        at = np.minimum(np.searchsorted(self._keys, keys), max(0, len(self._keys) - 1))
        found = np.flatnonzero(self._keys[at] == keys) if len(self._keys) else at
        hit = near[found]
        user, place = np.divmod(self._places[at[found]], self._listed.shape[1])
        np.add.at(self._table, (user, place, self._number[of[hit]]), boosts.weights[hit])

    def add_vectors(self, catalogue: Catalogue) -> None:
        """Add the inner products of the interactions' vectors, as they count in the query's."""
        if not self._table.size:
            return
        one = self._interactions
        users, _, width = self._table.shape
        vectors = np.zeros((users, width, catalogue.dimensions), dtype=np.float32)
        vectors[one.users, self._number] = (
            one.vectors * (one.shares * self._vector_shares[one.users])[:, None]
        )
        self._table += catalogue.vectors(self._listed) @ vectors.transpose(0, 2, 1)

    def reasons(self, rebuys: Boosts, catalogue: Catalogue) -> list[list[str]]:
        """Name the interaction that contributed most to each listed product, if any did.

        Only what was not rejected can be a reason. What was bought before is named itself where
        that counts more.
        """
        users, k, width = self._table.shape
        one = self._interactions
        # What is disliked speaks for nothing, also where it pushes towards its opposite.
        against = np.flatnonzero(one.weights < 0)
        self._table[one.users[against], :, self._number[against]] = 0
        if width:
            best = self._table.argmax(axis=2)
            largest = np.take_along_axis(self._table, best[:, :, None], axis=2)[:, :, 0]
        else:
            best = np.zeros((users, k), dtype=np.intp)
            largest = np.zeros((users, k), dtype=np.float32)
        labels = [
            f"{_VERBS[kind]}:{item[:_REASON_CHARS] if kind == SEARCH_KIND else item}"
            if kind in _VERBS
            else f"{VIEWED}:{item}"
            for kind, item in zip(one.kinds, one.items, strict=True)
        ]
        labels.append(BY_PROFILE)
        rows = np.where(largest > 0, best + self._starts[:, None], -1)
        found = [[labels[at] for at in row] for row in rows.tolist()]
        for user, slot, weight in zip(
            rebuys.queries.tolist(), rebuys.slots.tolist(), rebuys.weights.tolist(), strict=True
        ):
            for place in np.flatnonzero(self._listed[user] == slot).tolist():
                if weight > largest[user, place]:
                    found[user][place] = f"{BOUGHT}:{catalogue.slots.product_id(slot)}"
        return found
