"""/openapi.json, and /docs to read and try it: Swagger UI, served from here."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import flask_swagger_ui
from flask import Blueprint, Response, current_app, send_from_directory

from api import problems
from api.openapi import document
from api.operations import Answer, Operation, route
from api.problems import ProblemError
from api.responses import cacheable

# The files of Swagger UI that the package brings along.
_FOLDER: Final = Path(flask_swagger_ui.__file__).parent / "dist"
_FILES: Final = frozenset({"swagger-ui-bundle.js", "swagger-ui.css", "favicon-32x32.png"})
_KEY: Final = "recommender-openapi"
_PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Real-time recommendations: the interface</title>
<link rel="stylesheet" href="/docs/swagger-ui.css">
<link rel="icon" href="/docs/favicon-32x32.png">
</head>
<body>
<div id="ui"></div>
<script src="/docs/swagger-ui-bundle.js"></script>
<script src="/docs/start.js"></script>
</body>
</html>
"""
_START: Final = """SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#ui",
  deepLinking: true,
  // No foreign host is asked whether the description is valid.
  validatorUrl: null,
});
"""
# Nothing from elsewhere; Swagger UI writes its styles and icons into the page.
_POLICY: Final = (
    "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline';"
    " frame-ancestors 'none'"
)

blueprint = Blueprint("documentation", __name__)


@route(
    blueprint,
    "GET",
    "/openapi.json",
    Operation("This description", {200: Answer(dict[str, Any], "OpenAPI 3.1.")}),
)
def openapi() -> Response:
    """Answer with the description of the interface."""
    found = current_app.extensions.get(_KEY)
    if found is None:
        found = current_app.extensions[_KEY] = document(current_app)
    return cacheable(found, seconds=60)


@route(
    blueprint,
    "GET",
    "/docs",
    Operation("A page to try the interface", {200: Answer(str, "The page.", mimetype="text/html")}),
)
def docs() -> Response:
    """Answer with the page."""
    response = Response(_PAGE, mimetype="text/html")
    response.headers["Content-Security-Policy"] = _POLICY
    return response


@route(
    blueprint,
    "GET",
    "/docs/<id:file>",
    Operation(
        "The page's files",
        {200: Answer(str, "The file.", mimetype="*/*")},
        problems=(problems.NOT_FOUND,),
    ),
)
def docs_file(file: str) -> Response:
    """Answer with a script, style or icon of the page."""
    if file == "start.js":
        return Response(_START, mimetype="text/javascript")
    if file not in _FILES:
        raise ProblemError(problems.NOT_FOUND, "there is no such file")
    return send_from_directory(_FOLDER, file, max_age=3600)
