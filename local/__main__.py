"""The stack's commands: `python -m local up`, and what `python -m local --help` lists."""

from __future__ import annotations

from local.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
