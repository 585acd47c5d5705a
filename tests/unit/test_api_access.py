"""API keys and rate limits: who may do what, how often, and over several processes."""

from __future__ import annotations

import multiprocessing
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from api import keys as keys_command
from api.access import (
    READ_SCOPES,
    SCOPES,
    Access,
    ApiKey,
    Scope,
    check_binds,
    hash_key,
    load_keys,
    parse_keys,
)
from api.config import ApiConfig
from api.rate_limit import LEASE_SECONDS, LEASE_SHARE, Rate, RateLimiter
from tests.unit.api_doubles import Shop
from tests.unit.test_api_routes import assert_problem

SCOPED = {scope: f"rk_{scope}" for scope in SCOPES}
READ, ALL = "rk_read", "rk_all"
KEYS = (
    *(ApiKey(scope, hash_key(key), (scope,)) for scope, key in SCOPED.items()),
    ApiKey("reader", hash_key(READ), ("read",)),
    ApiKey("all", hash_key(ALL), ("read", "ingest", "catalogue", "erase", "token")),
)


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture
def shop() -> Shop:
    return Shop(ApiConfig(keys=KEYS))


ROUTES: list[tuple[str, str, str]] = [
    ("GET", "/v1/users/u/recommendations", "lists"),
    ("GET", "/v1/users/u/events", "personal"),
    ("GET", "/v1/users/u/profile", "personal"),
    ("GET", "/v1/trending", "lists"),
    ("GET", "/v1/products/p", "lists"),
    ("GET", "/v1/products/p/similar", "lists"),
    ("GET", "/v1/products/p/bought-together", "lists"),
    ("GET", "/metrics", "metrics"),
    ("POST", "/v1/events", "ingest"),
    ("PUT", "/v1/products/p", "catalogue"),
    ("PATCH", "/v1/products/p", "catalogue"),
    ("DELETE", "/v1/products/p", "catalogue"),
    ("POST", "/v1/products:bulk", "catalogue"),
    ("DELETE", "/v1/users/u", "erase"),
    ("GET", "/v1/users/u/erasure", "erase"),
    ("PUT", "/v1/users/u/objection", "erase"),
    ("DELETE", "/v1/users/u/objection", "erase"),
    ("POST", "/v1/users/u/token", "token"),
]


@pytest.mark.parametrize(("method", "path", "scope"), ROUTES)
def test_route_needs_a_key_with_its_scope(shop: Shop, method: str, path: str, scope: Scope) -> None:
    def ask(headers: dict[str, str]) -> Any:
        return shop.client.open(path, method=method, headers=headers)

    for headers in ({}, bearer("rk_other"), {"Authorization": f"Basic {ALL}"}, bearer("")):
        response = ask(headers)
        assert_problem(response, 401)
        assert response.headers["WWW-Authenticate"].startswith("Bearer")
    for other, key in SCOPED.items():
        response = ask(bearer(key))
        if other == scope:
            assert response.status_code not in (401, 403)
        else:
            assert_problem(response, 403)
    # A key of a file from before the scopes for reading were told apart.
    if scope in READ_SCOPES:
        assert ask(bearer(READ)).status_code not in (401, 403)
    else:
        assert_problem(ask(bearer(READ)), 403)
    assert ask(bearer(ALL)).status_code not in (401, 403)
    assert not shop.records.sent or scope in ("catalogue", "erase")


def test_a_key_for_lists_opens_nobodys_history_in_the_shop_window_either() -> None:
    shop = Shop(ApiConfig(keys=KEYS, shop_window=True, shop_users=("u",)))
    path = "/shop/users/u/vector"
    assert_problem(shop.client.get(path, headers=bearer(SCOPED["lists"])), 403)
    assert shop.client.get(path, headers=bearer(SCOPED["personal"])).status_code == 503
    assert shop.client.get("/shop/live", headers=bearer(SCOPED["lists"])).status_code == 200


def test_an_old_key_that_opens_all_that_is_read_is_warned_of_by_name(
    caplog: pytest.LogCaptureFixture,
) -> None:
    Access(KEYS)
    warned = [record.getMessage() for record in caplog.records]
    assert len(warned) == 2
    assert "API key reader" in warned[0]
    assert hash_key(READ) not in caplog.text


def test_every_route_with_a_scope_is_listed_above(shop: Shop) -> None:
    from api.openapi import declared

    found = {
        (method, re.sub(r"<id:\w+>", "u" if "users" in rule.rule else "p", rule.rule), one.scope)
        for rule, method, one in declared(shop.app)
        if one.scope is not None
    }
    assert found == set(ROUTES)


@pytest.mark.parametrize("path", ["/health/live", "/health/ready", "/openapi.json", "/docs"])
def test_what_is_open_needs_no_key(shop: Shop, path: str) -> None:
    assert shop.client.get(path).status_code == 200


