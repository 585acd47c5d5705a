"""Connections to Cassandra: the options, and the one place where a cluster object is configured."""

from __future__ import annotations

import logging
import math
import os
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final

from cassandra import ConsistencyLevel, OperationTimedOut
from cassandra.auth import PlainTextAuthProvider
from cassandra.cluster import EXEC_PROFILE_DEFAULT, Cluster, ExecutionProfile, NoHostAvailable
from cassandra.connection import ConnectionBusy, ConnectionException
from cassandra.policies import (
    DCAwareRoundRobinPolicy,
    ExponentialReconnectionPolicy,
    TokenAwarePolicy,
)
from cassandra.query import tuple_factory

from connectors.cassandra_connection import CONNECTION_CLASS
from connectors.cassandra_schema import validate_keyspace
from connectors.fast_reads import ReadProtocolHandler

logger = logging.getLogger(__name__)

# Execution profiles; the default profile (no name given) is for schema changes.
READ_PROFILE: Final = "read"
WRITE_PROFILE: Final = "write"

_CONSISTENCIES: Final = ("ONE", "LOCAL_ONE", "TWO", "THREE", "QUORUM", "LOCAL_QUORUM", "ALL")

# What says that no server has answered; any other error is an answer.
UNANSWERED: Final = (NoHostAvailable, OperationTimedOut, ConnectionException, ConnectionBusy)
RECONNECT_AFTER_SECONDS: Final = 5.0

# A schema change waits for all nodes and may flush; it happens once, at deployment.
_SCHEMA_TIMEOUT_SECONDS: Final = 30.0
# The first attempt soon after a restart, and never so late that a person would restart by hand.
_RECONNECT_BASE_SECONDS: Final = 0.5
_RECONNECT_MAX_SECONDS: Final = 10.0


class DataCenterError(ValueError):
    """``local_dc`` is missing where it is needed, or names a data centre that is not there."""


@dataclass(frozen=True, slots=True)
class CassandraOptions:
    """Where Cassandra is and how it is asked; ``repr`` never shows the password.

    Attributes:
        hosts: Contact points, names or addresses; the driver finds the other nodes.
        port: Native protocol port of every node.
        keyspace: Lower-case CQL identifier.
        local_dc: The data centre whose nodes are asked; None where the cluster has only one.
        username: With ``password``, or neither.
        password: With ``username``, or neither.
        ssl_ca_file: PEM file of the authority that signed the nodes' certificates; None: no TLS.
        ssl_check_hostname: Whether a certificate must name the node's address.
        read_consistency: LOCAL_ONE: a list one generation old is better than a slow one.
        write_consistency: LOCAL_QUORUM: an acknowledged event survives the loss of a node. With a
            replication factor of 1 both levels mean the same.
        read_timeout_seconds: Client-side time limit of one read.
        write_timeout_seconds: Client-side time limit of one write.
        connect_timeout_seconds: Time limit to open one connection.
        protocol_version: 5 from Cassandra 4.0 on, 4 for older and for compatible servers.
    """

    hosts: tuple[str, ...] = ("127.0.0.1",)
    port: int = 9042
    keyspace: str = "recommender"
    local_dc: str | None = None
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    ssl_ca_file: str | None = None
    ssl_check_hostname: bool = True
    read_consistency: str = "LOCAL_ONE"
    write_consistency: str = "LOCAL_QUORUM"
    read_timeout_seconds: float = 2.0
    write_timeout_seconds: float = 10.0
    connect_timeout_seconds: float = 5.0
    protocol_version: int = 5

    def __post_init__(self) -> None:
        """Reject what the driver would only find at the first request.

        Raises:
            ValueError: An option is not valid; the message names it.
        """
        if not self.hosts or not all(host.strip() for host in self.hosts):
            msg = "cassandra hosts: at least one name or address is needed, and none may be empty"
            raise ValueError(msg)
        if not 1 <= self.port <= 65_535:
            msg = f"cassandra port {self.port}: must be 1 to 65535"
            raise ValueError(msg)
        validate_keyspace(self.keyspace)
        if (self.username is None) != (self.password is None):
            msg = "cassandra username and password: give both or neither"
            raise ValueError(msg)
        for name in ("read_consistency", "write_consistency"):
            if getattr(self, name) not in _CONSISTENCIES:
                msg = (
                    f"cassandra {name} {getattr(self, name)!r}: one of {', '.join(_CONSISTENCIES)}"
                )
                raise ValueError(msg)
        for name in ("read_timeout_seconds", "write_timeout_seconds", "connect_timeout_seconds"):
            seconds = getattr(self, name)
            if not (math.isfinite(seconds) and seconds > 0):
                msg = f"cassandra {name} {seconds}: must be a positive number of seconds"
                raise ValueError(msg)
        if self.protocol_version not in (4, 5):
            msg = f"cassandra protocol_version {self.protocol_version}: 4 or 5"
            raise ValueError(msg)

    @classmethod
    def from_env(
        cls, prefix: str = "RECOMMENDER_", environ: Mapping[str, str] | None = None
    ) -> CassandraOptions:
        """Read ``<prefix>CASSANDRA_<FIELD>`` of every field; what is not set keeps its default.

        ``HOSTS`` is separated by commas. A set but empty variable is an error, not a default.

        Args:
            prefix: Of the project's variables.
            environ: The environment; None: the process's own.

        Raises:
            ValueError: A value is not valid; the message names its variable.
        """
        source = os.environ if environ is None else environ
        values: dict[str, Any] = {}
        for option in fields(cls):
            variable = f"{prefix}CASSANDRA_{option.name.upper()}"
            raw = source.get(variable)
            if raw is None:
                continue
            if not raw.strip():
                msg = f"{variable} is set but empty; unset it for the default"
                raise ValueError(msg)
            try:
                values[option.name] = _PARSERS.get(option.name, str)(raw)
            except ValueError as error:
                # The value itself stays out of the message: it may stand in the wrong variable.
                msg = f"{variable}: {_MEANINGS[option.name]}"
                raise ValueError(msg) from error
        known = {f"{prefix}CASSANDRA_{option.name.upper()}" for option in fields(cls)}
        for variable in sorted(source):
            # Not an error: the prefix belongs to the whole project. Yet a mistyped variable that
            # is ignored in silence leaves its default in force.
            if variable.startswith(f"{prefix}CASSANDRA_") and variable not in known:
                logger.warning("%s is no Cassandra option and is ignored here", variable)
        return cls(**values)


