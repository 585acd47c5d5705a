"""Looks at dead letters and sends them back: ``python -m connectors.dead_letter_tool --help``.

    list     what was refused, newest first, with filters
    show     one letter, whole
    replay   after a fix: send the original key and value back to the topic they came from

**Nothing is replayed twice by accident.** A letter is known by where its record came from (topic
id, partition, offset), so the copies that a restarted job writes of one refused record count as
one. What was sent back is written down in the compacted topic ``<dead letters>-replayed``, in the
same Kafka transaction as the record itself: both are there or neither, also when the command is
killed. A second replay that begins meanwhile fences the first. ``--again`` sends what was sent
before, on purpose. A record that is refused anew is a new letter, with an origin of its own.

**A record comes back as it was.** It has the Kafka time that it had, so the job judges it as it did
the first time, and it cannot come after an erasure that it came before. (Where the retention of
the topic is over by that time, Kafka deletes it again within minutes: send such records back while
the job runs.) A letter that was cut to fit (header ``truncated``), and one that did not come from
Kafka (a row that Cassandra refused, topic ``cassandra:<table>``), are for reading and never sent
back.

**Nothing newer is overwritten.** In a compacted topic (the catalogue) a letter is left where its
key has a newer record: the owner has said more of the product since, if only some fields.

The record goes to the partition it came from. Readers that are not ``read_committed`` (the job is
one) also see records of a transaction that was cut off; event ids and keys make that harmless.
"""

from __future__ import annotations

import argparse
import base64
import heapq
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

from confluent_kafka import (
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic

from connectors.command_line import since
from connectors.kafka_client import Refusal, RefusedError, reach
from udfs.schemas import Reason

# A dead letter may be larger than what the events topic accepts.
_MAX_BYTES: Final = 4 * 2**20
# Letters a transaction: few enough that one is done within Kafka's limit of a minute.
_CHUNK: Final = 500
_TIMEOUT: Final = 30.0


class ToolError(RuntimeError):
    """The command cannot be carried out; the message says why."""


class Place(NamedTuple):
    """Where a record stands in a topic."""

    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.partition}/{self.offset}"

    @classmethod
    def parse(cls, text: str) -> Place:
        """Read ``partition/offset``.

        Raises:
            ValueError: The text is not of that form.
        """
        partition, separator, offset = text.partition("/")
        if not separator or not partition.isdecimal() or not offset.isdecimal():
            msg = f"{text!r} is not partition/offset"
            raise ValueError(msg)
        return cls(int(partition), int(offset))


@dataclass(frozen=True)
class Letter:
    """One record of the dead-letters topic."""

    place: Place
    key: bytes | None
    value: bytes | None
    reason: str
    detail: str
    topic: str
    origin: Place
    failed_at_ms: int
    timestamp_ms: int = 0
    """The record's Kafka time, epoch milliseconds; 0: not known."""
    truncated: int | None = None
    """Bytes that key and value had together, where they were cut."""

    @property
    def sent_ms(self) -> int:
        """The Kafka time with which the record is sent back, epoch milliseconds."""
        # A letter of an earlier version has none: it failed at once, or soon.
        return self.timestamp_ms if self.timestamp_ms > 0 else self.failed_at_ms

    @property
    def kept_back(self) -> str:
        """Why the letter must never be sent back; empty where it may."""
        if self.origin.partition < 0 or self.origin.offset < 0:
            return f"not from Kafka ({self.topic})"
        if self.truncated is not None:
            return "cut: the record is not whole in the letter"
        return ""

    @classmethod
    def read(
        cls,
        place: Place,
        key: bytes | None,
        value: bytes | None,
        headers: Iterable[tuple[str, bytes | None]],
    ) -> Letter:
        """Read a letter from a record, the inverse of :func:`connectors.dead_letters.to_row`.

        Raises:
            ValueError: The headers are not those of a dead letter.
        """
        known = {name: (text or b"").decode("utf-8", "replace") for name, text in headers}
        try:
            return cls(
                place=place,
                key=key,
                value=value,
                reason=known["reason"],
                detail=known["detail"],
                topic=known["topic"],
                origin=Place(int(known["partition"]), int(known["offset"])),
                failed_at_ms=int(known["failed_at"]),
                timestamp_ms=int(known.get("timestamp", 0)),
                truncated=int(known["truncated"]) if "truncated" in known else None,
            )
        except KeyError as error:
            msg = f"the record at {place} has no header {error}"
            raise ValueError(msg) from error

    def line(self, *, replayed: bool = False) -> str:
        """The letter as one line; control characters do not reach the terminal."""
        at = datetime.fromtimestamp(self.failed_at_ms / 1000, UTC).isoformat(" ", "milliseconds")
        key = (self.key or b"").decode("utf-8", "replace")
        size = "no value" if self.value is None else f"{len(self.value):,} bytes"
        if self.truncated is not None:
            size += f" (cut from {self.truncated:,} with the key)"
        done = "  replayed" if replayed else ""
        text = (
            f"{self.place!s:<10} {at}  {self.reason:<14} {self.topic} {self.origin}"
            f"  key {key!r}  {size}  {self.detail[:200]!r}{done}"
        )
        return text.encode("unicode_escape").decode() if not text.isprintable() else text


