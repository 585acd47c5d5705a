"""The vectors command: files, options, and publishing that can be cut off at any point; spaces."""

from __future__ import annotations

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

from connectors import space_tool, topic_publisher
from connectors.kafka_client import KafkaClientOptions
from connectors.topic_publisher import PublishError, TopicPublisher
from job import vectors
from tests.unit.builders import NOW_MS
from udfs.behaviour import BehaviourConfig
from udfs.product_record import decode_related
from udfs.schemas import SPACE_KEY, SpaceNotice, decode_space_notice
from udfs.vectors import VectorsConfig

PARTITIONS = 3
PRODUCTS: list[dict[str, object]] = [
    {"product_id": "mug", "title": "coffee mug", "category": "KITCHEN", "price": 4.5},
    {"product_id": "cup", "title": "tea cup", "category": "KITCHEN", "in_stock": False},
    {"product_id": "lämp", "title": "desk lamp", "category": "LIGHT"},
    {"product_id": "bare"},
]


class Broker:
    """Topics; stops the process after ``left`` more records where that is set."""

    def __init__(self) -> None:
        # Topic, partition, key, value.
        self.records: list[tuple[str, int, str, bytes | None]] = []
        self.left: int | None = None
        self.stop: Callable[[], None] = lambda: None
        self.topic_id = "id/1"
        self.error: str | None = None

    def content(self, topic: str = "related") -> dict[tuple[int, str], bytes]:
        """What is there after compaction."""
        newest = {(p, key): value for name, p, key, value in self.records if name == topic}
        return {where: value for where, value in newest.items() if value is not None}

    def notices(self) -> list[tuple[int, SpaceNotice]]:
        return [(p, decode_space_notice(value or b"")) for _, p, _, value in self.records]


class FakeProducer:
    """Acknowledges what stands in its queue at a poll, in the order of one partition."""

    def __init__(self, broker: Broker, limit: int = 7) -> None:
        self.broker = broker
        self.limit = limit
        self.queue: list[Any] = []

    def produce(
        self,
        topic: str,
        value: bytes | None,
        key: bytes,
        on_delivery: Callable[[Any, Any], None],
        partition: int = -1,
    ) -> None:
        if len(self.queue) >= self.limit:
            raise BufferError
        at = partition if partition >= 0 else len(key) % PARTITIONS
        self.queue.append((topic, at, key.decode(), value, on_delivery))

    def poll(self, timeout: float) -> None:
        # Partitions are acknowledged out of order: those last produced first.
        if timeout or len(self.queue) == self.limit:
            for *record, told in sorted(self.queue, key=lambda one: -one[1]):
                if self.broker.left == 0:
                    self.broker.stop()
                if self.broker.left is not None:
                    self.broker.left -= 1
                self.broker.records.append(tuple(record))
                told(self.broker.error, None)
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
        describe_topics=lambda _topics, **_timeout: dict.fromkeys(("catalogue", "related"), future),
    )


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Broker:
    """A broker that the command finds in Kafka's place."""
    made = Broker()

    class Publisher(TopicPublisher):
        def __init__(self, options: KafkaClientOptions, topic: str, **more: Any) -> None:
            super().__init__(
                options,
                topic,
                make_producer=lambda _settings: FakeProducer(made),
                make_admin=lambda _settings: fake_admin(made),
                **more,
            )

    monkeypatch.setattr(vectors, "TopicPublisher", Publisher)
    monkeypatch.setattr(space_tool, "TopicPublisher", Publisher)
    monkeypatch.setattr(topic_publisher, "_SAVE_EVERY_S", 0.0)
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
        *("--work", str(folder / "work")),
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
    names = {f.name for f in dataclasses.fields(VectorsConfig)} - {"behaviour"}
    assert names == {*vectors._VECTOR_OPTIONS, "sequences"}
    assert {f.name for f in dataclasses.fields(BehaviourConfig)} == set(vectors._BEHAVIOUR_OPTIONS)