def _hosts(raw: str) -> tuple[str, ...]:
    return tuple(host.strip() for host in raw.split(","))


def _boolean(raw: str) -> bool:
    try:
        return {"true": True, "1": True, "false": False, "0": False}[raw.strip().lower()]
    except KeyError as error:
        msg = f"{raw!r} is not a boolean"
        raise ValueError(msg) from error


_PARSERS: Final[Mapping[str, Callable[[str], Any]]] = {
    "hosts": _hosts,
    "port": int,
    "ssl_check_hostname": _boolean,
    "read_consistency": lambda raw: raw.strip().upper(),
    "write_consistency": lambda raw: raw.strip().upper(),
    "read_timeout_seconds": float,
    "write_timeout_seconds": float,
    "connect_timeout_seconds": float,
    "protocol_version": int,
}
_MEANINGS: Final[Mapping[str, str]] = {
    "port": "must be a whole number",
    "ssl_check_hostname": "must be true or false",
    "read_timeout_seconds": "must be a number of seconds",
    "write_timeout_seconds": "must be a number of seconds",
    "connect_timeout_seconds": "must be a number of seconds",
    "protocol_version": "must be 4 or 5",
}


def connect(options: CassandraOptions, *, role: str) -> tuple[Cluster, Any]:
    """Open a cluster and a session with the profiles `READ_PROFILE` and `WRITE_PROFILE`.

    Call it in the process that uses it: threads and sockets of the driver do not survive a fork.
    Rows of the read profile are plain tuples. The session has no default keyspace, so that it can
    create one. Both objects are the caller's to end, with ``cluster.shutdown()``.

    Args:
        options: Where and how.
        role: Who asks ("api", "job", "schema"); the server lists it among its clients.

    Raises:
        DataCenterError: ``local_dc`` is unknown to the cluster, or not given while the cluster
            has several; the message lists them.
        cassandra.cluster.NoHostAvailable: No contact point answers.
        cassandra.UnresolvableContactPoints: No contact point's name can be resolved.
        OSError: The authority's file cannot be read (``ssl.SSLError``: is no certificate).
    """
    cluster = Cluster(
        contact_points=list(options.hosts),
        port=options.port,
        auth_provider=_auth_provider(options),
        ssl_context=_ssl_context(options),
        connection_class=CONNECTION_CLASS,
        execution_profiles={
            EXEC_PROFILE_DEFAULT: ExecutionProfile(
                load_balancing_policy=_policy(options),
                consistency_level=_consistency(options.write_consistency),
                request_timeout=_SCHEMA_TIMEOUT_SECONDS,
            ),
            READ_PROFILE: ExecutionProfile(
                load_balancing_policy=_policy(options),
                consistency_level=_consistency(options.read_consistency),
                request_timeout=options.read_timeout_seconds,
                # A tuple costs a third of a named tuple, and the statement fixes the columns.
                row_factory=tuple_factory,
            ),
            WRITE_PROFILE: ExecutionProfile(
                load_balancing_policy=_policy(options),
                consistency_level=_consistency(options.write_consistency),
                request_timeout=options.write_timeout_seconds,
            ),
        },
        # Stated, not negotiated: the driver would start at a protocol that only DSE speaks and
        # log a warning a step on its way down.
        protocol_version=options.protocol_version,
        # Rows are small and the table is compressed on disk: LZ4 on the wire costs more processor
        # time than it saves network.
        compression=False,
        connect_timeout=options.connect_timeout_seconds,
        control_connection_timeout=options.connect_timeout_seconds,
        # No limit to the attempts: the default gives up after 64, and then a node that comes back
        # after a night is never used again.
        reconnection_policy=ExponentialReconnectionPolicy(
            _RECONNECT_BASE_SECONDS, _RECONNECT_MAX_SECONDS, max_attempts=None
        ),
        # A restarted node has forgotten its prepared statements; give them back before its first
        # request rather than at it.
        prepare_on_all_hosts=True,
        reprepare_on_up=True,
        # Token awareness needs the ring and the keyspaces' replication.
        token_metadata_enabled=True,
        schema_metadata_enabled=True,
        application_name=f"recommender-{role}",
        # Insights are a DSE feature; without it they are only a failing query at start.
        monitor_reporting_enabled=False,
    )
    try:
        try:
            session = cluster.connect()
        except NoHostAvailable as error:
            # With a local_dc that does not exist all nodes are ignored, and the driver says only
            # that it could not connect to any server.
            check_data_center(options.local_dc, _data_centers(cluster), cause=error)
            raise
        check_data_center(options.local_dc, _data_centers(cluster))
    except BaseException:
        cluster.shutdown()
        raise
    session.client_protocol_handler = ReadProtocolHandler
    return cluster, session


