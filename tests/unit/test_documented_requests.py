"""Every request that README, docs and examples show, sent to the service as it stands there."""

from __future__ import annotations

import ast
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest
from werkzeug.exceptions import HTTPException

from api.config import ApiConfig
from connectors.event_client import make_event
from connectors.recommendation_store import RecommendationList
from tests.unit.api_doubles import NOW, Shop, product
from udfs.schemas import CONTROL_TYPES, TEXT_DIMENSIONS, decode_event

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SCRIPT = ROOT / "connectors/examples/events.sh"
SERVICE_PORT = 8080
# Before a block whose requests are wrong on purpose.
REFUSED = "<!-- refused -->"

_BLOCK = re.compile(
    r"^(?P<before>[^\n]*)\n+```(?P<kind>\w*)\n(?P<text>.*?)^```", re.MULTILINE | re.DOTALL
)
_CURL = re.compile(r"^curl ", re.MULTILINE)
_INLINE = re.compile(r"`([^`\n]+)`")
_ROUTE = re.compile(r"^(GET|PUT|PATCH|POST|DELETE) (/[^\s…]*)$")
_POST = re.compile(r"^post '([^']*)'$", re.MULTILINE)
_VALUED = {"-X", "--request", "-H", "--header", "-d", "--data", "--data-binary", "--json"}
_IGNORED_VALUED = {"-o", "--output", "-m", "--max-time", "-w", "--write-out", "-c", "-b", "-u"}


class Request(NamedTuple):
    """One request of a document."""

    where: str
    method: str
    path: str
    headers: dict[str, str]
    body: str | None
    refused: bool = False


def blocks(page: Path) -> Iterator[tuple[str, str, bool]]:
    for found in _BLOCK.finditer(page.read_text()):
        yield found["kind"], found["text"], REFUSED in found["before"]


def curl(where: str, command: str, *, refused: bool) -> Request | None:
    """Read a curl command; None where it asks another server."""
    arguments = shlex.split(command, comments=True)[1:]
    method, url, headers, body = None, "", {}, None
    while arguments:
        one = arguments.pop(0)
        if one in _VALUED:
            value = arguments.pop(0)
            if one in ("-X", "--request"):
                method = value
            elif one in ("-H", "--header"):
                name, _, content = value.partition(":")
                headers[name.strip()] = content.strip()
            else:
                body = value
        elif one in _IGNORED_VALUED:
            arguments.pop(0)
        elif not one.startswith("-"):
            url = one
    parts = urlsplit(url)
    if parts.port != SERVICE_PORT:
        return None
    path = parts.path + (f"?{parts.query}" if parts.query else "")
    return Request(
        where, method or ("GET" if body is None else "POST"), path, headers, body, refused
    )


def whole(text: str) -> Any:
    """Read JSON in which … stands for what is left out; None where it is none."""
    example = '{"user_id":"u42","type":"click","product_id":"B0001"}'
    filled = text.replace("[…]", f"[{example}]")
    # A vector of the text space has as many numbers.
    filled = re.sub(r"([0-9.]+),…", lambda found: ",".join([found[1]] * TEXT_DIMENSIONS), filled)
    try:
        return json.loads(filled)
    except ValueError:
        return None


def of_json(where: str, text: str, *, refused: bool) -> Request | None:
    """Make the request of a body that stands alone."""
    found = whole(text)
    if not isinstance(found, dict):
        return None
    method = "POST"
    if found.get("type") in CONTROL_TYPES:
        # A record of the topic, which no client may post.
        return None
    if "events" in found or {"user_id", "type"} <= found.keys():
        path = "/v1/events"
    elif "products" in found:
        path = "/v1/products:bulk"
    elif {"product_id", "title"} <= found.keys():
        method, path = "PUT", f"/v1/products/{found.pop('product_id')}"
    else:
        return None
    headers = {"Content-Type": "application/json"}
    return Request(where, method, path, headers, json.dumps(found), refused)


def documents(block: str) -> list[str]:
    """The JSON documents of a block: one, or one a line."""
    return [block] if whole(block) is not None else block.splitlines()


def requests_of(page: Path) -> Iterator[Request]:
    text = page.read_text()
    for kind, block, refused in blocks(page):
        commands = block.replace("\\\n", " ")
        for start in _CURL.finditer(commands):
            found = curl(page.name, _first_command(commands[start.start() :]), refused=refused)
            if found is not None:
                yield found
        if kind == "json":
            for text_ in documents(block):
                found = of_json(page.name, text_, refused=refused)
                if found is not None:
                    yield found
    for inline in _INLINE.findall(_BLOCK.sub("", text)):
        if inline.startswith("{"):
            found = of_json(page.name, inline, refused=False)
            if found is not None:
                yield found


