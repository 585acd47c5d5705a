"""API keys: who may use which routes; only their hashes are known here.

A key is 256 random bits, so that its SHA-256 is as good as it: nothing can be guessed, and a slow
hash would only slow the service down. Without keys everyone on this machine may do everything,
and nobody else anything; a request that a proxy has passed on is somebody else's.
"""

from __future__ import annotations

import hmac
import ipaddress
import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Final, Literal, get_args
from urllib.parse import urlsplit

import msgspec
from flask import request

from api.problems import FORBIDDEN, UNAUTHENTICATED, ProblemError
from api.tokens import Tokens

logger = logging.getLogger(__name__)

Scope = Literal["lists", "personal", "metrics", "ingest", "catalogue", "erase", "token"]
SCOPES: Final[tuple[Scope, ...]] = get_args(Scope)
# What the one scope for everything that is read has become.
READ: Final = "read"
READ_SCOPES: Final[tuple[Scope, ...]] = ("lists", "personal", "metrics")
KEY_PREFIX: Final = "rk_"

_CHALLENGE: Final = {"WWW-Authenticate": 'Bearer realm="recommender"'}
_LOCAL_NAMES: Final = frozenset({"localhost", "::1"})
# Headers by which proxies say whose request they pass on, or that they do.
_FORWARDED: Final = frozenset(
    f"HTTP_{name.upper().replace('-', '_')}"
    for name in (
        "Forwarded",
        "Via",
        "X-Forwarded",
        "X-Forwarded-By",
        "X-Forwarded-Client-Cert",
        "X-Forwarded-For",
        "X-Forwarded-Host",
        "X-Forwarded-Port",
        "X-Forwarded-Prefix",
        "X-Forwarded-Proto",
        "X-Forwarded-Protocol",
        "X-Forwarded-Scheme",
        "X-Forwarded-Server",
        "X-Forwarded-Ssl",
        "X-Forwarded-URI",
        "X-Forwarded-User",
        "X-Original-Forwarded-For",
        "X-Original-Host",
        "X-Original-URL",
        "X-Real-IP",
        "X-Client-IP",
        "X-Cluster-Client-IP",
        "X-Envoy-External-Address",
        "CDN-Loop",
        "CF-Connecting-IP",
        "Fastly-Client-IP",
        "Fly-Client-IP",
        "True-Client-IP",
    )
)


class ApiKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One key of the file: a name for the metrics, the hash, what it may do.

    ``read`` stands for `READ_SCOPES`, as in files of before they were told apart.
    """

    name: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    sha256: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$")]
    scopes: Annotated[tuple[Scope | Literal["read"], ...], msgspec.Meta(min_length=1)]

    @property
    def tag(self) -> str:
        """What tells it from others, those included that have had its name; not secret."""
        return f"{self.name}:{self.sha256[:16]}"


def spelt_out(scopes: Iterable[str]) -> frozenset[Scope]:
    """Return scopes with those that ``read`` stands for in its place."""
    given = set(scopes)
    return frozenset(
        scope for scope in SCOPES if scope in given or (READ in given and scope in READ_SCOPES)
    )


def hash_key(key: str) -> str:
    """Return the SHA-256 of a key, as it stands in the file."""
    return sha256(key.encode()).hexdigest()


def parse_keys(raw: bytes, origin: str) -> tuple[ApiKey, ...]:
    """Read keys: a JSON array of objects with ``name``, ``sha256`` and ``scopes``.

    Raises:
        ValueError: It is not that; the message names ``origin`` and no hash.
    """
    try:
        keys = msgspec.json.decode(raw, type=tuple[ApiKey, ...])
    except msgspec.DecodeError as error:
        msg = f"{origin}: {error}"
        raise ValueError(msg) from None
    for what, values in (("name", [key.name for key in keys]), ("key", [k.sha256 for k in keys])):
        if len(set(values)) < len(values):
            msg = f"{origin}: a {what} stands there twice"
            raise ValueError(msg)
    if not keys:
        msg = f"{origin}: has no keys; unset it to serve this machine only"
        raise ValueError(msg)
    return keys


def load_keys(file: Path) -> tuple[ApiKey, ...]:
    """Read the keys of a file.

    Raises:
        ValueError: It cannot be read, or is not valid.
    """
    try:
        raw = file.read_bytes()
    except OSError as error:
        msg = f"API keys file: {error}"
        raise ValueError(msg) from error
    return parse_keys(raw, str(file))


def is_loopback(bind: str) -> bool:
    """Tell whether a gunicorn address (host:port, unix:path) is of this machine only."""
    if bind.startswith("unix:"):
        return True
    host = re.sub(r"^tcp://", "", bind).rpartition(":")[0].strip("[]")
    return _local(host)


def check_binds(binds: Sequence[str], keys: Sequence[ApiKey]) -> None:
    """Refuse to serve others than this machine without keys.

    Raises:
        ValueError: An address is not of this machine, and there are no keys.
    """
    open_to_others = [bind for bind in binds if not is_loopback(bind)]
    if open_to_others and not keys:
        msg = (
            f"{', '.join(open_to_others)}: other machines are served with API keys only;"
            " set RECOMMENDER_API_KEYS_FILE, or bind to 127.0.0.1"
        )
        raise ValueError(msg)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: a key, or the user of this machine (``key`` 0) where there are none.

    ``user_id`` is set where the request came with a token: all else is of the key behind it.
    """

    key: int
    name: str
    user_id: str | None = None


