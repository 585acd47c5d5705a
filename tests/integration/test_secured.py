"""A Kafka and a Cassandra that let in only whom they know, over TLS: every part that talks to them.

Kafka speaks SASL_SSL (PLAIN), Cassandra asks for a password, and the authority that signed both
certificates is made for the test.
"""

from __future__ import annotations

import secrets
import ssl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import requests
import trustme
from cassandra.auth import PlainTextAuthProvider
from confluent_kafka import Producer
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from connectors.cassandra_schema import create_schema
from connectors.cassandra_session import CassandraOptions, connect
from connectors.dead_letter_tool import main as dead_letter_tool
from connectors.event_client import EventClient
from connectors.kafka_client import (
    AcknowledgedProducer,
    KafkaClientOptions,
    NotAcknowledgedError,
)
from connectors.topic_publisher import PublishError, TopicPublisher
from local.cassandra_server import CassandraSecurity, CassandraServer
from local.cli import CATALOGUE, EVENTS, TOPICS
from local.errors import StackError
from local.kafka_broker import KafkaBroker, KafkaSecurity
from local.processes import LOOPBACK, Guardian, free_ports
from tests.integration.helpers import JOB_SETTINGS, clustered_vectors, eventually
from tests.integration.service import serving
from udfs.schemas import encode_vector

KEYSPACE = "secured"
USER = "recommender"
PRODUCTS = 30
CLICK = {"user_id": "by-service", "type": "click", "product_id": "p1"}
_PLAIN = "org.apache.kafka.common.security.plain.PlainLoginModule required"


@dataclass(frozen=True)
class Secured:
    """Both servers, what a client needs, and what must never be seen."""

    kafka: KafkaBroker
    cassandra: CassandraServer
    folder: Path
    kafka_password: str
    cassandra_password: str

    @property
    def ca_file(self) -> Path:
        return self.folder / "ca.pem"

    @property
    def kafka_client(self) -> dict[str, str]:
        """The settings of librdkafka."""
        return kafka_client(self.ca_file, self.kafka_password)

    @property
    def cassandra_options(self) -> CassandraOptions:
        return CassandraOptions(
            hosts=(self.cassandra.host,),
            port=self.cassandra.port,
            keyspace=KEYSPACE,
            username=USER,
            password=self.cassandra_password,
            ssl_ca_file=str(self.ca_file),
        )

    @property
    def variables(self) -> dict[str, str]:
        """The service's."""
        return {
            **{
                f"RECOMMENDER_KAFKA_PROPERTY_{name.upper().replace('.', '_')}": value
                for name, value in self.kafka_client.items()
            },
            "RECOMMENDER_CASSANDRA_KEYSPACE": KEYSPACE,
            "RECOMMENDER_CASSANDRA_USERNAME": USER,
            "RECOMMENDER_CASSANDRA_PASSWORD": self.cassandra_password,
            "RECOMMENDER_CASSANDRA_SSL_CA_FILE": str(self.ca_file),
        }

    def assert_unseen(self, where: str, text: str) -> None:
        """Check that no password stands in ``text``."""
        for password in (self.kafka_password, self.cassandra_password):
            assert password not in text, f"a password stands in {where}"


def kafka_client(ca_file: Path, password: str) -> dict[str, str]:
    return {
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": "PLAIN",
        "sasl.username": USER,
        "sasl.password": password,
        "ssl.ca.location": str(ca_file),
    }


def jaas(password: str) -> str:
    """What a Java client of Kafka is told."""
    return f'{_PLAIN} username="{USER}" password="{password}";'


