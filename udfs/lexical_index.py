"""Lexical evidence of a search: which products hold its words in their titles and categories.

A title is scored by BM25 (Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and
Beyond", 2009), each word counted once a title:

    bm25(q, d) = sum over the words t of q in d:  idf(t) (k1 + 1) / (1 + k1 (1 - b + b |d| / avg))
    idf(t)     = ln(1 + (N - n_t + 0.5) / (n_t + 0.5))

    title(q, d) = bm25(q, d) / (the same sum over all words of q, for |d| = 0)

so that it tells how much of the query is found, 0 to 1, whatever the catalogue. A category c adds
the larger of two shares: how far its name is the query, the geometric mean of the share of q's idf
that its name holds and the share of its name's words that are in q (with equal idf, their cosine);
and how much of the query its products' titles hold on average, shrunk for small categories:

    titles(q, c) = (sum over d of c: found idf / idf of q) / (size of c + 20)

The second finds `couch` among the products of SOFA, and needs no readable names. Then

    score(q, d) = (title(q, d) + max(name(q, c_d), titles(q, c_d))) / 2
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable
from itertools import islice
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from udfs.postings import Postings, key_of
from udfs.spelling import can_be_corrected, near_words
from udfs.tokenizer import MAX_CHARACTERS, MAX_WORD_CHARACTERS, split_words, typed_words, word_of

Rows = NDArray[np.uint32]
Slots = NDArray[np.int32]
Scores = NDArray[np.float32]

MAX_QUERY_WORDS: Final = 24
K1: Final = 1.2
B: Final = 0.5
# Products by which a category's average is shrunk towards none.
_SHRINKAGE: Final = 20.0
# What a word counts that was put in the place of a misspelled one.
_CORRECTION_WEIGHT: Final = 0.8
# A word in at most so many titles may be a misspelling that a shop made too, where another word
# one edit away stands in so many times more.
_RARE: Final = 10
_MUCH_MORE: Final = 50

# Bounds of one query's work, by which very common words cost no more than others: postings read
# (the rarest words' first, of each word the newest products'), products scored, categories whose
# products are taken in for the category's sake alone.
MAX_POSTINGS: Final = 15_000
MAX_CANDIDATES: Final = 3_000
MAX_CATEGORIES: Final = 16
MAX_CORRECTIONS: Final = 4

# How a search is best blended with its vector, `make bench-search`: a product's score is its cosine
# to the query's vector, plus this times its lexical score where it is among so many best matches.
BLEND_WEIGHT: Final = 1.5
BLEND_MATCHES: Final = 100

# Dead rows are cleared out when they are more than half of the live ones, and these.
_MIN_DEAD_ROWS: Final = 1024
# Products whose words are put in order at once when many come: bounds what that takes for a while.
_BULK: Final = 32_768
# Fewer than so many, or than this share of the rows, are inserted one by one: many at once cost a
# copy of all postings.
_LEAST_BULK: Final = 32
_BULK_SHARE: Final = 1 / 128
_FIRST_CAPACITY: Final = 1024
# Answers kept for repeated queries, until any product changes. A search stays in its user's profile
# and is asked again for each of the user's lists: 1 µs (99 of 100 within 1.4), where an answer
# takes 343 (1,078) at 147,022 products.
_REMEMBERED: Final = 1000
_NOWHERE: Final = -1
# The least positive number: marks a row as seen and adds nothing to its score.
_FOR_ITS_CATEGORY: Final = np.finfo(np.float32).tiny


class LexicalIndex:
    """An inverted index over titles and categories by slot, changed one product at a time or many.

    A product is a row, which a replaced or removed one leaves behind dead; it comes to life again
    where the product returns with the same texts, as after a time out of stock. Postings that
    point to dead rows are skipped, and all are cleared out when they are many. A row takes 30
    bytes, each different word of its title 4. For use by one thread.
    """

    def __init__(self) -> None:
        """Make an empty index."""
        self._count = 0  # rows, the dead ones included
        self._live = 0
        self._row_of: Slots = np.zeros(0, dtype=np.int32)  # by slot
        self._slot_of: Slots = np.zeros(0, dtype=np.int32)
        self._texts = np.zeros(0, dtype=np.int64)
        # Words of a live row's title, at least 1; below 0 where the row is dead.
        self._lengths = np.zeros(0, dtype=np.int16)
        self._category_of = np.zeros(0, dtype=np.uint32)
        self._found = np.zeros(0, dtype=np.float32)  # all zero between queries
        self._total_length = 0
        self._titles = Postings()  # rows by a word of their title
        self._clear_categories()
        self._answers: dict[tuple[str, int], tuple[Slots, Scores]] = {}
        self._make_room(_FIRST_CAPACITY, _FIRST_CAPACITY)

    def _clear_categories(self) -> None:
        self._categories: dict[str, int] = {}
        self._names = Postings()  # categories by a word of their name
        self._members = Postings()  # rows by category
        self._name_lengths = np.zeros(_FIRST_CAPACITY, dtype=np.uint16)  # words, at least 1
        self._category_sizes = np.zeros(_FIRST_CAPACITY, dtype=np.int64)  # live rows
        self._live_categories = 0

    def __len__(self) -> int:
        """Number of products."""
        return self._live

    def __contains__(self, slot: int) -> bool:
        """Tell whether a product can be found."""
        row = self._row(slot)
        return row != _NOWHERE and bool(self._lengths[row] > 0)

    def upsert(self, slot: int, title: str, category: str) -> None:
        """Insert a product or replace its texts; the same texts again change nothing."""
        text = hash((title, category))
        old = self._row(slot)
        if old != _NOWHERE and self._texts[old] == text:
            if self._lengths[old] < 0:
                self._count_in(old, 1)
            return
        self._bury(slot)
        self._make_room(self._count + 1, slot + 1)
        row = self._count
        self._count += 1
        words = set(split_words(title))
        number = self._category(category)
        self._row_of[slot] = row
        self._slot_of[row] = slot
        self._texts[row] = text
        self._category_of[row] = number
        self._lengths[row] = -max(1, len(words))
        self._count_in(row, 1)
        self._titles.add(map(key_of, words), row)
        self._members.add((number,), row)
        self._clear_out_if_many()

    def extend(self, products: Iterable[tuple[int, str, str]]) -> None:
        """Insert or replace many products: slot, title, category of each.

        Many new ones cost half of what they do one by one; a few cost what they do.
        """
        products = iter(products)
        while part := list(islice(products, _BULK)):
            latest = {slot: (title, category) for slot, title, category in part}
            fresh = {slot: latest[slot] for slot in latest if self._row(slot) == _NOWHERE}
            if len(fresh) < max(_LEAST_BULK, self._count * _BULK_SHARE):
                fresh.clear()
            else:
                self._insert(fresh)
            for slot in latest.keys() - fresh.keys():
                self.upsert(slot, *latest[slot])

    def _insert(self, products: dict[int, tuple[str, str]]) -> None:
        """Insert products, title and category by slot, that have no row."""
        slots = np.fromiter(products, dtype=np.int32, count=len(products))
        first, end = self._count, self._count + len(slots)
        self._make_room(end, int(slots.max()) + 1)
        words = _WordNumbers()
        which = array("I")
        counts = array("I")
        for title, _ in products.values():
            numbers = set(map(words.__getitem__, typed_words(title)))
            numbers.discard(_NOWHERE)
            which.extend(numbers)
            counts.append(len(numbers))
        rows = np.arange(first, end, dtype=np.uint32)
        self._count = end
        self._row_of[slots] = rows
        self._slot_of[first:end] = slots
        self._texts[first:end] = [hash(texts) for texts in products.values()]
        categories = [self._category(category) for _, category in products.values()]
        self._category_of[first:end] = categories
        lengths = np.frombuffer(counts, dtype=np.uint32)
        self._lengths[first:end] = np.maximum(1, lengths)
        self._live += len(slots)
        self._total_length += int(self._lengths[first:end].sum())
        added, of = np.unique(self._category_of[first:end], return_inverse=True)
        self._category_sizes[added] += np.bincount(of)
        self._live_categories = np.count_nonzero(self._category_sizes)
        self._members.extend(added.astype(np.int64), of.astype(np.uint32), rows)
        if which:
            keys = np.fromiter(words.keys_seen, dtype=np.int64, count=len(words.keys_seen))
            of_rows = np.repeat(rows, lengths)
            self._titles.extend(keys, np.frombuffer(which, dtype=np.uint32), of_rows)
        self._answers.clear()

    def remove(self, slot: int) -> None:
        """Take a product out: deleted, or out of stock; an absent one is no error."""
        if self._bury(slot):
            self._clear_out_if_many()

    def renumber(self, new: Slots) -> None:
        """Follow the slots to new numbers, -1 for none; see :meth:`udfs.index.SlotTable.keep`."""
        slots = np.flatnonzero(self._row_of != _NOWHERE)
        for slot in slots[new[slots] == _NOWHERE].tolist():
            self._bury(slot)
        kept = slots[new[slots] != _NOWHERE]
        rows = self._row_of[kept]
        self._row_of = np.full(int(new.max(initial=-1)) + 1, _NOWHERE, dtype=np.int32)
        self._row_of[new[kept]] = rows
        self._slot_of[rows] = new[kept]
        self._answers.clear()
        self._clear_out_if_many()

    def matches(self, query: str, limit: int) -> tuple[Slots, Scores]:
        """Find the products that hold the query's words.

        Args:
            query: What the person typed: any text.
            limit: The most products to return, at least 1.

        Returns:
            Slots and scores, both of shape (at most ``limit``,), best first, scores above 0 and at
            most 1; none where no word, also after correction, stands in the catalogue. The arrays
            are shared: do not change them.
        """
        if limit < 1:
            msg = f"limit must be at least 1, not {limit}"
            raise ValueError(msg)
        key = (query[:MAX_CHARACTERS], limit)
        answer = self._answers.get(key)
        if answer is None:
            if len(self._answers) >= _REMEMBERED:
                self._answers.clear()
            answer = self._answers[key] = self._answer(query, limit)
        return answer

    def _row(self, slot: int) -> int:
        """Return the row that a slot had last, dead or alive; -1 where it has none."""
        return int(self._row_of[slot]) if 0 <= slot < len(self._row_of) else _NOWHERE

    def _count_in(self, row: int, sign: int) -> None:
        """Count a row among the live ones (1), or no more (-1)."""
        length = abs(int(self._lengths[row]))
        self._lengths[row] = sign * length
        self._total_length += sign * length
        self._live += sign
        number = self._category_of[row]
        before = int(self._category_sizes[number])
        self._category_sizes[number] = before + sign
        self._live_categories += (before + sign > 0) - (before > 0)
        self._answers.clear()

    def _bury(self, slot: int) -> bool:
        if slot not in self:
            return False
        self._count_in(self._row(slot), -1)
        return True

    def _category(self, name: str) -> int:
        """Return the number of a category, a new one where it has none."""
        number = self._categories.get(name)
        if number is not None:
            return number
        number = self._categories[name] = len(self._categories)
        words = set(split_words(name.replace("_", " ")))
        self._names.add(map(key_of, words), number)
        if number == len(self._category_sizes):
            self._category_sizes = _resized(self._category_sizes, 2 * number)
            self._name_lengths = _resized(self._name_lengths, 2 * number)
        self._name_lengths[number] = max(1, len(words))
        return number

    def _make_room(self, rows: int, slots: int) -> None:
        if slots > len(self._row_of):
            self._row_of = _resized(self._row_of, max(slots, 2 * len(self._row_of)), _NOWHERE)
        if rows > len(self._lengths):
            rows = max(rows, 2 * len(self._lengths))
            self._slot_of = _resized(self._slot_of, rows)
            self._texts = _resized(self._texts, rows)
            self._lengths = _resized(self._lengths, rows)
            self._category_of = _resized(self._category_of, rows)
            self._found = _resized(self._found, rows)

    def _clear_out_if_many(self) -> None:
        """Write everything anew without the dead rows, in the order of the live ones."""
        if self._count - self._live <= max(_MIN_DEAD_ROWS, self._live // 2):
            return
        live = self._lengths[: self._count] > 0
        kept = np.flatnonzero(live)
        self._titles.renumber(live, np.cumsum(live, dtype=np.uint32) - np.uint32(1))
        names = list(self._categories)
        numbers, category_of = np.unique(self._category_of[kept], return_inverse=True)
        self._clear_categories()
        for number in numbers.tolist():
            self._category(names[number])
        self._live_categories = len(numbers)
        self._category_sizes[: len(numbers)] = np.bincount(category_of, minlength=len(numbers))
        if len(kept):
            self._members.extend(
                np.arange(len(numbers)),
                category_of.astype(np.uint32),
                np.arange(len(kept), dtype=np.uint32),
            )
        self._slot_of, self._texts = self._slot_of[kept], self._texts[kept]
        self._lengths, self._category_of = self._lengths[kept], category_of.astype(np.uint32)
        self._found = self._found[kept]
        self._count = len(kept)
        self._row_of.fill(_NOWHERE)
        self._row_of[self._slot_of] = np.arange(len(kept))

    def _answer(self, query: str, limit: int) -> tuple[Slots, Scores]:
        title_idf, name_idf, total, name_total = self._read(query)
        names = self._named_categories(name_idf, name_total)
        rows = self._candidates(title_idf, names)
        rows, scores = self._ranked(rows, names, total, limit)
        return self._slot_of[rows], scores

    def _read(self, query: str) -> tuple[dict[int, float], dict[int, float], float, float]:
        """Read a query.

        Returns:
            What each word to search, by key, counts among the titles and among the categories'
            names (its idf, less for a correction); the idf of the whole query among both.
        """
        title_idf: dict[int, float] = {}
        name_idf: dict[int, float] = {}
        total = name_total = 0.0
        corrections = 0
        read = ((typed[:MAX_WORD_CHARACTERS], word_of(typed)) for typed in typed_words(query))
        words = {typed: key_of(word) for typed, word in read if word}
        for typed, key in islice(words.items(), MAX_QUERY_WORDS):
            titles, names = self._frequency(key)
            variants = [key] if titles or names else []
            if (
                titles <= _RARE
                and not names
                and corrections < MAX_CORRECTIONS
                and can_be_corrected(typed)
            ):
                corrections += 1
                corrected = self._correction(typed, max(1, _MUCH_MORE * titles))
                if corrected is not None:
                    variants.append(corrected)
            largest = largest_name = 0.0
            for variant in variants:
                titles, names = self._frequency(variant)
                idf = _idf(titles, self._live)
                idf_of_name = _idf(names, self._live_categories)
                weight = 1.0 if variant == key else _CORRECTION_WEIGHT
                if variant not in title_idf:
                    # Of a word and its correction the one that counts more: either may be there.
                    largest = max(largest, idf)
                    largest_name = max(largest_name, idf_of_name)
                title_idf[variant] = max(weight * idf, title_idf.get(variant, 0.0))
                name_idf[variant] = max(weight * idf_of_name, name_idf.get(variant, 0.0))
            total += largest
            name_total += largest_name
        return title_idf, name_idf, total, name_total

    def _correction(self, typed: str, least: int) -> int | None:
        """Find the word one edit away that at least so many products have, the most frequent."""
        # Of equals the last in the alphabet: the same in every process.
        near = sorted(near_words(typed), reverse=True)
        keys = np.fromiter(map(key_of, near), dtype=np.int64, count=len(near))
        known = keys[self._titles.holds(keys) | self._names.holds(keys)].tolist()
        frequencies = [self._products(key) for key in known]
        most = max(frequencies, default=0)
        return known[frequencies.index(most)] if most >= least else None

    def _products(self, key: int) -> int:
        """Count the products that a word stands for: by their titles, or their category's name."""
        numbers = self._names.last(key, len(self._categories))
        return self._frequency(key)[0] + int(self._category_sizes[numbers].sum())

    def _frequency(self, key: int) -> tuple[int, int]:
        """Count a word's titles and its categories, of those with products.

        Where dead rows make counting long, the titles are estimated by the share of live rows.
        """
        titles, names = self._titles.count(key), self._names.count(key)
        if titles and self._count > self._live:
            if titles <= MAX_CANDIDATES:
                rows = self._titles.last(key, titles)
                titles = np.count_nonzero(self._lengths[rows] > 0)
            else:
                titles = titles * self._live // self._count
        if names and len(self._categories) > self._live_categories:
            names = np.count_nonzero(self._category_sizes[self._names.last(key, names)])
        return titles, names

    def _named_categories(self, idf: dict[int, float], total: float) -> Scores:
        """Score every category by its name, shape (number of categories,), 0 to 1."""
        size = len(self._categories)
        found = np.zeros(size, dtype=np.float32)
        shared = np.zeros(size, dtype=np.float32)
        for word, value in idf.items():
            at = self._names.last(word, size)
            found[at] += np.float32(value)
            shared[at] += 1
        if size:
            lengths = self._name_lengths[:size]
            found = np.sqrt(np.minimum(found / np.float32(total or 1), 1) * (shared / lengths))
        named: Scores = np.minimum(found, 1).astype(np.float32)
        return named

    def _candidates(self, idf: dict[int, float], names: Scores) -> Rows:
        """Collect the rows to be scored and leave their found idf in ``_found``.

        Rows that are here for their category's name alone have the smallest positive number there.
        """
        found = self._found
        collected: list[Rows] = []
        room, left = MAX_CANDIDATES, MAX_POSTINGS

        def collect(rows: Rows, value: np.float32) -> None:
            nonlocal room
            new = rows[max(0, len(rows) - room) :]
            room -= len(new)
            found[new] = value
            collected.append(new)

        for word in sorted(idf, key=self._titles.count):
            if left <= 0:
                break
            rows = self._titles.last(word, left)
            left -= len(rows)
            value = np.float32(idf[word])
            seen = found[rows] > 0
            found[rows[seen]] += value
            if room:
                collect(rows[~seen], value)
        room = max(room, MAX_CANDIDATES // 2)  # its name is as good a reason as a title
        best = np.flatnonzero(names)
        best = best[np.argsort(-names[best], kind="stable")][:MAX_CATEGORIES]
        for number in best.tolist():
            if room:
                rows = self._members.last(number, MAX_CANDIDATES)
                collect(rows[found[rows] == 0], _FOR_ITS_CATEGORY)
        return np.concatenate(collected) if collected else np.zeros(0, dtype=np.uint32)

    def _ranked(self, rows: Rows, names: Scores, total: float, limit: int) -> tuple[Rows, Scores]:
        """Score the rows, and return the best of them with their scores."""
        shares = self._found[rows] / np.float32(total or 1)
        self._found[rows] = 0
        lengths = self._lengths[rows]
        live = lengths > 0
        if not live.all():
            rows, shares, lengths = rows[live], shares[live], lengths[live]
        if not len(rows):
            return rows, shares
        np.minimum(shares, 1, out=shares)
        average = self._total_length / self._live
        category_of = self._category_of[rows]
        held = np.bincount(category_of, weights=shares, minlength=len(names))
        held = held / (self._category_sizes[: len(names)] + _SHRINKAGE)
        of_category = np.maximum(names, held.astype(np.float32))
        saturated = (1 + K1 * (1 - B)) / (1 + K1 * (1 - B + B * lengths / average))
        scores = (0.5 * (shares * saturated + of_category[category_of])).astype(np.float32)
        if len(scores) > limit:
            best = np.argpartition(scores, len(scores) - limit)[len(scores) - limit :]
            rows, scores = rows[best], scores[best]
        order = np.argsort(-scores, kind="stable")
        return rows[order], scores[order]


class _WordNumbers(dict[str, int]):
    """Numbers from 0 on of words as they stand in titles; -1 for what is none.

    What the index knows by one word has one number.
    """

    def __init__(self) -> None:
        self.keys_seen: dict[int, int] = {}

    def __missing__(self, typed: str) -> int:
        word = word_of(typed)
        seen = self.keys_seen
        number = self[typed] = seen.setdefault(key_of(word), len(seen)) if word else _NOWHERE
        return number


def _idf(holding: int, of: int) -> float:
    holding = min(holding, of)
    return math.log1p((of - holding + 0.5) / (holding + 0.5))


def _resized(values: NDArray[Any], size: int, fill: int = 0) -> NDArray[Any]:
    # Pages of zeros that nobody has written take no memory.
    resized = np.full(size, fill, values.dtype) if fill else np.zeros(size, values.dtype)
    resized[: len(values)] = values
    return resized
