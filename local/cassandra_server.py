"""One Cassandra node on loopback."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cassandra.cluster import EXEC_PROFILE_DEFAULT, Cluster, ExecutionProfile, NoHostAvailable
from cassandra.policies import WhiteListRoundRobinPolicy

from local.data_server import DataServer
from local.preflight import check_jars, find_java, java_env
from local.processes import LOOPBACK, PROJECT, is_listening

CommitLog = Literal["periodic", "group", "batch"]

_LOGBACK = PROJECT / "local" / "cassandra" / "logback.xml"

_COMMIT_LOG = {
    # Acknowledged before the disk has it. Even a kill -9 of the process alone can lose the last
    # 100 ms: what stands after the last chained marker of the commit log is not replayed.
    "periodic": "commitlog_sync: periodic\ncommitlog_sync_period: 10000ms",
    # Acknowledged when the disk has it; writes of a window share one fsync.
    "group": "commitlog_sync: group\ncommitlog_sync_group_window: 10ms",
    # Acknowledged when the disk has it, at once.
    "batch": "commitlog_sync: batch",
}

_YAML = """\
cluster_name: recommender-local
num_tokens: 16
partitioner: org.apache.cassandra.dht.Murmur3Partitioner
endpoint_snitch: SimpleSnitch
seed_provider:
  - class_name: org.apache.cassandra.locator.SimpleSeedProvider
    parameters:
      - seeds: "{host}:{storage_port}"
listen_address: {host}
rpc_address: {host}
storage_port: {storage_port}
native_transport_port: {port}
auto_bootstrap: false
data_file_directories: ["{data}/data"]
commitlog_directory: "{data}/commitlog"
saved_caches_directory: "{data}/saved_caches"
hints_directory: "{data}/hints"
cdc_raw_directory: "{data}/cdc_raw"
{commit_log}
commitlog_segment_size: 32MiB
commitlog_total_space: 1024MiB
commitlog_disk_access_mode: legacy
disk_failure_policy: die
commit_failure_policy: die
# Off-heap trie memtables and BTI sstables: the 5.0 way, less garbage.
storage_compatibility_mode: NONE
memtable_allocation_type: offheap_objects
memtable:
  configurations:
    trie:
      class_name: TrieMemtable
    default:
      inherits: trie
sstable:
  selected_format: bti