@dataclass(frozen=True)
class Filter:
    """Which letters; what is not given lets all pass."""

    reasons: frozenset[str] = frozenset()
    topics: frozenset[str] = frozenset()
    since_ms: int = 0
    places: frozenset[Place] = field(default_factory=frozenset)

    def __bool__(self) -> bool:
        """Whether it leaves out anything."""
        return bool(self.reasons or self.topics or self.since_ms or self.places)

    def __contains__(self, letter: Letter) -> bool:
        return (
            (not self.reasons or letter.reason in self.reasons)
            and (not self.topics or letter.topic in self.topics)
            and letter.failed_at_ms >= self.since_ms
            and (not self.places or letter.place in self.places)
        )


Mark = tuple[str, int, int]
"""A record by topic id, partition, offset."""


def mark_key(mark: Mark) -> bytes:
    """The key under which a replayed record is written down."""
    return " ".join(map(str, mark)).encode()


@dataclass
class Plan:
    """What a replay does with the chosen letters."""

    send: list[tuple[Mark, Letter]] = field(default_factory=list)
    left: Counter[str] = field(default_factory=Counter)
    """Why the others are left, and how many."""


def plan(
    letters: Iterable[Letter],
    topic_ids: Mapping[str, str],
    replayed: frozenset[bytes],
    newest: Mapping[tuple[str, int, bytes], int],
    *,
    again: bool = False,
    limit: int | None = None,
) -> Plan:
    """Decide which letters are sent, in the order in which their records came.

    Args:
        letters: The chosen letters.
        topic_ids: Topic name to id, of the topics that exist.
        replayed: The keys of what was replayed before (:func:`mark_key`).
        newest: (topic, partition, key) to the newest offset, for compacted topics.
        again: Send what was replayed before as well.
        limit: Send at most so many, the oldest first.
    """
    result = Plan()
    seen: set[Mark] = set()
    for letter in sorted(letters, key=lambda one: (one.topic, one.origin, one.place)):
        if letter.kept_back:
            result.left[letter.kept_back] += 1
            continue
        if letter.topic not in topic_ids:
            result.left[f"topic {letter.topic} is not there"] += 1
            continue
        mark = (topic_ids[letter.topic], *letter.origin)
        if mark in seen:
            result.left["copies of one record"] += 1
        elif not again and mark_key(mark) in replayed:
            result.left["replayed before"] += 1
        elif (
            newest.get((letter.topic, letter.origin.partition, letter.key or b""), -1)
            > letter.origin.offset
        ):
            result.left["superseded by a newer record of the key"] += 1
        elif limit is not None and len(result.send) == limit:
            result.left["over the limit"] += 1
        else:
            result.send.append((mark, letter))
        seen.add(mark)
    return result


