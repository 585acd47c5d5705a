"""Erase users again after a restore: a snapshot or a savepoint can bring them back.

``list`` prints the users of the table `erasures`, one JSON string a line; keep it before a restore
that replaces the table. ``again`` sends an erase event for each of them, or for those of a file.
Whoever has come back since their erasure is erased with what they have done since.

Addresses and credentials come from the service's variables, RECOMMENDER_CASSANDRA_* and
RECOMMENDER_KAFKA_*.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
from cassandra import DriverException
from cassandra.cluster import NoHostAvailable
from confluent_kafka import KafkaException

from connectors.cassandra_schema import statement
from connectors.cassandra_session import CassandraOptions, connect
from connectors.event_client import new_event_id
from connectors.kafka_client import AcknowledgedProducer, KafkaClientOptions, NotAcknowledgedError
from udfs.schemas import ERASE

# Records that are waited for at once.
_AT_ONCE: Final = 500


def erased_users(session: Any, keyspace: str) -> list[str]:
    """Return all users whose erasure was asked for, or done, in the last 30 days."""
    return sorted(row.user_id for row in session.execute(statement("scan_erasures", keyspace)))


def users_of(lines: Iterable[str]) -> Iterator[str]:
    """Read what ``list`` prints.

    Raises:
        ValueError: A line is no JSON string; the message has its number.
    """
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            yield msgspec.json.decode(line, type=str)
        except msgspec.DecodeError as error:
            msg = f"line {number} is no JSON string: {error}"
            raise ValueError(msg) from error


def erase_records(users: Iterable[str], now_ms: int) -> Iterator[tuple[str, bytes]]:
    """Make the erase events of users: key and value of each record."""
    for user in users:
        event = {"event_id": new_event_id(now_ms), "user_id": user, "ts": now_ms, "type": ERASE}
        yield user, msgspec.json.encode(event)


def _listed() -> list[str]:
    options = CassandraOptions.from_env()
    cluster, session = connect(options, role="erasures")
    try:
        return erased_users(session, options.keyspace)
    finally:
        cluster.shutdown()


def _send(users: Iterable[str]) -> int:
    options = KafkaClientOptions.from_env("RECOMMENDER_", os.environ)
    records = list(erase_records(users, time.time_ns() // 1_000_000))
    producer = AcknowledgedProducer(options, timeout_s=30.0)
    try:
        for at in range(0, len(records), _AT_ONCE):
            producer.send(options.events_topic, records[at : at + _AT_ONCE])
    finally:
        producer.close()
    return len(records)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; what cannot be read or sent ends with a message, status 1."""
    parser = argparse.ArgumentParser(
        prog="python -m connectors.erasure_tool",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="print the users of the table erasures")
    again = commands.add_parser("again", help="send an erase event for each of them")
    again.add_argument("--file", type=Path, help="what `list` printed; default: the table")
    given = parser.parse_args(arguments)
    try:
        if given.command == "list":
            for user in _listed():
                print(msgspec.json.encode(user).decode())
            return 0
        file = given.file
        sent = _send(_listed() if file is None else list(users_of(file.open(encoding="utf-8"))))
    except (
        OSError,
        ValueError,
        DriverException,
        NoHostAvailable,
        KafkaException,
        NotAcknowledgedError,
    ) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{sent} users are erased again")
    return 0


if __name__ == "__main__":
    sys.exit(main())
