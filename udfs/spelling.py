"""Finds what a misspelled word of a search may have meant: the words one edit away."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from udfs.tokenizer import stem

_LETTERS: Final = "abcdefghijklmnopqrstuvwxyz"
_LENGTHS: Final = range(4, 25)


def can_be_corrected(typed: str) -> bool:
    """Tell whether a typed word is one that a correction is looked for: letters, not too few."""
    return len(typed) in _LENGTHS and typed.isalpha()


def near_words(typed: str) -> set[str]:
    """Return the words, as the index knows them, that one edit makes of a typed one.

    The plural is stripped after the edit: `wireles` is no plural.
    """
    near = {stem(word) for word in _one_edit_away(typed)}
    near.discard(stem(typed))
    return near


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