class Kafka:
    """What the commands ask of Kafka.

    Args:
        settings: Settings of librdkafka, bootstrap.servers among them.
        topic: The dead-letters topic.
    """

    def __init__(self, settings: Mapping[str, str], topic: str) -> None:
        self._refusal = Refusal()
        self._settings = {"log_level": 2, "error_cb": self._refusal, **settings}
        self._reached = False
        self.topic = topic
        self.log_topic = f"{topic}-replayed"
        self._admin = AdminClient(self._settings)

    def letters(self, since_ms: int = 0) -> Iterator[Letter]:
        """All letters from a time on (epoch ms), partition by partition, as they stand."""
        for message in self._read(self.topic, since_ms=since_ms):
            place = Place(message.partition(), message.offset())
            try:
                yield Letter.read(place, message.key(), message.value(), message.headers() or ())
            except ValueError as error:
                print(f"left out: {error}", file=sys.stderr)

    def letter(self, place: Place) -> Letter:
        """One letter.

        Raises:
            ToolError: There is none at that place, or it is no letter.
        """
        for message in self._read(self.topic, {place.partition: place.offset}):
            if message.offset() != place.offset:
                break
            try:
                return Letter.read(place, message.key(), message.value(), message.headers() or ())
            except ValueError as error:
                raise ToolError(str(error)) from error
        msg = f"{self.topic} has no record at {place}"
        raise ToolError(msg)

    def replayed(self) -> frozenset[bytes]:
        """The keys of what was replayed before."""
        if self.log_topic not in self._topics():
            return frozenset()
        return frozenset(message.key() for message in self._read(self.log_topic))

    def topic_ids(self, topics: Iterable[str]) -> dict[str, str]:
        """The ids of those of the topics that exist."""
        there = self._topics()
        names = sorted(set(topics) & there)
        if not names:
            return {}
        futures = self._admin.describe_topics(TopicCollection(names), request_timeout=_TIMEOUT)
        return {name: str(future.result().topic_id) for name, future in futures.items()}

    def newest(self, letters: Iterable[Letter]) -> dict[tuple[str, int, bytes], int]:
        """The newest offset of each letter's key, for letters that came from compacted topics."""
        wanted: dict[str, dict[int, int]] = {}
        keys = set()
        for letter in letters:
            if letter.kept_back:
                continue
            start = wanted.setdefault(letter.topic, {})
            partition, offset = letter.origin
            start[partition] = min(offset, start.get(partition, offset))
            keys.add((letter.topic, partition, letter.key or b""))
        there = self._topics()
        found: dict[tuple[str, int, bytes], int] = {}
        for topic, start in wanted.items():
            if topic not in there or not self._compacted(topic):
                continue
            for message in self._read(topic, start):
                key = (topic, message.partition(), message.key() or b"")
                if key in keys:
                    found[key] = message.offset()
        return found

    def create_log(self) -> None:
        """Create the topic in which replays are written down, if it is not there."""
        # As many replicas as the broker makes by default. Never deleted by age: it must outlive
        # the letters.
        topic = NewTopic(
            self.log_topic,
            num_partitions=1,
            replication_factor=-1,
            config={"cleanup.policy": "compact"},
        )
        try:
            self._admin.create_topics([topic], operation_timeout=_TIMEOUT)[self.log_topic].result()
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise

    def transactions(self) -> Producer:
        """A transactional producer; from now on those of other replays are fenced off."""
        producer = Producer(
            {
                **self._settings,
                "transactional.id": f"dead-letter-replay-{self.topic}",
                "message.max.bytes": _MAX_BYTES,
            }
        )
        producer.init_transactions(_TIMEOUT)
        return producer

    def send(self, producer: Producer, chunk: Sequence[tuple[Mark, Letter]]) -> None:
        """Send letters back and write it down, in one transaction."""
        producer.begin_transaction()
        now_ms = time.time_ns() // 1_000_000
        for mark, letter in chunk:
            producer.produce(
                letter.topic,
                letter.value,
                letter.key,
                partition=letter.origin.partition,
                timestamp=letter.sent_ms,
                headers={"replay_of": f"{self.topic} {letter.place}".encode()},
            )
            note = {"topic": letter.topic, "letter": str(letter.place), "replayed_at": now_ms}
            producer.produce(self.log_topic, json.dumps(note).encode(), mark_key(mark))
            producer.poll(0)
        producer.commit_transaction(_TIMEOUT)

    def _topics(self) -> set[str]:
        return set(self._admin.list_topics(timeout=_TIMEOUT).topics)

    def _compacted(self, topic: str) -> bool:
        resource = ConfigResource(ConfigResource.Type.TOPIC, topic)
        entries = self._admin.describe_configs([resource], request_timeout=_TIMEOUT)
        return "compact" in str(entries[resource].result()["cleanup.policy"].value)

    def _read(
        self, topic: str, start: Mapping[int, int] | None = None, *, since_ms: int = 0
    ) -> Iterator[Message]:
        """Every record up to the present end: of all partitions, or from given offsets."""
        if not self._reached:
            reach(self._admin, self._refusal, _TIMEOUT)
            self._reached = True
        consumer = Consumer(
            {
                **self._settings,
                # Needed by the client; nothing is committed.
                "group.id": "dead-letter-tool",
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "isolation.level": "read_committed",
                "auto.offset.reset": "error",
                "fetch.message.max.bytes": _MAX_BYTES,
            }
        )
        try:
            described = consumer.list_topics(topic, timeout=_TIMEOUT).topics[topic]
            if described.error is not None:
                msg = f"topic {topic}: {described.error.str()}"
                raise ToolError(msg)
            if start is None:
                start = dict.fromkeys(described.partitions, 0)
            first = [TopicPartition(topic, part, offset) for part, offset in start.items()]
            if since_ms:
                times = [TopicPartition(topic, part, since_ms) for part in start]
                first = consumer.offsets_for_times(times, timeout=_TIMEOUT)
            for at in first:
                if at.partition not in described.partitions:
                    continue
                low, high = consumer.get_watermark_offsets(at, timeout=_TIMEOUT)
                begin = at.offset if at.offset >= 0 else high
                consumer.assign([TopicPartition(topic, at.partition, max(begin, low))])
                yield from self._read_assigned(consumer, max(begin, low), high)
        finally:
            consumer.close()

    @staticmethod
    def _read_assigned(consumer: Consumer, at: int, end: int) -> Iterator[Message]:
        while at < end:
            message = consumer.poll(_TIMEOUT)
            if message is None:
                msg = f"Kafka is silent since {_TIMEOUT:.0f} s"
                raise ToolError(msg)
            error = message.error()
            if error is not None:
                # At the end for a reader of committed records, or past compacted ones.
                if error.code() == KafkaError._PARTITION_EOF:
                    return
                raise KafkaException(error)
            at = message.offset() + 1
            yield message