def server_pem(certificate: trustme.LeafCert) -> bytes:
    """A server's key and certificates in one file, the key as PKCS 8, which is what Java reads."""
    key = load_pem_private_key(certificate.private_key_pem.bytes(), None)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return b"".join([pem, *(one.bytes() for one in certificate.cert_chain_pems)])


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    root = tmp_path_factory.mktemp("secured")
    folder = tmp_path_factory.mktemp("secrets")
    authority = trustme.CA()
    ca_file, server_file = folder / "ca.pem", folder / "server.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    server_file.write_bytes(server_pem(authority.issue_cert(LOOPBACK)))
    kafka_password, cassandra_password = secrets.token_hex(16), secrets.token_hex(16)
    kafka_port, controller_port, cassandra_port, storage_port = free_ports(4)
    inter_broker = secrets.token_hex(16)
    (folder / "jaas").write_text(jaas(kafka_password))
    (folder / "cassandra-password").write_text(cassandra_password)
    kafka = KafkaBroker(
        root,
        kafka_port,
        controller_port,
        heap="256m",
        security=KafkaSecurity(
            "SASL_SSL",
            {
                "listener.security.protocol.map": "SASL_SSL:SASL_SSL,CONTROLLER:PLAINTEXT",
                "security.inter.broker.protocol": "SASL_SSL",
                "sasl.enabled.mechanisms": "PLAIN",
                "sasl.mechanism.inter.broker.protocol": "PLAIN",
                "listener.name.sasl_ssl.plain.sasl.jaas.config": (
                    f'{_PLAIN} username="broker" password="{inter_broker}"'
                    f' user_broker="{inter_broker}" user_{USER}="{kafka_password}";'
                ),
                "ssl.keystore.type": "PEM",
                "ssl.keystore.location": str(server_file),
                "ssl.truststore.type": "PEM",
                "ssl.truststore.location": str(ca_file),
            },
            kafka_client(ca_file, kafka_password),
        ),
    )
    cassandra = CassandraServer(
        root,
        cassandra_port,
        storage_port,
        heap="768m",
        security=CassandraSecurity(
            f"""
authenticator:
  class_name: PasswordAuthenticator
client_encryption_options:
  enabled: true
  optional: false
  keystore: {server_file}
  ssl_context_factory:
    class_name: org.apache.cassandra.security.PEMBasedSslContextFactory
""",
            {
                # Whom Cassandra knows at first.
                "auth_provider": PlainTextAuthProvider("cassandra", "cassandra"),
                "ssl_context": ssl.create_default_context(cafile=str(ca_file)),
            },
        ),
    )
    guardian = Guardian(kafka.process.run_dir)
    try:
        with ThreadPoolExecutor(2) as pool:
            for started in [pool.submit(kafka.start), pool.submit(cassandra.start)]:
                started.result()
        for topic, (_, config) in TOPICS.items():
            kafka.create_topic(topic, 2, config)
        cassandra.query(
            f"CREATE ROLE {USER} WITH PASSWORD = '{cassandra_password}' AND LOGIN = true"
        )
        yield Secured(kafka, cassandra, folder, kafka_password, cassandra_password)
    finally:
        with ThreadPoolExecutor(2) as pool:
            for stopped in [pool.submit(kafka.stop), pool.submit(cassandra.stop)]:
                stopped.result()
        guardian.release()


def client_properties(secured: Secured, folder: Path) -> Path:
    """The file of the dead-letter command."""
    file = folder / "client.properties"
    file.write_text("".join(f"{name}={value}\n" for name, value in secured.kafka_client.items()))
    return file


def job_arguments(secured: Secured) -> list[str]:
    return [
        *("--kafka-bootstrap", secured.kafka.bootstrap),
        *("--kafka-property", "security.protocol=SASL_SSL"),
        *("--kafka-property", "sasl.mechanism=PLAIN"),
        *("--kafka-property-file", f"sasl.jaas.config={secured.folder / 'jaas'}"),
        *("--kafka-property", "ssl.truststore.type=PEM"),
        *("--kafka-property", f"ssl.truststore.location={secured.ca_file}"),
        *("--cassandra-hosts", secured.cassandra.host),
        *("--cassandra-port", str(secured.cassandra.port)),
        *("--cassandra-keyspace", KEYSPACE),
        *("--cassandra-username", USER),
        *("--cassandra-password-file", str(secured.folder / "cassandra-password")),
        *("--cassandra-ssl-ca-file", str(secured.ca_file)),
    ]


