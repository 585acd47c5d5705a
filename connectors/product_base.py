"""Reads what the rows of products say of them: what the next update of a product is merged into."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from itertools import count
from typing import Any, Final

from cassandra import ConsistencyLevel

from connectors.cassandra_schema import statement
from connectors.cassandra_session import READ_PROFILE, CassandraOptions, connect, overlaps
from connectors.patience import TRANSIENT, Patience
from udfs.product_record import NO_RECORD, ProductRecord, decode_record
from udfs.schemas import RejectedError

logger = logging.getLogger(__name__)

# Partitions that one coordinator reads for one request.
_CHUNK: Final = 64
_STATEMENT: Final = "select_product_bases"


def base_consistency(write: str, read: str) -> str:
    """Return the level at which a read meets every write: that of reads, or of writes, or ALL."""
    return next((level for level in (read, write) if overlaps(write, level)), "ALL")


class ProductBases:
    """Reads through a session of its own; not safe for several threads."""

    def __init__(
        self,
        options: CassandraOptions,
        *,
        sleep: Callable[[float], None] = time.sleep,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> None:
        """Connect and prepare the statement.

        Args:
            options: Where Cassandra is.
            sleep: Waits.
            interrupted: Whether a wait for Cassandra shall end.

        Raises:
            cassandra.cluster.NoHostAvailable: Cassandra cannot be reached.
            cassandra.InvalidRequest: The table does not exist, or lacks a column.
        """
        self._options = options
        level = base_consistency(options.write_consistency, options.read_consistency)
        self._consistency = ConsistencyLevel.name_to_value[level]
        self._patience = Patience(self._reconnect, sleep=sleep, interrupted=interrupted)
        self._cluster: Any = None
        self._connect()

    def read(self, product_ids: Sequence[str]) -> dict[str, ProductRecord]:
        """Return what is known of products, by id, however long Cassandra is away.

        A row of earlier versions, which has no record, gives its columns and no vectors.
        """
        chunks = [product_ids[at : at + _CHUNK] for at in range(0, len(product_ids), _CHUNK)]
        # All at once, and then one by one, as an answer comes or does not.
        futures = [self._ask(chunk) for chunk in chunks]
        found: dict[str, ProductRecord] = {}
        for chunk, future in zip(chunks, futures, strict=True):
            found.update((row[0], _base(row)) for row in self._rows(chunk, future))
        return found

    def close(self) -> None:
        """Close the session."""
        self._cluster.shutdown()

    def _ask(self, product_ids: Sequence[str]) -> Any:
        bound = self._prepared.bind((product_ids,))
        bound.consistency_level = self._consistency
        return self._session.execute_async(bound, execution_profile=READ_PROFILE)

    def _rows(self, product_ids: Sequence[str], future: Any) -> list[tuple[Any, ...]]:
        for attempt in count(1):
            try:
                # A page has 5,000 rows: there is one.
                rows = list(future.result())
            except TRANSIENT as error:
                self._patience.wait(attempt, error)
                future = self._ask(product_ids)
            else:
                self._patience.answered()
                return rows
        raise AssertionError  # unreachable

    def _connect(self) -> None:
        cluster, session = connect(self._options, role="job")
        try:
            prepared = session.prepare(statement(_STATEMENT, self._options.keyspace))
        except BaseException:
            cluster.shutdown()
            raise
        before = self._cluster
        self._cluster, self._session, self._prepared = cluster, session, prepared
        if before is not None:
            before.shutdown()

    def _reconnect(self) -> None:
        try:
            self._connect()
        except Exception as error:
            # Whatever it is, what the driver knows already is tried on.
            logger.warning("no new connection to Cassandra: %s", error)
        else:
            logger.warning("connected to Cassandra anew, as it did not answer where it was")


def _base(row: tuple[Any, ...]) -> ProductRecord:
    """Read a row of ``select_product_bases``."""
    product_id, title, category, price, in_stock, updated_at, record = row
    if record:
        try:
            return decode_record(product_id.encode().decode("latin-1"), record)
        except RejectedError as error:
            # Of another program, or of a later version: what is shown of the product still holds.
            logger.error("the record of product %.200s cannot be read: %s", product_id, error)
    # The driver's times are of UTC and do not say so.
    age = timedelta() if updated_at is None else updated_at - datetime(1970, 1, 1)
    updated_ms = age // timedelta(milliseconds=1)
    return ProductRecord(
        NO_RECORD,
        product_id,
        title or "",
        category or "",
        None if price is None or math.isnan(price) else price,
        bool(in_stock),
        {},
        False,
        updated_ms,
        # The row's own time of writing is at most so: the driver reads times as float seconds.
        updated_ms * 1000 + 1999,
    )
