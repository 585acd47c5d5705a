"""Reads flink-conf/config.yaml and writes the run folder's copy with this machine's values."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from local.processes import PROJECT

SOURCE = PROJECT / "flink-conf"
_KEY = re.compile(r"^([A-Za-z][\w.-]*):(?:\s|$)")


def keys(text: str) -> list[str]:
    """The keys of a flat config.yaml, in order."""
    return [found.group(1) for line in text.splitlines() if (found := _KEY.match(line))]


def merge(text: str, values: Mapping[str, str | int | bool]) -> str:
    """The text with `values` set: a key that stands there is replaced, others are appended."""
    kept: list[str] = []
    dropping = False
    for line in text.splitlines():
        found = _KEY.match(line)
        if found:
            dropping = found.group(1) in values
        elif not line.startswith((" ", "\t")):
            dropping = False
        if not dropping:
            kept.append(line)
    kept += ["", "# --- this machine, written by local/ at each start ---"]
    # JSON is YAML, and quotes paths with odd characters.
    kept += [f"{key}: {json.dumps(value)}" for key, value in values.items()]
    return "\n".join(kept) + "\n"


def write(conf_dir: Path, values: Mapping[str, str | int | bool]) -> None:
    """Write a Flink configuration folder: config.yaml and the logging files."""
    conf_dir.mkdir(parents=True, exist_ok=True)
    text = (SOURCE / "config.yaml").read_text(encoding="utf-8")
    (conf_dir / "config.yaml").write_text(merge(text, values), encoding="utf-8")
    for file in SOURCE.glob("*.properties"):
        (conf_dir / file.name).write_text(file.read_text(encoding="utf-8"), encoding="utf-8")
