"""Embeds search queries and titles offline, in the space ``text64-v1``, with a static embedding."""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from udfs.schemas import TEXT_DIMENSIONS, TEXT_SPACE

SPACE: Final = TEXT_SPACE
DIMENSIONS: Final = TEXT_DIMENSIONS
# A longer text is cut: what a person types is short, and the encoder's time grows with it.
MAX_CHARACTERS: Final = 512
# How much a category counts beside its title in a product's vector (`make bench-search`).
CATEGORY_WEIGHT: Final = 0.5


@lru_cache(maxsize=1)
def _model() -> Any:
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    from wordllama import WordLlama

    # Its import sets up the root logger for the whole process; give it back as it was.
    root.setLevel(level)
    root.handlers[:] = handlers
    spec = find_spec("wordllama")
    if spec is None or spec.origin is None:
        msg = "the package wordllama is not installed"
        raise ModuleNotFoundError(msg)
    # The weights and the tokenizer are in the wheel; its default path misses its own tokenizer.
    return WordLlama.load(
        trunc_dim=DIMENSIONS, cache_dir=Path(spec.origin).parent, disable_download=True
    )


def _plain(text: str) -> str:
    """Fold case and compatibility forms: the embedding's capitals are other, poorer words."""
    text = text[:MAX_CHARACTERS]
    if not text.isascii():
        # A lone surrogate is no text, and the tokenizer refuses it.
        text = unicodedata.normalize("NFKC", text)[:MAX_CHARACTERS]
        text = text.encode("utf-8", "replace").decode()
    return text.lower()


def encode_texts(texts: Sequence[str]) -> NDArray[np.float32]:
    """Embed texts, whatever their case: shape (n, 64).

    Rows have length 1, or are all zero where a text holds no known word.
    """
    if not texts:
        return np.zeros((0, DIMENSIONS), dtype=np.float32)
    raw = np.asarray(_model().embed([_plain(text) for text in texts], norm=False), dtype=np.float32)
    return _unit(raw)


def encode_products(titles: Sequence[str], categories: Sequence[str]) -> NDArray[np.float32]:
    """Embed products by title and category: shape (n, 64), rows of length 1 or all zero.

    The sum of the two texts' own vectors, the category's times ``CATEGORY_WEIGHT``: in one text
    with a title of twenty words, a category of one or two would hardly count.
    """
    if len(titles) != len(categories):
        msg = f"{len(titles)} titles and {len(categories)} categories"
        raise ValueError(msg)
    numbers = {name: number for number, name in enumerate(dict.fromkeys(categories))}
    names = encode_texts([name.replace("_", " ") for name in numbers])
    of_product = names[np.array([numbers[name] for name in categories], dtype=np.intp)]
    return _unit(encode_texts(titles) + np.float32(CATEGORY_WEIGHT) * of_product)


def _unit(raw: NDArray[np.float32]) -> NDArray[np.float32]:
    norms = np.linalg.norm(raw, axis=1, keepdims=True)
    return np.divide(raw, norms, out=np.zeros_like(raw), where=norms > 1e-12)


@lru_cache(maxsize=10_000)
def encode_query(query: str) -> NDArray[np.float32] | None:
    """Embed one query: shape (64,), length 1; None where it holds nothing the encoder knows."""
    vector: NDArray[np.float32] = encode_texts([query])[0]
    if not vector.any():
        return None
    vector.setflags(write=False)
    return vector
