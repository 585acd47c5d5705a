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

A thread belongs to a client from a request's first byte to its answer's last, and gunicorn sets no
limit to either. Here a connection is shut down whose client does not send a request's head in time,
or takes too long for the rest and the answer; the thread then sees an end. The main thread looks
once a second. A time limit of the socket would be for each of the client's bytes anew, and a system
call more for each request.

gunicorn waits in the main thread until the client has closed its side of a connection that is not
kept, up to two seconds: a few clients that do not would stop the worker, and have it killed as
one that hangs. Here the thread of the connection waits, and for less.
"""

from __future__ import annotations

import select
import socket
import time
from contextlib import suppress
from typing import Any, Final

from gunicorn import util
from gunicorn.http.body import LengthReader
from gunicorn.workers.gthread import _DEFER, ThreadWorker

# How long a thread waits at its connection before it gives it back, seconds. Its clients are
# services that ask again at once; a browser's connection is for gunicorn's poller.
STAY_SECONDS: Final = 0.5
# How soon a waiting thread sees that it is needed elsewhere, or that the worker stops, seconds.
LOOK_SECONDS: Final = 0.02
# How long a thread waits for the first byte of a new connection, seconds; the poller waits longer.
FIRST_BYTE_SECONDS: Final = 0.1
# How long a thread waits for the client's end of a connection that is not kept, seconds: closed
# before the client has read the answer, with something of the client unread, it could cut it.
END_SECONDS: Final = 0.5
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

    @property
    def plain(self) -> Any:
        """The socket itself."""
        return self._sock

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


def _plain(sock: Any) -> Any:
    """Return the socket behind a `SparingSocket`; with none, what was given."""
    return sock.plain if isinstance(sock, SparingSocket) else sock


def _end(sock: socket.socket) -> None:
    """Wait a moment for the client's end; whoever closes ``sock`` then need not wait any more."""
    # It may have gone, or be closed already.
    with suppress(OSError):
        # gunicorn's wait closes what it is given. Closing the socket itself is the main thread's.
        util.close_graceful(socket.fromfd(sock.fileno(), sock.family, sock.type), END_SECONDS)
        # The socket itself, since TLS would wait for the client.
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


class StayingThreadWorker(ThreadWorker):
    """A `gthread` worker; see the module's docstring.

    Attributes:
        header_seconds: What a client may take to send the head of a request.
        client_seconds: What it may take from there to the last byte of the answer.
    """

    header_seconds = 10.0
    client_seconds = 60.0

    def __init__(self, *args: Any, **given: Any) -> None:
        super().__init__(*args, **given)
        # Connection that a thread is busy with -> until when it may be.
        self._until: dict[Any, float] = {}

    def murder_keepalived(self, force: bool = False) -> None:
        """Close what was kept for too long; called in each turn of the main loop, at least 1/s."""
        super().murder_keepalived(force)
        now = time.monotonic()
        # In one step, since threads come and go.
        for conn, until in list(self._until.items()):
            if until < now and not conn.is_http2 and self._until.pop(conn, None) is not None:
                self.log.debug("a client was too slow; its connection is closed")
                try:
                    # The socket itself: TLS would wait for the client.
                    socket.socket.shutdown(_plain(conn.sock), socket.SHUT_RDWR)
                except OSError:
                    # It has gone meanwhile.
                    continue

    def _handle(self, conn: Any) -> Any:
        """Handle one request as gunicorn does, within the time limits.

        Returns:
            What gunicorn's own method returns.
        """
        if not conn.initialized and not conn.wait_for_data(FIRST_BYTE_SECONDS):
            # gunicorn would wait for five seconds before it gives the connection to the poller.
            return _DEFER
        self._until[conn] = time.monotonic() + self.header_seconds
        try:
            return super().handle(conn)
        finally:
            self._until.pop(conn, None)

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
        result = self._requests(conn)
        if not result:
            _end(_plain(conn.sock))
        return result

    def _requests(self, conn: Any) -> Any:
        result = self._handle(conn)
        # True: the connection is kept. Anything else is gunicorn's business. HTTP/2 has loops of
        # its own, and TLS may hold decrypted bytes that no poll shows.
        if result is not True or conn.is_http2 or self.cfg.is_ssl:
            return result
        plain = conn.sock
        conn.sock = SparingSocket(plain)
        try:
            while result is True and self._next_comes(conn):
                result = self._handle(conn)
        finally:
            conn.sock = plain
        return result

    def handle_request(self, req: Any, conn: Any) -> Any:
        """Handle one request, and send its answer's head together with the body.

        Returns:
            What gunicorn's own method returns.
        """
        # It has begun by now, whatever is left of it.
        self._until[conn] = time.monotonic() + self.client_seconds
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
