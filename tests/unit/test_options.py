"""The job's command line: each option changes its own field, a bad value is named."""

from __future__ import annotations

import re
import traceback
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

from connectors.kafka import KafkaOptions
from job.main import main
from job.options import JobOptions, OptionError, parse, parser
from udfs.ranking import RankingConfig
from udfs.variants import Experiment, Variant

P = "recommender.recommend.profile."
R = "recommender.recommend.ranking."
CASES = [
    ("kafka-bootstrap", "a:1,b:2", "kafka.bootstrap", "a:1,b:2"),
    ("kafka-group", "g", "kafka.group_id", "g"),
    ("kafka-property", "client.rack=a=b", "kafka.properties", {"client.rack": "a=b"}),
    ("librdkafka-property", "client.id=a", "librdkafka_properties", {"client.id": "a"}),
    ("experiment", "e", "recommender.recommend.experiment.name", "e"),
    ("events-topic", "t", "events_topic", "t"),
    ("catalogue-topic", "t", "catalogue_topic", "t"),
    ("products-topic", "t", "products_topic", "t"),
    ("related-topic", "t", "related_topic", "t"),
    ("dead-letters-topic", "t", "dead_letters_topic", "t"),
    ("topic-check", "warn", "topic_check", "warn"),
    ("max-future-s", "60", "recommender.max_future_ms", 60_000),
    ("placeholder-ids", "none", "recommender.placeholder_ids", frozenset()),
    ("cassandra-hosts", "a, b,", "cassandra.hosts", ("a", "b")),
    ("cassandra-port", "9043", "cassandra.port", 9043),
    ("cassandra-keyspace", "k", "cassandra.keyspace", "k"),
    ("cassandra-local-dc", "dc1", "cassandra.local_dc", "dc1"),
    ("cassandra-ssl-ca-file", "/ca", "cassandra.ssl_ca_file", "/ca"),
    ("cassandra-consistency", "QUORUM", "cassandra.write_consistency", "QUORUM"),
    ("cassandra-read-consistency", "QUORUM", "cassandra.read_consistency", "QUORUM"),
    ("write-batch-bytes", "1", "writer.batch_bytes", 1),
    ("write-batch-rows", "2", "writer.batch_rows", 2),
    ("write-in-flight", "3", "writer.in_flight", 3),
    ("write-backoff-max-s", "4.5", "writer.backoff_max_s", 4.5),
    ("catalogue-tick-ms", "7", "catalogue.tick_ms", 7),
    ("list-length", "50", "recommender.recommend.list_length", 50),
    ("tick-ms", "0", "recommender.tick_ms", 0),
    ("min-tick-ms", "7", "recommender.min_tick_ms", 7),
    ("max-moves-per-minute", "7", "recommender.max_moves_per_minute", 7),
    ("product-list-length", "7", "recommender.product_list_length", 7),
    ("tick-max-ms", "5000", "recommender.tick_max_ms", 5000),
    ("max-pending", "7", "recommender.max_pending", 7),
    ("fast-half-life-s", "60", P + "fast_half_life_s", 60.0),
    ("slow-half-life-s", "61", P + "slow_half_life_s", 61.0),
    ("fast-share", "0.25", P + "fast_share", 0.25),
    ("interactions", "10", P + "interactions", 10),
    ("exclusions", "11", P + "exclusions", 11),
    ("bounce-ms", "5", P + "bounce_ms", 5),
    ("bounce-weight", "-0.5", P + "bounce_weight", -0.5),
    ("recent", "4", R + "recent", 4),
    ("position-exponent", "0.5", R + "position_exponent", 0.5),
    ("repeat-exponent", "0.25", R + "repeat_exponent", 0.25),
    ("related-weight", "0", R + "related_weight", 0.0),
    ("lexical-weight", "0", R + "lexical_weight", 0.0),
    ("search-matches", "7", R + "search_matches", 7),
    ("vector-share", "0.5", R + "vector_share", 0.5),
    ("new-share", "0.25", R + "new_share", 0.25),
    ("new-days", "3", R + "new_days", 3.0),
    ("category-limit", "4", R + "category_limit", 4),
    ("duplicate-cosine", "0.9", R + "duplicate_cosine", 0.9),
    ("candidates", "7", R + "candidates", 7),
    ("rebuy-weight", "0", R + "rebuy_weight", 0.0),
    ("rebuy-half-life-days", "9", R + "rebuy_half_life_days", 9.0),
    ("profile-ttl-days", "0.5", "recommender.profile_ttl_days", 0.5),
    ("waiting-retry-max-ms", "9", "recommender.waiting_retry_max_ms", 9),
    ("space-switch-share", "0.5", "recommender.space_switch_share", 0.5),
    ("trending-half-life-hours", "0", "trending.half_life_hours", 0.0),
    ("trending-length", "9", "trending.length", 9),
    ("trending-duplicate-s", "0", "trending.duplicate_s", 0.0),
    ("dimensions", "64", "recommender.dimensions", 64),
    ("execution-mode", "process", "recommender.execution_mode", "process"),
]
# Options of several, or tested below.
OTHERS = {
    "variant",
    "weight",
    "kafka-property-file",
    "librdkafka-property-file",
    "cassandra-username",
    "cassandra-password-file",
    "help",
}


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not is_dataclass(value):
        return {prefix[:-1]: value}
    found: dict[str, Any] = {}
    for item in fields(value):
        found |= flat(getattr(value, item.name), f"{prefix}{item.name}.")
    return found