def _first_command(text: str) -> str:
    """Cut after the first line end that is not within quotes."""
    quoted = ""
    for at, character in enumerate(text):
        if character in "'\"" and quoted in ("", character):
            quoted = "" if quoted else character
        elif character == "\n" and not quoted:
            return text[:at]
    return text


def script_requests() -> list[Request]:
    headers = {"Content-Type": "application/json"}
    found = []
    for match in _POST.finditer(SCRIPT.read_text()):
        before = SCRIPT.read_text()[: match.start()].rstrip().rpartition("\n")[2]
        refused = before.startswith("# Refused")
        found.append(Request(SCRIPT.name, "POST", "/v1/events", headers, match[1], refused))
    return found


REQUESTS = [*(one for page in PAGES for one in requests_of(page)), *script_requests()]


def documented_shop() -> Shop:
    shop = Shop(ApiConfig(token_secrets=("s" * 32,)))
    names = {
        one for request in REQUESTS for one in re.findall(r"/v1/products/([^/?:]+)", request.path)
    }
    shop.add(*(product(name) for name in sorted(names)))
    users = {one for request in REQUESTS for one in re.findall(r"/v1/users/([^/?]+)", request.path)}
    for user in sorted(users):
        shop.store.save_list(RecommendationList(user, (), "s", NOW, NOW))
        shop.store.request_erasure(user, NOW)
    return shop


@pytest.mark.parametrize(
    "request_", REQUESTS, ids=[f"{one.where}-{one.method}-{one.path}" for one in REQUESTS]
)
def test_a_documented_request_is_answered_as_documented(request_: Request) -> None:
    shop = documented_shop()
    response = shop.client.open(
        request_.path,
        method=request_.method,
        # The keys of documents are made up; the application here needs none.
        headers={k: v for k, v in request_.headers.items() if k != "Authorization"},
        data=request_.body,
    )
    if request_.refused:
        assert response.status_code == 400, response.text
    else:
        assert response.status_code < 300, response.text
        page = next((one for one in PAGES if one.name == request_.where), SCRIPT)
        # What is refused of a batch is shown as refused.
        assert "errors" not in response.text or '"errors"' in page.read_text()


def test_the_documents_show_what_they_should() -> None:
    """A pattern that finds nothing would prove nothing."""
    assert any(one.where == "README.md" and one.method == "GET" for one in REQUESTS)
    forms = [json.loads(one.body) for one in REQUESTS if one.path == "/v1/events" and one.body]
    assert any("events" in one for one in forms)
    assert any("events" not in one for one in forms)
    assert {"README.md", "sending-events.md", "events.sh"} <= {
        one.where for one in REQUESTS if one.path == "/v1/events"
    }
    assert sum(one.where == "events.sh" for one in REQUESTS) == SCRIPT.read_text().count("\npost '")
    assert any(one.refused for one in REQUESTS)
    shown = sum(page.read_text().count("\ncurl ") for page in PAGES)
    elsewhere = sum(page.read_text().count("\ncurl http://127.0.0.1:8000") for page in PAGES)
    assert sum(one.where.endswith(".md") for one in REQUESTS) >= shown - elsewhere


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_route_that_is_named_is_there(page: Path) -> None:
    adapter = Shop().app.url_map.bind("localhost")
    for inline in _INLINE.findall(page.read_text()):
        found = _ROUTE.match(inline.partition("?")[0])
        if found is None or not found[2].startswith(("/v1", "/health", "/metrics", "/shop")):
            continue
        path = re.sub(r"\{\w+\}", "x", found[2])
        try:
            adapter.match(path, found[1])
        except HTTPException as error:
            pytest.fail(f"{inline}: {error}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_record_that_controls_a_user_is_one(page: Path) -> None:
    for kind, block, _ in blocks(page):
        for text in documents(block) if kind == "json" else []:
            found = whole(text)
            if isinstance(found, dict) and found.get("type") in CONTROL_TYPES:
                decoded = decode_event(found["user_id"], json.dumps(found).encode(), NOW)
                assert decoded.type == found["type"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_call_of_the_python_client_is_an_event(page: Path) -> None:
    calls = [text for kind, text, _ in blocks(page) if kind == "python"]
    calls += [one for one in _INLINE.findall(page.read_text()) if ".track(" in one]
    for text in calls:
        for node in ast.walk(ast.parse(text)):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr == "track"
            ):
                user, kind = (ast.literal_eval(one) for one in node.args)
                fields = {str(one.arg): ast.literal_eval(one.value) for one in node.keywords}
                make_event({"user_id": user, "type": kind, **fields}, NOW)