@pytest.mark.parametrize(
    ("address", "host", "status"),
    [
        ("127.0.0.1", "localhost:8080", 200),
        ("::1", "[::1]:8080", 200),
        ("127.0.0.1", "127.0.0.1", 200),
        ("10.0.0.7", "localhost", 403),
        ("127.0.0.1", "evil.example", 403),
        ("127.0.0.1", "127.0.0.1.evil.example", 403),
    ],
)
def test_without_keys_only_this_machine_is_served(address: str, host: str, status: int) -> None:
    response = Shop().client.get(
        "/v1/trending",
        environ_overrides={"REMOTE_ADDR": address},
        headers={"Host": host},
    )
    assert response.status_code == status


@pytest.mark.parametrize(
    "header",
    [
        "X-Forwarded-For: 203.0.113.7",
        "X-Forwarded-Host: shop.example",
        "X-Forwarded-Proto: https",
        "X-Forwarded-Prefix: /shop",
        "Forwarded: for=203.0.113.7",
        "Via: 1.1 vegur",
        "X-Real-IP: 203.0.113.7",
        "X-Client-IP: 203.0.113.7",
        "X-Original-URL: /",
        "CF-Connecting-IP: 203.0.113.7",
        "True-Client-IP: 203.0.113.7",
        "X-Envoy-External-Address: 203.0.113.7",
    ],
)
def test_without_keys_a_proxy_on_this_machine_is_not_this_machine(header: str) -> None:
    headers = dict([header.split(": ")])
    open_shop = Shop(ApiConfig(shop_users=("u1",)))
    for path in ("/v1/users/u1/profile", "/v1/trending", "/metrics", "/shop/live"):
        assert_problem(open_shop.client.get(path, headers=headers), 403)
    assert open_shop.client.get("/v1/users/u1/profile").status_code == 200
    # Open to everyone, but who the users are is for this machine.
    assert open_shop.get("/shop/settings", headers=headers)["users"] == []
    assert open_shop.get("/shop/settings")["users"] == ["u1"]
    # With keys a proxy in front is the usual way.
    secured = Shop(ApiConfig(keys=KEYS))
    response = secured.client.get("/v1/trending", headers={**headers, **bearer(ALL)})
    assert response.status_code == 200


@pytest.mark.parametrize(
    ("bind", "local"),
    [
        ("127.0.0.1:80", True),
        ("localhost:80", True),
        ("[::1]:80", True),
        ("127.3.2.1:80", True),
        ("unix:/run/x", True),
        ("0.0.0.0:80", False),
        ("[::]:80", False),
        (":80", False),
        ("example.org:80", False),
        ("10.0.0.1:80", False),
    ],
)
def test_other_machines_are_served_with_keys_only(bind: str, local: bool) -> None:
    check_binds([bind], KEYS)
    if local:
        check_binds([bind], ())
    else:
        with pytest.raises(ValueError, match="API_KEYS_FILE"):
            check_binds(["127.0.0.1:80", bind], ())


def test_command_makes_a_key_that_its_entry_admits(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    keys_command.main(["shop", "ingest", "read"])
    printed = capsys.readouterr().out
    key = re.search(r"rk_[A-Za-z0-9_-]{43}", printed)
    entry = re.search(r"\{.*\}", printed)
    assert key
    assert entry
    file = tmp_path / "keys.json"
    file.write_text(f"[{entry[0]}]")
    (loaded,) = load_keys(file)
    assert loaded == ApiKey("shop", hash_key(key[0]), ("ingest", "lists", "metrics", "personal"))
    assert key[0] not in repr(Access((loaded,)))


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{}",
        b"[]",
        b'[{"name":"a","sha256":"00","scopes":["read"]}]',
        msgspec.json.encode([{"name": "a", "sha256": "0" * 64, "scopes": ["admin"]}]),
        msgspec.json.encode([{"name": "a", "sha256": "0" * 64, "scopes": []}]),
        msgspec.json.encode([{"name": "a b", "sha256": "0" * 64, "scopes": ["read"]}]),
        msgspec.json.encode([{"name": "a", "sha256": "0" * 64, "scopes": ["read"], "x": 1}]),
        msgspec.json.encode([KEYS[0], KEYS[0]]),
    ],
)
def test_wrong_keys_file_ends_the_start(raw: bytes) -> None:
    with pytest.raises(ValueError, match="the file"):
        parse_keys(raw, "the file")


def test_missing_keys_file_ends_the_start() -> None:
    with pytest.raises(ValueError, match="API keys file"):
        ApiConfig.from_env({"RECOMMENDER_API_KEYS_FILE": "absent.json"})


