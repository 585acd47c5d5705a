"""Learns related products of an event log and publishes them: ``python -m job.vectors --help``.

Reads a catalogue file and an event log, both in the wire formats, one JSON object a line (.jsonl or
.jsonl.gz). What follows each product, and how soon it is bought again, is published to the topic
`related`, also of products that the log does not know: they take it from those nearest by text. A
product of which nothing is known any more is deleted there. Vectors need none of it: the job makes
them of titles where the shop sends none. ``--publish-catalogue`` sends the file's products to the
catalogue topic too, for a shop that has not done it.

A second start with the same files and options goes on where the first was stopped: what was
computed is kept until it is published, and so is how far Kafka has acknowledged it.

Where Kafka is, and how it is spoken to, is read as by the service: RECOMMENDER_KAFKA_BOOTSTRAP,
RECOMMENDER_KAFKA_RELATED_TOPIC, RECOMMENDER_KAFKA_PROPERTY_SASL_PASSWORD and so on.

Exit status: 0 all is delivered (or written), 1 it is not, 2 the files or options cannot be used,
130 interrupted. The last line of the output is a summary as one JSON object.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from tqdm import tqdm

from connectors.jsonl import (
    BadLines,
    LineError,
    read_catalogue,
    read_events,
    read_lines,
    write_lines,
)
from connectors.kafka_client import KafkaClientOptions
from connectors.topic_publisher import PublishError, TopicPublisher
from udfs.behaviour import BehaviourConfig
from udfs.product_record import RelatedRow, encode
from udfs.schemas import (
    ERASE,
    EVENT_TYPES,
    OPT_IN,
    OPT_OUT,
    Product,
    ProductLine,
    encode_product,
)
from udfs.vectors import Interactions, Sequences, VectorsConfig, learn

PREFIX: Final = "RECOMMENDER_"

_VECTOR_OPTIONS: Final = {
    "text_neighbours": "products nearest by text from which one the log does not know learns",
    "closeness_exponent": "power of their cosines in what each counts",
    "new_weight": "what a product the log does not know counts among the related ones of others",
    "new_related": "most of such products among the related ones of a product",
    "session_gap_s": "events without a session id: the pause that ends a session, seconds",
}
_BEHAVIOUR_OPTIONS: Final = {
    "window": "positions of a sequence within which products go together",
    "backward": "what a pair counts from the later product to the earlier",
    "half_life_days": "half-life of a pair, days before the log's end",
    "source_exponent": "power of the uses of the product that others are related to",
    "target_exponent": "power of the uses of the related product",
    "sharpness": "power of the whole; below 1 several weak hints outweigh a strong one",
    "neighbours": "related products of a product",
    "repeat_factor": "weight of a product for who just touched it, a unit of repeat rate",
    "repeat_window": "positions back within which the same product is a repeat",
    "rebuy_share": "share of the purchases that must be followed by another of the product",
    "rebuy_days": "days after which such a product may be shown again",
    "rebuy_prior": "purchases that a category counts in its products' shares",
    "category_prior": "purchases that the whole log counts in a category's share",
}


class OnBadLine(StrEnum):
    """What a line that cannot be read means."""

    STOP = "stop"
    SKIP = "skip"


class Summary(msgspec.Struct):
    """What was made of the files; the last line of the output."""

    products: int
    related: int
    """Products of which something was learned, from others like them included."""
    repeated_products: int
    """Lines of a product that has another one later: the last holds."""
    events: int
    """Events that were learned from."""
    unknown_events: int
    """Events with a product that is not in the catalogue."""
    other_events: int
    """Events without a product, duplicates, and those of erased users."""
    bad_lines: int


@dataclass
class _Catalogue:
    """The catalogue file in memory, in order of the products' first lines."""

    lines: list[ProductLine] = field(default_factory=list)
    repeated: int = 0


@dataclass
class _Log:
    interactions: Interactions
    unknown: int
    other: int


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Shows a default only where there is one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False) else super()._get_help_string(action)