# Two cores: the defaults (32 and 32) only switch threads.
concurrent_reads: 8
concurrent_writes: 16
concurrent_compactors: 1
memtable_flush_writers: 1
compaction_throughput: 32MiB/s
auto_snapshot: false
hinted_handoff_enabled: false
trickle_fsync: true
batch_size_warn_threshold: 64KiB
batch_size_fail_threshold: 640KiB
# The job groups rows by replica, so a batch over many partitions costs the coordinator no fan-out.
unlogged_batch_across_partitions_warn_threshold: 1000
"""

# conf/jvm17-server.options of the Cassandra 5.0 distribution.
_JAVA_17 = [
    "-Djdk.attach.allowAttachSelf=true",
    "-Dio.netty.tryReflectionSetAccessible=true",
    *(
        f"--add-exports={package}=ALL-UNNAMED"
        for package in (
            "java.base/jdk.internal.misc",
            "java.base/java.lang.ref",
            "java.management.rmi/com.sun.jmx.remote.internal.rmi",
            "java.rmi/sun.rmi.registry",
            "java.rmi/sun.rmi.server",
            "java.sql/java.sql",
            "jdk.unsupported/sun.misc",
        )
    ),
    *(
        f"--add-opens={package}=ALL-UNNAMED"
        for package in (
            "java.base/java.io",
            "java.base/java.lang",
            "java.base/java.lang.module",
            "java.base/java.lang.reflect",
            "java.base/java.net",
            "java.base/java.nio",
            "java.base/java.util",
            "java.base/java.util.concurrent",
            "java.base/java.util.concurrent.atomic",
            "java.base/jdk.internal.loader",
            "java.base/jdk.internal.math",
            "java.base/jdk.internal.module",
            "java.base/jdk.internal.ref",
            "java.base/jdk.internal.reflect",
            "java.base/jdk.internal.util.jar",
            "java.base/sun.nio.ch",
            "jdk.management/com.sun.management.internal",
        )
    ),
]

# One node waits for nobody.
_FAST_START = [
    "-Dcassandra.skip_wait_for_gossip_to_settle=0",
    "-Dcassandra.ring_delay_ms=0",
    "-Dcassandra.superuser_setup_delay_ms=0",
    "-Dcassandra.disable_auth_caches_remote_configuration=true",
    "-Dcassandra.ignore_dc=true",
]


@dataclass(frozen=True)
class CassandraSecurity:
    """How a node is reached that does not talk to everybody.

    Attributes:
        yaml: Further lines of the node's configuration.
        client: Further arguments of the driver's cluster.
    """

    yaml: str = field(default="", repr=False)
    client: Mapping[str, Any] = field(default_factory=dict, repr=False)


class CassandraServer(DataServer):
    """The server process, and sessions to it."""

    def __init__(
        self,
        root: Path,
        port: int,
        storage_port: int,
        heap: str = "1536m",
        commit_log: CommitLog = "periodic",
        host: str = LOOPBACK,
        security: CassandraSecurity | None = None,
    ) -> None:
        super().__init__("cassandra", "cassandra.yaml", root, port, heap, host)
        self.storage_port = storage_port
        self.commit_log = commit_log
        self._security = security or CassandraSecurity()

    def _spawn(self) -> None:
        jars = check_jars("cassandra")
        self._conf.write_text(
            _YAML.format(
                host=self.host,
                port=self.port,
                storage_port=self.storage_port,
                data=self._data,
                commit_log=_COMMIT_LOG[self.commit_log],
            )
            + self._security.yaml
        )
        agent = next(iter(sorted(jars.glob("jamm-*.jar"))))
        self.process.spawn(
            [
                find_java(),
                f"-Xms{self.heap}",
                f"-Xmx{self.heap}",
                "-Xss512k",
                "-XX:+UseG1GC",
                "-XX:MaxGCPauseMillis=100",
                "-XX:+ParallelRefProcEnabled",
                "-XX:+PerfDisableSharedMem",
                "-XX:+ExitOnOutOfMemoryError",
                "-XX:MaxDirectMemorySize=1g",
                f"-javaagent:{agent}",
                *_JAVA_17,
                *_FAST_START,
                "-Dcassandra-foreground=yes",
                f"-Dcassandra.config={self._conf.as_uri()}",
                f"-Dcassandra.storagedir={self._data}",
                f"-Dcassandra.logdir={self._log.parent}",
                f"-Dlogback.configurationFile={_LOGBACK}",
                f"-Dstack.log.file={self._log}",
                "-cp",
                f"{self._conf.parent}:{jars}/*",
                "org.apache.cassandra.service.CassandraDaemon",
            ],
            env=java_env(),
        )

    def cluster(self, request_timeout: float = 10.0) -> Cluster:
        """A driver cluster for this node; the caller shuts it down."""
        profile = ExecutionProfile(
            load_balancing_policy=WhiteListRoundRobinPolicy([self.host]),
            request_timeout=request_timeout,
        )
        return Cluster(
            [self.host],
            port=self.port,
            execution_profiles={EXEC_PROFILE_DEFAULT: profile},
            connect_timeout=5,
            control_connection_timeout=request_timeout,
            protocol_version=5,
            # Read anew by each cluster, which takes seconds on a busy machine with many keyspaces.
            schema_metadata_enabled=False,
            token_metadata_enabled=False,
            **self._security.client,
        )

    def query(self, cql: str, timeout: float = 10.0) -> list[Any]:
        """Run one statement in a session of its own: for checks, not for traffic."""
        with self.cluster(timeout) as cluster:
            return list(cluster.connect().execute(cql))

    def answers(self) -> bool:
        """Whether the native port answers a CQL query."""
        if not is_listening(self.port, self.host):
            return False
        try:
            return bool(self.query("SELECT release_version FROM system.local"))
        except (NoHostAvailable, OSError, RuntimeError):
            return False