def changed(options: JobOptions) -> dict[str, Any]:
    defaults = flat(JobOptions())
    return {name: value for name, value in flat(options).items() if value != defaults[name]}


def test_no_options_are_the_defaults() -> None:
    assert parse([]) == JobOptions()


@pytest.mark.parametrize(("option", "text", "name", "value"), CASES)
def test_option_changes_exactly_its_field(option: str, text: str, name: str, value: Any) -> None:
    mirrored = {
        "events_topic": "recommender.events_topic",
        "catalogue_topic": "catalogue.catalogue_topic",
        "recommender.max_future_ms": "catalogue.max_future_ms",
        "recommender.dimensions": "catalogue.dimensions",
        "products_topic": "recommender.products_topic",
        "related_topic": "recommender.related_topic",
    }
    expected = {name: value}
    if name in mirrored:
        expected[mirrored[name]] = value
    if option == "profile-ttl-days":
        expected["writer.list_ttl_seconds"] = 43_200
    assert changed(parse([f"--{option}", text])) == expected


def test_every_option_is_tested() -> None:
    known = {name for action in parser()._actions for name in action.option_strings}
    assert {name.removeprefix("--") for name in known} - {"-h"} == {c[0] for c in CASES} | OTHERS


def test_weight_changes_only_its_type() -> None:
    options = parse(["--weight", "click=0.5", "--weight", "dislike=-9"])
    defaults = JobOptions().recommender.recommend.profile.weights
    expected = {**defaults, "click": 0.5, "dislike": -9.0}
    assert changed(options) == {P + "weights": expected}


def test_variants_differ_from_the_options_in_their_settings() -> None:
    options = parse(
        [
            "--recent=4",
            "--experiment=recency",
            "--variant=plain=1",
            "--variant=bold=2.5,vector-share=0.3,recent=9",
        ]
    )
    base = RankingConfig(recent=4)
    bold = RankingConfig(recent=9, vector_share=0.3)
    assert options.recommender.recommend.ranking == base
    assert options.recommender.recommend.experiment == Experiment(
        "recency", (Variant("plain", 1.0, base), Variant("bold", 2.5, bold))
    )


@pytest.mark.parametrize(
    ("variant", "named"),
    [
        ("a=0", "a must be above 0"),
        ("a=1,tick-ms=5", "'tick-ms' is none of recent"),
        ("a=1,recent=x", "variant a: .*'x'"),
        ("a=1,recent=0", "variant a: recent must be within"),
    ],
)
def test_a_variant_that_makes_no_sense_is_named(variant: str, named: str) -> None:
    with pytest.raises(OptionError, match=named):
        parse(["--variant", variant])