def test_a_row_for_each_product_of_which_something_is_known(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    catalogue = write(folder / "c.jsonl.gz", *PRODUCTS)
    events = write(folder / "e.jsonl", *purchases(["mug", "bare"], ["bare", "mug"]))
    arguments = ["--catalogue", str(catalogue), "--events", str(events)]
    assert run(*arguments, "--output", "out.jsonl.gz") == 0
    first = (folder / "out.jsonl.gz").read_bytes()
    made = {
        name: decode_related(name.encode().decode("latin-1"), json.dumps(row).encode())
        for name, row in products_of(folder / "out.jsonl.gz").items()
    }
    # The cup is like the mug by its text; nothing has to do with the lamp.
    assert made.keys() == {"mug", "bare", "cup"}
    assert "bare" in made["mug"].related
    assert made["cup"].related.keys() == {"bare"}
    told = summary(capsys)
    assert (told["products"], told["related"]) == (4, 3)
    assert run(*arguments, "--output", "out.jsonl.gz") == 0
    assert (folder / "out.jsonl.gz").read_bytes() == first


def test_what_of_the_files_is_left_out_is_counted(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    catalogue = write(
        folder / "c.jsonl",
        PRODUCTS[0],
        "",
        {**PRODUCTS[0], "title": "new mug", "embedding": [1.0], "space": "own"},
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
    assert (counts["events"], counts["unknown_events"], counts["other_events"]) == (2, 1, 2)
    assert "c.jsonl, line 4" in told.err
    assert "e.jsonl, line 6" in told.err
    assert {"mug", "cup"} <= products_of(folder / "out.jsonl").keys()


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
        (["{"], ["--publish-catalogue"], "line 1"),
        ([{"product_id": "a", "price": -1}], ["--publish-catalogue"], r"line 1: .*price"),
        ([], ["--publish-catalogue"], "no product"),
        ([PRODUCTS[0]], [], "name an event log"),
        ([PRODUCTS[0]], ["--events", "absent.jsonl"], "absent.jsonl cannot be read"),
        ([PRODUCTS[0]], ["--text-neighbours", "0"], "text_neighbours"),
        ([PRODUCTS[0]], ["--events", "others.jsonl"], "no event of a product of the catalogue"),
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
    write(folder / "others.jsonl", *purchases(["shop-mug", "shop-cup"]))
    assert run("--catalogue", str(catalogue), *arguments, "--output", "out.jsonl") == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (folder / "out.jsonl").exists()


def test_a_cut_off_gzip_file_is_no_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    catalogue = write(folder / "c.jsonl.gz", *PRODUCTS)
    catalogue.write_bytes(catalogue.read_bytes()[:-9])
    arguments = ["--catalogue", str(catalogue), "--bad-lines", "skip"]
    assert run(*arguments, "--publish-catalogue", "--dry-run") == 2
    assert "cannot be read" in capsys.readouterr().err


def test_all_rows_are_published_and_what_is_not_known_any_more_goes(
    folder: Path, broker: Broker
) -> None:
    arguments = shop(folder)
    partition = len("p39xxxx") % PARTITIONS
    broker.records = [("related", partition, "p39xxxx", b"{}"), ("related", 1, "other", b"{}")]
    lines = [{"product_id": f"p{n}{'x' * (n % 5)}"} for n in range(40)]
    write(folder / "catalogue.jsonl", *lines)
    clicks = purchases([str(line["product_id"]) for line in lines[:35]], type="click")
    write(folder / "events.jsonl.gz", *clicks)
    assert run(*arguments) == 0
    assert run(*arguments, "--output", "out.jsonl") == 0
    expected = products_of(folder / "out.jsonl")
    # Without titles nothing is known of what the log does not have.
    assert len(expected) == 35
    content = broker.content()
    assert content.pop((1, "other")) == b"{}"
    assert {key: json.loads(value) for (_, key), value in content.items()} == expected
    assert broker.content("catalogue") == {}
    assert list((folder / "work").iterdir()) == []


def test_the_catalogue_is_published_where_that_is_asked_for(folder: Path, broker: Broker) -> None:
    own = {"product_id": "own", "embedding": [1.0, 0.0], "space": "s", "updated_at": NOW_MS}
    nameless = {"product_id": "nameless", "embedding": [1.0, 0.0]}
    catalogue = write(folder / "c.jsonl", *PRODUCTS, own, nameless, {**own, "in_stock": False})
    arguments = ["--catalogue", str(catalogue), "--publish-catalogue"]
    assert run(*arguments) == 0
    assert {name for name, *_ in broker.records} == {"catalogue"}
    found = {key: json.loads(value) for (_, key), value in broker.content("catalogue").items()}
    shown = {
        key: {name: value for name, value in one.items() if value is not None}
        for key, one in found.items()
    }
    assert shown.keys() == {*(str(one["product_id"]) for one in PRODUCTS), "own", "nameless"}
    assert (shown["mug"]["title"], shown["mug"]["price"]) == ("coffee mug", 4.5)
    assert shown["cup"]["in_stock"] is False
    assert (
        shown["own"].items()
        >= {"embedding": [1.0, 0.0], "space": "s", "updated_at": NOW_MS}.items()
    )
    assert shown["own"]["in_stock"] is False
    assert "embedding" not in shown["nameless"]
    broker.records.clear()
    events = write(folder / "e.jsonl", *purchases(["mug", "bare"]))
    assert run(*arguments, "--events", str(events)) == 0
    # What is sent last is not sent again by a start that goes on.
    topics = list(dict.fromkeys(name for name, *_ in broker.records))
    assert topics == ["related", "catalogue"]


class Killed(BaseException):
    """The process ends here, with its files as they are."""


@pytest.mark.parametrize("after", [0, 2, 5, 11, 20, 29, 38])
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
    first = len(broker.records)
    broker.left = None
    assert run(*arguments) == 0
    assert run(*arguments, "--output", "out.jsonl") == 0
    expected = products_of(folder / "out.jsonl")
    assert {key: json.loads(value) for (_, key), value in broker.content().items()} == expected
    # No product is missing, none but those under way at the stop came twice.
    assert len(broker.records) - 40 <= 14
    assert len(broker.records) - first < 40 or after < 12


def test_what_was_computed_is_not_computed_again(
    folder: Path, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = shop(folder)
    broker.stop, broker.left = (lambda: (_ for _ in ()).throw(KeyboardInterrupt)), 20
    assert run(*arguments) == 130

    def never(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(vectors, "compute", never)
    broker.left = None
    assert run(*arguments) == 0
    assert len(broker.content()) == 40


def test_another_topic_or_another_content_begins_anew(folder: Path) -> None:
    broker, records = Broker(), [(f"p{n}", b"{}") for n in range(20)]
    publisher = TopicPublisher(
        KafkaClientOptions(),
        "related",
        make_producer=lambda _settings: FakeProducer(broker),
        make_admin=lambda _settings: fake_admin(broker),
    )

    def stop() -> None:
        raise KeyboardInterrupt

    def cut_off(content: str) -> None:
        broker.records, broker.stop, broker.left = [], stop, 14
        with pytest.raises(KeyboardInterrupt):
            publisher.publish(content, records, folder)
        broker.records, broker.left = [], None

    cut_off("c")
    publisher.publish("c", records, folder)
    assert len(broker.records) == 6
    cut_off("c")
    publisher.publish("d", records, folder)
    assert len(broker.records) == 20
    cut_off("c")
    broker.topic_id = "id/2"
    publisher._admin = fake_admin(broker)
    publisher.publish("c", records, folder)
    assert len(broker.records) == 20


def test_a_refused_record_is_not_passed_over(
    folder: Path, broker: Broker, capsys: pytest.CaptureFixture[str]
) -> None:
    broker.error = "Broker: Message size too large"
    publisher = TopicPublisher(
        KafkaClientOptions(),
        "related",
        make_producer=lambda _settings: FakeProducer(broker),
        make_admin=lambda _settings: fake_admin(broker),
    )
    with pytest.raises(PublishError, match="too large"):
        publisher.publish("c", [("a", b"{}")], folder)
    (file,) = folder.glob("progress-*.json")
    assert json.loads(file.read_text())["acknowledged"] == 0
    file.write_text("{")
    with pytest.raises(PublishError, match="remove it"):
        publisher.publish("c", [("a", b"{}")], folder)


def test_records_are_acknowledged_by_all_and_keep_their_partition() -> None:
    made: list[dict[str, Any]] = []
    TopicPublisher(
        KafkaClientOptions(properties={"sasl.password": "secret", "enable.idempotence": "false"}),
        "related",
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


@pytest.mark.parametrize("force", [False, True])
def test_a_space_is_announced_in_every_partition(broker: Broker, force: bool) -> None:
    assert space_tool.main(["announce", "mine-v2", *(["--force"] if force else [])], {}) == 0
    assert {(topic, key) for topic, _, key, _ in broker.records} == {("catalogue", SPACE_KEY)}
    notices = dict(broker.notices())
    assert notices.keys() == set(range(PARTITIONS))
    (notice,) = set(notices.values())
    assert (notice.space, notice.partitions) == ("mine-v2", PARTITIONS)
    assert (notice.complete, notice.force) == (True, force)


def test_a_space_that_cannot_be_announced_is_said(
    broker: Broker, capsys: pytest.CaptureFixture[str]
) -> None:
    broker.error = "Broker: Not enough replicas"
    assert space_tool.main(["announce", "mine"], {}) == 1
    assert "Not enough replicas" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        space_tool.main(["announce", "x" * 129], {})
    assert space_tool.main(["announce", "mine"], {"RECOMMENDER_KAFKA_BOOTSTRAP": ""}) == 1
