"""What the search benchmark computes: TF-IDF by hand, precision, misspellings, its two halves."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest

from benchmarks import search
from benchmarks.search import (
    Catalogue,
    Query,
    TfIdf,
    View,
    interval,
    main,
    misspell,
    precision,
    query_groups,
)

WORDS = ("lamp", "desk", "shirt", "mug", "shelf", "monitor", "keyboard", "charger")
SHOP = Catalogue(
    [f"p{at}" for at in range(40)],
    [f"{WORDS[at % 8].title()} number {WORDS[at // 8]} nice" for at in range(40)],
    [WORDS[at % 8].upper() for at in range(40)],
)


def test_tf_idf_by_hand() -> None:
    index = TfIdf(["red mug", "red red lamp"])
    both, one = 1.0, math.log(3 / 2) + 1  # ln((1 + 2) / (1 + df)) + 1
    first = np.array([both, one, 0]) / math.hypot(both, one)
    second = np.array([2 * both, 0, one]) / math.hypot(2 * both, one)
    np.testing.assert_allclose(index.scores("Red"), [first[0], second[0]], rtol=1e-6)
    asked = np.array([both, one, 0]) / math.hypot(both, one)
    np.testing.assert_allclose(
        index.scores("mug red unknown"), [first @ asked, second @ asked], rtol=1e-6
    )


def test_precision_is_of_as_many_as_there_are() -> None:
    assert precision([1, 2, 3], frozenset({1, 3})) == 1
    assert precision([1, 2], frozenset({1, 7, 8, 9})) == 1 / 4
    assert precision(list(range(40)), frozenset(range(19, 60))) == 1 / 20


def test_misspelling_changes_one_long_word() -> None:
    rng = random.Random(1)
    wrong = [misspell("usb keyboard", rng) for _ in range(100)]
    assert len({text for text in wrong if text}) > 30
    assert all(text.startswith("usb ") and text != "usb keyboard" for text in wrong if text)
    assert all(7 <= len(text.split()[1]) <= 9 for text in wrong if text)
    assert misspell("usb hub", rng) is None


def test_the_halves_share_no_query_and_hold_all() -> None:
    chosen, _ = query_groups(SHOP, chosen=True)
    reported, _ = query_groups(SHOP, chosen=False)
    names = [{query.text for query in half["categories"]} for half in (chosen, reported)]
    assert not names[0] & names[1]
    assert names[0] | names[1] == set(WORDS)
    lamps = [q for half in (chosen, reported) for q in half["categories"] if q.text == "lamp"]
    assert lamps == [Query("lamp", frozenset(range(0, 40, 8)))]


def test_methods_find_what_they_should() -> None:
    view = View.of(SHOP, titles_only=False)
    found = view.compare([Query("monitor", frozenset(range(5, 40, 8)))], weight=1.5, limit=100)
    assert found["lexical"] == [1.0]
    assert found["job"] == [1.0]
    assert set(found) == set(search.METHODS)


def test_interval_holds_the_mean() -> None:
    values = np.random.default_rng(2).normal(0.3, 0.1, 400)
    low, high = interval(values)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * 0.1 / 20, rel=0.15)


def test_every_mapped_class_has_categories() -> None:
    path = Path(search.__file__).with_name("wands_categories.json")
    mapped = json.loads(path.read_text(encoding="utf-8"))
    assert all(categories for categories in mapped.values())
    assert len(mapped) > 100


def test_it_says_that_it_skips_where_the_data_is_absent(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(search, "CATALOGUE", tmp_path / "purchases_dev.csv.gz")
    main([])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("skipped: purchases_dev.csv.gz is absent")
    assert json.loads(lines[-1]) == {"skipped": "purchases_dev.csv.gz is absent"}
