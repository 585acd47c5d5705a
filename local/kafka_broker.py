"""One Kafka broker (KRaft, broker and controller in one JVM) on loopback."""

from __future__ import annotations

import subprocess
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic

from local.data_server import DataServer
from local.errors import StackError
from local.preflight import check_jars, find_java, java_env
from local.processes import LOOPBACK, PROJECT, is_listening

_LOG4J = PROJECT / "local" / "kafka" / "log4j2.properties"

# Only what differs from Kafka's defaults.
_PROPERTIES = """\
process.roles=broker,controller
node.id=1
listeners={protocol}://{host}:{port},CONTROLLER://{host}:{controller_port}
advertised.listeners={protocol}://{host}:{port}
controller.listener.names=CONTROLLER
controller.quorum.voters=1@{host}:{controller_port}
log.dirs={data}
# A mistyped topic must fail, not appear.
auto.create.topics.enable=false
# One broker: nothing can be replicated.
default.replication.factor=1
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
offsets.topic.num.partitions=4
transaction.state.log.num.partitions=4
share.coordinator.state.topic.num.partitions=2
# Consumers start at once.
group.initial.rebalance.delay.ms=0
# After kill -9 the controller refuses the same node until its old session ends (default 9 s).
broker.session.timeout.ms=4000
broker.heartbeat.interval.ms=1000
num.network.threads=2
num.io.threads=4
log.cleaner.dedupe.buffer.size=33554432
# A durable log on one machine: the page cache survives kill -9 of the broker, so no fsync.
log.segment.bytes=268435456
log.retention.hours=168
"""


@dataclass(frozen=True)
class KafkaSecurity:
    """How a broker is reached that does not talk to everybody.

    Attributes:
        protocol: Of the clients' listener, such as SASL_SSL.
        broker: Further properties of the broker.
        client: Further librdkafka settings of the clients.
    """

    protocol: str = "PLAINTEXT"
    broker: Mapping[str, str] = field(default_factory=dict, repr=False)
    client: Mapping[str, str] = field(default_factory=dict, repr=False)


class KafkaBroker(DataServer):
    """The broker process and the few things that the stack asks of it."""

    def __init__(
        self,
        root: Path,
        port: int,
        controller_port: int,
        heap: str = "512m",
        host: str = LOOPBACK,
        security: KafkaSecurity | None = None,
    ) -> None:
        super().__init__("kafka", "server.properties", root, port, heap, host)
        self.controller_port = controller_port
        self._security = security or KafkaSecurity()

    @property
    def bootstrap(self) -> str:
        """The address for clients, host:port."""
        return f"{self.host}:{self.port}"

    def _java(self, *options: str) -> list[str]:
        jars = check_jars("kafka")
        return [str(find_java()), *options, "-cp", f"{jars}/*"]

    def _format(self) -> None:
        """Give a new data folder its cluster id; a second start finds it done."""
        if (self._data / "meta.properties").exists():
            return
        cluster = urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        done = subprocess.run(
            [
                *self._java("-Xmx128m", "-XX:TieredStopAtLevel=1"),
                # In one word: an id may begin with a dash.
                *("kafka.tools.StorageTool", "format", f"--cluster-id={cluster}"),
                *("--config", str(self._conf)),
            ],
            capture_output=True,
            text=True,
            env=java_env(),
            check=False,
        )
        if done.returncode:
            log = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
            raise StackError("kafka", "its data folder cannot be formatted", "see the log", log)

    def _client(self, **settings: Any) -> dict[str, Any]:
        # The client's own complaints while the broker is down are expected.
        where = {"bootstrap.servers": self.bootstrap, "log_level": 0}
        return {**where, **self._security.client, **settings}

    def _spawn(self) -> None:
        properties = _PROPERTIES.format(
            host=self.host,
            port=self.port,
            controller_port=self.controller_port,
            data=self._data,
            protocol=self._security.protocol,
        )
        further = [f"{name}={value}\n" for name, value in self._security.broker.items()]
        self._conf.write_text(properties + "".join(further))
        self._format()
        self.process.spawn(
            [
                *self._java(
                    f"-Xmx{self.heap}",
                    f"-Xms{self.heap}",
                    "-XX:+UseG1GC",
                    "-XX:MaxGCPauseMillis=20",
                    "-XX:+ExitOnOutOfMemoryError",
                    "-Djava.awt.headless=true",
                    f"-Dlog4j2.configurationFile={_LOG4J.as_uri()}",
                    f"-Dstack.log.file={self._log}",
                ),
                *("kafka.Kafka", str(self._conf)),
            ],
            env=java_env(),
        )

    def admin(self) -> AdminClient:
        """A new admin client."""
        return AdminClient(self._client())

    def answers(self) -> bool:
        """Whether the broker is registered and answers a metadata request."""
        if not is_listening(self.port, self.host):
            return False
        try:
            return len(self.admin().list_topics(timeout=3).brokers) > 0
        except KafkaException:
            return False

    def create_topic(
        self, name: str, partitions: int, config: Mapping[str, str] | None = None
    ) -> bool:
        """Create a topic; False if it was there already."""
        topic = NewTopic(name, num_partitions=partitions, replication_factor=1, config=config or {})
        admin = self.admin()  # must outlive its futures
        try:
            admin.create_topics([topic], operation_timeout=20)[name].result(30)
        except KafkaException as error:
            if error.args[0].code() == KafkaError.TOPIC_ALREADY_EXISTS:
                return False
            raise StackError("kafka", f"topic {name} cannot be created: {error}") from error
        return True

    def delete_topic(self, name: str) -> None:
        """Delete a topic and its data."""
        admin = self.admin()
        admin.delete_topics([name], operation_timeout=20)[name].result(30)

    def topic_config(self, name: str) -> dict[str, str]:
        """The configuration of a topic."""
        resource = ConfigResource(ConfigResource.Type.TOPIC, name)
        admin = self.admin()
        entries = admin.describe_configs([resource])[resource].result(10)
        return {key: str(entry.value) for key, entry in entries.items()}

    def end_offsets(self, topic: str) -> dict[int, int]:
        """The end offset of each partition; empty for a topic that is not there."""
        consumer = Consumer(self._client(**{"group.id": "stack-offsets"}))
        try:
            known = consumer.list_topics(topic, timeout=10).topics[topic]
            if known.error is not None:
                return {}
            return {
                partition: consumer.get_watermark_offsets(
                    TopicPartition(topic, partition), timeout=10
                )[1]
                for partition in known.partitions
            }
        finally:
            consumer.close()
