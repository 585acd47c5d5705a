"""The translation of the Java client's properties for librdkafka."""

from __future__ import annotations

import pytest
from confluent_kafka import Consumer
from hypothesis import given
from hypothesis import strategies as st

from connectors.librdkafka import librdkafka_settings

PLAIN = "org.apache.kafka.common.security.plain.PlainLoginModule"
SCRAM = "org.apache.kafka.common.security.scram.ScramLoginModule"
TEXT = st.text(st.characters(min_codepoint=32, exclude_characters='"\\', exclude_categories=["Cs"]))


def translated(properties: dict[str, str], **overrides: str) -> dict[str, str]:
    made = librdkafka_settings(
        "k:1", properties, {name.replace("_", "."): value for name, value in overrides.items()}
    )
    assert made.pop("bootstrap.servers") == "k:1"
    return made


def test_properties_that_tune_the_java_client_are_left_out() -> None:
    assert translated({"max.poll.records": "7", "client.rack": "a"}) == {"client.rack": "a"}


@pytest.mark.parametrize(
    ("mechanism", "module"),
    [
        ("PLAIN", PLAIN),
        ("SCRAM-SHA-512", SCRAM),
        ("SCRAM-SHA-256", "org.apache.flink.kafka.shaded." + SCRAM),
    ],
)
def test_a_login_is_translated(mechanism: str, module: str) -> None:
    made = translated(
        {
            "security.protocol": "SASL_SSL",
            "sasl.mechanism": mechanism,
            "sasl.jaas.config": f'{module} required username="me"\n password="p\\"a\\\\s;=";',
        }
    )
    assert made == {
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": mechanism,
        "sasl.username": "me",
        "sasl.password": 'p"a\\s;=',
    }


@given(TEXT.filter(bool), TEXT.filter(bool))
def test_any_name_and_password_arrive_as_they_are(user: str, password: str) -> None:
    jaas = f'{PLAIN} required username="{user}" password="{password}";'
    made = translated({"sasl.mechanism": "PLAIN", "sasl.jaas.config": jaas})
    assert (made["sasl.username"], made["sasl.password"]) == (user, password)


def test_pem_files_and_texts_are_translated() -> None:
    assert translated(
        {
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": "/ca",
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": "/me",
            "ssl.key.password": "x",
            "ssl.endpoint.identification.algorithm": "",
        }
    ) == {
        "ssl.ca.location": "/ca",
        "ssl.certificate.location": "/me",
        "ssl.key.location": "/me",
        "ssl.key.password": "x",
        "ssl.endpoint.identification.algorithm": "none",
    }
    assert translated(
        {
            "ssl.truststore.type": "PEM",
            "ssl.truststore.certificates": "ca",
            "ssl.keystore.type": "PEM",
            "ssl.keystore.certificate.chain": "me",
            "ssl.keystore.key": "key",
        }
    ) == {"ssl.ca.pem": "ca", "ssl.certificate.pem": "me", "ssl.key.pem": "key"}
    assert translated(
        {
            "ssl.keystore.type": "PKCS12",
            "ssl.keystore.location": "/me",
            "ssl.keystore.password": "x",
        }
    ) == {"ssl.keystore.location": "/me", "ssl.keystore.password": "x"}


def test_librdkafka_knows_every_name() -> None:
    properties = {
        "client.id": "a",
        "client.rack": "b",
        "client.dns.lookup": "use_all_dns_ips",
        "security.protocol": "sasl_plaintext",
        "sasl.mechanism": "SCRAM-SHA-512",
        "sasl.jaas.config": f"{SCRAM} required username=me password=secret;",
        "ssl.endpoint.identification.algorithm": "https",
    }
    Consumer({"group.id": "g", **translated(properties)}).close()


@pytest.mark.parametrize(
    ("properties", "named"),
    [
        ({"sasl.mechanism": "GSSAPI"}, "sasl.mechanism GSSAPI"),
        ({"sasl.jaas.config": "hunter2"}, "sasl.mechanism"),
        ({"sasl.mechanism": "PLAIN", "sasl.jaas.config": "hunter2"}, "sasl.jaas.config"),
        (
            {
                "sasl.mechanism": "PLAIN",
                "sasl.jaas.config": f'{SCRAM} required username="a" password="hunter2";',
            },
            "sasl.jaas.config",
        ),
        ({"sasl.login.callback.handler.class": "hunter2"}, "sasl.login.callback.handler.class"),
        ({"ssl.truststore.location": "/x.jks"}, "ssl.truststore.type JKS"),
        ({"ssl.keystore.location": "/x.jks", "ssl.keystore.type": "JKS"}, "ssl.keystore.type"),
        ({"ssl.truststore.password": "hunter2"}, "ssl.truststore.password"),
        ({"ssl.cipher.suites": "x"}, "ssl.cipher.suites"),
    ],
)
def test_what_has_no_translation_is_named_with_the_remedy(
    properties: dict[str, str], named: str
) -> None:
    with pytest.raises(ValueError, match=rf"{named}.*--librdkafka-property") as caught:
        translated(properties)
    assert "hunter2" not in str(caught.value)
    # librdkafka's own properties of the same kind stand for all of it.
    kind = next(iter(properties)).split(".")[0]
    override = {"ssl": "ssl_ca_location", "sasl": "sasl_mechanism"}[kind]
    assert translated(properties, **{override: "y"}) == {override.replace("_", "."): "y"}


def test_an_override_replaces_what_was_translated() -> None:
    assert translated({"security.protocol": "SSL"}, security_protocol="PLAINTEXT") == {
        "security.protocol": "PLAINTEXT"
    }


@given(TEXT.filter(lambda text: "'" not in text))
def test_single_quotes_hold_a_value_as_double_ones_do(password: str) -> None:
    jaas = f"{PLAIN} required username='me' password='{password}';"
    made = translated({"sasl.mechanism": "PLAIN", "sasl.jaas.config": jaas})
    assert (made["sasl.username"], made["sasl.password"]) == ("me", password)


@pytest.mark.parametrize(
    "options",
    [
        "username=me password='hunter2",
        "username=me password='hunter2'x",
        'username=me password="hunter2" stray',
        "username='m'e password=hunter2",
        "stray username=me password=hunter2",
        "username=me password=hunter2; b.OtherModule required a=b",
        # A tab for Java's client, and not a t.
        'username=me password="hunter2\\t"',
    ],
)
def test_a_login_that_is_not_read_to_its_end_is_refused(options: str) -> None:
    jaas = f"{PLAIN} required {options};"
    with pytest.raises(ValueError, match=r"sasl\.jaas\.config.*--librdkafka-property") as caught:
        translated({"sasl.mechanism": "PLAIN", "sasl.jaas.config": jaas})
    assert "hunter2" not in str(caught.value)
