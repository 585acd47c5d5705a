"""What the stack says when something is missing: the server, what happened, and the remedy."""

from __future__ import annotations


class StackError(RuntimeError):
    """A server or a requirement of the stack failed; the message says what to do about it."""

    def __init__(self, server: str, problem: str, remedy: str = "", log: str = "") -> None:
        self.server = server
        self.problem = problem
        self.remedy = remedy
        self.log = log
        parts = [f"{server}: {problem}"]
        if log:
            quoted = "\n".join(f"    {line}" for line in log.splitlines())
            parts.append(f"last log lines:\n{quoted}")
        if remedy:
            parts.append(f"remedy: {remedy}")
        super().__init__("\n  ".join(parts))