def test_properties_add_up() -> None:
    options = parse(["--kafka-property", "a=1", "--kafka-property", "b=2"])
    assert options.kafka.properties == {"a": "1", "b": "2"}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--tick-ms", "x"], "--tick-ms"),
        (["--tick-ms", "1.5"], "--tick-ms"),
        (["--cassandra-port", "x"], "--cassandra-port"),
        (["--kafka-property", "novalue"], "--kafka-property"),
        (["--kafka-property", "=x"], "--kafka-property"),
        (["--weight", "view=1"], "view"),
        (["--weight", "click=much"], "--weight"),
        (["--execution-mode", "loopback"], "--execution-mode"),
        (["--variant", "a"], "--variant"),
        (["--variant", "a=much"], "--variant"),
        (["--unknown", "1"], "--unknown"),
        (["--tick", "1"], "--tick"),  # flink run must not guess either
        (["--list-length"], "--list-length"),
    ],
)
def test_malformed_option_is_named(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(arguments)
    assert caught.value.code == 2
    assert named in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("tick-ms", "-1"),
        ("tick-ms", "20000"),
        ("max-pending", "0"),
        ("list-length", "0"),
        ("list-length", "1001"),
        ("fast-half-life-s", "0"),
        ("slow-half-life-s", "nan"),
        ("fast-share", "1.01"),
        ("interactions", "0"),
        ("exclusions", "30001"),
        ("profile-ttl-days", "0"),
        ("waiting-retry-max-ms", "0"),
        ("max-future-s", "-1"),
        ("max-future-s", "79200.001"),
        ("max-future-s", "inf"),
        ("max-future-s", "nan"),
        ("write-batch-bytes", "0"),
        ("write-batch-rows", "-1"),
        ("write-in-flight", "0"),
        ("write-backoff-max-s", "0"),
        ("cassandra-port", "0"),
        ("cassandra-hosts", ""),
        ("cassandra-keyspace", "no space"),
        ("cassandra-consistency", "MOST"),
        ("space-switch-share", "0"),
        ("space-switch-share", "1.5"),
        ("dimensions", "-1"),
        ("weight", "click=nan"),
        ("weight", "click=-inf"),
        ("slow-half-life-s", "inf"),
    ],
)
def test_value_out_of_range_is_named(option: str, text: str) -> None:
    with pytest.raises(OptionError) as caught:
        parse([f"--{option}={text}"])
    words = option.removeprefix("write-").removeprefix("cassandra-").split("-")
    named = "half-lives" if "half" in words else words[0]
    assert named in str(caught.value)


def test_password_comes_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text(" hunter2 \n")
    arguments = ["--cassandra-username", "job", "--cassandra-password-file", str(file)]
    options = parse(arguments)
    assert (options.cassandra.username, options.cassandra.password) == ("job", " hunter2 ")
    assert "hunter2" not in repr(options)
    assert "hunter2" not in str(options)
    for alone in (arguments[:2], arguments[2:]):
        with pytest.raises(OptionError, match="both or neither"):
            parse(alone)
    file.write_text("\n")
    with pytest.raises(OptionError, match="is empty"):
        parse(arguments)
    file.unlink()
    with pytest.raises(OptionError, match=r"--cassandra-password-file: .* cannot be read"):
        parse(arguments)


def test_no_option_takes_a_password() -> None:
    known = {name for action in parser()._actions for name in action.option_strings}
    assert [name for name in known if "password" in name] == ["--cassandra-password-file"]


