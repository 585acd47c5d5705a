"""Make an API key: ``python -m api.keys NAME SCOPE...`` prints it, and its entry for the file."""

from __future__ import annotations

import argparse
import secrets

import msgspec

from api.access import (
    KEY_PREFIX,
    READ,
    READ_SCOPES,
    SCOPES,
    ApiKey,
    hash_key,
    parse_keys,
    spelt_out,
)


def main(arguments: list[str] | None = None) -> None:
    """Print a new key, which is shown this once, and the entry that goes into the file."""
    parser = argparse.ArgumentParser(prog="python -m api.keys", description=__doc__)
    parser.add_argument("name", help="whose key it is; appears in the metrics")
    parser.add_argument(
        "scope",
        nargs="+",
        choices=(*SCOPES, READ),
        help=f"what it may do; {READ} is {', '.join(READ_SCOPES)}",
    )
    given = parser.parse_args(arguments)
    key = KEY_PREFIX + secrets.token_urlsafe(32)
    entry = ApiKey(given.name, hash_key(key), tuple(sorted(spelt_out(given.scope))))
    try:
        parse_keys(msgspec.json.encode([entry]), "the entry")
    except ValueError as error:
        parser.error(str(error))
    print(f"key, to give to {given.name} and to keep nowhere else:\n  {key}")
    print("entry of the JSON array in RECOMMENDER_API_KEYS_FILE:")
    print(f"  {msgspec.json.encode(entry).decode()}")


if __name__ == "__main__":
    main()