class TestRateLimit:
    def limiter(self, rate: Rate, keys: int = 1) -> RateLimiter:
        self.now = 100.0
        return RateLimiter({"lists": rate}, keys, clock=lambda: self.now)

    def test_burst_then_the_rate(self) -> None:
        limiter = self.limiter(Rate(10, 3))
        assert [limiter.take(0, "lists") for _ in range(4)] == [0, 0, 0, pytest.approx(0.1)]
        self.now += 0.1
        assert [bool(limiter.take(0, "lists")) for _ in range(2)] == [False, True]

    def test_keys_and_scopes_have_limits_of_their_own(self) -> None:
        limiter = self.limiter(Rate(1, 1), keys=2)
        assert limiter.take(0, "lists") == 0
        assert limiter.take(0, "lists") > 0
        assert limiter.take(1, "lists") == 0
        assert [limiter.take(0, "ingest") for _ in range(9)] == [0] * 9

    @given(
        rate=st.integers(1, 1000),
        burst=st.integers(1, 50),
        steps=st.lists(st.tuples(st.floats(0, 0.5), st.integers(1, 20)), max_size=60),
    )
    def test_never_more_than_burst_and_rate_in_any_window(
        self, rate: int, burst: int, steps: list[tuple[float, int]]
    ) -> None:
        limiter = self.limiter(Rate(rate, burst))
        taken: list[tuple[float, int]] = []
        for pause, units in steps:
            self.now += pause
            if limiter.take(0, "lists", units) == 0:
                taken.append((self.now, units))
        # A request above the burst is paid off afterwards, so it may stand alone at the end.
        for first in range(len(taken)):
            for last in range(first, len(taken)):
                seconds = taken[last][0] - taken[first][0]
                units = sum(one for _, one in taken[first:last])
                ahead = LEASE_SHARE * rate
                assert units <= max(burst, taken[first][1]) + rate * seconds + ahead + 1e-3 * rate

    def test_waiting_as_told_is_enough(self) -> None:
        limiter = self.limiter(Rate(7, 5))
        for units in (5, 3, 9, 1, 5):
            wait = limiter.take(0, "lists", units)
            self.now += wait
            if wait:
                assert limiter.take(0, "lists", units) == 0

    def test_what_is_taken_ahead_counts_for_all_and_not_for_long(self, tmp_path: Path) -> None:
        self.now = 100.0
        file = tmp_path / "rates"
        file.touch()
        rate = Rate(1 / LEASE_SHARE * 10, 10)
        one, two = (
            RateLimiter({"lists": rate}, 1, str(file), clock=lambda: self.now) for _ in range(2)
        )
        assert one.take(0, "lists") == 0
        assert two.take(0, "lists") > 0
        assert [one.take(0, "lists") for _ in range(9)] == [0] * 9
        assert one.take(0, "lists") > 0
        self.now += 1
        assert one.take(0, "lists") == 0
        self.now += LEASE_SECONDS
        assert two.take(0, "lists") == 0
        assert one.take(0, "lists") > 0

    def test_rest_of_what_is_taken_ahead_is_not_thrown_away(self) -> None:
        limiter = self.limiter(Rate(1 / LEASE_SHARE * 200, 2000))
        # One batch leaves too little of 200 for the next.
        assert sum(limiter.take(0, "lists", 101) == 0 for _ in range(30)) == 2000 // 101
        self.now += LEASE_SECONDS
        assert sum(limiter.take(0, "lists", 101) == 0 for _ in range(30)) == 2000 // 101

    def test_limit_holds_over_processes(self, tmp_path: Path) -> None:
        file = tmp_path / "rates"
        file.touch()
        context = multiprocessing.get_context("spawn")
        with context.Pool(3) as pool:
            taken = pool.map(_take_some, [str(file)] * 3)
        # A thousand at once, and next to nothing a second: together, not each.
        assert sum(taken) == 1000

    def test_request_above_the_limit_is_429_and_says_when(self) -> None:
        shop = Shop(ApiConfig(rates={"ingest": Rate(1, 10)}))
        click = {"user_id": "u", "type": "click", "product_id": "p"}
        assert shop.client.post("/v1/events", json=[click] * 8).status_code == 202
        response = shop.client.post("/v1/events", json=[click] * 5)
        assert_problem(response, 429)
        assert 1 <= int(response.headers["Retry-After"]) <= 3
        assert len(shop.events.taken) == 8
        assert shop.client.get("/v1/trending").status_code == 200


def _take_some(path: str) -> int:
    limiter = RateLimiter({"lists": Rate(0.001, 1000)}, 1, path)
    return sum(limiter.take(0, "lists") == 0 for _ in range(700))


def test_rates_come_from_variables() -> None:
    config = ApiConfig.from_env(
        {"RECOMMENDER_API_RATE_LISTS": "0", "RECOMMENDER_API_RATE_ERASE": "3"}
    )
    assert "lists" not in config.rates
    assert config.rates["erase"] == Rate(3, 6)
    assert config.rates["personal"] == ApiConfig().rates["personal"]
    with pytest.raises(ValueError, match="API_RATE_INGEST"):
        ApiConfig.from_env({"RECOMMENDER_API_RATE_INGEST": "many"})


def test_the_variable_for_all_reads_holds_where_a_scope_has_none_of_its_own() -> None:
    config = ApiConfig.from_env(
        {"RECOMMENDER_API_RATE_READ": "7", "RECOMMENDER_API_RATE_PERSONAL": "2"}
    )
    assert {config.rates[scope].per_second for scope in ("lists", "metrics")} == {7.0}
    assert config.rates["personal"] == Rate(2, 4)
    assert ApiConfig.from_env({"RECOMMENDER_API_RATE_READ": "0"}).rates.keys() == {
        "ingest",
        "catalogue",
        "erase",
        "token",
    }
