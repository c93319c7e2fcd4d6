"""Content that a server packs although it was asked not to: gzip and deflate (RFC 9110, section 8.4)."""

import zlib
from typing import Final, Protocol

from llm_gateway.errors import MalformedResponse

_PIECE_BYTES_MAX: Final = 1024 * 1024
"""What is unpacked at a time: a few bytes may stand for gigabytes, and who reads counts what it gets."""
_EITHER: Final = zlib.MAX_WBITS | 32
"""Of gzip and zlib, whichever it is."""


class Packed(Protocol):
    async def read(self, until: float) -> bytes: ...

    def close(self) -> None: ...


def unpacked(body: Packed, coding: bytes) -> Packed:
    """The content as it was before; of a coding that is not known, an error for who wants to read it."""
    name = coding.strip().lower()
    if name == b"identity":
        return body
    return _Unpacked(body) if name in (b"gzip", b"x-gzip", b"deflate") else Unreadable(body, name.decode("latin-1"))


class Unreadable:
    """Implements Body: MalformedResponse names the coding. What the head says, as when to come back, is true all the same."""

    def __init__(self, body: Packed, coding: str) -> None:
        self._body = body
        self._coding = coding[:40]

    async def read(self, until: float) -> bytes:
        raise MalformedResponse(f"the answer is packed as {self._coding!r}, which was not asked for")

    def close(self) -> None:
        self._body.close()


class _Unpacked:
    """Implements Body. Content that is empty is not packed, whatever its headers say."""

    def __init__(self, body: Packed) -> None:
        self._body = body
        self._unpacker = zlib.decompressobj(_EITHER)
        self._begun = False

    async def read(self, until: float) -> bytes:
        while packed := self._rest() or await self._body.read(until):
            self._begun = True
            if piece := self._next(packed):
                return piece
        if self._begun and not self._unpacker.eof:
            raise ConnectionError("the packed answer ends in its middle")
        return b""

    def close(self) -> None:
        self._body.close()

    def _rest(self) -> bytes:
        """What has arrived and is not unpacked yet."""
        return self._unpacker.unconsumed_tail or self._unpacker.unused_data

    def _next(self, packed: bytes) -> bytes:
        if self._unpacker.eof:  # another member may follow, and nothing else (RFC 1952, section 2.2)
            self._unpacker = zlib.decompressobj(_EITHER)
        try:
            return self._unpacker.decompress(packed, _PIECE_BYTES_MAX)
        except zlib.error as error:
            raise ConnectionError(f"the answer is not packed as it says: {error}") from None
