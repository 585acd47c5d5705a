"""The lexical index: BM25 by hand, misspellings, changes one by one and in bulk, bounds."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from udfs import lexical_index, postings
from udfs.index import SlotTable
from udfs.lexical_index import LexicalIndex
from udfs.tokenizer import split_words

WORDS = ("red", "blue", "mug", "shirt", "lamp", "desk", "oak")
products = st.dictionaries(
    st.sampled_from("abcdefghij"),
    st.tuples(
        st.lists(st.sampled_from(WORDS), max_size=5).map(" ".join),
        st.sampled_from(("MUG", "DESK_LAMP", "SHIRT", "")),
    ),
    max_size=10,
)
queries = st.lists(st.sampled_from((*WORDS, "mgu", "unknown")), min_size=1, max_size=4).map(
    " ".join
)
# Also unpaired surrogates, which no text should have.
any_text = st.text(st.characters(exclude_categories=()), max_size=600)


class Named:
    """An index asked by product ids, as the catalogue has it by its table of slots."""

    def __init__(self) -> None:
        self.index = LexicalIndex()
        self.slots = SlotTable()

    def upsert(self, product_id: str, title: str, category: str) -> None:
        self.index.upsert(self.slots.add(product_id), title, category)

    def remove(self, product_id: str) -> None:
        self.index.remove(self.slots.get(product_id))

    def matches(self, query: str, limit: int) -> list[tuple[str, float]]:
        slots, scores = self.index.matches(query, limit)
        assert slots.dtype == np.int32
        assert scores.dtype == np.float32
        return list(zip(map(self.slots.product_id, slots.tolist()), scores.tolist(), strict=True))


def index_of(items: dict[str, tuple[str, str]]) -> Named:
    named = Named()
    for product_id, (title, category) in items.items():
        named.upsert(product_id, title, category)
    return named


def ids(index: Named, query: str, limit: int = 50) -> list[str]:
    return [product_id for product_id, _ in index.matches(query, limit)]


def approximately(index: Named, query: str) -> dict[str, object]:
    return {name: pytest.approx(score, abs=1e-5) for name, score in index.matches(query, 1000)}


def test_score_is_bm25_and_category_by_hand() -> None:
    # One category without a word in its name: `titles(q, c)` alone stands for it.
    index = index_of(
        {"a": ("red mug", "!"), "b": ("red shirt", "!"), "c": ("blue oak desk lamp", "!")}
    )
    idf_red = math.log(1 + (3 - 2 + 0.5) / (2 + 0.5))
    idf_mug = math.log(1 + (3 - 1 + 0.5) / (1 + 0.5))
    total = idf_red + idf_mug
    average = (2 + 2 + 4) / 3
    largest = (1.2 + 1) / (1 + 1.2 * (1 - 0.5))
    one_word = (1.2 + 1) / (1 + 1.2 * (1 - 0.5 + 0.5 * 2 / average))
    held = (total / total + idf_red / total) / (3 + 20)
    expected = {
        "a": (total * one_word / (total * largest) + held) / 2,
        "b": (idf_red * one_word / (total * largest) + held) / 2,
    }
    found = dict(index.matches("Red mugs", 10))
    assert found == {name: pytest.approx(score, abs=1e-6) for name, score in expected.items()}


def test_category_name_is_scored_by_both_coverages() -> None:
    index = index_of({"a": ("x1", "DESK_LAMP"), "b": ("x2", "LAMP"), "c": ("x3", "OAK_DESK")})
    lamp = math.log(1 + (3 - 2 + 0.5) / (2 + 0.5))  # two of three names have it, as `desk`
    assert lamp > 0
    # `desk lamp`: half of the query's idf in LAMP's only word, and in one of OAK_DESK's two.
    assert dict(index.matches("desk lamp", 10)) == {
        "a": pytest.approx(1 / 2),
        "b": pytest.approx(math.sqrt(1 / 2 * 1) / 2),
        "c": pytest.approx(math.sqrt(1 / 2 * 1 / 2) / 2),
    }


def test_products_whose_titles_share_a_word_recommend_their_category() -> None:
    sofas = {f"sofa{at}": (f"couch number{at}", "C17") for at in range(30)}
    index = index_of({**sofas, "cover": ("couch cover", "C99"), "mug": ("oak mug", "C99")})
    assert ids(index, "couch", 31)[-1] == "cover"


@pytest.mark.parametrize(
    "typed", ["monitr", "moniter", "monnitor", "mointor", "onitor", "moniors", "Monitro"]
)
def test_misspelling_finds_what_was_meant(typed: str) -> None:
    index = index_of({"m": ("curved monitor 27 inch", "MONITOR"), "s": ("oak shelf", "SHELF")})
    assert ids(index, typed) == ["m"]
    exact = dict(index.matches("monitor", 5))["m"]
    assert 0 < dict(index.matches(typed, 5))["m"] < exact


def test_misspelling_that_stands_in_a_title_finds_the_right_word_too() -> None:
    titles = {f"v{at}": (f"vacuum model {at}", "VACUUM") for at in range(60)}
    index = index_of({**titles, "odd": ("vaccum bag", "BAG")})
    found = ids(index, "vaccum", 100)
    assert set(found) == {*titles, "odd"}


def test_correction_takes_the_more_frequent_word() -> None:
    index = index_of(
        {
            "a": ("camel", "A"),
            "b": ("camera one", "B"),
            "c": ("camera two", "B"),
            "d": ("camra2", "D"),
        }
    )
    assert set(ids(index, "camea")) == {"b", "c"}


@pytest.mark.parametrize("typed", ["mgu", "x4", "qqqqqqq", "", "   ", "😀", "\ud800", "q" * 4000])
def test_short_words_numbers_and_what_nobody_sells_find_nothing(typed: str) -> None:
    assert index_of({"a": ("red mug x3", "MUG")}).matches(typed, 5) == []


def test_limit_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        LexicalIndex().matches("mug", 0)


@given(any_text, any_text, any_text)
def test_any_text_is_indexed_and_asked(title: str, category: str, query: str) -> None:
    index = index_of({"a": (title, category), "b": ("red mug", "MUG")})
    for text in (query, title, category):
        for product_id, score in index.matches(text, 10):
            assert product_id in {"a", "b"}
            assert 0 < score <= 1
    for word in split_words(title)[: lexical_index.MAX_QUERY_WORDS]:
        assert "a" in ids(index, word)


@given(products, queries, st.randoms())
def test_order_of_the_upserts_does_not_matter(
    items: dict[str, tuple[str, str]], query: str, random: object
) -> None:
    shuffled = list(items.items())
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert dict(index_of(items).matches(query, 1000)) == approximately(
        index_of(dict(shuffled)), query
    )


texts = st.tuples(
    st.lists(st.sampled_from(WORDS), max_size=4).map(" ".join),
    st.sampled_from(("MUG", "DESK_LAMP", "SHIRT", "")),
)
changes = st.one_of(
    st.tuples(st.just("upsert"), st.sampled_from("abcdefghij"), texts),
    st.tuples(st.just("remove"), st.sampled_from("abcdefghij")),
    st.tuples(st.just("extend"), st.lists(st.tuples(st.sampled_from("abcdefghij"), texts))),
    st.tuples(st.just("renumber"), st.sets(st.sampled_from("abcdefghij"))),
    st.tuples(st.just("ask"), queries),
)


@settings(max_examples=300)
@given(st.lists(changes, max_size=60), queries)
def test_after_any_changes_it_answers_as_one_built_anew(
    made: list[tuple[Any, ...]], last: str
) -> None:
    named = Named()
    kept: dict[str, tuple[str, str]] = {}
    with pytest.MonkeyPatch.context() as patch:
        # Dead rows are cleared out, and single postings joined to the others, within the example.
        patch.setattr(lexical_index, "_MIN_DEAD_ROWS", 4)
        patch.setattr(lexical_index, "_BULK", 3)
        patch.setattr(lexical_index, "_LEAST_BULK", 2)
        patch.setattr(postings, "_LEAST_MOVED", 8)
        for change in made:
            match change:
                case "upsert", product_id, new:
                    kept[product_id] = new
                    named.upsert(product_id, *new)
                case "remove", product_id:
                    kept.pop(product_id, None)
                    named.remove(product_id)
                case "extend", products:
                    kept.update(products)
                    named.index.extend((named.slots.add(one), *new) for one, new in products)
                case "renumber", gone:
                    ids_by_slot = map(named.slots.product_id, range(len(named.slots)))
                    keep = np.array([one not in gone for one in ids_by_slot], dtype=bool)
                    named.index.renumber(named.slots.keep(keep))
                    kept = {one: kept[one] for one in kept if one not in gone}
                case "ask", query:
                    assert set(ids(named, query)) <= kept.keys()
    assert len(named.index) == len(kept)
    assert all((named.slots.get(one) in named.index) == (one in kept) for one in "abcdefghij")
    if "mgu" not in last:
        assert dict(named.matches(last, 1000)) == approximately(index_of(kept), last)
    assert not named.index._found.any()


@given(products, queries)
def test_removed_products_never_return_and_come_back_with_the_same_texts(
    items: dict[str, tuple[str, str]], query: str
) -> None:
    named = index_of(items)
    before = approximately(named, query)
    for gone in items:
        named.remove(gone)
        assert gone not in ids(named, query)
        assert named.slots.get(gone) not in named.index
    assert named.matches(query, 50) == []
    for product_id, new in items.items():
        named.upsert(product_id, *new)
    assert named.index._count == len(items)  # no row was made anew
    assert dict(named.matches(query, 1000)) == before


def test_new_products_are_found_at_once_by_a_repeated_query() -> None:
    index = index_of({"a": ("red mug", "MUG")})
    assert ids(index, "mug") == ["a"]
    index.upsert("b", "blue mug", "")
    assert set(ids(index, "mug")) == {"a", "b"}
    index.upsert("c", "something", "MUG")
    assert set(ids(index, "mug")) == {"a", "b", "c"}
    assert ids(index, "couch") == []
    index.upsert("d", "couch", "")
    assert ids(index, "couch") == ["d"]


def test_the_same_texts_again_are_no_change() -> None:
    index = LexicalIndex()
    index.upsert(3, "red mug", "MUG")
    first = index.matches("mug", 5)
    index.upsert(3, "red mug", "MUG")
    assert index.matches("mug", 5) is first
    index.upsert(3, "red lamp", "LAMP")
    assert not len(index.matches("mug", 5)[0])


def test_of_one_slot_twice_in_bulk_the_last_counts() -> None:
    index = LexicalIndex()
    index.extend([(1, "red mug", "MUG"), (7, "oak desk", ""), (1, "blue lamp", "LAMP")])
    assert [index.matches(word, 5)[0].tolist() for word in ("mug", "lamp", "oak")] == [[], [1], [7]]
    assert len(index) == 2


def test_remembered_answers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lexical_index, "_REMEMBERED", 2)
    index = LexicalIndex()
    for query in ("a1", "a2", "a3"):
        index.matches(query, 5)
    assert [query for query, _ in index._answers] == ["a3"]


def test_common_words_are_read_up_to_the_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lexical_index, "MAX_CANDIDATES", 10)
    monkeypatch.setattr(lexical_index, "MAX_POSTINGS", 40)
    items = {f"p{at:03}": ("red mug" if at == 95 else "red", "") for at in range(100)}
    index = index_of(items)
    assert len(index.matches("red", 1000)) == 10
    assert ids(index, "red mug", 1) == ["p095"]
    assert not index.index._found.any()


def test_clearing_out_keeps_the_live_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lexical_index, "_MIN_DEAD_ROWS", 0)
    index = index_of({f"p{at}": (f"lamp {at}", f"C{at % 3}") for at in range(3000)})
    for at in range(2990):
        index.remove(f"p{at}")
    assert index.index._count < 30
    assert set(ids(index, "lamp")) == {f"p{at}" for at in range(2990, 3000)}
    assert ids(index, "lamp 2995", 1) == ["p2995"]
    index.upsert("new", "lamp 5", "C0")
    assert "new" in ids(index, "lamp 5")
