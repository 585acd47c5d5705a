"""A task's thread: whether Flink has asked it to end, and connections that an ended one left."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol, TypeVar

logger = logging.getLogger(__name__)


class Closeable(Protocol):
    """What holds connections."""

    def close(self) -> None:
        """Let go of them."""


_Closeable = TypeVar("_Closeable", bound=Closeable)

# What is open in this process, by its task's thread: native id and time of its start, since the
# ids of ended threads are given again.
_open: dict[tuple[int, str], list[Closeable]] = {}
_THREADS: Final = Path("/proc/self/task")


def _thread(native_id: int) -> tuple[int, str]:
    """Name a thread; one that has ended, and any where this is not Linux, has no time of start."""
    try:
        stat = (_THREADS / str(native_id) / "stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return native_id, ""
    return native_id, stat.rpartition(")")[2].split()[19]


def task_interrupted() -> bool:
    """Whether Flink has asked the thread that calls to end, as it does when it cancels its task.

    Flink interrupts a task's thread; Python code in it does not notice that by itself, and what
    waits on makes Flink's watchdog end the whole TaskManager.
    """
    try:
        from pemja import findClass  # there in thread mode only
    except ImportError:
        return False
    return bool(findClass("java.lang.Thread").currentThread().isInterrupted())


def close_orphans() -> None:
    """Close what tasks whose thread has ended left open.

    In thread mode PyFlink 2.3 does not close the Python functions of a task that failed or was
    cancelled, and the TaskManager's process goes on: each restart would leave a session with its
    threads behind.
    """
    if not _THREADS.is_dir():  # not Linux: sessions of failed tasks stay until the process ends
        return
    for thread in list(_open):
        if _thread(thread[0]) != thread:
            # Another task of this process may be at the same clearing up.
            for orphan in _open.pop(thread, []):
                logger.info("closing the Cassandra session that an ended task left open")
                orphan.close()


def open_writer(factory: Callable[[], _Closeable]) -> _Closeable:
    """Make a writer, or a reader, of this task's thread."""
    close_orphans()
    writer = factory()
    _open.setdefault(_thread(threading.get_native_id()), []).append(writer)
    return writer


def close_writer(writer: Closeable) -> None:
    """Close what :func:`open_writer` made in this thread."""
    thread = _thread(threading.get_native_id())
    left = [one for one in _open.pop(thread, []) if one is not writer]
    if left:
        _open[thread] = left
    writer.close()
