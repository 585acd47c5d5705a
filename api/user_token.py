"""POST /v1/users/{id}/token: a backend asks for what its page may show instead of an API key."""

from __future__ import annotations

from typing import Final

import msgspec
from flask import Blueprint, Response, g

from api import problems
from api.operations import Answer, Operation, now_ms, route
from api.parameters import WholeNumber
from api.problems import ProblemError
from api.responses import json_response
from api.services import services
from api.tokens import MAX_SECONDS, UserToken

_SECONDS: Final = WholeNumber(
    "seconds", "How long it holds.", default=900, least=1, most=MAX_SECONDS
)

blueprint = Blueprint("user_token", __name__)


class MadeToken(msgspec.Struct, frozen=True, gc=False):
    """A token, for `Authorization: Bearer` or a beacon's body; it ends at ``expires_at``, ms."""

    user_id: str
    token: str
    expires_at: int


@route(
    blueprint,
    "POST",
    "/v1/users/<id:user_id>/token",
    Operation(
        "Make a token of a user",
        {201: Answer(MadeToken, "The token.")},
        scope="token",
        query=(_SECONDS,),
        problems=(problems.NOT_FOUND,),
    ),
)
def make_token(user_id: str) -> Response:
    """Make a token that reads this user's list and sends this user's events, and nothing else.

    Ask for it when a page is made, for the user who is signed in there. It ends by its time, with
    the API key that asked for it, or with the service's secret. 404 where the service has no
    secret (RECOMMENDER_API_TOKEN_SECRET_FILE).
    """
    access = services().access
    tokens = access.tokens
    if not tokens:
        raise ProblemError(problems.NOT_FOUND, "this service makes no tokens: it has no secret")
    made = UserToken(user_id, access.tag(g.caller), now_ms() + _SECONDS.read() * 1000)
    return json_response(MadeToken(user_id, tokens.make(made), made.expires_at), 201)