# --- commands ------------------------------------------------------------------------------------


def _filter(given: argparse.Namespace) -> Filter:
    return Filter(
        reasons=frozenset(given.reason),
        topics=frozenset(given.topic),
        since_ms=given.since or 0,
        places=frozenset(getattr(given, "at", ())),
    )


def _list(kafka: Kafka, given: argparse.Namespace) -> int:
    wanted = _filter(given)
    total: Counter[str] = Counter()

    def matching() -> Iterator[Letter]:
        for letter in kafka.letters(wanted.since_ms):
            if letter in wanted:
                total[letter.reason] += 1
                yield letter

    newest = heapq.nlargest(given.limit, matching(), key=lambda one: (one.failed_at_ms, one.place))
    ids = kafka.topic_ids({letter.topic for letter in newest})
    replayed = kafka.replayed()
    for letter in newest:
        known = letter.topic in ids
        done = known and mark_key((ids[letter.topic], *letter.origin)) in replayed
        print(letter.line(replayed=done))
    by_reason = ", ".join(f"{reason} {number}" for reason, number in total.most_common())
    print(f"{total.total()} dead letters" + (f": {by_reason}" if total else ""))
    return 0


def _show(kafka: Kafka, given: argparse.Namespace) -> int:
    letter = kafka.letter(given.at)
    if given.raw:
        sys.stdout.buffer.write(letter.value or b"")
        return 0
    print(letter.line())
    print(f"detail  {letter.detail}")
    if letter.timestamp_ms > 0:
        at = datetime.fromtimestamp(letter.timestamp_ms / 1000, UTC)
        print(f"time    {at.isoformat(' ', 'milliseconds')}")
    print(f"key     {_text(letter.key)}")
    print(f"value   {_text(letter.value)}")
    return 0


def _text(data: bytes | None) -> str:
    """Bytes as text where they are some, else as base64."""
    if data is None:
        return "none"
    try:
        return data.decode()
    except UnicodeDecodeError:
        return f"base64 {base64.b64encode(data).decode()}"


