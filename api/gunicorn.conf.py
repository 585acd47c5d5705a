"""How gunicorn serves the application; RECOMMENDER_API_ variables adapt it to a machine."""

from __future__ import annotations

import gc
import os
import tempfile
from pathlib import Path
from typing import Any

from api import logs
from api.access import check_binds, load_keys
from api.shared import FOLDER_VARIABLE, RATE_FILE_VARIABLE, forget_worker, make_folder

wsgi_app = "api.wsgi:app"

# Where to listen, separated by commas: loopback, unless there are API keys.
bind = os.environ.get("RECOMMENDER_API_BIND", "127.0.0.1:8080").split(",")

# Processes: one a core; Python serves with one core a process.
workers = int(os.environ.get("RECOMMENDER_API_WORKERS", str(os.cpu_count() or 1)))

# Requests that a process has under way. A request spends its time waiting for Cassandra, during
# which another thread can run. Also what keep-alive needs: the sync worker has none.
worker_class = "api.worker.StayingThreadWorker"
threads = int(os.environ.get("RECOMMENDER_API_THREADS", "8"))
keepalive = 30
# TLS, where nothing in front of the service does it.
certfile = os.environ.get("RECOMMENDER_API_TLS_CERTIFICATE")
keyfile = os.environ.get("RECOMMENDER_API_TLS_KEY")

# Seconds until a process that does not answer its parent is replaced, and what requests under way
# get when it is told to stop. Both far above the store's time limit of two seconds; the second also
# above what the flush of events may take (RECOMMENDER_API_FLUSH_SECONDS).
timeout = 30
graceful_timeout = 15 + int(os.environ.get("RECOMMENDER_API_FLUSH_SECONDS", "10"))

# The driver's threads and sockets do not survive a fork: each process imports and connects itself.
preload_app = False

# Sizes that gunicorn refuses by itself: an id has at most 128 characters, of 12 escaped bytes each.
limit_request_line = 4094
limit_request_fields = 64

# No access log: its lines would hold user ids, which are personal data. JSON lines for the rest.
accesslog = None
logger_class = "api.logs.NoAccessLog"
errorlog = "-"
loglevel = os.environ.get("RECOMMENDER_API_LOG_LEVEL", "info")
logconfig_dict = logs.config(loglevel)

# One thread a matrix product: the workers share the cores already.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

_keys = os.environ.get("RECOMMENDER_API_KEYS_FILE")
check_binds(bind, load_keys(Path(_keys)) if _keys is not None else ())

# What the workers share: the rate limits, and the numbers that /metrics adds up.
_shared = tempfile.TemporaryDirectory(prefix="recommender-api-")
os.environ[RATE_FILE_VARIABLE] = str(Path(_shared.name) / "rates")
Path(os.environ[RATE_FILE_VARIABLE]).touch()
os.environ[FOLDER_VARIABLE] = make_folder(Path(_shared.name))


def post_worker_init(worker: Any) -> None:
    """Begin to connect in the new process, so that its first request does not have to."""
    from api.services import services_of
    from api.wsgi import app

    # A thread that an answer of Cassandra wakes up is not to push aside the one that has read it,
    # which holds the interpreter: the two would change places twice. About 7 % of the requests.
    if hasattr(os, "SCHED_BATCH"):  # Linux; the threads to come inherit it
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    config = services_of(app).config
    worker.header_seconds, worker.client_seconds = config.header_seconds, config.client_seconds
    worker.log.info("worker %s connects to its stores", worker.pid)
    services_of(app).start()
    # What the imports made lives as long as the process: no collection walks over it again. A
    # read makes no cycles but the driver's few, and looking for them after every 700 new objects,
    # Python's default, was 4 % of its Python time (py-spy).
    gc.collect()
    gc.freeze()
    gc.set_threshold(5_000)


def worker_exit(server: Any, worker: Any) -> None:
    """Flush the events and close what the process has opened, after its last request."""
    from api.services import services_of
    from api.wsgi import app

    server.log.info("worker %s flushes and closes", worker.pid)
    services_of(app).stop()


def child_exit(server: Any, worker: Any) -> None:
    """Forget the gauges of a worker that has ended, and count what died with it."""
    lost = forget_worker(worker.pid)
    if lost:
        server.log.error("worker %s ended with %s events that Kafka may not have", worker.pid, lost)


def on_exit(_server: Any) -> None:
    """Delete what the workers shared."""
    _shared.cleanup()
