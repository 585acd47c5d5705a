"""What the machine must have before anything starts: Java 17, memory, the jars, free ports."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import psutil

from local.errors import StackError
from local.processes import PROJECT, is_free

JAVA_VERSION = 17  # the only version that both Cassandra 5.0 and Flink 2.3 support
JARS = PROJECT / "build" / "jars"
_MIB = 1024 * 1024
_BUSY = "stop the other server, or choose another port, for example `make run {option}={other}`"


def java_major(version_text: str) -> int | None:
    """The major version in the output of `java -version`."""
    found = re.search(r'version "(?:1\.)?(\d+)', version_text)
    return int(found.group(1)) if found else None


@functools.cache
def find_java() -> Path:
    """The java of a JDK 17: from JAVA_HOME, else from the path."""
    remedy = (
        f"install a JDK {JAVA_VERSION} (Debian, Ubuntu: apt-get install openjdk-17-jdk-headless; "
        "macOS: brew install openjdk@17) or set JAVA_HOME to one"
    )
    home = os.environ.get("JAVA_HOME")
    found = str(Path(home) / "bin" / "java") if home else shutil.which("java")
    if not found or not Path(found).exists():
        raise StackError("java", "not found", remedy)
    out = subprocess.run([found, "-version"], capture_output=True, text=True, check=False)
    major = java_major(out.stderr + out.stdout)
    if major != JAVA_VERSION:
        raise StackError("java", f"{found} is version {major}, {JAVA_VERSION} is needed", remedy)
    return Path(found)


def java_env() -> dict[str, str]:
    """The environment of this process with JAVA_HOME set to the JDK that was found."""
    return {**os.environ, "JAVA_HOME": str(find_java().resolve().parent.parent)}


def check_memory(needed_mib: int, available_mib: int | None = None) -> None:
    """Raise unless this much memory is free."""
    if available_mib is None:
        available_mib = psutil.virtual_memory().available // _MIB
    if available_mib < needed_mib:
        raise StackError(
            "memory",
            f"{needed_mib} MiB are needed, {available_mib} MiB are available",
            "close other programs, or start with less: `make run TASK_MANAGERS=1 "
            "TASK_MANAGER_MEMORY=1024m CASSANDRA_HEAP=768m`",
        )


def check_jars(name: str) -> Path:
    """The folder with a server's jars."""
    folder = JARS / name
    if not any(folder.glob("*.jar")):
        raise StackError(name, "its jars are not there", "run `make jars` (needs Maven)")
    return folder


def check_ports(ports: Mapping[str, int]) -> None:
    """Raise for the first busy port; `ports` maps the make variable to the number."""
    for option, port in ports.items():
        if not is_free(port):
            remedy = _BUSY.format(option=option, other=port + 10_000)
            server = option.removesuffix("_PORT").lower()
            raise StackError(server, f"port {port} is in use", remedy)
