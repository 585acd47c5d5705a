"""Gives a catalogue vectors and publishes it: ``python -m job.vectors --help``.

Reads a catalogue file and, where there is one, an event log, both in the wire formats, one JSON
object a line (.jsonl or .jsonl.gz). Every product gets a vector (from its text, from the log, or
from both), the products that follow it, and how soon it is bought again; all are published to the
catalogue topic in one embedding space, to which the job switches in one step when Kafka has them
all. Until then it goes on with the space it had.

A second start with the same files and options goes on where the first was stopped: what was
computed is kept until it is published, and so is how far Kafka has acknowledged it.

Where Kafka is, and how it is spoken to, is read as by the service: RECOMMENDER_KAFKA_BOOTSTRAP,
RECOMMENDER_KAFKA_CATALOGUE_TOPIC, RECOMMENDER_KAFKA_PROPERTY_SASL_PASSWORD and so on.

Exit status: 0 all is delivered (or written), 1 it is not, 2 the files or options cannot be used,
130 interrupted. The last line of the output is a summary as one JSON object.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from tqdm import tqdm

from connectors.catalogue_publisher import CataloguePublisher, PublishError
from connectors.jsonl import (
    BadLines,
    LineError,
    read_catalogue,
    read_events,
    read_lines,
    write_lines,
)
from connectors.kafka_client import KafkaClientOptions
from udfs.behaviour import BehaviourConfig
from udfs.query_encoder import SPACE as TEXT_SPACE
from udfs.schemas import (
    ERASE,
    EVENT_TYPES,
    MAX_ID,
    MAX_PRODUCT_BYTES,
    OPT_IN,
    OPT_OUT,
    Product,
    ProductLine,
    encode_product,
    encode_vector,
)
from udfs.vectors import Interactions, Learned, Sequences, Source, VectorsConfig, learn

PREFIX: Final = "RECOMMENDER_"

_VECTOR_OPTIONS: Final = {
    "dimensions": "length of the vectors' part from behaviour",
    "text_neighbours": "products nearest by text from which one the log does not know learns",
    "closeness_exponent": "power of their cosines in what each counts",
    "new_weight": "what a product the log does not know counts among the related ones of others",
    "new_related": "most of such products among the related ones of a product",
    "session_gap_s": "events without a session id: the pause that ends a session, seconds",
    "seed": "seed of the factorisation",
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

    space: str
    dimensions: int
    products: int
    """Products with a vector, those that are published."""
    without_vector: int
    """Products left out: they have neither a text that is understood nor events."""
    repeated_products: int
    """Lines of a product that has another one later: the last holds."""
    own_vectors: int
    """Products whose vector in the file was not used."""
    too_large: int
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

    def product_ids(self) -> list[str]:
        return [line.product_id for line in self.lines]


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
        description="Gives the products of a catalogue vectors and publishes them.",
        formatter_class=_Help,
    )
    result.add_argument(
        "--catalogue", type=Path, required=True, help="products, .jsonl or .jsonl.gz"
    )
    result.add_argument("--events", type=Path, help="event log, .jsonl or .jsonl.gz")
    result.add_argument(
        *("--from",),
        dest="source",
        choices=[one.value for one in Source],
        help="what vectors are made from (default: both where there are texts and a log, else what"
        " there is); in a space from behaviour alone searches move nobody",
    )
    result.add_argument(
        "--space", help="name of the space (default: made from what it is learned of)"
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
    result.add_argument(
        *("--hold",),
        action="store_true",
        help="publish, but do not let the job switch: a start without this does, at once",
    )
    result.add_argument("--work", type=Path, default=Path("build/vectors"), help="for resuming")
    result.add_argument(
        "--bootstrap", help="Kafka's bootstrap servers (default: as by the service)"
    )
    result.add_argument("--topic", help="the catalogue topic (default: as by the service)")
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
        kafka = dataclasses.replace(
            kafka,
            bootstrap=given.bootstrap or kafka.bootstrap,
            catalogue_topic=given.topic or kafka.catalogue_topic,
        )
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
    if given.dry_run or given.output is not None:
        summary, lines = compute(given, config)
        if given.dry_run:
            for _ in lines:
                pass
        else:
            write_lines(given.output, lines)
        _print(summary)
        return 0
    given.work.mkdir(parents=True, exist_ok=True)
    content = _content(given, config)
    file, about = given.work / f"{content}.jsonl.gz", given.work / f"{content}.json"
    if about.exists():
        summary = msgspec.json.decode(about.read_bytes(), type=Summary)
        print(f"computed before: {file}", file=sys.stderr)
    else:
        summary, lines = compute(given, config)
        write_lines(file, lines)
        write_lines(about, [msgspec.json.encode(summary)])
    publisher = CataloguePublisher(kafka, given.work, timeout_s=given.timeout_s)
    with tqdm(total=summary.products, desc="publishing", unit=" products") as bar:
        publisher.publish(
            content,
            summary.space,
            _records(file),
            complete=not given.hold,
            told=lambda done: _show(bar, done),
        )
    if not given.hold:
        about.unlink()
        file.unlink()
    _print(summary)
    return 0


def _print(summary: Summary) -> None:
    print(msgspec.json.encode(summary).decode())


def _show(bar: Any, done: int) -> None:
    bar.n = done
    bar.refresh()


class _Name(msgspec.Struct):
    product_id: str


def _records(file: Path) -> Iterator[tuple[str, bytes]]:
    decoder = msgspec.json.Decoder(_Name)
    for line in read_lines(file):
        yield decoder.decode(line).product_id, line


def _content(given: argparse.Namespace, config: VectorsConfig) -> str:
    """Name what will be computed by all that it is computed from."""
    digest = blake2b(digest_size=12)
    digest.update(repr((given.source, given.space, given.bad_lines, config)).encode())
    for path in (given.catalogue, given.events):
        digest.update(b"\0")
        if path is None:
            continue
        with path.open("rb") as file:
            while part := file.read(2**20):
                digest.update(part)
    return digest.hexdigest()


def compute(given: argparse.Namespace, config: VectorsConfig) -> tuple[Summary, Iterator[bytes]]:
    """Read the files and learn; the lines of the products, and what was made of the files.

    The counts of the summary that a line decides are complete when all lines have been taken.

    Raises:
        LineError: A file cannot be used.
        ValueError: What is asked for cannot be learned.
    """
    bad = BadLines(skip=given.bad_lines is OnBadLine.SKIP)
    catalogue = _read_products(given.catalogue, bad)
    ids = catalogue.product_ids()
    log = _read_log(given.events, bad, ids) if given.events is not None else None
    for message in bad.shown:
        print(f"skipped: {message}", file=sys.stderr)
    titles = [line.title for line in catalogue.lines]
    categories = [line.category for line in catalogue.lines]
    source = Source(given.source) if given.source else _best_source(titles, categories, log)
    with tqdm(total=len(ids), desc="learning", unit=" products") as bar:

        def told(what: str, done: int) -> None:
            bar.set_description(what)
            _show(bar, done)

        learned = learn(
            ids,
            titles,
            categories,
            log.interactions if log is not None else None,
            dataclasses.replace(config, source=source),
            told,
        )
    has_vector = learned.vectors.any(axis=1)
    if not has_vector.any():
        msg = f"{given.catalogue}: no product has a text or events to make a vector of"
        raise ValueError(msg)
    summary = Summary(
        space=_space(given.space, learned.space, source),
        dimensions=learned.vectors.shape[1],
        products=int(has_vector.sum()),
        without_vector=int((~has_vector).sum()),
        repeated_products=catalogue.repeated,
        own_vectors=sum(line.embedding is not None for line in catalogue.lines),
        too_large=0,
        events=len(log.interactions.items) if log is not None else 0,
        unknown_events=log.unknown if log is not None else 0,
        other_events=log.other if log is not None else 0,
        bad_lines=bad.count,
    )
    return summary, _lines(catalogue.lines, learned, np.flatnonzero(has_vector), summary)


def _best_source(titles: Sequence[str], categories: Sequence[str], log: _Log | None) -> Source:
    if log is None:
        return Source.TEXT
    return Source.BOTH if any(titles) or any(categories) else Source.BEHAVIOUR


def _space(given: str | None, learned: str, source: Source) -> str:
    """Check a space's name against what the job reads in it.

    Raises:
        ValueError: Searches would mean something else in it than its vectors do.
    """
    if given is None:
        return learned
    if len(given) > MAX_ID:
        msg = f"--space must have at most {MAX_ID} characters"
        raise ValueError(msg)
    fits = {
        Source.TEXT: given == TEXT_SPACE,
        Source.BOTH: given.startswith(f"{TEXT_SPACE}+"),
        Source.BEHAVIOUR: not given.startswith(TEXT_SPACE),
    }
    if not fits[source]:
        msg = (
            f"--space {given}: the name says what a search means in it. It must be {TEXT_SPACE} for"
            f" vectors from text, begin with {TEXT_SPACE}+ for both, and with neither for behaviour"
        )
        raise ValueError(msg)
    return given


def _lines(
    lines: Sequence[ProductLine], learned: Learned, items: Any, summary: Summary
) -> Iterator[bytes]:
    for at in items.tolist():
        line = lines[at]
        encoded = encode_product(
            Product(
                line.product_id,
                summary.space,
                encode_vector(learned.vectors[at]),
                title=line.title,
                category=line.category,
                price=line.price,
                in_stock=line.in_stock,
                **learned.facts(at),
            )
        )
        if len(encoded) > MAX_PRODUCT_BYTES:
            summary.too_large += 1
            summary.products -= 1
            continue
        yield encoded


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
