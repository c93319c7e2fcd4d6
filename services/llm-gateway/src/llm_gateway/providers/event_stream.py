"""A parser for the binary event streams of AWS. Pure.

Standard: Amazon event stream encoding, `application/vnd.amazon.eventstream`. A message is

    total length (4) | length of headers (4) | CRC-32 of these 8 bytes (4) | headers | payload | CRC-32 of all before (4)

and a header `length of name (1) | name | type (1) | value`, where a string (type 7) begins with its length (2). Numbers
are big-endian. A stream cut inside a message leaves an unfinished one, which is never told as whole.
"""

import struct
import zlib
from collections.abc import Mapping
from typing import Final, NamedTuple

from llm_gateway.errors import MalformedResponse

CONTENT_TYPE: Final = "application/vnd.amazon.eventstream"
MESSAGE_BYTES_MAX: Final = 24 * 1024 * 1024
"""The most that the encoding allows."""
_PRELUDE: Final = struct.Struct(">III")
_CRC: Final = struct.Struct(">I")
_STRING: Final = 7
_FIXED_SIZES: Final[Mapping[int, int]] = {0: 0, 1: 0, 2: 1, 3: 2, 4: 4, 5: 8, 8: 8, 9: 16}
"""Of the values of headers that hold no length: booleans, numbers, a timestamp, a UUID."""


class Message(NamedTuple):
    """Headers that are no strings are left out: nothing that we read is in them."""

    headers: Mapping[str, str]
    payload: bytes


class EventStreamParser:
    """Feed it chunks as they arrive; each call returns the messages that the chunk completed.

    Raises MalformedResponse for what is not in the encoding, or damaged on its way.
    """

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, chunk: bytes) -> list[Message]:
        self._rest += chunk
        messages: list[Message] = []
        while len(self._rest) >= _PRELUDE.size and len(self._rest) >= (size := self._size()):
            messages.append(_message(bytes(self._rest[:size])))
            del self._rest[:size]
        return messages

    def _size(self) -> int:
        size, headers_size, crc = _PRELUDE.unpack_from(self._rest)
        _check(zlib.crc32(self._rest[: _PRELUDE.size - _CRC.size]) == crc, "its prelude is damaged")
        overhead = _PRELUDE.size + _CRC.size
        _check(overhead + headers_size <= size <= MESSAGE_BYTES_MAX, f"it says that it has {size} bytes")
        return int(size)


def _message(data: bytes) -> Message:
    _, headers_size, _ = _PRELUDE.unpack_from(data)
    end, payload_at = len(data) - _CRC.size, _PRELUDE.size + headers_size
    _check(zlib.crc32(data[:end]) == _CRC.unpack_from(data, end)[0], "it is damaged")
    try:
        headers = _headers(data[_PRELUDE.size : payload_at])
    except (IndexError, struct.error, UnicodeDecodeError) as error:
        raise MalformedResponse(f"the headers of a message of the event stream cannot be read: {error!r}") from error
    return Message(headers, data[payload_at:end])


def _headers(data: bytes) -> Mapping[str, str]:
    headers: dict[str, str] = {}
    at = 0
    while at < len(data):
        name_end = at + 1 + data[at]
        name, kind, at = data[at + 1 : name_end].decode(), data[name_end], name_end + 1
        if kind in _FIXED_SIZES:
            at += _FIXED_SIZES[kind]
            continue
        (length,) = struct.unpack_from(">H", data, at)
        at += 2 + length
        if kind == _STRING:
            headers[name] = data[at - length : at].decode()
    return headers


def _check(holds: bool, problem: str) -> None:
    if not holds:
        raise MalformedResponse(f"a message of the event stream is malformed: {problem}")