def everything_flink_tells(url: str, job: str) -> Iterator[tuple[str, str]]:
    """What the JobManager's REST interface answers about itself and the job, by its path."""
    vertices = requests.get(f"{url}/jobs/{job}", timeout=10).json()["vertices"]
    for path in (
        *("/jobmanager/config", "/jobmanager/environment"),
        *(f"/jobs/{job}{rest}" for rest in ("", "/config", "/plan", "/exceptions", "/checkpoints")),
        *(f"/jobs/{job}/vertices/{one['id']}" for one in vertices),
    ):
        response = requests.get(url + path, timeout=10)
        assert response.ok, path
        yield path, response.text


def test_every_part_works_and_no_password_is_seen(
    stack: Any, secured: Secured, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster, session = connect(secured.cassandra_options, role="test")
    try:
        create_schema(session, KEYSPACE, {"class": "SimpleStrategy", "replication_factor": 1})
    finally:
        cluster.shutdown()
    job = stack.flink.run(
        "job/main.py", job_arguments(secured), parallelism=1, settings=JOB_SETTINGS
    )
    try:
        stack.flink.wait_running(job)
        with serving(secured, tmp_path, **secured.variables) as service:
            _works(stack, secured, service, job)
            _dead_letters(secured, tmp_path, capsys)
            service.stop()
            secured.assert_unseen("the service's log", service.log.read_text())
        for path, text in everything_flink_tells(stack.flink.rest_url, job):
            secured.assert_unseen(path, text)
    finally:
        stack.flink.cancel(job)
    for log in sorted((stack.root / "logs").iterdir()):
        secured.assert_unseen(str(log), log.read_text(errors="replace"))


def _works(stack: Any, secured: Secured, service: Any, job: str) -> None:
    """What comes in through the service and the client comes out of the service as lists."""
    products = [
        {
            "product_id": f"p{number}",
            "title": f"Lamp {number}",
            "category": "Lamps",
            "price": 5,
            "space": "test-v1",
            "embedding": encode_vector(vector),
        }
        for number, vector in enumerate(clustered_vectors(PRODUCTS))
    ]
    answer = service.ask("POST", "/v1/products:bulk", json={"products": products})
    assert answer.status_code == 202, answer.text
    assert service.ask("POST", "/v1/events", json=CLICK).status_code == 202
    with EventClient(secured.kafka.bootstrap, properties=secured.kafka_client) as client:
        client.track("by-client", "click", product_id="p2")
    assert client.counts.delivered == 1

    def missing() -> str:
        for user in ("by-service", "by-client"):
            answer = service.ask("GET", f"/v1/users/{user}/recommendations?limit=5").json()
            if answer.get("source") != "personal" or len(answer["items"]) != 5:
                return f"{user}: {answer}\n{stack.flink.exceptions(job)}"
        trending = service.ask("GET", "/v1/trending").json()
        if {"p1", "p2"} != {
            item["product_id"] for item in trending["items"] if item["source"] == "trending"
        }:
            return f"trending: {trending}"
        return ""

    eventually(missing, 60)


def _dead_letters(secured: Secured, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A bad record becomes a dead letter, which the command shows."""
    producer = Producer({"bootstrap.servers": secured.kafka.bootstrap, **secured.kafka_client})
    producer.produce(EVENTS, b"garbage", b"u")
    assert producer.flush(30) == 0
    config = client_properties(secured, folder)
    where = ["--bootstrap", secured.kafka.bootstrap, "--config", str(config)]

    def missing() -> str:
        status = dead_letter_tool([*where, "list"])
        output = capsys.readouterr()
        secured.assert_unseen("the command's output", output.out + output.err)
        return "" if status == 0 and "1 dead letters: not_json 1" in output.out else str(output)

    eventually(missing, 30)


@pytest.fixture(params=["password", "authority"])
def mistaken(
    request: pytest.FixtureRequest, secured: Secured, tmp_path: Path
) -> tuple[str, Secured]:
    """What is wrong, and a client's view of the servers in which it is."""
    authority = trustme.CA() if request.param == "authority" else None
    view = replace(secured, folder=tmp_path)
    for file in secured.folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    if authority is not None:
        authority.cert_pem.write_to_path(str(view.ca_file))
        return "authority", view
    view = replace(view, kafka_password="wrong", cassandra_password="wrong")
    (tmp_path / "jaas").write_text(jaas("wrong"))
    (tmp_path / "cassandra-password").write_text("wrong")
    return "password", view


# What each client says of it.
_KAFKA_SAYS = {"password": "Invalid username or password", "authority": "certificate verify failed"}
_CASSANDRA_SAYS = {
    "password": "it refuses the user name or the password",
    "authority": "its certificate is not of the authority that was given",
}


def test_clients_name_a_wrong_password_and_a_wrong_authority(
    mistaken: tuple[str, Secured],
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    wrong, view = mistaken
    bootstrap = view.kafka.bootstrap
    with EventClient(bootstrap, properties=view.kafka_client, flush_timeout_s=2) as client:
        client.track("u", "click", product_id="p")
    assert client.counts.lost == 1
    assert _KAFKA_SAYS[wrong] in caplog.text

    config = client_properties(view, tmp_path)
    assert dead_letter_tool(["--bootstrap", bootstrap, "--config", str(config), "list"]) == 1
    output = capsys.readouterr().err
    assert "Kafka does not let this client in" in output
    assert _KAFKA_SAYS[wrong] in output

    options = KafkaClientOptions(bootstrap, properties=view.kafka_client)
    with pytest.raises(PublishError, match=_KAFKA_SAYS[wrong]):
        TopicPublisher(options, CATALOGUE).publish("c", [], tmp_path)

    caplog.clear()
    producer = AcknowledgedProducer(options, timeout_s=2)
    with pytest.raises(NotAcknowledgedError):
        producer.send(CATALOGUE, [("p", None)])
    producer.close()
    assert _KAFKA_SAYS[wrong] in caplog.text

    with serving(view, tmp_path, 503, **view.variables) as service:
        stores = service.ask("GET", "/health/ready").json()["stores"]
        assert stores == {"cassandra": f"down: {_CASSANDRA_SAYS[wrong]}"}

        def unnamed() -> str:
            # Who follows the catalogue, and who sends events.
            service.ask("POST", "/v1/events", json=CLICK)
            loggers = {
                line["logger"] for line in service.lines() if _KAFKA_SAYS[wrong] in line["message"]
            }
            wanted = {"connectors.compacted_topic", "connectors.event_client"}
            return "" if wanted <= loggers else str(loggers)

        eventually(unnamed, 20)
        service.process.kill()  # an orderly stop waits for the event that Kafka does not take


def test_job_names_what_is_wrong(stack: Any, mistaken: tuple[str, Secured]) -> None:
    wrong, view = mistaken
    says = {"password": "Invalid username or password", "authority": "PKIX path"}[wrong]
    with pytest.raises(StackError, match=says):
        stack.flink.run("job/main.py", job_arguments(view), parallelism=1, settings=JOB_SETTINGS)
    # Without the look at the topics before the start, the job itself says it.
    arguments = [*job_arguments(view), "--topic-check=off"]
    job = stack.flink.run("job/main.py", arguments, parallelism=1, settings=JOB_SETTINGS)
    try:

        def unnamed() -> str:
            found = stack.flink.exceptions(job)
            return "" if any(says in one for one in found) else f"{len(found)}: {found[:1]}"

        eventually(unnamed, 30)
    finally:
        stack.flink.cancel(job)
