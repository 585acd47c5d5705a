"""Lists of numbers by key, for an inverted index of millions of entries: arrays, no objects."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.uint32]
Keys = NDArray[np.int64]

_NONE: Final = array("I")
# What was added one by one moves into the arrays once it is so much, and this share of them: it
# takes some 200 bytes a key where it is, and a move costs a copy of everything.
_LEAST_MOVED: Final = 32_768
_MOVED_SHARE: Final = 1 / 16


def key_of(word: str) -> int:
    """Return the key of a word: 64 bits, within this process.

    The words themselves need not be kept: among a million, two share a key once in 30 million
    catalogues, and then each finds the other's products too.
    """
    return hash(word)


class Postings:
    """Ascending numbers by key.

    One sorted array of keys, their numbers joined in another (4 bytes a number, 16 a key), and a
    dictionary of what was added one by one since.
    """

    def __init__(self) -> None:
        """Make an empty one."""
        self._keys: Keys = np.zeros(0, dtype=np.int64)
        self._starts: Keys = np.zeros(1, dtype=np.int64)
        self._numbers: Numbers = np.zeros(0, dtype=np.uint32)
        self._added: dict[int, array[int]] = {}
        self._added_count = 0

    def add(self, keys: Iterable[int], number: int) -> None:
        """Add a number to each of some keys; it must be above those that are there."""
        added = self._added
        for key in keys:
            numbers = added.get(key)
            if numbers is None:
                added[key] = array("I", (number,))
            else:
                numbers.append(number)
            self._added_count += 1
        if self._added_count > max(_LEAST_MOVED, len(self._numbers) * _MOVED_SHARE):
            self._settle()

    def extend(self, keys: Keys, which: Numbers, numbers: Numbers) -> None:
        """Add many: ``numbers[i]`` to the key ``keys[which[i]]``.

        Args:
            keys: Different keys, shape (k,), each named in ``which``.
            which: Shape (n,).
            numbers: Shape (n,), above those that are there.
        """
        self._settle()
        order = np.argsort(keys)
        rank = np.empty(len(keys), dtype=np.uint64)
        rank[order] = np.arange(len(keys), dtype=np.uint64)
        # One sort of integers, which is far faster than an order of them.
        pairs = rank[which] << np.uint64(32) | numbers
        pairs.sort()
        counts = np.bincount(which, minlength=len(keys))[order]
        self._merge(keys[order], counts, pairs.astype(np.uint32))

    def count(self, key: int) -> int:
        """Count the numbers of a key."""
        start, end = self._span(key)
        return end - start + len(self._added.get(key, _NONE))

    def last(self, key: int, most: int) -> Numbers:
        """Return the last numbers of a key, ascending, at most ``most``; not to be changed."""
        start, end = self._span(key)
        added = self._added.get(key)
        if added is None:
            return self._numbers[max(start, end - most) : end]
        joined = (self._numbers[max(start, end - most) : end], np.frombuffer(added, dtype="u4"))
        numbers: Numbers = np.concatenate(joined)[-most:]
        return numbers

    def holds(self, keys: Keys) -> NDArray[np.bool_]:
        """Tell which of the keys have numbers, shape (k,)."""
        held: NDArray[np.bool_] = np.array([key in self._added for key in keys.tolist()], bool)
        if len(self._keys):
            at = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
            held |= self._keys[at] == keys
        return held

    def renumber(self, kept: NDArray[np.bool_], new: Numbers) -> None:
        """Drop the numbers that are not ``kept``, shape (all numbers,); the others become ``new``.

        ``new`` must keep their order.
        """
        self._settle()
        if not len(self._keys):
            return
        of_key = kept[self._numbers]
        counts = np.add.reduceat(of_key, self._starts[:-1], dtype=np.int64)
        self._numbers = new[self._numbers[of_key]]
        self._keys, counts = self._keys[counts > 0], counts[counts > 0]
        self._starts = _starts(counts)

    def _span(self, key: int) -> tuple[int, int]:
        at = int(self._keys.searchsorted(key))
        if at == len(self._keys) or self._keys[at] != key:
            return 0, 0
        return int(self._starts[at]), int(self._starts[at + 1])

    def _settle(self) -> None:
        if not self._added:
            return
        keys = np.array(sorted(self._added), dtype=np.int64)
        lists = [self._added[key] for key in keys.tolist()]
        counts = np.array([len(numbers) for numbers in lists], dtype=np.int64)
        self._added, self._added_count = {}, 0
        self._merge(keys, counts, np.frombuffer(b"".join(lists), dtype=np.uint32))

    def _merge(self, keys: Keys, counts: NDArray[Any], numbers: Numbers) -> None:
        """Put the numbers of sorted keys behind those that the same keys have."""
        if not len(self._keys):
            self._keys, self._starts, self._numbers = keys, _starts(counts), numbers
            return
        every = np.union1d(self._keys, keys)
        before = np.zeros(len(every), dtype=np.int64)
        before[np.searchsorted(every, self._keys)] = np.diff(self._starts)
        at = np.searchsorted(every, keys)
        added = np.zeros(len(every), dtype=np.int64)
        added[at] = counts
        starts = _starts(before + added)
        first = starts[at] + before[at]
        places = np.arange(len(numbers)) + np.repeat(first - _starts(counts)[:-1], counts)
        old = np.ones(starts[-1], dtype=bool)
        old[places] = False
        merged = np.empty(starts[-1], dtype=np.uint32)
        merged[old] = self._numbers
        merged[places] = numbers
        self._keys, self._starts, self._numbers = every, starts, merged


def _starts(counts: NDArray[Any]) -> Keys:
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
