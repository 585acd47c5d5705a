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
import re
import unicodedata
from array import array
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import compress, pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.uint32]
Scores = NDArray[np.float32]

# What is longer is cut: titles and queries that help anybody are short.
MAX_CHARACTERS: Final = 512
MAX_QUERY_WORDS: Final = 24
MAX_WORD_CHARACTERS: Final = 40

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
_CORRECTED_CHARACTERS: Final = range(4, 25)

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

# Dead rows are cleared out when they outnumber the live ones, and these.
_MIN_DEAD_ROWS: Final = 1024
_FIRST_CAPACITY: Final = 1024
# The least positive number: marks a row as seen and adds nothing to its score.
_FOR_ITS_CATEGORY: Final = np.finfo(np.float32).tiny

_NOWHERE: Final = array("I")
_LETTERS: Final = "abcdefghijklmnopqrstuvwxyz"
# Letters and digits, and the vowel signs of Indic and South-East Asian scripts, which are neither.
_WORD: Final = re.compile(
    "(?:[^\\W_]|[\u0900-\u0963\u0966-\u0dff\u0e31-\u0e4e\u0eb1-\u0ece\u102b-\u103e\u17b4-\u17d3])+"
)
_ACCENTS: Final = re.compile("[\u0300-\u036f]")
# Scripts without spaces between words (and Hangul, whose particles stick to the word): pairs of
# characters stand for words, as in Lucene's CJKAnalyzer.
_UNSPACED: Final = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
    "\uf900-\ufaff\U00020000-\U0003ffff]+"
)


def split_words(text: str) -> list[str]:
    """Split a text into words as the index compares them: case, accents and plural folded.

    Only the first ``MAX_CHARACTERS`` are read. A single Latin letter is no word, a digit is.
    """
    return [_singular(word) for word in _folded_words(text)]


def _folded_words(text: str) -> list[str]:
    text = text[:MAX_CHARACTERS]
    if text.isascii():
        found = _WORD.findall(text.lower())
    else:
        # Compatibility forms (full width, ligatures) become plain, accents are dropped.
        folded = _ACCENTS.sub("", unicodedata.normalize("NFKD", text.casefold()))
        found = [
            part
            for word in _WORD.findall(unicodedata.normalize("NFC", folded).casefold())
            for part in (_pairs(word) if _UNSPACED.search(word) else (word,))
        ]
    return [word[:MAX_WORD_CHARACTERS] for word in found if len(word) > 1 or not "a" <= word <= "z"]


def _pairs(word: str) -> Iterator[str]:
    at = 0
    for run in _UNSPACED.finditer(word):
        if at < run.start():
            yield word[at : run.start()]
        characters, at = run.group(), run.end()
        yield from (characters[i : i + 2] for i in range(max(1, len(characters) - 1)))
    if at < len(word):
        yield word[at:]


def _singular(word: str) -> str:
    """Strip an English plural.

    The S stemmer (Harman, "How effective is suffixing?", 1991), which leaves the e of `dishes`;
    here it goes after a sibilant that needs it: glasses, boxes, watches, dishes.
    """
    if len(word) < 4 or word[-1] != "s":
        return word
    if word.endswith("ies"):
        return word if word[-4] in "ae" else word[:-3] + "y"
    if word.endswith(("sses", "xes", "ches", "shes")):
        return word[:-2]
    if word.endswith("es"):
        return word if word[-3] in "aeo" else word[:-1]
    return word if word[-2] in "us" else word[:-1]


def _one_edit_away(word: str) -> Iterator[str]:
    """Words with a letter less, more or another, or with two neighbours swapped (Damerau, 1964)."""
    for i in range(len(word)):
        head, tail = word[:i], word[i + 1 :]
        yield head + tail
        if tail:
            yield head + tail[0] + word[i] + tail[1:]
        for letter in _LETTERS:
            yield head + letter + tail
            yield head + letter + word[i:]
    for letter in _LETTERS:
        yield word + letter


@dataclass
class _Answer:
    """A remembered answer and what it was read from."""

    matches: list[tuple[str, float]]
    rows: list[int]
    sources: list[array[int]]
    length: int
    """Sum of the lengths of ``sources``, which only grow: the same as long as nothing came."""
    vocabulary: int
    """Number of words where one of the query was unknown; -1 where none was."""
    removals: int


