"""A complete Flink home in build/flink, from the PyFlink package and the connector jars.

PyFlink's package is almost a Flink distribution. What is added: the connectors, and
`flink-python` in lib/ instead of only opt/: from opt/ every job loads it with its own class
loader, and the second job in a TaskManager dies, because a native library loads once a JVM.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
from pathlib import Path

import pyflink

from local.preflight import check_jars
from local.processes import PROJECT

FLINK_HOME = PROJECT / "build" / "flink"


def site_packages() -> Path:
    """The site-packages of this environment."""
    return Path(sysconfig.get_path("purelib"))


def _wanted(package: Path, connectors: Path) -> dict[str, Path]:
    lib = {f"lib/{jar.name}": jar for jar in (package / "lib").glob("*.jar")}
    python = {f"lib/{jar.name}": jar for jar in (package / "opt").glob("flink-python-*.jar")}
    kafka = {f"lib/{jar.name}": jar for jar in connectors.glob("*.jar")}
    # Not the folder: `flink run` walks it without following a link, and finds no flink-python.
    opt = {f"opt/{jar.name}": jar for jar in (package / "opt").glob("*.jar")}
    folders = {name: package / name for name in ("plugins", "licenses")}
    return {**lib, **python, **kafka, **opt, **folders}


def prepare(home: Path = FLINK_HOME) -> Path:
    """Make or refresh the Flink home; quick when nothing changed.

    `bin` is copied, because its scripts resolve symbolic links to find their home; all else is
    linked.
    """
    package = Path(pyflink.__file__).resolve().parent
    connectors = check_jars("flink")
    wanted = _wanted(package, connectors)
    (home / "lib").mkdir(parents=True, exist_ok=True)
    if (home / "opt").is_symlink():
        (home / "opt").unlink()
    (home / "opt").mkdir(exist_ok=True)
    for old in (home / "lib").iterdir():
        if wanted.get(f"lib/{old.name}") is None:
            old.unlink()
    for name, target in wanted.items():
        link = home / name
        if link.is_symlink() and Path(os.readlink(link)) == target:
            continue
        if link.is_symlink():
            link.unlink()
        link.symlink_to(target)
    shutil.copytree(package / "bin", home / "bin", dirs_exist_ok=True)
    for script in (home / "bin").iterdir():
        script.chmod(0o755)
    shutil.copytree(PROJECT / "flink-conf", home / "conf", dirs_exist_ok=True)
    (home / "log").mkdir(exist_ok=True)
    return home