def parser() -> argparse.ArgumentParser:
    """Make the command line's parser."""
    result = argparse.ArgumentParser(
        prog="python -m job.vectors",
        description="Learns related products of an event log and publishes them.",
        formatter_class=_Help,
    )
    result.add_argument(
        "--catalogue", type=Path, required=True, help="products, .jsonl or .jsonl.gz"
    )
    result.add_argument("--events", type=Path, help="event log, .jsonl or .jsonl.gz")
    result.add_argument(
        *("--publish-catalogue",),
        action="store_true",
        help="send the file's products to the catalogue topic too; then --events may be absent",
    )
    result.add_argument(
        *("--bad-lines",),
        type=OnBadLine,
        choices=list(OnBadLine),
        default=OnBadLine.STOP,
        help="what a line that cannot be read means; skip counts it",
    )
    result.add_argument("--output", type=Path, help="write this file and publish nothing")
    result.add_argument("--dry-run", action="store_true", help="compute and only say what")
    result.add_argument("--work", type=Path, default=Path("build/vectors"), help="for resuming")
    result.add_argument(
        "--bootstrap", help="Kafka's bootstrap servers (default: as by the service)"
    )
    result.add_argument(
        *("--timeout-s",), type=float, default=120.0, help="of a record's acknowledgement, seconds"
    )
    group = result.add_argument_group("what is learned")
    vectors, behaviour = VectorsConfig(), BehaviourConfig()
    group.add_argument(
        *("--sequences",),
        type=Sequences,
        choices=list(Sequences),
        default=vectors.sequences,
        help="within what products go together",
    )
    for config, texts in ((vectors, _VECTOR_OPTIONS), (behaviour, _BEHAVIOUR_OPTIONS)):
        for name, text in texts.items():
            default = getattr(config, name)
            option = f"--{name.replace('_', '-')}"
            group.add_argument(option, type=type(default), default=default, help=text)
    return result


