"""Splits titles, category names and searches into the words that the lexical index compares."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from typing import Final

# What is longer is cut: titles and queries that help anybody are short.
MAX_CHARACTERS: Final = 512
MAX_WORD_CHARACTERS: Final = 40

# Letters and digits, and the vowel signs of Indic and South-East Asian scripts, which are neither.
_WORD: Final = re.compile(
    "(?:[^\\W_]|[\u0900-\u0963\u0966-\u0dff\u0e31-\u0e4e\u0eb1-\u0ece\u102b-\u103e\u17b4-\u17d3])+"
)
# The same of ASCII, in lower case; what is in no word is a space. Half the time of the expression.
_ASCII: Final = bytes(
    ord(c.lower()) if (c := chr(i)).isalnum() else 32 for i in range(128)
) + bytes(128)
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
    return [word for typed in typed_words(text) if (word := word_of(typed))]


def typed_words(text: str) -> list[str]:
    """Split a text into its words as they stand there, but for case and accents."""
    text = text[:MAX_CHARACTERS]
    if text.isascii():
        return text.encode().translate(_ASCII).decode().split()
    # Compatibility forms (full width, ligatures) become plain, accents are dropped.
    folded = _ACCENTS.sub("", unicodedata.normalize("NFKD", text.casefold()))
    return [
        part
        for word in _WORD.findall(unicodedata.normalize("NFC", folded).casefold())
        for part in (_pairs(word) if _UNSPACED.search(word) else (word,))
    ]


def word_of(typed: str) -> str:
    """Return the word that the index knows a typed one by; empty for a single Latin letter."""
    if len(typed) == 1:
        return "" if "a" <= typed <= "z" else typed
    return stem(typed[:MAX_WORD_CHARACTERS])


def stem(word: str) -> str:
    """Strip an English plural.

    The S stemmer (Harman, "How effective is suffixing?", 1991), which leaves the e of `dishes`;
    here it goes after a sibilant that needs it: glasses, boxes, watches, dishes.
    """
    # Snowball's English stemmer, which folds more, finds less of everything that `make
    # bench-search` measures of the index: categories 0.950 instead of 0.952, misspelled 0.894
    # instead of 0.924, WANDS 0.622 instead of 0.627, items 0.843 instead of 0.855.
    if len(word) < 4 or word[-1] != "s":
        return word
    if word.endswith("ies"):
        return word if word[-4] in "ae" else word[:-3] + "y"
    if word.endswith(("sses", "xes", "ches", "shes")):
        return word[:-2]
    if word.endswith("es"):
        return word if word[-3] in "aeo" else word[:-1]
    return word if word[-2] in "us" else word[:-1]


def _pairs(word: str) -> Iterator[str]:
    at = 0
    for run in _UNSPACED.finditer(word):
        if at < run.start():
            yield word[at : run.start()]
        characters, at = run.group(), run.end()
        yield from (characters[i : i + 2] for i in range(max(1, len(characters) - 1)))
    if at < len(word):
        yield word[at:]