def _replay(kafka: Kafka, given: argparse.Namespace) -> int:
    wanted = _filter(given)
    if not wanted and not given.all:
        msg = "replay needs a filter, or --all"
        raise ToolError(msg)
    # Before anything is read: no other replay may send what this one decides about.
    producer = None
    if not given.dry_run:
        kafka.create_log()
        producer = kafka.transactions()
    letters = [letter for letter in kafka.letters(wanted.since_ms) if letter in wanted]
    decided = plan(
        letters,
        kafka.topic_ids({letter.topic for letter in letters}),
        kafka.replayed(),
        kafka.newest(letters),
        again=given.again,
        limit=given.limit,
    )
    if given.dry_run or given.verbose:
        for _, letter in decided.send:
            print(letter.line())
    for why, number in sorted(decided.left.items()):
        print(f"left {number}: {why}")
    if producer is None:
        print(f"would send {len(decided.send)} of {len(letters)} letters back")
        return 0
    sent = 0
    try:
        for start in range(0, len(decided.send), _CHUNK):
            chunk = decided.send[start : start + _CHUNK]
            kafka.send(producer, chunk)
            sent += len(chunk)
    finally:
        print(f"sent {sent} of {len(letters)} letters back")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m connectors.dead_letter_tool",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--bootstrap", default="127.0.0.1:9092", help="bootstrap servers")
    parser.add_argument(
        *("--config",),
        type=Path,
        help="file of further librdkafka settings, name=value a line, such as sasl.password",
    )
    parser.add_argument("--dead-letters-topic", default="dead-letters")
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, do: Callable[..., int], text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(do=do)
        return added

    def filters(to: argparse.ArgumentParser) -> None:
        reasons = [reason.value for reason in Reason]
        to.add_argument("--reason", action="append", default=[], choices=reasons)
        to.add_argument("--topic", action="append", default=[], help="the topic it came from")
        to.add_argument("--since", type=_since, help="ISO time, or how long ago: 90m, 2d")

    listed = command("list", _list, "list dead letters, the newest first")
    filters(listed)
    listed.add_argument("--limit", type=_count, default=50)
    shown = command("show", _show, "show one dead letter whole")
    shown.add_argument("at", type=Place.parse, metavar="PARTITION/OFFSET")
    shown.add_argument("--raw", action="store_true", help="the value's bytes alone")
    replayed = command("replay", _replay, "send dead letters back to where they came from")
    filters(replayed)
    replayed.add_argument(
        *("--at",),
        type=Place.parse,
        action="append",
        default=[],
        metavar="PARTITION/OFFSET",
        help="this letter (repeatable)",
    )
    replayed.add_argument("--limit", type=_count, help="at most so many, the oldest first")
    replayed.add_argument("--all", action="store_true", help="without any filter")
    replayed.add_argument("--again", action="store_true", help="also what was replayed before")
    replayed.add_argument("--dry-run", action="store_true", help="only say what would be sent")
    replayed.add_argument("--verbose", action="store_true", help="a line for each letter")
    return parser


def _since(text: str) -> int:
    return since(text, datetime.now(UTC))


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        msg = f"{number} is no number of letters"
        raise argparse.ArgumentTypeError(msg)
    return number


def read_config(text: str) -> dict[str, str]:
    """Read settings, name=value a line; blank lines and lines that begin with # do not count.

    Raises:
        ToolError: A line is not of that form. The message does not quote it: it may be a secret.
    """
    settings = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, separator, value = line.partition("=")
        if not separator or not name.strip():
            msg = f"line {number} of the settings is not name=value"
            raise ToolError(msg)
        settings[name.strip()] = value.strip()
    return settings


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; what Kafka or the operator got wrong ends with a message and status 1."""
    given = _parser().parse_args(arguments)
    try:
        settings = read_config(given.config.read_text()) if given.config else {}
        kafka = Kafka({"bootstrap.servers": given.bootstrap, **settings}, given.dead_letters_topic)
        status: int = given.do(kafka, given)
    except (ToolError, RefusedError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KafkaException as error:
        known: Any = error.args[0]
        fenced = known.code() in (KafkaError._FENCED, KafkaError.INVALID_PRODUCER_EPOCH)
        why = "another replay has begun; this one has stopped" if fenced else known.str()
        print(f"error: {why}", file=sys.stderr)
        return 1
    return status


if __name__ == "__main__":
    sys.exit(main())
