"""The command that erases again after a restore: what it prints it can read, and Kafka takes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors import erasure_tool
from connectors.erasure_tool import erase_records, main, users_of
from tests.unit.builders import NOW_MS
from udfs.schemas import ERASE, decode_event

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)


@given(st.lists(texts, max_size=5))
def test_the_list_can_be_read_whatever_the_ids_are(users: list[str]) -> None:
    lines = [json.dumps(user) + "\n" for user in users]
    assert list(users_of([*lines, "\n"])) == users


def test_a_line_that_is_no_user_is_named() -> None:
    with pytest.raises(ValueError, match="line 2"):
        list(users_of(['"u1"\n', "u2\n"]))


def test_the_job_takes_the_events_and_each_has_an_id_of_its_own() -> None:
    records = list(erase_records(["u1", "ü漢"], NOW_MS))
    events = [decode_event(key.encode().decode("latin-1"), value, NOW_MS) for key, value in records]
    assert [(event.user_id, event.type, event.ts) for event in events] == [
        ("u1", ERASE, NOW_MS),
        ("ü漢", ERASE, NOW_MS),
    ]
    assert len({event.event_id for event in events}) == 2


def test_users_of_a_file_are_sent_and_a_missing_file_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sent: list[str] = []

    def send(users: list[str]) -> int:
        sent.extend(users)
        return len(users)

    monkeypatch.setattr(erasure_tool, "_send", send)
    file = tmp_path / "erased"
    file.write_text('"a b"\n"c"\n', encoding="utf-8")
    assert main(["again", "--file", str(file)]) == 0
    assert sent == ["a b", "c"]
    assert "2 users" in capsys.readouterr().out
    assert main(["again", "--file", str(tmp_path / "absent")]) == 1
    assert "absent" in capsys.readouterr().err


def test_many_users_are_sent_in_parts_that_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    parts: list[list[str]] = []

    class Producer:
        def __init__(self, *_: Any, **__: Any) -> None:
            pass

        def send(self, _topic: str, records: list[tuple[str, bytes]]) -> None:
            """Return when they are acknowledged, as the real one does."""
            parts.append([key for key, _ in records])

        def close(self) -> None:
            pass

    monkeypatch.setattr(erasure_tool, "AcknowledgedProducer", Producer)
    users = [f"u{number}" for number in range(1201)]
    assert erasure_tool._send(users) == 1201
    assert [len(part) for part in parts] == [500, 500, 201]
    assert [user for part in parts for user in part] == users
