"""Event and catalogue files, and the command: what comes out, and how it fails."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluation.__main__ import main
from evaluation.baselines import all_baselines
from evaluation.files import (
    DataError,
    FileProduct,
    Log,
    read_catalogue,
    read_events,
    write_catalogue,
)
from evaluation.ours import Stock, learn_before_split
from evaluation.protocol import Training
from tests.unit.builders import NOW_MS, event_json, product_json, record_vectors
from udfs.product_record import ProductRecord
from udfs.schemas import encode_vector


def write(path: Path, *lines: bytes) -> Path:
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def test_a_log_is_read_in_order_of_time_and_keeps_its_order_at_equal_times(tmp_path: Path) -> None:
    path = write(
        tmp_path / "log.jsonl",
        event_json(event_id="late", ts=NOW_MS + 2, product_id="p2"),
        b"",
        event_json(event_id="b", type="search", query="cup", product_id=...),
        event_json(event_id="a", ts=NOW_MS, unknown_field=1),
        event_json(event_id="late", ts=NOW_MS + 3, product_id="p2"),
        event_json(event_id="late", ts=NOW_MS + 4, product_id="p3"),
    )
    log = read_events(path)
    # The lines of an order share its id: an event is known by its id and its product.
    assert log.event_ids == ["b", "a", "late", "late"]
    assert log.duplicates == 1
    assert [log.event(row).query for row in range(4)] == ["cup", None, None, None]
    assert [log.event(row).product_id for row in range(4)] == [None, "p0", "p2", "p3"]
    assert log.event(2).ts == NOW_MS + 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", r"log.jsonl, line 2: .*truncated"),
        (event_json(type="look"), r"line 2: Invalid enum value 'look'"),
        (event_json(product_id=...), r"line 2: a click needs product_id"),
        (event_json(type="search", query=" "), r"line 2: a search needs query"),
        (b"\xff\xfe", r"line 2: "),
    ],
)
def test_a_line_that_is_no_event_is_named(tmp_path: Path, line: bytes, message: str) -> None:
    path = write(tmp_path / "log.jsonl", event_json(), line)
    with pytest.raises(DataError, match=message):
        read_events(path)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl cannot be read"):
        read_events(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match=r"log\.jsonl\.gz cannot be read: Not a gzipped file"):
        read_events(write(tmp_path / "log.jsonl.gz", event_json()))
    torn = tmp_path / "torn.jsonl.gz"
    torn.write_bytes(gzip.compress(event_json())[:-9])
    with pytest.raises(DataError, match=r"torn\.jsonl\.gz cannot be read"):
        read_events(torn)
    with pytest.raises(DataError, match="holds no event"):
        read_events(write(tmp_path / "empty.jsonl", b""))
    with pytest.raises(DataError, match="holds no product"):
        read_catalogue(write(tmp_path / "empty.jsonl", b""))


def test_a_line_of_the_catalogue_topic_is_a_line_of_a_catalogue_file(tmp_path: Path) -> None:
    path = write(
        tmp_path / "c.jsonl",
        product_json(),
        product_json(product_id="p1", embedding=..., space=...),
    )
    products = read_catalogue(path)
    assert products["p0"].embedding == [3.0, 4.0]
    assert products["p1"] == FileProduct("p1")
    copy = tmp_path / "copy.jsonl.gz"
    assert write_catalogue(copy, products.values()) == 2
    assert read_catalogue(copy) == products


def test_a_vector_without_a_space_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "c.jsonl", product_json(space=...))
    with pytest.raises(DataError, match="line 1: embedding and space are given both or neither"):
        read_catalogue(path)


def training(*product_ids: str) -> Training:
    return Training(
        product_ids=list(product_ids),
        counts=np.ones(len(product_ids), dtype=np.int64),
        items=np.zeros(1, dtype=np.int32),
        times_ms=np.zeros(1, dtype=np.int64),
        starts=np.array([0, 1]),
        split_ms=1,
    )


def empty_log(*product_ids: str) -> Log:
    """A log that touched the products long before, each alone."""
    n = len(product_ids)
    return Log(
        event_ids=[f"e{at}" for at in range(n)],
        users=[f"u{at}" for at in range(n)],
        items=list(product_ids),
        user_of=np.arange(n, dtype=np.int32),
        item_of=np.arange(n, dtype=np.int32),
        kinds=np.zeros(n, dtype=np.int8),
        times_ms=np.zeros(n, dtype=np.int64),
        session_of=np.arange(n, dtype=np.int32),
        queries={},
    )


def learned(products: dict[str, FileProduct], *product_ids: str) -> Stock:
    return learn_before_split(empty_log(*product_ids), training(*product_ids), products)


def space_of(product: ProductRecord) -> str:
    (space,) = product.vectors
    return space


def names(stock: Stock) -> list[str]:
    assert len({space_of(product) for product in stock.products}) == 1
    return [product.product_id for product in stock.products]


def test_a_given_vector_is_kept_and_texts_join_only_their_own_space() -> None:
    ones = np.ones(64, dtype=np.float32)
    given = FileProduct("p0", space="text64-v1", embedding=encode_vector(ones))
    products = {"p0": given, "p1": FileProduct("p1", title="blue cup"), "p2": FileProduct("p2")}
    stock = learned(products, "p0", "p1", "p2", "p3")
    assert names(stock) == ["p0", "p1"]
    assert space_of(stock.products[0]) == "text64-v1"
    assert record_vectors(stock.products[0])["text64-v1"] == pytest.approx(ones / 8)
    assert [product.is_text for product in stock.products] == [False, True]
    products["p0"] = FileProduct("p0", space="other", embedding=[3.0, 4.0])
    stock = learned(products, "p0", "p1")
    assert (names(stock), space_of(stock.products[0])) == (["p0"], "other")
    # What is not in the training part is not there to be recommended.
    assert names(learned(products, "p1")) == ["p1"]


def test_vectors_that_cannot_be_used_are_an_error() -> None:
    products = {
        "p0": FileProduct("p0", space="a", embedding=[1.0]),
        "p1": FileProduct("p1", space="b", embedding=[1.0]),
        "p2": FileProduct("p2", space="a", embedding=[0.0]),
    }
    with pytest.raises(DataError, match="of several spaces or lengths: a, b"):
        learned(products, "p0", "p1")
    with pytest.raises(DataError, match="the vector of product p2"):
        learned(products, "p2")
    with pytest.raises(DataError, match="no product of the training part has a vector"):
        learned(products, "p9")


def arguments(tmp_path: Path) -> list[str]:
    """A log of 60 sessions over titled products: the two halves of a pair follow each other."""
    random = np.random.default_rng(0)
    lines = []
    for session in range(60):
        pair = int(random.integers(5))
        lines += [
            event_json(
                event_id=f"{session}-{at}",
                user_id=f"u{session % 7}",
                ts=86_400_000 * session + 1000 * at,
                product_id=product,
                session_id=str(session),
            )
            for at, product in enumerate((f"a{pair}", f"b{pair}", f"a{pair}"))
        ]
    words = ["lamp", "cup", "chair", "clock", "vase"]
    products = [
        product_json(
            product_id=f"{half}{at}", title=f"{words[at]} {half}", embedding=..., space=...
        )
        for at in range(5)
        for half in "ab"
    ]
    return [
        *("--events", str(write(tmp_path / "log.jsonl", *lines))),
        *("--catalogue", str(write(tmp_path / "catalogue.jsonl", *products))),
        *("--plot", str(tmp_path / "plots" / "plot.png")),
    ]


def test_the_command_prints_a_table_a_plot_and_one_json_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [*arguments(tmp_path), "--split", "1970-02-10", "--k", "3"]
    assert main(given) == 0
    printed = capsys.readouterr().out
    said: dict[str, Any] = json.loads(printed.splitlines()[-1])
    assert (said["predictions"], said["k"], said["units"]) == (40, 3, 20)
    names = {"ours", *(baseline.name for baseline in all_baselines())}
    assert names > {"popularity", "recent_popularity", "last_item", "item_item"}
    assert names > {"association_rules", "s_knn", "vs_knn", "stan"}
    assert said["results"].keys() == said["with_history"].keys() == names
    for result in said["results"].values():
        assert {"hr", "mrr", "ndcg", "coverage"} <= result.keys()
    # Its pair always follows; the half that was there before is a repeat.
    assert said["results"]["last_item"]["new_hr"] == 1.0
    assert said["results"]["last_item"]["new_mrr"] == 1.0
    assert said["results"]["last_item"]["new_predictions"] == 20
    assert "HR@3" in printed
    png = tmp_path / "plots" / "plot.png"
    assert str(png) in printed
    assert png.read_bytes().startswith(b"\x89PNG")

    assert main(given) == 0
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    for results in (said["results"], said["with_history"], again["results"], again["with_history"]):
        for result in results.values():
            del result["us_p50"], result["us_p99"]
    assert again == said


def test_the_command_by_user_and_for_some_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [*arguments(tmp_path), "--split", "1970-02-10", "--unit", "user"]
    assert main([*given, "--only", "ours,popularity"]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said["results"].keys() == {"ours", "popularity"}
    assert (said["predictions"], said["units"]) == (60, 7)
    assert said["ours_minus_best"]["hr"]["best"] == "popularity"
    assert "with_history" not in said


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--split", "2020-01-01"], "is outside the log"),
        (["--split", "soon"], "must be an ISO time"),
        (["--only", "magic"], "no recommender is called magic"),
        (["--events", "none.jsonl"], "none.jsonl cannot be read"),
        (["--catalogue", "none.jsonl"], "none.jsonl cannot be read"),
    ],
)
def test_a_wrong_argument_is_one_line_and_a_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changed: list[str], message: str
) -> None:
    assert main([*arguments(tmp_path), "--split", "1970-02-10", *changed]) == 1
    printed = capsys.readouterr()
    assert printed.err.splitlines()[-1].startswith("error: ")
    assert message in printed.err
