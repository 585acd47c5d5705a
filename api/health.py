"""/health/live says that the process serves, /health/ready whether its stores do."""

from __future__ import annotations

import logging
from typing import Literal

import msgspec
from flask import Blueprint, Response

from api.operations import Answer, Operation, route
from api.problems import NOT_READY, ProblemError
from api.responses import json_response
from api.services import services
from connectors.recommendation_store import StoreError

logger = logging.getLogger(__name__)

blueprint = Blueprint("health", __name__)


class Live(msgspec.Struct, frozen=True, gc=False):
    """The process serves."""

    status: Literal["live"]


class Ready(msgspec.Struct, frozen=True, gc=False):
    """Every store can be read."""

    status: Literal["ready"]
    stores: dict[str, str]


@route(
    blueprint,
    "GET",
    "/health/live",
    Operation("Whether the process serves", {200: Answer(Live, "It does.")}),
)
def live() -> Response:
    """Answer 200 as soon as the process serves: a restart would not bring a database back."""
    return json_response(Live("live"))


@route(
    blueprint,
    "GET",
    "/health/ready",
    Operation(
        "Whether the stores can be read",
        {200: Answer(Ready, "They can.")},
        problems=(NOT_READY,),
    ),
)
def ready() -> Response:
    """Answer 200 if every store can be read now, else 503 naming those that cannot."""
    stores: dict[str, str] = {}
    for name, probe in services().probes.items():
        try:
            probe()
        except StoreError as error:
            logger.warning("not ready: %s; cause: %r", error, error.__cause__)
            stores[name] = f"down: {error.detail}"
        else:
            stores[name] = "up"
    down = [name for name, state in stores.items() if state != "up"]
    if down:
        detail = f"not ready: {', '.join(down)}"
        raise ProblemError(NOT_READY, detail, retry=True, stores=stores)
    return json_response(Ready("ready", stores))