@dataclass(frozen=True, slots=True)
class Access:
    """Decides who may do what."""

    keys: tuple[ApiKey, ...] = ()
    tokens: Tokens = field(default_factory=Tokens)
    _hashes: tuple[bytes, ...] = field(init=False, repr=False)
    _granted: tuple[frozenset[Scope], ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Keep the hashes as bytes, and warn of keys that open more than they may need."""
        object.__setattr__(self, "_hashes", tuple(bytes.fromhex(key.sha256) for key in self.keys))
        object.__setattr__(self, "_granted", tuple(spelt_out(key.scopes) for key in self.keys))
        for key in self.keys:
            if READ in key.scopes:
                logger.warning(
                    "API key %s: the scope read opens every user's history and the metrics;"
                    " name what it needs of %s instead",
                    *(key.name, ", ".join(READ_SCOPES)),
                )

    def admit(self, scope: Scope) -> Caller:
        """Return who asks, if the request may use a route of ``scope``.

        Raises:
            ProblemError: It may not: 401 without a known key, 403 without the scope.
        """
        if not self.keys:
            return self._neighbour()
        kind, _, presented = request.headers.get("Authorization", "").partition(" ")
        if kind.lower() != "bearer" or not presented:
            detail = "send the API key: Authorization: Bearer <key>"
            raise ProblemError(UNAUTHENTICATED, detail, headers=_CHALLENGE)
        digest = sha256(presented.strip().encode("utf-8", "surrogateescape")).digest()
        found = -1
        # All of them, whichever fits: the time says nothing about the keys.
        for number, known in enumerate(self._hashes):
            if hmac.compare_digest(digest, known):
                found = number
        if found < 0:
            raise ProblemError(UNAUTHENTICATED, "the API key is unknown", headers=_CHALLENGE)
        if scope not in self._granted[found]:
            raise ProblemError(FORBIDDEN, f"the API key lacks the scope {scope}")
        return Caller(found, self.keys[found].name)

    @property
    def is_open(self) -> bool:
        """Whether this request needs no key: there are none, and it is of this machine."""
        return not self.keys and _from_this_machine()

    def admit_user(self, token: str, user_id: str | None, now_ms: int) -> Caller:
        """Return who asks with a token, for ``user_id`` where the path names one.

        Raises:
            ProblemError: 401, the token or the key behind it holds no longer; 403, another's.
        """
        found = self.tokens.read(token, now_ms)
        if self.keys:
            granted = zip(self.keys, self._granted, strict=True)
            holders = {one.tag: at for at, (one, may) in enumerate(granted) if "token" in may}
            if found.key not in holders:
                detail = "the API key behind the token is gone"
                raise ProblemError(UNAUTHENTICATED, detail, headers=_CHALLENGE)
            at = holders[found.key]
            caller = Caller(at, self.keys[at].name, found.user_id)
        else:
            local = self._neighbour()
            caller = Caller(local.key, local.name, found.user_id)
        if user_id is not None and user_id != found.user_id:
            raise ProblemError(FORBIDDEN, "the token is of another user")
        return caller

    def tag(self, caller: Caller) -> str:
        """Return what a token says of the key behind it."""
        return self.keys[caller.key].tag if self.keys else caller.name

    @staticmethod
    def _neighbour() -> Caller:
        """Admit this machine, and not a page that a browser on it has from elsewhere."""
        if not _from_this_machine():
            detail = "without API keys only this machine is served, and no proxy on it"
            raise ProblemError(FORBIDDEN, detail)
        return Caller(0, "local")


def _from_this_machine() -> bool:
    """Tell this machine from a page that a browser on it has from elsewhere, and from a proxy.

    A proxy that adds no header cannot be told: behind one, use keys.
    """
    environ = request.environ
    # A unix socket has no address.
    if not _local(environ.get("REMOTE_ADDR") or "127.0.0.1"):
        return False
    # A name that an attacker's DNS points here would pass for this machine otherwise.
    if not _local_name(environ.get("HTTP_HOST", "localhost")):
        return False
    return _FORWARDED.isdisjoint(environ)


@lru_cache(maxsize=256)
def _local_name(header: str) -> bool:
    """Tell whether a Host header, with or without a port, names this machine."""
    try:
        return _local(urlsplit(f"//{header}").hostname or "")
    except ValueError:
        return False


@lru_cache(maxsize=256)
def _local(host: str) -> bool:
    if host in _LOCAL_NAMES:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
