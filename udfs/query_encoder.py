"""Embeds search queries and titles offline, in the space ``text64-v1``, with a static embedding."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

SPACE: Final = "text64-v1"
DIMENSIONS: Final = 64
# A longer text is cut: what a person types is short, and the encoder's time grows with it.
MAX_CHARACTERS: Final = 512


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


def encode_texts(texts: Sequence[str]) -> NDArray[np.float32]:
    """Embed texts: shape (n, 64), rows of length 1; all zero where a text holds no known word."""
    if not texts:
        return np.zeros((0, DIMENSIONS), dtype=np.float32)
    raw = np.asarray(
        _model().embed([text[:MAX_CHARACTERS] for text in texts], norm=False), dtype=np.float32
    )
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
