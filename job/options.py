"""The job's command line: every option with its type, default, unit and meaning."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final

from confluent_kafka import KafkaException

from connectors.cassandra_schema import MAX_LIST_TTL_DAYS, SECONDS_A_DAY
from connectors.cassandra_session import CassandraOptions
from connectors.cassandra_writer import WriterConfig
from connectors.compacted_topic import CompactedTopics
from connectors.kafka import KafkaOptions
from connectors.librdkafka import librdkafka_settings
from udfs.catalogue_function import CatalogueConfig
from udfs.profile import ProfileConfig
from udfs.ranking import RankingConfig
from udfs.recommend import RecommendConfig
from udfs.recommender_function import (
    LONGEST_FUTURE_MS,
    PROCESS_MODE,
    THREAD_MODE,
    RecommenderConfig,
)
from udfs.schemas import EVENT_TYPES, PLACEHOLDER_IDS, parse_placeholders
from udfs.trending import TrendingConfig
from udfs.variants import Experiment, Variant

# What becomes of a topic that is not as it must be: an error, a warning, nothing is asked.
TOPIC_CHECKS: Final = ("fail", "warn", "off")
# Names of Kafka's properties whose values are secrets.
_SECRET: Final = re.compile(r"password|jaas|secret|ssl\.keystore\.key|ssl\.key\.pem")


class OptionError(ValueError):
    """An option's value has no meaning; the message names the option."""


@dataclass(frozen=True)
class JobOptions:
    """Everything that ``flink run -py job/main.py`` can be told."""

    kafka: KafkaOptions = field(default_factory=KafkaOptions)
    cassandra: CassandraOptions = field(default_factory=CassandraOptions)
    writer: WriterConfig = field(default_factory=WriterConfig)
    recommender: RecommenderConfig = field(default_factory=RecommenderConfig)
    catalogue: CatalogueConfig = field(default_factory=CatalogueConfig)
    trending: TrendingConfig = field(default_factory=TrendingConfig)
    events_topic: str = "events"
    catalogue_topic: str = "catalogue"
    products_topic: str = "products"
    related_topic: str = "related"
    dead_letters_topic: str = "dead-letters"
    topic_check: str = TOPIC_CHECKS[0]
    librdkafka_properties: Mapping[str, str] = field(default_factory=dict, repr=False)
    """What librdkafka is told beside or instead of what is translated of ``kafka``."""

    def librdkafka(self) -> dict[str, str]:
        """Return the settings of what reads whole topics.

        Raises:
            ValueError: A property of Kafka has no translation.
        """
        kafka = self.kafka
        return librdkafka_settings(kafka.bootstrap, kafka.properties, self.librdkafka_properties)

    def check_librdkafka(self) -> None:
        """Make and close what reads whole topics, as each TaskManager will make it.

        Files are not looked at, nor a key whose certificate is one: they may be there alone.

        Raises:
            OptionError: librdkafka refuses a setting; the message shows no secret.
        """
        settings = self.librdkafka()
        keys = "ssl.key." if "ssl.certificate.location" in settings else "plugin."
        here = {
            name: value
            for name, value in settings.items()
            if not name.endswith((".location", ".file")) and not name.startswith(("plugin.", keys))
        }
        try:
            CompactedTopics(here, ()).close()
        except KafkaException as error:
            said = error.args[0].str()
            for name, value in here.items():
                if value and _SECRET.search(name):
                    said = said.replace(value, "…")
            msg = f"librdkafka: {said}; change it by --librdkafka-property or its -file"
            # Not `from error`, which would be printed too.
            raise OptionError(msg) from None


