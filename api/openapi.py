"""The interface's description: OpenAPI 3.1, made of the declared routes and the types they name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from http import HTTPStatus
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

import msgspec
from flask import Flask
from werkzeug.routing import Rule

from api.operations import Answer, Operation, operation_of
from api.problems import PROBLEM_JSON, Kind, Problem
from api.request_id import HEADER
from udfs.schemas import MAX_ID

_VARIABLE: Final = re.compile(r"<(?:[a-z]+:)?([a-z_]+)>")
_IGNORED: Final = frozenset({"HEAD", "OPTIONS"})
_SCHEME: Final = "apiKey"
_TOKEN_SCHEME: Final = "userToken"


def declared(app: Flask) -> Iterator[tuple[Rule, str, Operation]]:
    """Yield (rule, method, operation) of the routes of ``app`` that are described."""
    for rule in app.url_map.iter_rules():
        operation = operation_of(app.view_functions[rule.endpoint])
        if operation is not None:
            for method in sorted((rule.methods or set()) - _IGNORED):
                yield rule, method, operation


def document(app: Flask) -> dict[str, Any]:
    """Return the description of ``app``."""
    routes = list(declared(app))
    types: list[Any] = [Problem]
    for _, _, operation in routes:
        types += [one.body for one in operation.answers.values() if one.body is not None]
        types += operation.body.types if operation.body is not None else []
    schemas, components = msgspec.json.schema_components(
        types, ref_template="#/components/schemas/{name}"
    )
    # Types are told apart by identity: a union has no hash of its own that would do.
    schema_of = {id(one): schema for one, schema in zip(types, schemas, strict=True)}
    paths: dict[str, dict[str, Any]] = {}
    for rule, method, operation in routes:
        path = _VARIABLE.sub(r"{\1}", rule.rule)
        view = app.view_functions[rule.endpoint]
        paths.setdefault(path, {})[method.lower()] = _operation(
            rule, operation, (view.__doc__ or "").strip(), schema_of
        )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Real-time recommendations",
            "version": _version(),
            "description": (
                "Errors are problem+json (RFC 9457). Every answer carries X-Request-ID; one that"
                " is sent along is kept. Times are epoch milliseconds. Without API keys on the"
                " server, this machine alone is served, and needs none. What is under /shop belongs"
                " to the shop window, and changes with it."
            ),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                _SCHEME: {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "An API key, made by `python -m api.keys`.",
                },
                _TOKEN_SCHEME: {
                    "type": "http",
                    "scheme": "bearer",
                    "description": (
                        "A token of one user, made by POST /v1/users/{user_id}/token. A beacon has"
                        " it in its body."
                    ),
                },
            },
        },
    }


def _operation(
    rule: Rule, operation: Operation, description: str, schema_of: dict[int, Any]
) -> dict[str, Any]:
    found: dict[str, Any] = {
        "operationId": rule.endpoint.replace(".", "_"),
        "tags": [rule.endpoint.partition(".")[0].replace("_", " ")],
        "summary": operation.summary,
        "description": " ".join(description.split()),
        "parameters": [
            *(
                {
                    "name": name,
                    "in": "path",
                    "required": True,
                    "schema": {"type": "string", "minLength": 1, "maxLength": MAX_ID},
                }
                for name in _VARIABLE.findall(rule.rule)
            ),
            *(
                {
                    "name": one.name,
                    "in": "query",
                    "required": False,
                    "description": one.meaning,
                    "schema": one.schema,
                }
                for one in operation.query
            ),
        ],
        "responses": {
            **{
                str(status): _answer(answer, schema_of)
                for status, answer in operation.answers.items()
            },
            **_problems(operation.all_problems),
        },
    }
    if operation.scope is not None:
        found["security"] = [{_SCHEME: []}]
        found["description"] += f" Scope: {operation.scope}."
        if operation.browser:
            found["security"].append({_TOKEN_SCHEME: []})
            found["description"] += (
                " Open to pages of the allowed origins (RECOMMENDER_API_ORIGINS), with a token of"
                " the user."
            )
    if operation.body is not None:
        alternatives = [schema_of[id(one)] for one in operation.body.types]
        schema = alternatives[0] if len(alternatives) == 1 else {"anyOf": alternatives}
        found["requestBody"] = {
            "required": True,
            "description": f"{operation.body.meaning} At most {operation.body.max_bytes:,} bytes.",
            "content": {"application/json": {"schema": schema}},
        }
        if operation.browser:
            text = {"type": "string", "contentMediaType": "application/json"}
            found["requestBody"]["content"]["text/plain"] = {"schema": text}
    return found


def _answer(answer: Answer, schema_of: dict[int, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "description": answer.meaning,
        "headers": {
            HEADER: _header("Names the request, in the logs too."),
            **{name: _header(meaning) for name, meaning in answer.headers.items()},
        },
    }
    if answer.body is not None:
        found["content"] = {answer.mimetype: {"schema": schema_of[id(answer.body)]}}
    return found


def _problems(kinds: list[Kind]) -> dict[str, Any]:
    by_status: dict[int, dict[str, str]] = {}
    for kind in kinds:
        by_status.setdefault(kind.status, {})[kind.type] = kind.meaning
    found: dict[str, Any] = {}
    for status, meanings in sorted(by_status.items()):
        found[str(status)] = {
            "description": f"{HTTPStatus(status).phrase}: "
            + "; ".join(f"`{type_}`: {meaning}" for type_, meaning in meanings.items()),
            "headers": {
                HEADER: _header("Names the request, in the logs too."),
                **(
                    {"Retry-After": _header("Seconds after which to come again.")}
                    if status in (429, 503)
                    else {}
                ),
            },
            "content": {PROBLEM_JSON: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
    return found


def _header(meaning: str) -> dict[str, Any]:
    return {"description": meaning, "schema": {"type": "string"}}


def _version() -> str:
    try:
        return version("recommender")
    except PackageNotFoundError:
        # Run from a checkout, which is the usual way.
        return "0.1.0"
