"""Tells librdkafka how to reach Kafka in the words in which Flink's Java client was told."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

# Java's name of a property, and librdkafka's, of what is called or meant alike.
_SAME: Final = {
    "security.protocol": "security.protocol",
    "client.id": "client.id",
    "client.rack": "client.rack",
    "client.dns.lookup": "client.dns.lookup",
    "ssl.truststore.certificates": "ssl.ca.pem",
    "ssl.keystore.certificate.chain": "ssl.certificate.pem",
    "ssl.keystore.key": "ssl.key.pem",
    "ssl.key.password": "ssl.key.password",
}
# What says who the client is and whom it trusts; all else tunes the Java client alone.
_SECURITY: Final = ("sasl.", "ssl.")
_MECHANISMS: Final = {
    "PLAIN": "PlainLoginModule",
    "SCRAM-SHA-256": "ScramLoginModule",
    "SCRAM-SHA-512": "ScramLoginModule",
}
_JAAS: Final = re.compile(
    r"\s*[\w.$]*?(\w+)\s+(?:required|requisite|sufficient|optional)\b(.*);\s*", re.DOTALL
)
# In quotes a backslash keeps what follows, but for Java's names of other characters (\n, \101).
_JAAS_OPTION: Final = re.compile(
    r"""\s*([\w.]+)\s*=\s*((["'])(?:(?!\3)[^\\]|\\[^0-7abfnrtv])*\3|[^\s;"'\\]+)(?=\s|$)"""
)
_REMEDY: Final = (
    "name what librdkafka, which reads products and related, shall have instead:"
    " --librdkafka-property NAME=VALUE or --librdkafka-property-file NAME=FILE"
)


def librdkafka_settings(
    bootstrap: str, properties: Mapping[str, str], overrides: Mapping[str, str]
) -> dict[str, str]:
    """Translate the properties of the Java client.

    Plain and SCRAM logins, PEM files or texts, and a PKCS 12 key are translated; properties that
    neither start with ``sasl.`` nor ``ssl.`` nor have the same name in both tune the Java client,
    and are left out.

    Args:
        bootstrap: Bootstrap servers, host:port separated by commas.
        properties: The Java client's.
        overrides: librdkafka's own, which hold beside or instead of what is translated; where one
            starts with ``sasl.``, or ``ssl.``, the Java client's of that kind need no translation.

    Raises:
        ValueError: A property cannot be translated; the message names it and the remedy, and
            shows no value.
    """
    made = {"bootstrap.servers": bootstrap}
    for name, value in properties.items():
        if name in _SAME:
            made[_SAME[name]] = value
    told = {kind for kind in _SECURITY if any(name.startswith(kind) for name in overrides)}
    security = {
        name: value
        for name, value in properties.items()
        if name.startswith(_SECURITY) and name not in _SAME and not name.startswith(tuple(told))
    }
    made |= _login(security)
    made |= _stores(security)
    if "ssl.endpoint.identification.algorithm" in security:
        # Java is told of none by an empty text.
        algorithm = security.pop("ssl.endpoint.identification.algorithm")
        made["ssl.endpoint.identification.algorithm"] = algorithm or "none"
    if security:
        msg = f"Kafka property {min(security)} has no translation; {_REMEDY}"
        raise ValueError(msg)
    return made | dict(overrides)


def _login(security: dict[str, str]) -> dict[str, str]:
    """Take the login out of the properties."""
    mechanism, jaas = security.pop("sasl.mechanism", None), security.pop("sasl.jaas.config", None)
    if mechanism is None and jaas is None:
        return {}
    module = _MECHANISMS.get(mechanism or "")
    if module is None:
        msg = f"Kafka property sasl.mechanism {mechanism} has no translation; {_REMEDY}"
        raise ValueError(msg)
    found = _JAAS.fullmatch(jaas or "")
    told = found[2].rstrip() if found else ""
    options = {
        name: re.sub(r"\\(.)", r"\1", value[1:-1], flags=re.DOTALL) if quote else value
        for name, value, quote in _JAAS_OPTION.findall(told)
    }
    is_whole = not _JAAS_OPTION.sub("", told) and {"username", "password"} <= options.keys()
    if found is None or found[1] != module or not is_whole:
        msg = (
            f"Kafka property sasl.jaas.config is no {module} with a username and a password;"
            f" {_REMEDY}"
        )
        raise ValueError(msg)
    return {
        "sasl.mechanism": str(mechanism),
        "sasl.username": options["username"],
        "sasl.password": options["password"],
    }


def _stores(security: dict[str, str]) -> dict[str, str]:
    """Take the files of certificates and keys out of the properties, where they can be read."""
    made: dict[str, str] = {}
    for store, kinds in (
        ("truststore", {"PEM": ("ssl.ca.location",)}),
        (
            "keystore",
            {
                "PEM": ("ssl.certificate.location", "ssl.key.location"),
                "PKCS12": ("ssl.keystore.location",),
            },
        ),
    ):
        kind = security.get(f"ssl.{store}.type", "JKS").upper()
        location = security.get(f"ssl.{store}.location")
        if location is not None and kind not in kinds:
            msg = f"Kafka property ssl.{store}.type {kind} has no translation; {_REMEDY}"
            raise ValueError(msg)
        if location is not None:
            made |= dict.fromkeys(kinds[kind], location)
        if kind == "PKCS12" and f"ssl.{store}.password" in security:
            made["ssl.keystore.password"] = security.pop(f"ssl.{store}.password")
        for name in ("type", "location"):
            security.pop(f"ssl.{store}.{name}", None)
    return made
