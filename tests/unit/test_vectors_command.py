"""The vectors command: files, options, and publishing that can be cut off at any point."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from confluent_kafka import KafkaException

from connectors import catalogue_publisher
from connectors.catalogue_publisher import CataloguePublisher, PublishError
from connectors.kafka_client import KafkaClientOptions
from job import vectors
from tests.unit.builders import NOW_MS
from udfs.behaviour import BehaviourConfig
from udfs.query_encoder import SPACE, encode_products
from udfs.schemas import SPACE_KEY, SpaceNotice, decode_product, decode_space_notice
from udfs.vectors import VectorsConfig

PARTITIONS = 3
PRODUCTS: list[dict[str, object]] = [
    {"product_id": "mug", "title": "coffee mug", "category": "KITCHEN", "price": 4.5},
    {"product_id": "cup", "title": "tea cup", "category": "KITCHEN", "in_stock": False},
    {"product_id": "lämp", "title": "desk lamp", "category": "LIGHT"},
    {"product_id": "bare"},
]


class Broker:
    """A topic; stops the process after ``left`` more records where that is set."""

    def __init__(self) -> None:
        self.records: list[tuple[int, str, bytes]] = []
        self.left: int | None = None
        self.stop: Callable[[], None] = lambda: None
        self.topic_id = "id/1"

    def content(self) -> dict[tuple[int, str], bytes]:
        """What is there after compaction, without the notices."""
        return {(p, key): value for p, key, value in self.records if key != SPACE_KEY}

    def notices(self) -> list[tuple[int, SpaceNotice]]:
        return [
            (p, decode_space_notice(value)) for p, key, value in self.records if key == SPACE_KEY
        ]


class FakeProducer:
    """Acknowledges what stands in its queue at a poll, in the order of one partition."""

    def __init__(self, broker: Broker, limit: int = 7) -> None:
        self.broker = broker
        self.limit = limit
        self.queue: list[Any] = []
        self.error: str | None = None

    def produce(
        self,
        topic: str,
        value: bytes,
        key: bytes,
        on_delivery: Callable[[Any, Any], None],
        partition: int = -1,
    ) -> None:
        assert topic == "catalogue"
        if len(self.queue) >= self.limit:
            raise BufferError
        at = partition if partition >= 0 else len(key) % PARTITIONS
        self.queue.append((at, key.decode(), value, on_delivery))

    def poll(self, timeout: float) -> None:
        # Partitions are acknowledged out of order: those last produced first.
        if timeout or len(self.queue) == self.limit:
            for at, key, value, told in sorted(self.queue, key=lambda one: -one[0]):
                if self.broker.left == 0:
                    self.broker.stop()
                if self.broker.left is not None:
                    self.broker.left -= 1
                self.broker.records.append((at, key, value))
                told(self.error, None)
            self.queue.clear()

    def purge(self) -> None:
        self.queue.clear()

    def flush(self, _timeout: float) -> None:
        assert not self.queue


def fake_admin(broker: Broker) -> Any:
    found = SimpleNamespace(topic_id=broker.topic_id, partitions=range(PARTITIONS))
    future = SimpleNamespace(result=lambda: found)
    return SimpleNamespace(
        list_topics=lambda **_timeout: None,
        describe_topics=lambda _topics, **_timeout: {"catalogue": future},
    )


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Broker:
    """A broker that the command finds in Kafka's place."""
    made = Broker()

    class Publisher(CataloguePublisher):
        def __init__(self, options: KafkaClientOptions, folder: Path, **more: Any) -> None:
            super().__init__(
                options,
                folder,
                make_producer=lambda _settings: FakeProducer(made),
                make_admin=lambda _settings: fake_admin(made),
                **more,
            )

    monkeypatch.setattr(vectors, "CataloguePublisher", Publisher)
    monkeypatch.setattr(catalogue_publisher, "_SAVE_EVERY_S", 0.0)
    return made


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: Path, *lines: object) -> Path:
    text = "".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def purchases(*sequences: list[str], **changes: object) -> list[dict[str, object]]:
    return [
        {
            "event_id": f"{user}-{at}",
            "user_id": f"u{user}",
            "type": "purchase",
            "ts": NOW_MS + 1000 * at,
            "product_id": product,
            **changes,
        }
        for user, items in enumerate(sequences)
        for at, product in enumerate(items)
    ]


