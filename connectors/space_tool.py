"""Announces an embedding space: a shop with vectors of its own changes their space only so.

``announce SPACE`` says in every partition of the catalogue topic that all products with a vector
of the space are published; give it when Kafka has acknowledged them. The job and the service
switch in one step, as soon as nearly as many products (``--space-switch-share``) have a vector of
it as of the space before; with ``--force`` at once.

Where Kafka is, and how it is spoken to, is read as by the service: RECOMMENDER_KAFKA_BOOTSTRAP,
RECOMMENDER_KAFKA_CATALOGUE_TOPIC, RECOMMENDER_KAFKA_PROPERTY_SASL_PASSWORD and so on.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence

from confluent_kafka import KafkaException

from connectors.kafka_client import KafkaClientOptions
from connectors.topic_publisher import PublishError, TopicPublisher
from udfs.schemas import MAX_ID


def main(arguments: Sequence[str] | None = None, environ: Mapping[str, str] = os.environ) -> int:
    """Announce a space; what cannot be sent ends with a message, status 1."""
    parser = argparse.ArgumentParser(
        prog="python -m connectors.space_tool",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    announce = commands.add_parser("announce", help="say that a space is published whole")
    announce.add_argument("space")
    announce.add_argument("--force", action="store_true", help="switch however few products it has")
    given = parser.parse_args(arguments)
    if not 1 <= len(given.space) <= MAX_ID:
        parser.error(f"the name of a space has 1 to {MAX_ID} characters")
    try:
        kafka = KafkaClientOptions.from_env("RECOMMENDER_", environ)
        publisher = TopicPublisher(kafka, kafka.catalogue_topic)
        partitions = publisher.announce(given.space, force=given.force)
    except (PublishError, KafkaException, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{given.space} is announced in {partitions} partitions of {kafka.catalogue_topic}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
