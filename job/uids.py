"""Operator uids: the names by which a savepoint finds its state. Never change one that shipped."""

from __future__ import annotations

from typing import Final

RECOMMENDER: Final = "recommender"
CASSANDRA_SINK: Final = "cassandra-sink"
EVENTS_SOURCE: Final = "events-source"
CATALOGUE_SOURCE: Final = "catalogue-source"
HEARTBEAT_SOURCE: Final = "heartbeat-source"
DEAD_LETTERS_SINK: Final = "dead-letters-sink"
