"""The interface's description: valid, complete, and true of every answer that can be provoked."""

from __future__ import annotations

import json
from typing import Any

import jsonschema_rs
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from api.catalogue_memory import CatalogueMemory
from api.openapi import document
from connectors.recommendation_store import (
    RecommendationList,
    StoredEvent,
    TrendingList,
)
from tests.unit.api_doubles import NOW, Shop, product, record


def full_shop() -> Shop:
    memory = CatalogueMemory(10)
    for name in ("0", "a"):
        memory.apply(name.encode(), record(name, [1.0, float(name == "a")]))
    memory.caught_up = True
    shop = Shop(catalogue=memory)
    shop.add(product("0"), product("a"))
    for user in ("0", "a"):
        items = (("0", 1.0, "profile"),)
        shop.store.save_list(RecommendationList(user, items, "s", NOW, NOW + 1))
        shop.store.save_event(user, StoredEvent("e", "click", NOW, "0"))
        shop.store.request_erasure(user, NOW)
    shop.store.save_trending("all", TrendingList((("a", 1.0),), NOW))
    return shop


SHOP = full_shop()
DOCUMENT: dict[str, Any] = json.loads(SHOP.client.get("/openapi.json").data)
SCHEMA = schemathesis.openapi.from_wsgi("/openapi.json", SHOP.app)


def test_every_route_is_described() -> None:
    rules = {rule.rule for rule in SHOP.app.url_map.iter_rules()}
    assert len(DOCUMENT["paths"]) == len(rules)
    described = {
        (path, method) for path, methods in DOCUMENT["paths"].items() for method in methods
    }
    assert ("/v1/users/{user_id}", "delete") in described
    assert ("/v1/products:bulk", "post") in described


def test_every_operation_has_a_name_of_its_own_and_says_what_it_does() -> None:
    operations = [one for methods in DOCUMENT["paths"].values() for one in methods.values()]
    assert len({one["operationId"] for one in operations}) == len(operations)
    for one in operations:
        assert one["summary"]
        assert len(one["description"]) > 15
        assert {"400", "500"} <= one["responses"].keys()
        secured = "security" in one
        assert secured == ({"401", "403", "429"} <= one["responses"].keys())
        assert ("requestBody" in one) == ({"413", "415"} <= one["responses"].keys())


def test_description_refers_to_nothing_that_is_missing() -> None:
    text = json.dumps(DOCUMENT)
    for name in {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}:
        assert name in DOCUMENT["components"]["schemas"]
    for schema in DOCUMENT["components"]["schemas"].values():
        jsonschema_rs.meta.validate(schema)
    assert document(SHOP.app) == DOCUMENT


@SCHEMA.parametrize()
@settings(
    max_examples=25,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
def test_answers_are_as_described(case: schemathesis.Case[Any]) -> None:
    response = case.call()
    case.validate_response(
        response,
        checks=[
            not_a_server_error,
            status_code_conformance,
            content_type_conformance,
            response_schema_conformance,
        ],
    )


@pytest.mark.parametrize("file", ["swagger-ui-bundle.js", "swagger-ui.css", "start.js"])
def test_page_and_its_files_come_from_here(file: str) -> None:
    page = SHOP.client.get("/docs")
    assert page.mimetype == "text/html"
    assert f"/docs/{file}" in page.text
    assert "default-src 'self'" in page.headers["Content-Security-Policy"]
    assert "http" not in page.text
    assert SHOP.client.get(f"/docs/{file}").status_code == 200


@pytest.mark.parametrize("file", ["swagger-ui.js.map", "../app.py", "LICENSE", "index.html"])
def test_no_other_file_is_served(file: str) -> None:
    assert SHOP.client.get(f"/docs/{file}").status_code == 404