def shop(folder: Path, count: int = 40) -> list[str]:
    """Arguments for a catalogue of some products and a log."""
    lines = [
        {"product_id": f"p{at}{'x' * (at % 5)}", "title": f"thing {at}"} for at in range(count)
    ]
    ids = [line["product_id"] for line in lines]
    rng = np.random.default_rng(1)
    log = purchases(*([ids[at] for at in rng.integers(0, count - 5, 8)] for _ in range(20)))
    return [
        *("--catalogue", str(write(folder / "catalogue.jsonl", *lines))),
        *("--events", str(write(folder / "events.jsonl.gz", *log))),
        *("--dimensions", "4", "--work", str(folder / "work")),
    ]


def run(*arguments: str) -> int:
    return vectors.main(list(arguments), {})


def summary(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


def products_of(path: Path) -> dict[str, dict[str, Any]]:
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    lines = [json.loads(line) for line in raw.splitlines()]
    assert len({line["product_id"] for line in lines}) == len(lines)
    return {line["product_id"]: line for line in lines}


def test_every_constant_is_an_option_with_its_default() -> None:
    names = {f.name for f in dataclasses.fields(VectorsConfig)} - {"source", "behaviour"}
    assert names == {*vectors._VECTOR_OPTIONS, "sequences"}
    assert {f.name for f in dataclasses.fields(BehaviourConfig)} == set(vectors._BEHAVIOUR_OPTIONS)


def test_text_alone_gives_the_products_their_texts_vectors(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    catalogue = write(folder / "c.jsonl", *PRODUCTS)
    assert run("--catalogue", str(catalogue), "--output", "out.jsonl.gz") == 0
    made = products_of(folder / "out.jsonl.gz")
    assert made.keys() == {"mug", "cup", "lämp"}
    for name, title, category in (("mug", "coffee mug", "KITCHEN"), ("lämp", "desk lamp", "LIGHT")):
        product, vector = decode_product(
            name.encode().decode("latin-1"), json.dumps(made[name]).encode()
        )
        assert (product.space, product.title, product.category) == (SPACE, title, category)
        np.testing.assert_allclose(vector, encode_products([title], [category])[0], atol=1e-6)
    assert (made["mug"]["price"], made["cup"]["in_stock"]) == (4.5, False)
    told = summary(capsys)
    assert (told["products"], told["without_vector"], told["space"]) == (3, 1, SPACE)


@pytest.mark.parametrize(
    ("source", "dimensions", "start"),
    [("text", 64, SPACE), ("behaviour", 5, "behaviour5-"), ("both", 69, f"{SPACE}+behaviour5-")],
)
def test_where_vectors_come_from(
    folder: Path, source: str, dimensions: int, start: str, capsys: pytest.CaptureFixture[str]
) -> None:
    catalogue = write(folder / "c.jsonl.gz", *PRODUCTS)
    events = write(folder / "e.jsonl", *purchases(["mug", "bare"], ["bare", "mug"]))
    arguments = ["--catalogue", str(catalogue), "--events", str(events), "--dimensions", "5"]
    assert run(*arguments, "--from", source, "--output", "out.jsonl") == 0
    made = products_of(folder / "out.jsonl")
    one = next(iter(made.values()))
    assert len(base64.b64decode(one["embedding"])) == 4 * dimensions
    assert one["space"].startswith(start)
    assert "bare" in made["mug"]["related"]
    assert ("bare" in made) == (source != "text")
    first = (folder / "out.jsonl").read_bytes()
    assert run(*arguments, "--from", source, "--output", "out.jsonl") == 0
    assert (folder / "out.jsonl").read_bytes() == first


def test_without_texts_behaviour_is_what_there_is(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    catalogue = write(folder / "c.jsonl", {"product_id": "a"}, {"product_id": "b"})
    events = write(folder / "e.jsonl", *purchases(["a", "b"]))
    assert run("--catalogue", str(catalogue), "--events", str(events), "--dry-run") == 0
    assert summary(capsys)["space"].startswith("behaviour64-")
    assert sorted(path.name for path in folder.iterdir()) == ["c.jsonl", "e.jsonl"]


def test_what_of_the_files_is_left_out_is_counted(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    catalogue = write(
        folder / "c.jsonl",
        PRODUCTS[0],
        "",
        {**PRODUCTS[0], "title": "new mug", "embedding": [1.0], "space": "old"},
        "{",
        {"product_id": ""},
        {"product_id": SPACE_KEY},
        *PRODUCTS[1:],
    )
    log = [
        *purchases(["mug", "cup", "gone"]),
        purchases(["mug"])[0],
        {"event_id": "s", "user_id": "u0", "type": "search", "ts": NOW_MS, "query": "mug"},
        {"event_id": "n", "user_id": "u0", "type": "click", "ts": NOW_MS},
        "no json",
    ]
    events = write(folder / "e.jsonl", *log)
    arguments = ["--catalogue", str(catalogue), "--events", str(events), "--bad-lines", "skip"]
    assert run(*arguments, "--output", "out.jsonl") == 0
    told = capsys.readouterr()
    counts = json.loads(told.out.splitlines()[-1])
    assert counts["bad_lines"] == 5
    assert counts["repeated_products"] == 1
    assert counts["own_vectors"] == 1
    assert (counts["events"], counts["unknown_events"], counts["other_events"]) == (2, 1, 2)
    assert "c.jsonl, line 4" in told.err
    assert "e.jsonl, line 6" in told.err
    assert products_of(folder / "out.jsonl")["mug"]["title"] == "new mug"


def test_of_an_erased_user_nothing_is_learned(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    catalogue = write(folder / "c.jsonl", *PRODUCTS)
    log = purchases(["mug", "cup"], ["mug", "lämp"])
    log.append({"event_id": "x", "user_id": "u0", "type": "erase", "ts": NOW_MS})
    log.append({**log[0], "event_id": "later"})
    events = write(folder / "e.jsonl", *log)
    arguments = ["--catalogue", str(catalogue), "--events", str(events), "--new-weight", "0"]
    assert run(*arguments, "--output", "out.jsonl") == 0
    assert summary(capsys)["events"] == 3
    assert "cup" not in products_of(folder / "out.jsonl")["mug"]["related"]


@pytest.mark.parametrize(
    ("lines", "arguments", "message"),
    [
        (["{"], [], "line 1"),
        ([{"product_id": "a", "price": -1}], [], r"line 1: .*price"),
        ([], [], "no product"),
        ([{"product_id": "a"}], [], "no product has a text"),
        ([PRODUCTS[0]], ["--from", "both"], "need an event log"),
        ([PRODUCTS[0]], ["--events", "absent.jsonl"], "absent.jsonl cannot be read"),
        ([PRODUCTS[0]], ["--dimensions", "0"], "dimensions"),
        ([PRODUCTS[0]], ["--space", "mine"], "says what a search means"),
        ([PRODUCTS[0]], ["--space", "x" * 200], "at most 128"),
    ],
)
def test_what_cannot_be_used_is_said(
    folder: Path,
    lines: list[object],
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    catalogue = write(folder / "c.jsonl", *lines)
    assert run("--catalogue", str(catalogue), *arguments, "--output", "out.jsonl") == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (folder / "out.jsonl").exists()


def test_a_cut_off_gzip_file_is_no_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    catalogue = write(folder / "c.jsonl.gz", *PRODUCTS)
    catalogue.write_bytes(catalogue.read_bytes()[:-9])
    assert run("--catalogue", str(catalogue), "--bad-lines", "skip", "--dry-run") == 2
    assert "cannot be read" in capsys.readouterr().err


def test_all_is_published_between_its_notices(folder: Path, broker: Broker) -> None:
    arguments = shop(folder)
    assert run(*arguments) == 0
    assert run(*arguments, "--output", "out.jsonl") == 0
    expected = products_of(folder / "out.jsonl")
    assert {key: json.loads(value) for (_, key), value in broker.content().items()} == expected
    notices = broker.notices()
    every = list(range(PARTITIONS))
    assert sorted(p for p, notice in notices if not notice.complete) == every
    assert sorted(p for p, notice in notices if notice.complete) == every
    assert len({(notice.space, notice.started_ms) for _, notice in notices}) == 1
    assert notices[0][1].partitions == PARTITIONS
    keys = [key for _, key, _ in broker.records]
    assert keys[:PARTITIONS] == keys[-PARTITIONS:] == [SPACE_KEY] * PARTITIONS
    assert list((folder / "work").iterdir()) == []


class Killed(BaseException):
    """The process ends here, with its files as they are."""


@pytest.mark.parametrize("after", [0, 2, 3, 5, 11, 20, 29, 38, 43, 45])
@pytest.mark.parametrize("kind", [Killed, KeyboardInterrupt, KafkaException])
def test_a_second_start_goes_on_behind_what_was_acknowledged(
    folder: Path, broker: Broker, after: int, kind: type[BaseException]
) -> None:
    arguments = shop(folder)
    work, as_it_was = folder / "work", folder / "as-it-was"

    def stop() -> None:
        shutil.copytree(work, as_it_was, dirs_exist_ok=True)
        raise kind

    broker.stop, broker.left = stop, after
    with contextlib.suppress(Killed):
        assert run(*arguments) in (1, 130)
    if kind is Killed:  # what Python cleaned up, a killed process does not
        shutil.rmtree(work)
        as_it_was.rename(work)
    first = [key for _, key, _ in broker.records if key != SPACE_KEY]
    assert not any(notice.complete for _, notice in broker.notices()) or after > 40
    broker.left = None
    assert run(*arguments) == 0
    assert run(*arguments, "--output", "out.jsonl") == 0
    expected = products_of(folder / "out.jsonl")
    assert {key: json.loads(value) for (_, key), value in broker.content().items()} == expected
    # No product is missing, none but those under way at the stop came twice.
    both = [key for _, key, _ in broker.records if key != SPACE_KEY]
    assert len(both) - len(expected) <= 14
    assert len(both) - len(first) < len(expected) or after < 12
    last = max(notice.started_ms for _, notice in broker.notices())
    done = {p for p, n in broker.notices() if n.complete and n.started_ms == last}
    assert done == set(range(PARTITIONS))


def test_what_was_computed_is_not_computed_again(
    folder: Path, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = shop(folder)
    assert run(*arguments, "--hold") == 0
    assert not any(notice.complete for _, notice in broker.notices())
    before = len(broker.records)

    def never(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(vectors, "compute", never)
    assert run(*arguments) == 0
    # Nothing but the notices was still to be sent.
    assert [key for _, key, _ in broker.records[before:]] == [SPACE_KEY] * PARTITIONS


def test_another_topic_or_another_content_begins_anew(folder: Path, broker: Broker) -> None:
    arguments = shop(folder)
    assert run(*arguments, "--hold") == 0
    count = len(broker.content())
    broker.topic_id, broker.records = "id/2", []
    assert run(*arguments, "--hold") == 0
    assert len(broker.content()) == count
    broker.records = []
    assert run(*arguments, "--seed", "7", "--hold") == 0
    assert len(broker.content()) == count
    broker.records = []
    assert run(*arguments) == 0
    assert len(broker.content()) == count


def test_a_refused_record_is_not_passed_over(
    folder: Path, broker: Broker, capsys: pytest.CaptureFixture[str]
) -> None:
    producer = FakeProducer(broker)
    producer.error = "Broker: Message size too large"
    publisher = CataloguePublisher(
        KafkaClientOptions(),
        folder,
        make_producer=lambda _settings: producer,
        make_admin=lambda _settings: fake_admin(broker),
    )
    with pytest.raises(PublishError, match="too large"):
        publisher.publish("c", "s", [("a", b"{}")])
    assert not any(notice.complete for _, notice in broker.notices())
    (file,) = folder.glob("progress-*.json")
    assert json.loads(file.read_text())["acknowledged"] == 0
    file.write_text("{")
    with pytest.raises(PublishError, match="remove it"):
        publisher.publish("c", "s", [("a", b"{}")])


def test_records_are_acknowledged_by_all_and_keep_their_partition(folder: Path) -> None:
    made: list[dict[str, Any]] = []
    CataloguePublisher(
        KafkaClientOptions(properties={"sasl.password": "secret", "enable.idempotence": "false"}),
        folder,
        make_producer=lambda settings: made.append(settings),
        make_admin=lambda settings: made.append(settings),
    )
    admin, producer = made
    assert admin["sasl.password"] == producer["sasl.password"] == "secret"
    assert producer["enable.idempotence"] is True
    assert producer["partitioner"] == "murmur2_random"


def test_the_command_starts_without_flink(folder: Path) -> None:
    root = Path(__file__).parents[2]
    code = "import sys, job.vectors; sys.exit('pyflink' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True, env={**os.environ})
