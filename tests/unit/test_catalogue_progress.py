"""How far the catalogue topic was read, and what is said of products that it does not hold."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from udfs.catalogue_progress import (
    FAR_SILENCE_S,
    NEAR_END,
    SILENCE_S,
    CatalogueProgress,
    ProgressVersionError,
)
from udfs.unresolved import CAPACITY, EVERY_S, SHOWN, UnresolvedItems

GOLDEN = Path(__file__).parents[1] / "golden"


def test_nothing_is_expected_of_an_empty_topic() -> None:
    assert CatalogueProgress({}, 0.0).complete
    assert CatalogueProgress({0: 0, 1: 0}, 0.0).complete


@given(st.permutations([(0, offset) for offset in range(3)] + [(1, 0), (2, 7)]))
def test_it_is_complete_with_the_last_partition_that_was_read(
    records: list[tuple[int, int]],
) -> None:
    progress = CatalogueProgress({0: 3, 1: 1, 3: 0}, 0.0)
    last = max(records.index((0, 2)), records.index((1, 0)))
    for at, (partition, offset) in enumerate(records):
        assert progress.complete == (at > last)
        progress.read(partition, offset, 0.0)
        progress.look(SILENCE_S - 1)
    assert progress.complete


def look_until(progress: CatalogueProgress, start_s: float, end_s: float) -> None:
    """Look once a second, as heartbeats do at least."""
    for at in range(round(end_s - start_s) + 1):
        progress.look(start_s + at)


def test_a_partition_without_a_word_for_long_has_been_read() -> None:
    progress = CatalogueProgress({0: 5, 1: 5}, 100.0)
    look_until(progress, 100.0, 110.0)
    progress.read(1, 2, 110.0)
    look_until(progress, 111.0, 100.0 + SILENCE_S)  # partition 0
    assert not progress.complete
    progress.read(1, 3, 100.0 + SILENCE_S)
    look_until(progress, 101.0 + SILENCE_S, 99.0 + 2 * SILENCE_S)
    assert not progress.complete
    progress.look(100.0 + 2 * SILENCE_S)
    assert progress.complete


@pytest.mark.parametrize("is_restored", [False, True])
def test_time_in_which_nothing_could_be_heard_is_no_silence(*, is_restored: bool) -> None:
    """The operator waits for Cassandra, or loads a large catalogue."""
    progress = CatalogueProgress({0: 9, 1: 9}, 0.0)
    if is_restored:
        first = CatalogueProgress({0: 9, 1: 9}, 0.0)
        first.read(0, 4, 0.0)
        progress.load(first.unstored() or b"", 100.0)
    else:
        progress.look(1.0)
        progress.read(0, 4, 2.0)
    progress.look(1000.0)
    progress.look(5000.0)
    assert not progress.complete
    progress.read(0, 8, 5000.0)
    look_until(progress, 5001.0, 5000.0 + SILENCE_S)
    assert progress.complete


@pytest.mark.parametrize("read", [None, 100])
def test_silence_far_from_the_end_is_a_catalogue_that_is_held_up(read: int | None) -> None:
    """Another subtask waits for Cassandra, and holds up the catalogue of all."""
    first = 0 if read is None else read + 1
    progress = CatalogueProgress({0: first + NEAR_END + 1}, 0.0)
    if read is not None:
        progress.read(0, read, 0.0)
    look_until(progress, 0.0, FAR_SILENCE_S - 1)
    assert not progress.complete
    progress.look(FAR_SILENCE_S)
    assert progress.complete


def test_silence_near_the_end_is_that_of_markers() -> None:
    progress = CatalogueProgress({0: 1000}, 0.0)
    progress.read(0, 999 - NEAR_END, 0.0)
    look_until(progress, 0.0, SILENCE_S - 1)
    assert not progress.complete
    progress.look(SILENCE_S)
    assert progress.complete


def test_a_restored_job_knows_what_was_read_and_what_came_since() -> None:
    first = CatalogueProgress({0: 3, 1: 9}, 0.0)
    assert first.unstored() is None
    first.read(0, 2, 0.0)
    first.read(1, 4, 0.0)
    stored = first.unstored()
    assert stored is not None
    assert first.unstored() is None
    same = CatalogueProgress({0: 3, 1: 5}, 50.0)
    same.load(stored, 50.0)
    assert same.complete
    assert same.unstored() is None
    # More came while the job was away.
    later = CatalogueProgress({0: 3, 1: 6}, 50.0)
    later.load(stored, 50.0)
    assert not later.complete
    later.read(1, 5, 51.0)
    assert later.complete


def test_golden_progress_is_read() -> None:
    value = (GOLDEN / "progress_v1.bin").read_bytes()
    expected = json.loads((GOLDEN / "progress_v1.json").read_text())
    read = {int(partition): offset for partition, offset in expected["read"].items()}
    progress = CatalogueProgress({one: offset + 1 for one, offset in read.items()}, 0.0)
    progress.load(value, 0.0)
    assert progress.complete
    short = CatalogueProgress({one: offset + 2 for one, offset in read.items()}, 0.0)
    short.load(value, 0.0)
    short.read(0, read[0] + 1, 0.0)
    assert not short.complete


@pytest.mark.parametrize("value", [b"", b"\x00", msgspec.msgpack.encode([2, {}])])
def test_progress_of_another_format_is_refused(value: bytes) -> None:
    with pytest.raises(ProgressVersionError, match="progress"):
        CatalogueProgress({}, 0.0).load(value, 0.0)


@given(st.lists(st.integers(0, 30), max_size=200))
def test_the_most_frequent_are_shown_first(numbers: list[int]) -> None:
    items = UnresolvedItems(0.0)
    items.add(f"p{number}" for number in numbers)
    assert items.report(EVERY_S - 0.1) is None
    found = items.report(EVERY_S)
    counts = sorted(Counter(numbers).values(), reverse=True)[:SHOWN]
    assert [count for _, count in found or []] == counts
    assert len({one for one, _ in found or []}) == len(counts)
    assert items.report(EVERY_S + 1) is None


def test_what_is_counted_is_bounded_and_frequent_ones_stay() -> None:
    items = UnresolvedItems(0.0)
    for number in range(20 * CAPACITY):
        items.add(("often", f"p{number}"))
        assert len(items._counts) <= CAPACITY
    found = items.report(EVERY_S)
    assert found is not None
    assert found[0] == ("often", 20.0 * CAPACITY)
    for turn in range(2, 100):
        items.report(turn * EVERY_S)
    assert items._counts == {}