class LexicalIndex:
    """An inverted index over titles and categories, changed one product at a time.

    A replaced or removed product leaves a dead row behind; postings that point to it are skipped,
    and all dead rows are cleared out when they outnumber the live ones. For use by one thread.
    """

    def __init__(self, *, remembered: int = 1000) -> None:
        """Make an empty index.

        Args:
            remembered: How many answers are kept for repeated queries. One is computed anew once
                a product with one of its words or in one of its categories came; removed products
                leave it at once.
        """
        self._remembered = remembered
        self._answers: OrderedDict[tuple[str, int], _Answer] = OrderedDict()
        self._removals = 0
        self._row_of: dict[str, int] = {}
        self._ids: list[str] = []
        self._texts: array[int] = array("q")
        # Words of a live row's title, at least 1; 0 where the row is dead.
        self._lengths = np.zeros(_FIRST_CAPACITY, dtype=np.uint16)
        self._category_of = np.zeros(_FIRST_CAPACITY, dtype=np.uint32)
        self._found = np.zeros(_FIRST_CAPACITY, dtype=np.float32)  # all zero between queries
        self._total_length = 0
        self._postings: dict[str, array[int]] = {}
        self._clear_categories()

    def _clear_categories(self) -> None:
        self._categories: dict[str, int] = {}
        self._category_postings: dict[str, array[int]] = {}
        self._category_lengths: array[int] = array("I")  # words of its name, at least 1
        self._category_rows: list[array[int]] = []
        self._category_sizes = np.zeros(_FIRST_CAPACITY, dtype=np.float64)  # live products
        self._live_categories = 0

    def __len__(self) -> int:
        """Number of products."""
        return len(self._row_of)

    def __contains__(self, product_id: str) -> bool:
        """Tell whether a product can be found."""
        return product_id in self._row_of

    def upsert(self, product_id: str, title: str, category: str) -> None:
        """Insert a product or replace its texts; the same texts again change nothing."""
        text = hash((title, category))
        old = self._row_of.get(product_id)
        if old is not None:
            if self._texts[old] == text:
                return
            self.remove(product_id)
        row = len(self._ids)
        if row == len(self._lengths):
            self._lengths = _doubled(self._lengths)
            self._category_of = _doubled(self._category_of)
            self._found = _doubled(self._found)
        words = set(split_words(title))
        _post(self._postings, words, row)
        number = self._categories.get(category)
        if number is None:
            number = self._add_category(category)
        self._category_rows[number].append(row)
        if not self._category_sizes[number]:
            self._live_categories += 1
        self._category_sizes[number] += 1
        self._category_of[row] = number
        length = max(1, len(words))
        self._lengths[row] = length
        self._total_length += length
        self._row_of[product_id] = row
        self._ids.append(product_id)
        self._texts.append(text)

    def remove(self, product_id: str) -> None:
        """Take a product out: deleted, or out of stock; an absent one is no error."""
        row = self._row_of.pop(product_id, None)
        if row is None:
            return
        self._total_length -= int(self._lengths[row])
        self._lengths[row] = 0
        number = int(self._category_of[row])
        self._category_sizes[number] -= 1
        if not self._category_sizes[number]:
            self._live_categories -= 1
        self._removals += 1
        dead = len(self._ids) - len(self._row_of)
        if dead > max(_MIN_DEAD_ROWS, len(self._row_of)):
            self._clear_out()

    def matches(self, query: str, limit: int) -> list[tuple[str, float]]:
        """Find the products that hold the query's words.

        Args:
            query: What the person typed: any text.
            limit: The most products to return, at least 1.

        Returns:
            At most ``limit`` product ids with their scores, above 0 and at most 1, best first;
            empty where no word, also after correction, stands in the catalogue. The list is
            shared: do not change it.
        """
        if limit < 1:
            msg = f"limit must be at least 1, not {limit}"
            raise ValueError(msg)
        key = (query[:MAX_CHARACTERS], limit)
        answer = self._answers.get(key)
        if (
            answer is None
            or answer.length != sum(map(len, answer.sources))
            or answer.vocabulary not in (-1, len(self._postings) + len(self._category_postings))
        ):
            answer = self._answer(query, limit)
            self._answers[key] = answer
            if len(self._answers) > self._remembered:
                self._answers.popitem(last=False)
        elif answer.removals != self._removals:
            live = (self._lengths[answer.rows] > 0).tolist()
            answer.matches = list(compress(answer.matches, live))
            answer.rows = list(compress(answer.rows, live))
            answer.removals = self._removals
        self._answers.move_to_end(key)
        return answer.matches

    def _add_category(self, category: str) -> int:
        number = self._categories[category] = len(self._category_rows)
        words = set(split_words(category.replace("_", " ")))
        _post(self._category_postings, words, number)
        self._category_lengths.append(max(1, len(words)))
        self._category_rows.append(array("I"))
        if number == len(self._category_sizes):
            self._category_sizes = _doubled(self._category_sizes)
        return number

    def _clear_out(self) -> None:
        """Write everything anew without the dead rows, in the order of the live ones."""
        kept = np.flatnonzero(self._lengths[: len(self._ids)])
        sizes = self._category_sizes[: len(self._category_rows)] > 0
        names = [name for name, number in self._categories.items() if sizes[number]]
        rows_of = self._renumbered([self._category_rows[self._categories[name]] for name in names])
        postings = self._renumbered(list(self._postings.values()))
        self._postings = {
            word: rows for word, rows in zip(self._postings, postings, strict=True) if rows
        }
        capacity = max(_FIRST_CAPACITY, 2 * len(kept))
        lengths = self._lengths[kept]
        self._lengths = np.zeros(capacity, dtype=np.uint16)
        self._lengths[: len(kept)] = lengths
        self._category_of = np.zeros(capacity, dtype=np.uint32)
        self._found = np.zeros(capacity, dtype=np.float32)
        self._clear_categories()
        for name, rows in zip(names, rows_of, strict=True):
            number = self._add_category(name)
            self._category_rows[number] = rows
            self._category_sizes[number] = len(rows)
            self._live_categories += 1
            self._category_of[np.frombuffer(rows, dtype=np.uint32)] = number
        self._ids = [self._ids[row] for row in kept.tolist()]
        self._texts = array("q", [self._texts[row] for row in kept.tolist()])
        self._row_of = {product_id: row for row, product_id in enumerate(self._ids)}
        self._answers.clear()

    def _renumbered(self, lists: list[array[int]]) -> list[array[int]]:
        """Drop the dead rows of each list and renumber the live, in one pass over all of them."""
        live = self._lengths > 0
        new_row = np.cumsum(live, dtype=np.uint32) - np.uint32(1)
        rows: Rows = np.frombuffer(b"".join(lists), dtype=np.uint32)
        kept = live[rows]
        before = np.concatenate([[0], np.cumsum(kept)])  # live entries before each
        ends = before[np.cumsum([0, *map(len, lists)])].tolist()
        joined = array("I", new_row[rows[kept]].tobytes())
        return [joined[start:end] for start, end in pairwise(ends)]

    def _answer(self, query: str, limit: int) -> _Answer:
        sources: list[array[int]] = []
        title_idf, name_idf, total, name_total, certain = self._read(query, sources)
        names = self._named_categories(name_idf, name_total)
        rows = self._candidates(title_idf, names, sources)
        ids, best, scores = self._ids, *self._ranked(rows, names, total, limit)
        return _Answer(
            matches=list(zip(map(ids.__getitem__, best), scores, strict=True)),
            rows=best,
            sources=sources,
            length=sum(map(len, sources)),
            vocabulary=-1 if certain else len(self._postings) + len(self._category_postings),
            removals=self._removals,
        )

    def _read(
        self, query: str, sources: list[array[int]]
    ) -> tuple[dict[str, float], dict[str, float], float, float, bool]:
        """Read a query.

        Args:
            query: What the person typed.
            sources: Takes the postings of its words.

        Returns:
            What each word to search counts among the titles and among the categories' names (its
            idf, less for a correction); the idf of the whole query among both; whether every word
            is known, and none was corrected.
        """
        title_idf: dict[str, float] = {}
        name_idf: dict[str, float] = {}
        total = name_total = 0.0
        certain = True
        corrections = 0
        for typed in list(dict.fromkeys(_folded_words(query)))[:MAX_QUERY_WORDS]:
            word = _singular(typed)
            titles, names = self._frequency(word)
            variants = [word] if titles or names else []
            certain = certain and bool(variants)
            if (
                titles <= _RARE
                and not names
                and corrections < MAX_CORRECTIONS
                and len(typed) in _CORRECTED_CHARACTERS
                and typed.isalpha()
            ):
                corrections += 1
                corrected = self._correction(typed, max(1, _MUCH_MORE * titles))
                if corrected is not None:
                    certain = False
                    variants.append(corrected)
            largest = largest_name = 0.0
            for variant in variants:
                sources.extend(
                    postings[variant]
                    for postings in (self._postings, self._category_postings)
                    if variant in postings
                )
                titles, names = self._frequency(variant)
                idf = _idf(titles, len(self._row_of))
                idf_of_name = _idf(names, self._live_categories)
                weight = 1.0 if variant == word else _CORRECTION_WEIGHT
                if variant not in title_idf:
                    # Of a word and its correction the one that counts more: either may be there.
                    largest = max(largest, idf)
                    largest_name = max(largest_name, idf_of_name)
                title_idf[variant] = max(weight * idf, title_idf.get(variant, 0.0))
                name_idf[variant] = max(weight * idf_of_name, name_idf.get(variant, 0.0))
            if not variants and word in self._postings:
                sources.append(self._postings[word])  # all of its products are gone, as yet
            total += largest
            name_total += largest_name
        return title_idf, name_idf, total, name_total, certain

    def _correction(self, typed: str, least: int) -> str | None:
        """Find the word one edit away that at least so many products have, the most frequent."""
        # The plural is stripped after the correction: `wireles` is no plural.
        near = {_singular(word) if word[-1] == "s" else word for word in _one_edit_away(typed)}
        near.discard(_singular(typed))
        known = (near & self._postings.keys()) | (near & self._category_postings.keys())
        # Of equals the last in the alphabet: the same in every process.
        frequency, word = max(((self._products(word), word) for word in known), default=(0, ""))
        return word if frequency >= least else None

    def _products(self, word: str) -> int:
        """Count the products that a word stands for: by their titles, or their category's name."""
        products = self._frequency(word)[0]
        for number in self._category_postings.get(word, ()):
            products += int(self._category_sizes[number])
        return products

    def _frequency(self, word: str) -> tuple[int, int]:
        """Count a word's titles and its categories, of those with products.

        Where dead rows make counting long, the titles are estimated by the share of live rows.
        """
        rows = self._postings.get(word, _NOWHERE)
        numbers = self._category_postings.get(word, _NOWHERE)
        titles = len(rows)
        if titles and len(self._ids) > len(self._row_of):
            if titles <= MAX_CANDIDATES:
                titles = np.count_nonzero(self._lengths[np.frombuffer(rows, dtype=np.uint32)])
            else:
                titles = titles * len(self._row_of) // len(self._ids)
        names = len(numbers)
        if names and len(self._category_rows) > self._live_categories:
            at: Rows = np.frombuffer(numbers, dtype=np.uint32)
            names = np.count_nonzero(self._category_sizes[at])
        return titles, names

    def _named_categories(self, idf: dict[str, float], total: float) -> Scores:
        """Score every category by its name, shape (number of categories,), 0 to 1."""
        found = np.zeros(len(self._category_rows), dtype=np.float32)
        shared = np.zeros(len(self._category_rows), dtype=np.float32)
        for word, value in idf.items():
            numbers = self._category_postings.get(word)
            if numbers is not None:
                at: Rows = np.frombuffer(numbers, dtype=np.uint32)
                found[at] += np.float32(value)
                shared[at] += 1
        if len(found):
            lengths: Rows = np.frombuffer(self._category_lengths, dtype=np.uint32)
            found = np.sqrt(np.minimum(found / np.float32(total or 1), 1) * (shared / lengths))
        named: Scores = np.minimum(found, 1).astype(np.float32)
        return named

    def _candidates(
        self,
        idf: dict[str, float],
        names: Scores,
        sources: list[array[int]],
    ) -> Rows:
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

        known = sorted((len(self._postings[w]), w) for w in idf if w in self._postings)
        for _, word in known:
            if left <= 0:
                break
            rows: Rows = np.frombuffer(self._postings[word], dtype=np.uint32)[-left:]
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
            sources.append(self._category_rows[number])
            if room:
                rows = np.frombuffer(self._category_rows[number], dtype=np.uint32)
                rows = rows[-MAX_CANDIDATES:]
                collect(rows[found[rows] == 0], _FOR_ITS_CATEGORY)
        return np.concatenate(collected) if collected else np.zeros(0, dtype=np.uint32)

    def _ranked(
        self, rows: Rows, names: Scores, total: float, limit: int
    ) -> tuple[list[int], list[float]]:
        """Score the rows, and return the best of them with their scores."""
        if not len(rows):
            return [], []
        shares = self._found[rows] / np.float32(total)
        self._found[rows] = 0
        lengths = self._lengths[rows]
        live = lengths > 0
        if not live.all():
            rows, shares, lengths = rows[live], shares[live], lengths[live]
        if not len(rows):
            return [], []
        np.minimum(shares, 1, out=shares)
        average = self._total_length / len(self._row_of)
        category_of = self._category_of[rows]
        held = np.bincount(category_of, weights=shares, minlength=len(names))
        held = held / (self._category_sizes[: len(names)] + _SHRINKAGE)
        of_category = np.maximum(names, held.astype(np.float32))
        saturated = (1 + K1 * (1 - B)) / (1 + K1 * (1 - B + B * lengths / average))
        scores = 0.5 * (shares * saturated + of_category[category_of])
        if len(scores) > limit:
            best = np.argpartition(scores, len(scores) - limit)[len(scores) - limit :]
            rows, scores = rows[best], scores[best]
        order = np.argsort(-scores, kind="stable")
        return rows[order].tolist(), scores[order].tolist()


def _idf(holding: int, of: int) -> float:
    holding = min(holding, of)
    return math.log1p((of - holding + 0.5) / (holding + 0.5))


def _post(postings: dict[str, array[int]], words: set[str], number: int) -> None:
    for word in words:
        numbers = postings.get(word)
        if numbers is None:
            postings[word] = array("I", (number,))
        else:
            numbers.append(number)


def _doubled(values: NDArray[np.generic]) -> NDArray[Any]:
    return np.concatenate([values, np.zeros_like(values)])
