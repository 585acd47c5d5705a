"""gunicorn's threaded worker, with threads that stay with their connection while there are enough.

The worker hands each request of a kept connection from the main thread to a pool and back: two
changes of threads, a pipe and two changes of the poller, all under one interpreter lock. Where
there are no more connections than threads, nobody needs the thread elsewhere; it waits for the
next request itself. With more connections all is as in gunicorn.

Connections come to the workers unevenly: whoever wakes up first takes them, and who is awake is who
has some already. With one interpreter lock a worker, seven connections beside one are much slower
than four beside four. So a worker with connections lets one with fewer go first.

At each system call a thread gives the interpreter away and has to wait for it again. So an
answer's head and body leave together, a socket that blocks is not told to, and a request without
a body is not searched for the rest of it.
"""

from __future__ import annotations

import select
import time
from typing import Any, Final

from gunicorn.http.body import LengthReader
from gunicorn.workers.gthread import ThreadWorker

# How long a thread waits at its connection before it gives it back, seconds. Its clients are
# services that ask again at once; a browser's connection is for gunicorn's poller.
STAY_SECONDS: Final = 0.5
# How soon a waiting thread sees that it is needed elsewhere, or that the worker stops, seconds.
LOOK_SECONDS: Final = 0.02
# How long a worker lets others go first for each connection that it has, and at most, seconds.
YIELD_SECONDS: Final = 0.0005
MAX_YIELD_SECONDS: Final = 0.005


class SparingSocket:
    """A connection's socket that leaves out what costs a thread the interpreter for nothing.

    An answer's head, which is what is sent first after `begin`, waits for what follows it.
    """

    def __init__(self, sock: Any) -> None:
        self._sock = sock
        self._head: bytes | None = None
        self._is_first = True

    def begin(self) -> None:
        """Expect an answer's head."""
        self._is_first = True

    def sendall(self, data: bytes) -> None:
        """Send, or keep what is the first; see `flush`."""
        if self._is_first:
            self._is_first, self._head = False, data
            return
        head, self._head = self._head, None
        self._sock.sendall(data if head is None else head + data)

    def flush(self) -> None:
        """Send what waits, since nothing may come: an answer can have no body."""
        head, self._head = self._head, None
        if head is not None:
            self._sock.sendall(head)

    def setblocking(self, flag: bool) -> None:
        """Change the mode, if it is another."""
        if flag != (self._sock.gettimeout() is None):
            self._sock.setblocking(flag)

    def __getattr__(self, name: str) -> Any:
        """Everything else is done by the socket itself, after what waits."""
        self.flush()
        return getattr(self._sock, name)


class StayingThreadWorker(ThreadWorker):
    """A `gthread` worker; see the module's docstring."""

    def accept(self, listener: Any) -> None:
        """Accept a connection, if no worker with fewer has meanwhile."""
        if self.cfg.workers > 1 and self.nr_conns:
            time.sleep(min(self.nr_conns * YIELD_SECONDS, MAX_YIELD_SECONDS))
        super().accept(listener)

    def handle(self, conn: Any) -> Any:
        """Handle requests of a connection until none comes, or the thread is needed elsewhere.

        Returns:
            What gunicorn's own method returns for the last of them.
        """
        result = super().handle(conn)
        # True: the connection is kept. Anything else is gunicorn's business. HTTP/2 has loops of
        # its own, and TLS may hold decrypted bytes that no poll shows.
        if result is not True or conn.is_http2 or self.cfg.is_ssl:
            return result
        plain = conn.sock
        conn.sock = SparingSocket(plain)
        try:
            while result is True and self._next_comes(conn):
                result = super().handle(conn)
        finally:
            conn.sock = plain
        return result

    def handle_request(self, req: Any, conn: Any) -> Any:
        """Handle one request, and send its answer's head together with the body.

        Returns:
            What gunicorn's own method returns.
        """
        sock = conn.sock
        conn.sock = sparing = sock if isinstance(sock, SparingSocket) else SparingSocket(sock)
        sparing.begin()
        try:
            return super().handle_request(req, conn)
        finally:
            conn.sock = sock
            sparing.flush()

    def _keepalive_after(self, conn: Any, keepalive: Any) -> bool:
        """Tell whether the connection can be kept; gunicorn's own drains the request's body."""
        reader = conn.parser.mesg.body.reader
        if keepalive and isinstance(reader, LengthReader) and reader.length == 0:
            return True
        return bool(super()._keepalive_after(conn, keepalive))

    def _next_comes(self, conn: Any) -> bool:
        """Wait for the next request of ``conn``; False where it should go back to the poller."""
        # What was read ahead of the next request is seen to by gunicorn.
        if conn.parser.unreader.buf.getvalue():
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
