"""/health/live says that the process serves, /health/ready whether its stores do."""

from __future__ import annotations

import logging

from flask import Blueprint, Response

from api import parameters
from api.problems import NOT_READY, problem, with_retry_after
from api.responses import json_response
from api.services import services
from connectors.recommendation_store import StoreError

logger = logging.getLogger(__name__)

blueprint = Blueprint("health", __name__)


@blueprint.get("/health/live")
def live() -> Response:
    """Answer 200 as soon as the process serves: a restart would not bring a database back."""
    parameters.only()
    return json_response({"status": "live"})


@blueprint.get("/health/ready")
def ready() -> Response:
    """Answer 200 if every store can be read now, else 503 naming those that cannot."""
    parameters.only()
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
        return with_retry_after(problem(503, detail, type_=NOT_READY, stores=stores))
    return json_response({"status": "ready", "stores": stores})
