"""A stand-in for Flink's metric groups, for tests of operators without a JVM."""

from __future__ import annotations


class Counter:
    def __init__(self) -> None:
        self.value = 0

    def inc(self, n: int = 1) -> None:
        self.value += n


class Group:
    """Counters by the path of their groups, shared by all groups below one root."""

    def __init__(self, counters: dict[str, Counter], path: str = "") -> None:
        self.counters = counters
        self._path = path

    def add_group(self, name: str, extra: str | None = None) -> Group:
        return Group(self.counters, f"{self._path}{name}.{extra + '.' if extra else ''}")

    def counter(self, name: str) -> Counter:
        return self.counters.setdefault(self._path + name, Counter())
