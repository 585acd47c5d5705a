"""The image of the job and the service: it installs what they need, and nothing to develop them."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

from local.processes import PROJECT

ROOMS = ("udfs", "connectors", "job", "api")
DOCKERFILE = (PROJECT / "flink-conf" / "kubernetes" / "Dockerfile").read_text(encoding="utf-8")


def locked(file: str) -> dict[str, tuple[str, frozenset[str]]]:
    """Version and hashes of each package of a lock."""
    found = {}
    for entry in re.split(r"(?m)^(?=\S)", (PROJECT / file).read_text(encoding="utf-8")):
        named = re.match(r"([A-Za-z0-9._-]+)==(\S+)", entry)
        if named:
            hashes = frozenset(re.findall(r"--hash=(sha256:[0-9a-f]{64})", entry))
            found[canonical(named[1])] = (named[2], hashes)
    return found


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_runtime_lock_is_the_part_of_the_whole_that_the_project_itself_needs() -> None:
    whole, runtime = locked("requirements.lock"), locked("requirements-runtime.lock")
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {
        canonical(re.split(r"[<>=\[]", one)[0])
        for extra in project["optional-dependencies"].values()
        for one in extra
    }
    needed = {canonical(re.split(r"[<>=\[]", one)[0]) for one in project["dependencies"]}

    assert needed <= runtime.keys()
    assert {name: whole.get(name) for name in runtime} == runtime
    assert all(hashes for _, hashes in runtime.values())
    # PyYAML and such that the project's own needs bring along are no tools.
    tools = {"pytest", "ruff", "mypy", "hypothesis", "faiss-cpu", "matplotlib", "playwright", "uv"}
    assert tools <= extras
    assert not tools & runtime.keys()


def test_everything_in_the_image_imports_with_the_runtime_lock_alone() -> None:
    """In an interpreter that finds no other package."""
    program = textwrap.dedent(
        """
        import importlib, importlib.metadata as metadata, re, sys
        from pathlib import Path

        allowed = set(sys.argv[1].split(","))
        owners = metadata.packages_distributions()
        modules = sys.argv[2].split(",")

        class Absent:
            def find_spec(self, name, path=None, target=None):
                dists = owners.get(name.partition(".")[0])
                if dists and not {re.sub(r"[-_.]+", "-", d).lower() for d in dists} & allowed:
                    raise ModuleNotFoundError(f"{name} is of {dists}, not in the lock")
                return None

        sys.meta_path.insert(0, Absent())
        try:
            import pytest
        except ModuleNotFoundError:
            pass
        else:
            sys.exit("the others are not hidden")
        for module in modules:
            importlib.import_module(module)
        print("imported", len(modules))
        """
    )
    modules = [
        ".".join(file.relative_to(PROJECT).with_suffix("").parts)
        for room in ROOMS
        for file in sorted((PROJECT / room).rglob("*.py"))
        # What gunicorn reads is no module, and the examples are not run in the image.
        if file.name not in ("__init__.py", "gunicorn.conf.py") and "examples" not in file.parts
    ]
    arguments = [",".join(locked("requirements-runtime.lock")), ",".join(modules)]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=PROJECT,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == f"imported {len(modules)}\n"


def test_image_has_the_runtime_lock_all_rooms_and_no_compiler_of_java() -> None:
    copied = set(re.findall(r"(?m)^COPY (\S+) /opt/recommender/", DOCKERFILE))

    assert copied == {"requirements-runtime.lock", *ROOMS}
    assert "-r /opt/recommender/requirements-runtime.lock" in DOCKERFILE
    assert "--require-hashes" in DOCKERFILE
    assert "openjdk-17-jre-headless" in DOCKERFILE
    assert "jdk-headless" not in DOCKERFILE


def test_both_locks_are_made_by_one_command() -> None:
    makefile = (PROJECT / "Makefile").read_text(encoding="utf-8")
    for target in ("lock", "upgrade"):
        (recipe,) = re.findall(rf"(?m)^{target}: env .*\n((?:\t.*\n)+)", makefile)
        assert "requirements.lock" in recipe
        assert "$(UV_COMPILE_RUNTIME)" in recipe
    assert "requirements-runtime.lock" in makefile
    assert Path(PROJECT / "requirements-runtime.lock").exists()
