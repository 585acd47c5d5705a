"""Which room may import which, read from the sources."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("udfs", "connectors", "job", "api", "evaluation")
PYFLINK_IN_UDFS = {"udfs.recommender_function", "udfs.catalogue_function"}
# What a room may import of the other rooms.
ALLOWED = {
    "udfs": {"udfs"},
    "connectors": {"connectors", "udfs"},
    "job": {"job", "connectors", "udfs"},
    "api": {"api", "connectors", "udfs"},
    "evaluation": {"evaluation", "udfs"},
}
OTHERS = {*ROOMS, "local", "benchmarks", "tests"}
UDFS_FOR_CONNECTORS = {
    "udfs.schemas",
    "udfs.product_record",
    "udfs.metrics",
    "udfs.ports",
    "udfs.trending",
}


def sources() -> dict[str, Path]:
    found = {}
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


SOURCES = sources()


@cache
def imports(module: str, *, at_import: bool = False) -> frozenset[str]:
    """Absolute names of what a module imports; ``from a import b`` gives a.b where that exists."""
    path = SOURCES[module]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    nodes = _executed(tree) if at_import else ast.walk(tree)
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parts, *([base] if base else [])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                names.add(inner if inner in SOURCES else base)
    return frozenset(names)


def _executed(node: ast.AST) -> Iterator[ast.AST]:
    """What runs when the module is imported: neither functions nor type checking."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            continue
        yield child
        yield from _executed(child)


def test_the_sources_are_found() -> None:
    assert {"udfs.profile", "connectors.kafka", "job.main", "api.factory"} <= SOURCES.keys()
    assert "udfs.schemas" in imports("connectors.cassandra_writer")
    assert "job.uids" in imports("job.topology")


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_a_room_imports_only_what_it_may(module: str) -> None:
    room = module.split(".")[0]
    rooms = {name.split(".")[0] for name in imports(module)} & OTHERS
    assert rooms <= ALLOWED[room]


@pytest.mark.parametrize("module", [name for name in sorted(SOURCES) if name.startswith("udfs")])
def test_pyflink_in_udfs_only_in_the_operators(module: str) -> None:
    uses = any(name.split(".")[0] in {"pyflink", "pemja", "py4j"} for name in imports(module))
    assert uses == (module in PYFLINK_IN_UDFS)


@pytest.mark.parametrize("module", [n for n in sorted(SOURCES) if n.split(".")[0] == "udfs"])
def test_udfs_talk_to_no_server(module: str) -> None:
    roots = {name.split(".")[0] for name in imports(module)}
    assert not roots & {"cassandra", "confluent_kafka", "flask", "requests", "socket"}


@pytest.mark.parametrize("module", [n for n in sorted(SOURCES) if n.split(".")[0] == "connectors"])
def test_connectors_know_only_the_schemas_of_udfs(module: str) -> None:
    assert {name for name in imports(module) if name.split(".")[0] == "udfs"} <= UDFS_FOR_CONNECTORS


@pytest.mark.parametrize("module", [n for n in sorted(SOURCES) if n.split(".")[0] == "api"])
def test_the_service_never_loads_pyflink(module: str) -> None:
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        assert name.split(".")[0] not in {"pyflink", "pemja", "py4j"}, f"through {sorted(seen)}"
        if name in SOURCES and name not in seen:
            seen.add(name)
            waiting.extend(imports(name))


def test_no_imports_in_a_circle() -> None:
    graph = {
        module: {name for name in imports(module, at_import=True) if name in SOURCES} - {module}
        for module in SOURCES
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"circular import: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize("module", sorted(PYFLINK_IN_UDFS | {"job.main"}))
def test_the_job_never_loads_what_only_the_offline_commands_need(module: str) -> None:
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        assert name.split(".")[0] != "scipy", f"through {sorted(seen)}"
        if name in SOURCES and name not in seen:
            seen.add(name)
            waiting.extend(imports(name))
