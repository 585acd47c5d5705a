"""The offline query encoder: shape, length, meaning, and what it does not know."""

from __future__ import annotations

import socket

import numpy as np
import pytest

from udfs.query_encoder import (
    CATEGORY_WEIGHT,
    DIMENSIONS,
    MAX_CHARACTERS,
    encode_products,
    encode_query,
    encode_texts,
)


def test_query_has_a_unit_vector_of_64() -> None:
    vector = encode_query("wireless mouse")
    assert vector is not None
    assert vector.shape == (DIMENSIONS,) == (64,)
    assert vector.dtype == np.float32
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)


def test_texts_of_the_same_meaning_are_near() -> None:
    mouse, near, far = encode_texts(["wireless mouse", "bluetooth mouse", "garden hose"])
    assert mouse @ near > mouse @ far + 0.2


def test_a_query_is_encoded_as_a_title_is() -> None:
    query = encode_query("usb hub")
    assert query is not None
    np.testing.assert_allclose(query, encode_texts(["x y", "usb hub"])[1], atol=1e-6)


@pytest.mark.filterwarnings("error")
def test_empty_text_has_no_vector() -> None:
    assert encode_query("") is None
    assert not encode_texts([""]).any()
    assert encode_texts([]).shape == (0, DIMENSIONS)


@pytest.mark.parametrize(
    "text", ["\x00", "   ", "漢字", "😀", "\ufffd", chr(0xD800), "ﷺ" * 512, "a" * 10_000]
)
def test_any_text_gives_a_unit_vector_or_none(text: str) -> None:
    vector = encode_query(text)
    assert vector is None or np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)


def test_text_is_cut_at_its_limit() -> None:
    text = "mouse " * 200
    np.testing.assert_array_equal(encode_texts([text]), encode_texts([text[:MAX_CHARACTERS]]))


@pytest.mark.parametrize("text", ["USB Hub", "USB HUB", "ｕｓｂ ｈｕｂ"])
def test_case_and_width_do_not_matter(text: str) -> None:
    np.testing.assert_array_equal(encode_texts([text]), encode_texts(["usb hub"]))


def test_a_product_is_its_title_and_a_share_of_its_category() -> None:
    titles = ["ASUS 27 inch", "Phone case with stand", "Phone case", "Nothing"]
    categories = ["MONITOR", "PHONE_CASE", "PHONE_CASE", ""]
    made = encode_products(titles, categories)
    for row, (title, category) in enumerate(zip(titles, categories, strict=True)):
        name = encode_texts([category.replace("_", " ")])[0]
        expected = encode_texts([title])[0] + CATEGORY_WEIGHT * name
        np.testing.assert_allclose(made[row], expected / np.linalg.norm(expected), atol=1e-6)
    np.testing.assert_allclose(made[3], encode_texts(["nothing"])[0], atol=1e-6)


def test_products_need_a_category_each() -> None:
    assert encode_products([], []).shape == (0, DIMENSIONS)
    assert not encode_products([""], [""]).any()
    with pytest.raises(ValueError, match="2 titles and 1 categories"):
        encode_products(["a", "b"], ["c"])


def test_shared_vector_cannot_be_written_to() -> None:
    vector = encode_query("usb hub")
    assert vector is not None
    with pytest.raises(ValueError, match="read-only"):
        vector[0] = 1


def test_model_loads_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    from udfs import query_encoder

    def refuse(*_: object) -> None:
        msg = "no network"
        raise OSError(msg)

    monkeypatch.setattr(socket.socket, "connect", refuse)
    query_encoder._model.cache_clear()
    assert encode_texts(["usb hub"]).any()
