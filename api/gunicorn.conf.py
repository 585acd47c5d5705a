"""How gunicorn serves the application; RECOMMENDER_API_ variables adapt it to a machine."""

from __future__ import annotations

import os
from typing import Any

wsgi_app = "api.wsgi:app"

# Where to listen: loopback only, since the service has no access control of its own yet.
bind = os.environ.get("RECOMMENDER_API_BIND", "127.0.0.1:8080")

# Processes: one a core; Python serves with one core a process.
workers = int(os.environ.get("RECOMMENDER_API_WORKERS", str(os.cpu_count() or 1)))

# Requests that a process has under way. A request spends its time waiting for Cassandra, during
# which another thread can run. Also what keep-alive needs: the sync worker has none.
worker_class = "gthread"
threads = int(os.environ.get("RECOMMENDER_API_THREADS", "8"))
keepalive = 30

# Seconds until a process that does not answer its parent is replaced, and what requests under way
# get when it is told to stop. Both far above the store's time limit of two seconds.
timeout = 30
graceful_timeout = 15

# The driver's threads and sockets do not survive a fork: each process imports and connects itself.
preload_app = False

# Sizes that gunicorn refuses by itself: an id has at most 128 characters, of 12 escaped bytes each.
limit_request_line = 4094
limit_request_fields = 64

# No access log: its lines would hold user ids, which are personal data.
accesslog = None
errorlog = "-"
loglevel = os.environ.get("RECOMMENDER_API_LOG_LEVEL", "info")


def post_worker_init(worker: Any) -> None:
    """Begin to connect in the new process, so that its first request does not have to."""
    from api.services import services_of
    from api.wsgi import app

    worker.log.info("worker %s connects to its stores", worker.pid)
    services_of(app).start()


def worker_exit(server: Any, worker: Any) -> None:
    """Close what the process has opened, after its last request."""
    from api.services import services_of
    from api.wsgi import app

    server.log.info("worker %s closes its stores", worker.pid)
    services_of(app).stop()