def main(arguments: Sequence[str] | None = None, environ: Mapping[str, str] = os.environ) -> int:
    """Run the command; see the module for the exit status."""
    given = parser().parse_args(arguments)
    try:
        kafka = KafkaClientOptions.from_env(PREFIX, environ)
        kafka = dataclasses.replace(kafka, bootstrap=given.bootstrap or kafka.bootstrap)
        config = VectorsConfig(
            sequences=given.sequences,
            behaviour=BehaviourConfig(
                **{name: getattr(given, name) for name in _BEHAVIOUR_OPTIONS}
            ),
            **{name: getattr(given, name) for name in _VECTOR_OPTIONS},
        )
        return _run(given, config, kafka)
    except (LineError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except PublishError as error:
        print(f"error: {error}; start it again to go on", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; start it again to go on", file=sys.stderr)
        return 130


def _run(given: argparse.Namespace, config: VectorsConfig, kafka: KafkaClientOptions) -> int:
    if given.events is None and not given.publish_catalogue:
        msg = "name an event log (--events) to learn from, or --publish-catalogue"
        raise ValueError(msg)
    if given.dry_run or given.output is not None:
        summary, rows = compute(given, config)
        if given.output is not None and not given.dry_run:
            write_lines(given.output, (encode(row) for row in rows if not _is_empty(row)))
        _print(summary)
        return 0
    given.work.mkdir(parents=True, exist_ok=True)
    content = _content(given, config)
    file, about = given.work / f"{content}.jsonl.gz", given.work / f"{content}.json"
    if about.exists():
        summary = msgspec.json.decode(about.read_bytes(), type=Summary)
        print(f"computed before: {file}", file=sys.stderr)
    else:
        summary, rows = compute(given, config)
        write_lines(file, map(encode, rows))
        write_lines(about, [msgspec.json.encode(summary)])

    def publish(topic: str, records: Iterable[tuple[str, bytes | None]]) -> None:
        publisher = TopicPublisher(kafka, topic, timeout_s=given.timeout_s)
        with tqdm(total=summary.products, desc=topic, unit=" products") as bar:
            publisher.publish(content, records, given.work, lambda done: _show(bar, done))

    if given.events is not None:
        publish(kafka.related_topic, _records(file))
    # Last: a start that goes on sends no product again behind what the shop has said since.
    if given.publish_catalogue:
        publish(kafka.catalogue_topic, _products(given))
    about.unlink()
    file.unlink()
    _print(summary)
    return 0


def _print(summary: Summary) -> None:
    print(msgspec.json.encode(summary).decode())


def _show(bar: Any, done: int) -> None:
    bar.n = done
    bar.refresh()


def _is_empty(row: RelatedRow) -> bool:
    return not row.related and row.rebuy_days is None


def _records(file: Path) -> Iterator[tuple[str, bytes | None]]:
    """Read what was computed; what was learned earlier of a product goes with an empty row."""
    decoder = msgspec.json.Decoder(RelatedRow)
    for line in read_lines(file):
        row = decoder.decode(line)
        yield row.product_id, None if _is_empty(row) else line


def _products(given: argparse.Namespace) -> Iterator[tuple[str, bytes]]:
    """Read the products of the catalogue file as whole records."""
    for line in _read_products(given.catalogue, _bad_lines(given)).lines:
        # Without the name of its space a vector cannot be used.
        has_vector = line.space is not None and line.embedding is not None
        product = Product(
            line.product_id,
            line.space if has_vector else None,
            line.embedding if has_vector else None,
            line.title,
            line.category,
            line.price,
            line.in_stock,
            updated_at=line.updated_at,
        )
        yield line.product_id, encode_product(product)


def _bad_lines(given: argparse.Namespace) -> BadLines:
    return BadLines(skip=given.bad_lines is OnBadLine.SKIP)


def _content(given: argparse.Namespace, config: VectorsConfig) -> str:
    """Name what will be computed by all that it is computed from."""
    digest = blake2b(digest_size=12)
    digest.update(repr((given.bad_lines, config)).encode())
    for path in (given.catalogue, given.events):
        digest.update(b"\0")
        if path is None:
            continue
        with path.open("rb") as file:
            while part := file.read(2**20):
                digest.update(part)
    return digest.hexdigest()


def compute(
    given: argparse.Namespace, config: VectorsConfig
) -> tuple[Summary, Iterable[RelatedRow]]:
    """Read the files and learn; what was made of them, and the row of each product.

    Raises:
        LineError: A file cannot be used.
        ValueError: What is asked for cannot be learned.
    """
    bad = _bad_lines(given)
    catalogue = _read_products(given.catalogue, bad)
    ids = [line.product_id for line in catalogue.lines]
    log = _read_log(given.events, bad, ids) if given.events is not None else None
    for message in bad.shown:
        print(f"skipped: {message}", file=sys.stderr)
    summary = Summary(
        products=len(ids),
        related=0,
        repeated_products=catalogue.repeated,
        events=len(log.interactions.items) if log is not None else 0,
        unknown_events=log.unknown if log is not None else 0,
        other_events=log.other if log is not None else 0,
        bad_lines=bad.count,
    )
    if log is None:
        return summary, ()
    if not summary.events:
        # It would delete what was learned of every product.
        msg = f"{given.events} holds no event of a product of the catalogue: do the ids differ?"
        raise LineError(msg)
    with tqdm(total=len(ids), desc="learning", unit=" products") as bar:

        def told(what: str, done: int) -> None:
            bar.set_description(what)
            _show(bar, done)

        titles = [line.title for line in catalogue.lines]
        categories = [line.category for line in catalogue.lines]
        learned = learn(ids, titles, categories, log.interactions, config, told)
    summary.related = sum(not _is_empty(learned.row(at)) for at in range(len(ids)))
    return summary, map(learned.row, range(len(ids)))


def _read_products(path: Path, bad: BadLines) -> _Catalogue:
    """Read a catalogue file; the last line of a product holds.

    Raises:
        LineError: It cannot be read, has no product, or a line is bad and not skipped.
    """
    made = _Catalogue()
    place: dict[str, int] = {}
    for _, line in read_catalogue(path, bad):
        at = place.setdefault(line.product_id, len(made.lines))
        if at == len(made.lines):
            made.lines.append(line)
        else:
            made.lines[at] = line
            made.repeated += 1
    if not made.lines:
        msg = f"{path} holds no product"
        raise LineError(msg)
    return made


def _read_log(path: Path, bad: BadLines, product_ids: Sequence[str]) -> _Log:
    """Read an event log as columns: some 50 bytes an event.

    Raises:
        LineError: It cannot be read, or a line is bad and not skipped.
    """
    number_of = {product_id: number for number, product_id in enumerate(product_ids)}
    kind_of = {name: kind for kind, name in enumerate(EVENT_TYPES)}
    users: dict[str, int] = {}
    sessions: dict[tuple[int, str], int] = {}
    erased: dict[int, int] = {}
    objecting: set[int] = set()
    columns = [array("q") for _ in Interactions._fields]
    hashes = array("q")
    unknown = other = 0
    for _, event in read_events(path, bad):
        user = users.setdefault(event.user_id, len(users))
        kind = kind_of.get(event.type)
        if event.type in (ERASE, OPT_OUT):  # what came before it is not there any more
            erased[user] = len(hashes)
        if event.type == OPT_OUT:
            objecting.add(user)
        elif event.type == OPT_IN:
            objecting.discard(user)
        if kind is None or event.product_id is None or event.type == "search" or user in objecting:
            other += 1
            continue
        item = number_of.get(event.product_id)
        if item is None:
            unknown += 1
            continue
        session = -1
        if event.session_id is not None:
            session = sessions.setdefault((user, event.session_id), len(sessions))
        for column, value in zip(columns, (user, item, event.ts, kind, session), strict=True):
            column.append(value)
        digest = blake2b(f"{user} {item} {event.event_id}".encode(), digest_size=8).digest()
        hashes.append(int.from_bytes(digest, "little", signed=True))
    made = Interactions(*(np.array(column, dtype=np.int64) for column in columns))
    kept = np.zeros(len(hashes), dtype=bool)
    kept[np.unique(np.array(hashes, dtype=np.int64), return_index=True)[1]] = True
    if erased:
        ends = np.zeros(len(users), dtype=np.int64)
        ends[list(erased)] = list(erased.values())
        kept &= np.arange(len(hashes)) >= ends[made.users]
    return _Log(
        Interactions(*(column[kept] for column in made)), unknown, other + int((~kept).sum())
    )


if __name__ == "__main__":
    sys.exit(main())