def _hosts(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _pair(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator or not name:
        msg = f"{text!r} is not name=value"
        raise argparse.ArgumentTypeError(msg)
    return name, value


def _secret(option: str, file: Path) -> str:
    """Read a secret: the file's text without the line's end that an editor leaves.

    Not from the environment: Flink's client logs all of it (PythonEnvUtils), in application mode
    in the JobManager's log.
    """
    try:
        text = file.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        msg = f"--{option}: {file} cannot be read: {error}"
        raise OptionError(msg) from error
    if not text:
        msg = f"--{option}: {file} is empty"
        raise OptionError(msg)
    return text


def _properties(
    client: str, values: Sequence[tuple[str, str]], files: Sequence[tuple[str, str]]
) -> dict[str, str]:
    """Read the properties of a client of Kafka."""
    properties = dict(values)
    for name in properties:
        if _SECRET.search(name):
            option = f"--{client}-property"
            msg = f"{option} {name}: Flink logs its command line; {option}-file"
            raise OptionError(msg)
    for name, file in files:
        properties[name] = _secret(f"{client}-property-file {name}", Path(file))
    return properties


def _placeholders(text: str) -> frozenset[str]:
    """Read ``none`` or the file of the ids that stand for unknown users."""
    if text == "none":
        return frozenset()
    try:
        return parse_placeholders(Path(text).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        msg = f"{text} cannot be read: {error}"
        raise argparse.ArgumentTypeError(msg) from error


def _weight(text: str) -> tuple[str, float]:
    name, value = _pair(text)
    if name not in EVENT_TYPES:
        msg = f"{name!r} is no event type: {', '.join(EVENT_TYPES)}"
        raise argparse.ArgumentTypeError(msg)
    return name, float(value)


def _variant(text: str) -> tuple[str, float, dict[str, str]]:
    """Read ``NAME=SHARE[,OPTION=VALUE…]``, a variant and where it differs."""
    named, *settings = text.split(",")
    name, share = _pair(named)
    return name, float(share), dict(map(_pair, settings))


def _ranking_of(name: str, settings: Mapping[str, str], base: RankingConfig) -> RankingConfig:
    """Make a variant's constants: the job's own but for its settings.

    Raises:
        ValueError: A setting is no constant of the ranking, or its value is wrong.
    """
    kinds = {item.name.replace("_", "-"): type(getattr(base, item.name)) for item in fields(base)}
    for option in settings:
        if option not in kinds:
            msg = f"variant {name}: {option!r} is none of {', '.join(kinds)}"
            raise ValueError(msg)
    try:
        return replace(
            base,
            **{
                option.replace("-", "_"): kinds[option](value) for option, value in settings.items()
            },
        )
    except ValueError as error:
        msg = f"variant {name}: {error}"
        raise ValueError(msg) from error


def parser() -> argparse.ArgumentParser:
    """Make the command line's parser."""
    result = argparse.ArgumentParser(
        prog="flink run -py job/main.py",
        description="Moves each user's embedding with what they do, and saves recommendations.",
        # flink run reads an abbreviated option as one of its own.
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )

    def add(group: Any, name: str, kind: Callable[[str], Any], default: Any, text: str) -> None:
        group.add_argument(f"--{name}", type=kind, default=default, help=text)

    kafka, topics = KafkaOptions(), JobOptions()
    group = result.add_argument_group("Kafka")
    add(group, "kafka-bootstrap", str, kafka.bootstrap, "bootstrap servers, host:port[,…]")
    add(group, "kafka-group", str, kafka.group_id, "consumer group for committed offsets")
    for client, what, secret in (
        ("kafka", "further client property", "sasl.jaas.config=/run/secrets/kafka-jaas"),
        (
            "librdkafka",
            "property of librdkafka, which reads topics whole, instead of the client's translated",
            "sasl.password=/run/secrets/kafka-password",
        ),
    ):
        group.add_argument(
            f"--{client}-property",
            type=_pair,
            action="append",
            default=[],
            metavar="NAME=VALUE",
            help=f"{what} (repeatable), such as security.protocol=SASL_SSL",
        )
        group.add_argument(
            f"--{client}-property-file",
            type=_pair,
            action="append",
            default=[],
            metavar="NAME=FILE",
            help="the same with its value in a file that the client reads: for secrets, such as"
            f" {secret}",
        )
    add(group, "events-topic", str, topics.events_topic, "topic of events")
    add(
        group,
        "catalogue-topic",
        str,
        topics.catalogue_topic,
        "compacted topic of what the shop says of products, whole or in parts",
    )
    add(
        group,
        "products-topic",
        str,
        topics.products_topic,
        "compacted topic that the job writes: products, whole and valid",
    )
    add(
        group,
        "related-topic",
        str,
        topics.related_topic,
        "compacted topic that the job writes: what is related to a product",
    )
    add(group, "dead-letters-topic", str, topics.dead_letters_topic, "topic of rejected records")
    group.add_argument(
        "--topic-check",
        choices=TOPIC_CHECKS,
        default=topics.topic_check,
        help="what to do where a topic is missing or not configured as the job needs it, or Kafka"
        " does not answer: fail, warn, or off: ask Kafka nothing",
    )

    cassandra = CassandraOptions()
    group = result.add_argument_group("Cassandra")
    add(group, "cassandra-hosts", _hosts, cassandra.hosts, "contact points, separated by commas")
    add(group, "cassandra-port", int, cassandra.port, "native protocol port")
    add(group, "cassandra-keyspace", str, cassandra.keyspace, "keyspace of the tables")
    add(group, "cassandra-local-dc", str, cassandra.local_dc, "local data centre")
    add(group, "cassandra-username", str, cassandra.username, "user name")
    add(
        group,
        "cassandra-password-file",
        Path,
        None,
        "file with the password, which the client reads",
    )
    add(group, "cassandra-ssl-ca-file", str, cassandra.ssl_ca_file, "certificate authority, PEM")
    add(
        group,
        "cassandra-consistency",
        str,
        cassandra.write_consistency,
        "consistency level of writes",
    )
    add(
        group,
        "cassandra-read-consistency",
        str,
        cassandra.read_consistency,
        "consistency level at which the service reads: what it cannot read any more is erased",
    )

    writer = WriterConfig()
    add(group, "write-batch-bytes", int, writer.batch_bytes, "bytes a batch")
    add(group, "write-batch-rows", int, writer.batch_rows, "rows a batch")
    add(group, "write-in-flight", int, writer.in_flight, "batches sent and not acknowledged")
    add(group, "write-backoff-max-s", float, writer.backoff_max_s, "longest wait, seconds")

    recommender = RecommenderConfig()
    group = result.add_argument_group("Events")
    add(
        group,
        "max-future-s",
        float,
        recommender.max_future_ms / 1000,
        "how far an event's time may lie ahead of its record's Kafka time, seconds, at most"
        f" {LONGEST_FUTURE_MS // 1000}; what is further ahead is a dead letter",
    )
    group.add_argument(
        "--placeholder-ids",
        type=_placeholders,
        default=PLACEHOLDER_IDS,
        metavar="FILE|none",
        help="ids that stand for unknown users, one a line, without case: their events are dead"
        f" letters; none: every id is a user's (default: {', '.join(sorted(PLACEHOLDER_IDS))},"
        " and blank ones)",
    )
    group = result.add_argument_group("Catalogue")
    add(
        group,
        "catalogue-tick-ms",
        int,
        CatalogueConfig().tick_ms,
        "time in which changes of products are put together before they are saved",
    )
    profile = recommender.recommend.profile
    group = result.add_argument_group("Recommender")
    add(group, "list-length", int, recommender.recommend.list_length, "recommendations a user")
    add(group, "tick-ms", int, recommender.tick_ms, "time between a user's lookups; 0: each event")
    add(group, "min-tick-ms", int, recommender.min_tick_ms, "the tick of an idle machine, at least")
    add(group, "tick-max-ms", int, recommender.tick_max_ms, "the tick under load, at most")
    add(group, "max-pending", int, recommender.max_pending, "events of a tick and subtask")
    add(
        group,
        "max-moves-per-minute",
        int,
        recommender.max_moves_per_minute,
        "events of a user and minute that move the profile, others are saved alone; 0: all do",
    )
    add(group, "fast-half-life-s", float, profile.fast_half_life_s, "half-life of the fast sum, s")
    add(group, "slow-half-life-s", float, profile.slow_half_life_s, "half-life of the slow sum, s")
    add(group, "fast-share", float, profile.fast_share, "share of the fast direction, 0 to 1")
    add(group, "interactions", int, profile.interactions, "newest interactions kept a user")
    add(group, "exclusions", int, profile.exclusions, "newest bought or disliked kept out")
    group.add_argument(
        "--weight",
        type=_weight,
        action="append",
        default=[],
        metavar="TYPE=NUMBER",
        help=f"weight of an event type (repeatable); defaults {dict(profile.weights)}",
    )
    add(group, "bounce-ms", int, profile.bounce_ms, "a scroll that dwelt shorter is a bounce; ms")
    add(group, "bounce-weight", float, profile.bounce_weight, "weight of a bounce")
    ranking = recommender.recommend.ranking
    add(group, "recent", int, ranking.recent, "newest interactions that are queries of their own")
    add(
        group,
        "position-exponent",
        float,
        ranking.position_exponent,
        "how fast an interaction's related products fade with newer ones",
    )
    add(
        group,
        "repeat-exponent",
        float,
        ranking.repeat_exponent,
        "how fast what was touched and not bought itself fades",
    )
    add(
        group,
        "related-weight",
        float,
        ranking.related_weight,
        "weight of related products; 0: none",
    )
    add(
        group,
        "lexical-weight",
        float,
        ranking.lexical_weight,
        "weight of a search's words found in titles and categories; 0: its vector alone counts",
    )
    add(
        group,
        "search-matches",
        int,
        ranking.search_matches,
        "products that a search's words speak for",
    )
    add(
        group,
        "vector-share",
        float,
        ranking.vector_share,
        "share of the profile's vector beside related products, above 0 to 1",
    )
    add(
        group,
        "new-share",
        float,
        ranking.new_share,
        "share of a list's places for new products, 0 to 0.5",
    )
    add(group, "new-days", float, ranking.new_days, "a product is new for so long, days")
    group.add_argument(
        "--variant",
        type=_variant,
        action="append",
        default=[],
        metavar="NAME=SHARE[,OPTION=VALUE…]",
        help="a setting of the ranking to compare (repeatable): its name, the share of users that"
        " get it, and where it differs from the options here, such as bold=1,vector-share=0.3",
    )
    add(group, "experiment", str, "", "name of the comparison; another one divides the users anew")
    add(
        group,
        "category-limit",
        int,
        ranking.category_limit,
        "most products of one category in a list; 0: any",
    )
    add(
        group,
        "duplicate-cosine",
        float,
        ranking.duplicate_cosine,
        "of products whose vectors are closer the best alone is listed; 1: all are",
    )
    add(
        group,
        "candidates",
        int,
        ranking.candidates,
        "candidates for these two, in lengths of the list",
    )
    add(
        group,
        "rebuy-weight",
        float,
        ranking.rebuy_weight,
        "weight of buying again what the catalogue says is bought again; 0: never shown again",
    )
    add(
        group,
        "rebuy-half-life-days",
        float,
        ranking.rebuy_half_life_days,
        "half-life of a purchase for buying the same again, days",
    )
    add(group, "profile-ttl-days", float, recommender.profile_ttl_days, "idle users leave after")
    add(
        group,
        "waiting-retry-max-ms",
        int,
        recommender.waiting_retry_max_ms,
        "longest wait until a product that arrived moves those who waited for it",
    )
    add(
        group,
        "space-switch-share",
        float,
        recommender.space_switch_share,
        "share of the products that a new embedding space needs to be switched to",
    )
    add(
        group,
        "product-list-length",
        int,
        recommender.product_list_length,
        "products of each list by product; 0: none are made",
    )
    trending = TrendingConfig()
    add(
        group,
        "trending-half-life-hours",
        float,
        trending.half_life_hours,
        "half-life of an event's weight for trending products, hours; 0: neither trending nor"
        " newest lists are made",
    )
    add(group, "trending-length", int, trending.length, "products a trending or newest list")
    add(
        group,
        "trending-duplicate-s",
        float,
        trending.duplicate_s,
        "for how long an event that comes again (same user, id and product) is known and not"
        " counted for trending, seconds; 360 bytes of heap an event; 0: it counts again",
    )
    add(
        group,
        "dimensions",
        int,
        recommender.dimensions,
        "required length of the shop's vectors; 0: any",
    )
    group.add_argument(
        "--execution-mode",
        choices=(THREAD_MODE, PROCESS_MODE),
        default=recommender.execution_mode,
        help="the Python execution mode, which must be that of the cluster",
    )
    return result


def parse(arguments: Sequence[str]) -> JobOptions:
    """Read the command line; an unknown or malformed option ends the process with its name.

    Raises:
        OptionError: A value is out of its range.
    """
    given = parser().parse_args(arguments)
    if (given.cassandra_username is None) != (given.cassandra_password_file is None):
        msg = "--cassandra-username and --cassandra-password-file: give both or neither"
        raise OptionError(msg)
    password = None
    if given.cassandra_password_file is not None:
        password = _secret("cassandra-password-file", given.cassandra_password_file)
    properties, librdkafka = (
        _properties(
            client, getattr(given, f"{client}_property"), getattr(given, f"{client}_property_file")
        )
        for client in ("kafka", "librdkafka")
    )
    try:
        profile = ProfileConfig(
            weights={**ProfileConfig().weights, **dict(given.weight)},
            **_same_names(given, ProfileConfig, "weights"),
        )
        ranking = RankingConfig(**_same_names(given, RankingConfig))
        variants = tuple(
            Variant(name, share, _ranking_of(name, settings, ranking))
            for name, share, settings in given.variant
        )
        options = JobOptions(
            kafka=KafkaOptions(given.kafka_bootstrap, given.kafka_group, properties),
            cassandra=CassandraOptions(
                hosts=given.cassandra_hosts,
                port=given.cassandra_port,
                keyspace=given.cassandra_keyspace,
                local_dc=given.cassandra_local_dc,
                username=given.cassandra_username,
                password=password,
                ssl_ca_file=given.cassandra_ssl_ca_file,
                read_consistency=given.cassandra_read_consistency,
                write_consistency=given.cassandra_consistency,
            ),
            writer=WriterConfig(
                batch_bytes=given.write_batch_bytes,
                batch_rows=given.write_batch_rows,
                in_flight=given.write_in_flight,
                backoff_max_s=given.write_backoff_max_s,
                # A list is kept as long as the profile that it was made from.
                list_ttl_seconds=max(
                    1, round(min(given.profile_ttl_days, MAX_LIST_TTL_DAYS) * SECONDS_A_DAY)
                ),
            ),
            recommender=RecommenderConfig(
                recommend=RecommendConfig(
                    list_length=given.list_length,
                    profile=profile,
                    ranking=ranking,
                    experiment=Experiment(given.experiment, variants),
                ),
                # Infinity and NaN become a number that is refused.
                max_future_ms=round(min(1e9, given.max_future_s) * 1000),
                **_same_names(given, RecommenderConfig, "recommend", "max_future_ms"),
            ),
            catalogue=CatalogueConfig(
                given.catalogue_tick_ms,
                given.dimensions,
                given.catalogue_topic,
                round(min(1e9, given.max_future_s) * 1000),
            ),
            trending=TrendingConfig(
                given.trending_half_life_hours, given.trending_length, given.trending_duplicate_s
            ),
            librdkafka_properties=librdkafka,
            **_same_names(
                given,
                JobOptions,
                "kafka",
                "cassandra",
                "writer",
                "recommender",
                "catalogue",
                "trending",
                "librdkafka_properties",
            ),
        )
        options.librdkafka()  # what has no translation is refused now and not on a TaskManager
    except ValueError as error:
        raise OptionError(str(error)) from error
    return options


def _same_names(given: argparse.Namespace, kind: type, *without: str) -> dict[str, Any]:
    """Take the fields of a dataclass from the options of the same name."""
    return {
        item.name: getattr(given, item.name) for item in fields(kind) if item.name not in without
    }
