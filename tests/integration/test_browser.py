"""The page of docs/sending-events.md in a real browser, from another origin than the service's."""

from __future__ import annotations

import json
import re
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from api.access import hash_key
from connectors.cassandra_schema import create_schema
from connectors.cassandra_session import CassandraOptions, connect
from local.processes import LOOPBACK, PROJECT
from tests.integration.helpers import eventually
from tests.integration.service import serving
from tests.integration.test_service import records
from tests.integration.test_shop_window import browser

__all__ = ["browser"]

KEYSPACE = "browser"
BACKEND = "rk_backend"
PATIENCE_MS = 20_000


@contextmanager
def pages(folder: Path) -> Iterator[str]:
    """Serve a folder, as a shop serves its pages; yields its origin."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer((LOOPBACK, 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://{LOOPBACK}:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def page_of_the_document(url: str, user: str, token: str) -> str:
    """The page that the document shows, with this service, user and token."""
    document = (PROJECT / "docs/sending-events.md").read_text()
    (shown,) = re.findall(r"^```html\n(.*?)^```", document, re.MULTILINE | re.DOTALL)
    given = {"https://recommender.example": url, '"u42"': json.dumps(user), '"ut_…"': f'"{token}"'}
    for old, new in given.items():
        assert old in shown
        shown = shown.replace(old, new)
    # What the module exports is reached by the test through the window.
    call = "Object.assign(window, {track, send, recommendations, ready: true});\n</script>"
    script = shown.replace("</script>", call)
    return f"<!doctype html><title>Shop</title>{script}"


@pytest.fixture(scope="module")
def keyspace(stack: Any) -> None:
    options = CassandraOptions(
        hosts=(stack.cassandra.host,), port=stack.cassandra.port, keyspace=KEYSPACE
    )
    cluster, session = connect(options, role="test")
    create_schema(session, KEYSPACE, {"class": "SimpleStrategy", "replication_factor": 1})
    cluster.shutdown()


def seen(page: Page, url: str, token: str) -> Any:
    """What a page reads with its token; the name of the error where the browser forbids it."""
    script = """async ([url, token]) => {
        try {
            return (await fetch(url, {headers: {Authorization: `Bearer ${token}`}})).status;
        } catch (error) { return error.name; }
    }"""
    return page.evaluate(script, [url, token])


@pytest.mark.usefixtures("keyspace")
def test_a_page_of_an_allowed_origin_reads_and_sends_for_its_user_alone(
    stack: Any, browser: Browser, tmp_path: Path
) -> None:
    topic = f"browser-{uuid.uuid4().hex}"
    stack.kafka.create_topic(topic, 2)
    (tmp_path / "secret").write_text("s" * 40)
    entry = {"name": "backend", "sha256": hash_key(BACKEND), "scopes": ["token"]}
    (tmp_path / "keys.json").write_text(json.dumps([entry]))
    shop, other = tmp_path / "shop", tmp_path / "other"
    for folder in (shop, other):
        folder.mkdir()
    with (
        pages(shop) as origin,
        pages(other) as elsewhere,
        serving(
            stack,
            tmp_path,
            RECOMMENDER_CASSANDRA_KEYSPACE=KEYSPACE,
            RECOMMENDER_KAFKA_EVENTS_TOPIC=topic,
            RECOMMENDER_API_KEYS_FILE=str(tmp_path / "keys.json"),
            RECOMMENDER_API_TOKEN_SECRET_FILE=str(tmp_path / "secret"),
            RECOMMENDER_API_ORIGINS=origin,
        ) as service,
    ):
        headers = {"Authorization": f"Bearer {BACKEND}"}
        made = service.ask("POST", "/v1/users/u42/token", headers=headers)
        assert made.status_code == 201
        token = made.json()["token"]
        for folder in (shop, other):
            (folder / "index.html").write_text(page_of_the_document(service.url, "u42", token))
        page = browser.new_page()
        page.goto(f"{origin}/index.html")
        page.wait_for_function("window.ready", timeout=PATIENCE_MS)

        # Reads its own list; the fetch has asked for permission first.
        assert page.evaluate("recommendations()") == []
        own, theirs = (f"{service.url}/v1/users/{user}/recommendations" for user in ("u42", "u43"))
        assert seen(page, own, token) == 200
        assert seen(page, theirs, token) == 403
        # No other route answers a page.
        assert seen(page, f"{service.url}/v1/users/u42/events", token) == "TypeError"

        # Sends by a beacon, on its own call and when it is left.
        page.evaluate("track('click', {product_id: 'B0001'}); send()")
        page.evaluate("track('search', {query: 'wireless mouse'})")
        page.goto("about:blank")

        # The same page elsewhere is refused, and so is what it sends.
        page.goto(f"{elsewhere}/index.html")
        page.wait_for_function("window.ready", timeout=PATIENCE_MS)
        assert seen(page, own, token) == "TypeError"
        with page.expect_response(f"{service.url}/v1/events") as answer:
            page.evaluate("track('click', {product_id: 'elsewhere'}); send()")
        # Not even the token of a body from elsewhere is read.
        assert answer.value.status == 401
        page.close()

        def missing() -> str:
            found = [
                json.loads(value) for _, value in records(stack.kafka.bootstrap, topic) if value
            ]
            wanted = [("u42", "click", "B0001"), ("u42", "search", None)]
            got = [(one["user_id"], one["type"], one.get("product_id")) for one in found]
            # In any order: each worker of the service has a producer of its own.
            return "" if sorted(got, key=str) == sorted(wanted, key=str) else f"{got}"

        eventually(missing, 30)
        service.stop()
        assert missing() == ""
        # No line of the log has a token.
        assert token not in service.log.read_text()