@pytest.mark.parametrize("client", ["kafka", "librdkafka"])
@pytest.mark.parametrize(
    "name", ["sasl.password.jaas", "ssl.key.password", "ssl.keystore.key", "oauth.client.secret"]
)
def test_a_secret_of_kafka_comes_from_a_file(client: str, name: str, tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("a=hunter2;\n")
    own = ["--librdkafka-property", "sasl.mechanism=OAUTHBEARER"]
    arguments = [f"--{client}-property", "a=1", f"--{client}-property-file", f"{name}={file}"]

    options = parse(own + arguments)

    told = {"a": "1", name: "a=hunter2;"}
    if client == "kafka":
        assert options.kafka.properties == told
    else:
        assert options.librdkafka_properties == {"sasl.mechanism": "OAUTHBEARER", **told}
        assert options.librdkafka().items() > told.items()
    assert "hunter2" not in repr(options)
    # Flink logs its command line.
    with pytest.raises(OptionError, match=rf"{name}: .*--{client}-property-file"):
        parse([f"--{client}-property", f"{name}=a=hunter2;"])
    file.unlink()
    with pytest.raises(OptionError, match=rf"{name}: .*cannot be read"):
        parse(arguments)


def test_a_property_that_librdkafka_cannot_have_is_named_at_submission() -> None:
    kerberos = ["--kafka-property", "sasl.mechanism=GSSAPI"]
    with pytest.raises(OptionError, match=r"sasl.mechanism GSSAPI.*--librdkafka-property"):
        parse(kerberos)
    options = parse([*kerberos, "--librdkafka-property", "sasl.mechanism=GSSAPI"])
    assert options.librdkafka() == {
        "bootstrap.servers": "127.0.0.1:9092",
        "sasl.mechanism": "GSSAPI",
    }


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"nope": "1"}, 'No such configuration property: "nope"'),
        ({"client.dns.lookup": "default"}, '"default" for configuration property "client.dns'),
        ({"sasl.mechanism": "NONE", "security.protocol": "SASL_SSL"}, "SASL mechanism: NONE"),
        ({"ssl.key.pem": "hunter2", "security.protocol": "SSL"}, "ssl.key.pem failed"),
        # librdkafka itself would show it.
        ({"sasl.mechanism": "hunter2", "security.protocol": "SASL_SSL",
          "sasl.password": "hunter2"}, "SASL mechanism: …"),
    ],
)  # fmt: skip
def test_what_librdkafka_refuses_is_said_at_submission(given: dict[str, str], said: str) -> None:
    with pytest.raises(OptionError, match=rf"{re.escape(said)}.*--librdkafka-property") as caught:
        JobOptions(librdkafka_properties=given).check_librdkafka()
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


def test_a_job_whose_settings_librdkafka_refuses_asks_nobody_and_is_not_submitted() -> None:
    with pytest.raises(OptionError, match="nope"):
        main(["--librdkafka-property", "nope=1"])


def test_files_of_the_task_managers_alone_are_not_looked_at() -> None:
    folder = "/only/there/"
    of_flink = {
        "security.protocol": "SSL",
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": folder + "ca.pem",
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": folder + "me.pem",
        "ssl.key.password": "hunter2",
    }
    JobOptions(kafka=KafkaOptions(properties=of_flink)).check_librdkafka()
    own = {"plugin.library.paths": folder + "x", "ssl.keystore.location": folder + "me.p12"}
    JobOptions(librdkafka_properties={"security.protocol": "SSL", **own}).check_librdkafka()


def test_lists_are_kept_as_long_as_profiles_and_the_job_knows_how_the_service_reads() -> None:
    defaults = parse([])
    assert defaults.writer.list_ttl_seconds == 90 * 86_400
    assert defaults.cassandra.read_consistency == "LOCAL_ONE"
    given = parse(["--profile-ttl-days", "0.5", "--cassandra-read-consistency", "LOCAL_QUORUM"])
    assert given.writer.list_ttl_seconds == 43_200
    assert given.cassandra.read_consistency == "LOCAL_QUORUM"
    # Cassandra refuses a row that would end after January 2038.
    longest = parse(["--profile-ttl-days", "36500"])
    assert longest.recommender.profile_ttl_days == 36_500
    assert longest.writer.list_ttl_seconds == 5 * 365 * 86_400
    with pytest.raises(OptionError, match="read_consistency"):
        parse(["--cassandra-read-consistency", "SOME"])
