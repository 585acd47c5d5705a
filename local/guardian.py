"""Waits for the end of its parent, then kills every server with a pid file in the run folder."""

from __future__ import annotations

import contextlib
import signal
import sys
from pathlib import Path

from local.processes import ServerProcess


def main(run_dir: Path) -> None:
    """Block on stdin until the parent is gone, then leave nothing running."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.stdin.buffer.read()
    for pid_file in sorted(run_dir.glob("*.pid")):
        server = ServerProcess(pid_file.stem, run_dir, run_dir / "guardian.log")
        with contextlib.suppress(TimeoutError):
            server.kill()
        pid_file.unlink(missing_ok=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
