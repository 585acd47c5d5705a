"""A connection of the Cassandra driver that sends in the thread that asks.

The driver's own puts each request into a queue and wakes its event loop, which starts to watch for
the socket to be writable, runs again to learn that it is, sends, and runs again to stop watching:
three or four turns of a loop and as many changes of the thread that has the interpreter, for a few
hundred bytes that the socket takes at once. Here they are sent at once, and only what the socket
does not take goes that way.
"""

from __future__ import annotations

import logging
from threading import Lock
from typing import Any

from cassandra.cluster import Cluster
from cassandra.connection import Connection

logger = logging.getLogger(__name__)

try:
    from cassandra.io.libevreactor import LibevConnection
except ImportError as error:  # the driver was built without libev
    logger.warning("the Cassandra driver has no libev: %s; requests go through its queue", error)
    CONNECTION_CLASS: type[Connection] = Cluster.connection_class
else:

    class SendingConnection(LibevConnection):
        """See the module's docstring."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            # Who sends: a caller, or the event loop with what was left. Never both at once.
            self._sending = Lock()
            super().__init__(*args, **kwargs)

        def push(self, data: bytes) -> None:
            """Send a message, or as much of it as the socket takes; the rest waits for the loop."""
            # One TLS connection cannot be read and written by two threads at once.
            if self.ssl_context is not None:
                super().push(data)
                return
            with self._sending:
                sent = 0
                # What waits comes first.
                if not self.deque:
                    try:
                        sent = self._socket.send(data)
                    except OSError:
                        # Full, or broken: the event loop will meet it too, and ends what is broken
                        # where nobody holds a lock or is in the middle of a request.
                        sent = 0
                if sent < len(data):
                    super().push(data[sent:])

        def handle_write(self, *args: Any) -> None:
            """Send what waits; called by the event loop."""
            with self._sending:
                super().handle_write(*args)

    CONNECTION_CLASS = SendingConnection
