"""One tick over plain values: moves, lookups, batches, generations."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.builders import (
    NOW_MS,
    Vectors,
    assert_same_list,
    event,
    naive_query_vector,
    naive_sums,
    pending,
    record,
    related_row,
    unit_vectors,
)
from udfs import recommend as recommend_module
from udfs.catalogue import Catalogue
from udfs.profile import ProfileConfig, decayed_sums
from udfs.recommend import CAPPED_MINUTES, MoveCap, RecommendConfig, Touched, recommend
from udfs.schemas import Event, EventType, SaveBatch

NOW_US = NOW_MS * 1000
MATRIX = unit_vectors(40, 8)
PRODUCTS = {f"p{n}": vector for n, vector in enumerate(MATRIX)}
CONFIG = RecommendConfig(list_length=5)


def catalogue(*, out_of_stock: tuple[str, ...] = ()) -> Catalogue:
    made = Catalogue()
    for name, vector in PRODUCTS.items():
        made.put(record(name, vector, in_stock=name not in out_of_stock))
    return made


def user(name: str, *events: Event, packed: bytes | None = None) -> Touched:
    return Touched(name, packed, [pending(one) for one in events])


def run(
    users: list[Touched],
    products: Catalogue,
    now_us: int = NOW_US,
    config: RecommendConfig = CONFIG,
) -> list[SaveBatch]:
    return list(recommend(users, products, config, now_us))


@settings(max_examples=40)
@given(
    st.lists(
        st.lists(
            st.tuples(
                st.sampled_from(["click", "scroll", "purchase", "add_to_cart"]),
                st.integers(0, 39),
                st.integers(0, 3_600_000),
            ),
            min_size=1,
            max_size=8,
        ),
        min_size=1,
        max_size=5,
    )
)
def test_lists_equal_an_independent_exact_lookup(
    histories: list[list[tuple[EventType, int, int]]],
) -> None:
    out = ("p3", "p4")
    made = [
        [event(f"e{at}", kind, f"p{item}", NOW_MS - age) for at, (kind, item, age) in enumerate(h)]
        for h in histories
    ]
    users = [user(f"u{at}", *events) for at, events in enumerate(made)]
    (batch,) = run(users, catalogue(out_of_stock=out))
    assert [one.user_id for one in batch.lists] == [one.user_id for one in users]
    in_stock = {name: vector for name, vector in PRODUCTS.items() if name not in out}
    for saved, events in zip(batch.lists, made, strict=True):
        sums, newest = naive_sums(events, Vectors(PRODUCTS), ProfileConfig())
        query = naive_query_vector(sums, ProfileConfig()).astype(np.float32)
        bought = [e.product_id or "" for e in events if e.type == "purchase"]
        assert_same_list((saved.product_ids, saved.scores), in_stock, query, 5, bought)
        assert (saved.event_ms, saved.space) == (newest, "s")


@pytest.mark.parametrize("kind", ["purchase", "dislike"])
def test_bought_and_disliked_are_never_listed(kind: EventType) -> None:
    config = RecommendConfig(list_length=1000)
    (batch,) = run([user("u", event("a"), event("b", kind, "p7"))], catalogue(), config=config)
    assert set(batch.lists[0].product_ids) == PRODUCTS.keys() - {"p7"}


def test_user_who_points_nowhere_gets_no_list_but_is_saved() -> None:
    users = [user("a", event(product_id="unknown")), user("b", event())]
    (batch,) = run(users, catalogue())
    assert [one.user_id for one in batch.lists] == ["b"]
    assert len(batch.events) == 2
    assert batch.updates == 2
    assert all(one.profile is not None and one.flushed and not one.events for one in users)


def test_empty_catalogue_gives_no_lists_but_saves_the_events() -> None:
    (batch,) = run([user("a", event()), user("b", event())], Catalogue())
    assert batch.lists == []
    assert len(batch.events) == 2
    assert batch.last


def test_nothing_in_stock_gives_an_empty_list() -> None:
    (batch,) = run([user("u", event())], catalogue(out_of_stock=tuple(PRODUCTS)))
    assert batch.lists[0].product_ids == []


@given(st.lists(st.integers(0, 2 * NOW_US), min_size=2, max_size=12))
def test_generation_never_goes_back_whatever_the_clock(clock: list[int]) -> None:
    products, packed, last = catalogue(), None, -1
    for at, now_us in enumerate(clock):
        one = user("u", event(f"e{at}"), packed=packed)
        (batch,) = run([one], products, now_us)
        assert batch.lists[0].generated_us > last
        assert batch.lists[0].generated_us >= now_us
        last = batch.lists[0].generated_us
        assert one.profile is not None
        packed = one.profile.pack()


def test_second_flush_of_a_tick_goes_on_from_the_moved_profile() -> None:
    products, one = catalogue(), user("u", event("a"))
    run([one], products)
    one.events.append(pending(event("a")))
    one.events.append(pending(event("b", product_id="p1")))
    one.events.append(pending(event("b", product_id="p1", ts=NOW_MS + 1500)))
    (batch,) = run([one], products)
    assert (batch.updates, batch.duplicates) == (1, 2)
    # The same time is the same row; another one would be a second row.
    saved = [(one.event.event_id, one.event.ts) for one in batch.events]
    assert saved == [("a", NOW_MS), ("b", NOW_MS)]
    assert one.profile is not None
    expected, newest = naive_sums([event("a"), event("b", product_id="p1")], Vectors(PRODUCTS),
                             ProfileConfig())  # fmt: skip
    read = decayed_sums(one.profile, ProfileConfig(), newest)
    np.testing.assert_allclose(read, expected, atol=1e-5)


@pytest.mark.parametrize(("n", "sizes"), [(1, [1]), (3, [3]), (4, [3, 1]), (7, [3, 3, 1])])
def test_only_the_last_batch_is_marked(
    n: int, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recommend_module, "USERS_PER_BATCH", 3)
    batches = run([user(f"u{at}", event()) for at in range(n)], catalogue())
    assert [len(batch.lists) for batch in batches] == sizes
    assert [batch.last for batch in batches] == [False] * (len(sizes) - 1) + [True]
    saved = [one.user_id for batch in batches for one in batch.lists]
    assert saved == [f"u{at}" for at in range(n)]


def test_no_users_give_no_batch() -> None:
    assert run([], catalogue()) == []


def test_touch_without_an_event_keeps_the_time_of_the_last_one() -> None:
    products, one = catalogue(), user("u", event())
    run([one], products, NOW_US)
    run([one], products, NOW_US + 5_000_000)
    assert one.profile is not None
    assert one.profile.touched_ms == NOW_MS


@pytest.mark.parametrize("length", [0, 1001])
def test_list_length_without_a_meaning_is_refused(length: int) -> None:
    with pytest.raises(ValueError, match="list_length"):
        RecommendConfig(list_length=length)


def test_users_of_before_and_after_an_emptied_catalogue_share_a_tick() -> None:
    products = catalogue()
    old = user("old", event())
    run([old], products)
    assert old.profile is not None
    restored = Catalogue()
    for name in PRODUCTS:
        restored.put(record(name, PRODUCTS[name]))
        restored.remove(name)
    users = [user("old", event("b"), packed=old.profile.pack()), user("new", event())]
    (batch,) = run(users, restored)
    assert len(batch.events) == 2
    assert all(one.product_ids == [] for one in batch.lists)


def shop_of_refills() -> Catalogue:
    """One product is bought again after ten days."""
    made = catalogue()
    made.put_related(related_row("p7", rebuy_days=10))
    return made


@pytest.mark.parametrize(("days", "excluded"), [(9, ["p7"]), (11, [])])
def test_what_may_be_bought_again_leaves_the_readers_exclusions(
    days: int, excluded: list[str]
) -> None:
    """Also where it is not in the list: who fills the list up may show it."""
    one = user("u", event("a", "purchase", "p7", NOW_MS - days * 86_400_000), event("b"))
    config = RecommendConfig(list_length=1)
    (batch,) = run([one], shop_of_refills(), config=config)
    (saved,) = batch.lists
    assert "p7" not in saved.product_ids
    # Empty, and saved as such: what stood there before must go.
    assert saved.excluded == excluded


def test_what_is_disliked_stays_excluded_however_long_ago() -> None:
    old = NOW_MS - 300 * 86_400_000
    events = [event("a", "purchase", "p7", old), event("b", "dislike", "p7", old), event("c")]
    (batch,) = run([user("u", *events)], shop_of_refills())
    assert batch.lists[0].excluded == ["p7"]


def test_the_newest_exclusions_are_saved_each_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recommend_module, "SAVED_EXCLUSIONS", 3)
    items = [1, 2, 3, 4, 4, 4, 2]
    events = [event(f"e{at}", "purchase", f"p{item}") for at, item in enumerate(items)]
    (batch,) = run([user("u", *events)], catalogue())
    assert batch.lists[0].excluded == ["p2", "p4", "p3"]


def test_what_is_beyond_the_cap_is_saved_and_moves_nothing() -> None:
    cap, products = MoveCap(2), catalogue()
    made = [event(f"e{at}", "click", f"p{at}", NOW_MS + 1000 * at, user_id="u") for at in range(4)]
    # A duplicate among what moves, whose other time would make a second row, behind a capped one.
    again = event("e4", "click", "p5", NOW_MS + 120_000, user_id="u")
    late = event("e4", "click", "p5", NOW_MS + 120_001, user_id="u")
    bot = user("u", *made, again, late)
    (batch,) = recommend([bot], products, CONFIG, NOW_US, cap=cap)
    assert (batch.updates, batch.duplicates, batch.capped) == (3, 1, 2)
    saved = [one.event.event_id for one in batch.events]
    assert sorted(saved) == ["e0", "e1", "e2", "e3", "e4"]
    assert bot.profile is not None
    assert [item for _, _, item in bot.profile.interactions()] == ["p0", "p1", "p5"]
    assert len(batch.lists) == 1

    # Nothing but what is beyond it: no list, while others get theirs.
    more = event("e9", "click", "p9", NOW_MS + 5000, user_id="u")
    bots = [user("u", more, packed=bot.profile.pack()), user("v", event("e1", user_id="v"))]
    waiting = user("w", packed=bot.profile.pack())
    (batch,) = recommend([*bots, waiting], products, CONFIG, NOW_US, cap=cap)
    assert [one.user_id for one in batch.lists] == ["v", "w"]
    assert (batch.capped, len(batch.events)) == (1, 2)
    # An erasure looks as far back as these, too.
    assert bots[0].profile is not None
    assert bots[0].profile.oldest_ms == NOW_MS


def test_the_counts_of_the_cap_are_bounded() -> None:
    cap = MoveCap(1)
    for at in range(CAPPED_MINUTES + 1):
        assert cap.takes(event(ts=NOW_MS + at * 60_000))
    assert len(cap._counts) == CAPPED_MINUTES // 2 + 1
    assert not cap.takes(event(ts=NOW_MS + CAPPED_MINUTES * 60_000))
