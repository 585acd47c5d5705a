"""Words of texts: case, accents and plural, scripts without spaces, and any text at all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from udfs import tokenizer
from udfs.tokenizer import split_words, typed_words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Women's T-Shirts, 3-Pack", ["women", "shirt", "3", "pack"]),
        ('27" 4K MONITORS!!!', ["27", "4k", "monitor"]),
        ("Batteries glasses bus dishes shoes", ["battery", "glass", "bus", "dish", "shoes"]),
        ("Décor STRASSE straße ÉTÉ", ["decor", "strasse", "strasse", "ete"]),
        ("ｗｉｄｅ ﬁne", ["wide", "fine"]),
        ("монитор", ["монитор"]),
        ("相机包 usb", ["相机", "机包", "usb"]),
        ("хx相", ["хx", "相"]),
        ("हिन्दी", ["हिन्दी"]),
        ("😀 … -- _", []),
        ("", []),
    ],
)
def test_words_are_folded(text: str, words: list[str]) -> None:
    assert split_words(text) == words


@given(st.text(st.characters(max_codepoint=127), max_size=600))
def test_ascii_is_split_as_any_text_is(text: str) -> None:
    assert typed_words(text) == tokenizer._WORD.findall(text[: tokenizer.MAX_CHARACTERS].lower())
