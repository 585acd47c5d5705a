"""gunicorn's threaded worker, with threads that stay with their connection while there are enough.

The worker hands each request of a kept connection from the main thread to a pool and back: two
changes of threads, a pipe and two changes of the poller, all under one interpreter lock. Where
there are no more connections than threads, nobody needs the thread elsewhere; it waits for the
next request itself. With more connections all is as in gunicorn.
"""

from __future__ import annotations

import select
import time
from typing import Any, Final

from gunicorn.workers.gthread import ThreadWorker

# How long a thread waits at its connection before it gives it back, seconds. Its clients are
# services that ask again at once; a browser's connection is for gunicorn's poller.
STAY_SECONDS: Final = 0.5
# How soon a waiting thread sees that it is needed elsewhere, or that the worker stops, seconds.
LOOK_SECONDS: Final = 0.02


class StayingThreadWorker(ThreadWorker):
    """A `gthread` worker; see the module's docstring."""

    def handle(self, conn: Any) -> Any:
        """Handle requests of a connection until none comes, or the thread is needed elsewhere.

        Returns:
            What gunicorn's own method returns for the last of them.
        """
        while True:
            result = super().handle(conn)
            # True: the connection is kept. Anything else is gunicorn's business.
            if result is not True or not self._next_comes(conn):
                return result

    def _next_comes(self, conn: Any) -> bool:
        """Wait for the next request of ``conn``; False where it should go back to the poller."""
        # HTTP/2 has loops of its own, TLS may hold decrypted bytes that no poll shows, and what
        # was read ahead of the next request is seen to by gunicorn.
        if conn.is_http2 or self.cfg.is_ssl or conn.parser.unreader.buf.getvalue():
            return False
        poller = select.poll()
        poller.register(conn.sock, select.POLLIN)
        end = time.monotonic() + STAY_SECONDS
        while self._idle():
            if poller.poll(LOOK_SECONDS * 1000):
                return True
            if time.monotonic() > end:
                return False
        return False

    def _idle(self) -> bool:
        """Tell whether no other connection can need this thread."""
        return bool(self.alive and self.nr_conns <= self.cfg.threads)