class Silence:
    """Tells when nobody has answered for so long that a new connection is worth a try.

    The driver resolves the names of its contact points once, and afterwards only tries the
    addresses that it has learnt. A cluster that comes back under other addresses behind the same
    name is found by a new connection alone.

    Args:
        seconds: Of silence before the first try, and between two.
    """

    def __init__(self, seconds: float = RECONNECT_AFTER_SECONDS) -> None:
        self._seconds = seconds
        self._since: float | None = None

    def end(self) -> None:
        """Note that a server has answered."""
        self._since = None

    def lasts(self) -> bool:
        """Note that nobody has answered; return whether it is time for a new connection."""
        now = time.monotonic()
        if self._since is None:
            self._since = now
            return False
        if now - self._since < self._seconds:
            return False
        self._since = now
        return True


def overlaps(write_consistency: str, read_consistency: str) -> bool:
    """Tell whether a read meets every acknowledged write, whatever the replication factor.

    Two quorums do where they are of one kind, and LOCAL_QUORUM of one data centre.
    """
    return "ALL" in (write_consistency, read_consistency) or (
        write_consistency == read_consistency and write_consistency in ("QUORUM", "LOCAL_QUORUM")
    )


def check_data_center(
    local_dc: str | None, found: frozenset[str], *, cause: BaseException | None = None
) -> None:
    """Check that it is clear whose nodes are local.

    Without ``local_dc`` there must be one data centre only: where there are more, the driver would
    take that of the contact point which answers first, and LOCAL_QUORUM would mean another place
    from start to start.

    Args:
        local_dc: As configured.
        found: The cluster's data centres; empty where nothing was learnt yet.
        cause: What failed because of it, if something did.

    Raises:
        DataCenterError: The message lists what was found.
    """
    listed = ", ".join(sorted(found))
    if local_dc is None and len(found) > 1:
        msg = f"local_dc is needed: the cluster has the data centres {listed}"
        raise DataCenterError(msg) from cause
    if local_dc is not None and found and local_dc not in found:
        msg = f"local_dc {local_dc!r} is not in the cluster, which has {listed}"
        raise DataCenterError(msg) from cause


def _data_centers(cluster: Cluster) -> frozenset[str]:
    # A contact point that has not answered has no data centre yet.
    return frozenset(host.datacenter for host in cluster.metadata.all_hosts() if host.datacenter)


def _policy(options: CassandraOptions) -> TokenAwarePolicy:
    # One instance a profile: a policy keeps state about the nodes. Replicas are shuffled so that
    # a popular user does not always ask the same one.
    return TokenAwarePolicy(
        DCAwareRoundRobinPolicy(local_dc=options.local_dc or ""), shuffle_replicas=True
    )


def _consistency(name: str) -> int:
    return int(ConsistencyLevel.name_to_value[name])


def _auth_provider(options: CassandraOptions) -> PlainTextAuthProvider | None:
    if options.username is None:
        return None
    return PlainTextAuthProvider(username=options.username, password=options.password)


def _ssl_context(options: CassandraOptions) -> ssl.SSLContext | None:
    if options.ssl_ca_file is None:
        return None
    context = ssl.create_default_context(cafile=options.ssl_ca_file)
    context.check_hostname = options.ssl_check_hostname
    return context
