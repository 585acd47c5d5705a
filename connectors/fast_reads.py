"""Cheaper answers to the reads of the service: what the driver leaves undone.

The driver does not set the flag by which a server leaves an answer's metadata out, although it
keeps what PREPARE said of it: so each answer describes its columns again, and the driver makes
classes of that description again. From protocol v5 on leaving it out is safe, since a request
names the description that it knows and the server sends a new one where that has changed.

And it decodes any list of any tuple through a type object a field, where a saved list always is
``list<frozen<tuple<text, float, text>>>``.
"""

from __future__ import annotations

from io import BytesIO
from struct import Struct
from typing import Any, Final

from cassandra import ProtocolVersion
from cassandra.cqltypes import BytesType
from cassandra.protocol import ExecuteMessage, ProtocolHandler

# Native protocol v5, section 4.1.4: behind the consistency level (2 bytes) are the flags (4 bytes).
_FLAGS_END: Final = 5
_SKIP_METADATA: Final = 0x02

# The driver calls text by its older name.
_ITEMS: Final = "list<frozen<tuple<varchar, float, varchar>>>"
# All lengths are signed 32-bit integers, big-endian; -1 is null.
_length = Struct(">i").unpack_from
_score = Struct(">f").unpack_from


class _Execute(ExecuteMessage):
    def _write_query_params(self, f: Any, protocol_version: int) -> None:
        written = BytesIO()
        super()._write_query_params(written, protocol_version)
        parameters = bytearray(written.getvalue())
        parameters[_FLAGS_END] |= _SKIP_METADATA
        f.write(parameters)


class ReadProtocolHandler(ProtocolHandler):
    """The driver's protocol handler, but that answers come without the metadata that is known.

    To be a session's ``client_protocol_handler``.
    """

    @classmethod
    def encode_message(cls, msg: Any, stream_id: int, protocol_version: int, **given: Any) -> Any:
        """Encode a request; see the driver's."""
        if (
            type(msg) is ExecuteMessage
            and msg.skip_meta
            and ProtocolVersion.uses_prepared_metadata(protocol_version)
        ):
            msg.__class__ = _Execute
        return super().encode_message(msg, stream_id, protocol_version, **given)


def decode_items(data: bytes) -> list[tuple[str, float, str]]:
    """Decode the items of a list, as the native protocol v5 (section 6) has them.

    A list is a number of elements, and of each its length and its bytes; a tuple is of each field
    its length and its bytes. A float's length is 4. No field of a saved list is null.
    """
    (count,) = _length(data, 0)
    at = 4
    items = []
    for _ in range(count):
        (size,) = _length(data, at + 4)
        begin = at + 8
        end = begin + size
        (score,) = _score(data, end + 4)
        (size,) = _length(data, end + 8)
        at = end + 12 + size
        items.append((data[begin:end].decode(), score, data[end + 12 : at].decode()))
    return items


class _Items(BytesType):
    """The items' type as the driver asks it."""

    @staticmethod
    def deserialize(data: bytes, _protocol_version: int) -> list[tuple[str, float, str]]:
        return decode_items(data)


def decode_here(prepared: Any) -> Any:
    """Have the items in a prepared statement's answers decoded by `decode_items`; returns it.

    Where an answer brings new metadata after all, the driver decodes it, to the same values.
    """
    prepared.result_metadata = [
        (*where, _Items if kind.cql_parameterized_type() == _ITEMS else kind)
        for *where, kind in prepared.result_metadata
    ]
    return prepared
