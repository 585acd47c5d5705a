"""Tokens of one user: what a page in a browser may show instead of an API key.

A token is signed with the secrets of a file that no browser sees. It says whose it is, which API
key asked for it and when it ends; nothing of it is kept here. It lets its holder read one user's
list and send that user's events (the operations that are declared with ``browser``). It ends
early with the API key that asked for it, or with the secret that signed it.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
from itsdangerous import BadData, URLSafeSerializer

from api.problems import UNAUTHENTICATED, ProblemError

TOKEN_PREFIX: Final = "ut_"
MAX_SECONDS: Final = 3600
MIN_SECRET_LENGTH: Final = 32
# Of an id of 128 characters with 12 escaped bytes each, and the rest.
_MAX_LENGTH: Final = 4096
_CHALLENGE: Final = {"WWW-Authenticate": 'Bearer realm="recommender"'}


class UserToken(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What is signed; ``expires_at`` in epoch milliseconds."""

    user_id: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    key: str
    """The tag of the API key that asked for it (`api.access.ApiKey`)."""
    expires_at: int


def load_secrets(file: Path) -> tuple[str, ...]:
    """Read the secrets of a file, one a line; the last signs, all are accepted.

    Raises:
        ValueError: It cannot be read, or a secret is too short; the message names none.
    """
    try:
        lines = file.read_text("utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        msg = f"token secret file: {error}"
        raise ValueError(msg) from None
    if not lines or min(map(len, lines)) < MIN_SECRET_LENGTH:
        msg = f"{file}: needs secrets of at least {MIN_SECRET_LENGTH} characters, one a line"
        raise ValueError(msg)
    return tuple(lines)


class Tokens:
    """Makes and reads tokens.

    Args:
        secrets: The last signs, all are accepted; none: there are no tokens.
    """

    def __init__(self, secrets: Sequence[str] = ()) -> None:
        self._serializer: Any = None
        if secrets:
            self._serializer = URLSafeSerializer(
                list(secrets),
                salt="recommender.user-token",
                signer_kwargs={"key_derivation": "hmac", "digest_method": sha256},
            )

    def __bool__(self) -> bool:
        """Tell whether there are any."""
        return self._serializer is not None

    def make(self, token: UserToken) -> str:
        """Return ``token``, signed."""
        return TOKEN_PREFIX + str(self._serializer.dumps(msgspec.to_builtins(token)))

    def read(self, presented: str, now_ms: int) -> UserToken:
        """Return what a token says.

        Raises:
            ProblemError: 401, it is not one of ours, or it has ended.
        """
        found: UserToken | None = None
        if self._serializer is not None and len(presented) <= _MAX_LENGTH:
            try:
                loaded = self._serializer.loads(presented.removeprefix(TOKEN_PREFIX))
                found = msgspec.convert(loaded, UserToken)
            except (BadData, msgspec.ValidationError):
                found = None
        if found is None:
            raise ProblemError(UNAUTHENTICATED, "the token is unknown", headers=_CHALLENGE)
        if found.expires_at <= now_ms:
            raise ProblemError(UNAUTHENTICATED, "the token has ended", headers=_CHALLENGE)
        return found
