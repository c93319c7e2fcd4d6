import gzip
import zlib

import pytest
from llm_gateway.errors import MalformedResponse
from llm_gateway.providers.coding import unpacked

TEXT = b"word " * 1000


class Pieces:
    """Implements Body over bytes that are there."""

    def __init__(self, packed: bytes, piece_bytes: int) -> None:
        self._pieces = [packed[start : start + piece_bytes] for start in range(0, len(packed), piece_bytes)]
        self.closed = False

    async def read(self, until: float) -> bytes:
        return self._pieces.pop(0) if self._pieces else b""

    def close(self) -> None:
        self.closed = True


async def read(packed: bytes, coding: bytes, piece_bytes: int = 7) -> bytes:
    body, whole = unpacked(Pieces(packed, piece_bytes), coding), b""
    while piece := await body.read(0.0):
        whole += piece
    return whole


@pytest.mark.parametrize(
    ("packed", "coding"),
    [
        (gzip.compress(TEXT), b"gzip"),
        (gzip.compress(TEXT), b" GZIP "),
        (gzip.compress(TEXT), b"x-gzip"),
        (gzip.compress(TEXT[:100]) + gzip.compress(TEXT[100:]), b"gzip"),
        (zlib.compress(TEXT), b"deflate"),
        (TEXT, b"identity"),
    ],
    ids=["gzip", "capitals", "x-gzip", "two members", "deflate", "identity"],
)
@pytest.mark.parametrize("piece_bytes", [1, 100_000])
async def test_what_is_packed_is_unpacked_however_it_is_cut(packed: bytes, coding: bytes, piece_bytes: int) -> None:
    assert await read(packed, coding, piece_bytes) == TEXT


async def test_what_unpacks_to_much_comes_in_pieces() -> None:
    body = unpacked(Pieces(gzip.compress(b"\0" * 5_000_000), 1_000_000), b"gzip")

    assert len(await body.read(0.0)) == 1024 * 1024


async def test_what_is_cut_or_damaged_is_an_error() -> None:
    with pytest.raises(ConnectionError, match="ends in its middle"):
        await read(gzip.compress(TEXT)[:-1], b"gzip")
    with pytest.raises(ConnectionError, match="not packed as it says"):
        await read(TEXT, b"gzip")
    with pytest.raises(ConnectionError, match="not packed as it says"):
        await read(gzip.compress(TEXT) + TEXT, b"gzip")
    with pytest.raises(MalformedResponse, match="packed as 'br'"):
        await read(TEXT, b"br")


async def test_no_content_is_no_content_however_it_is_packed() -> None:
    assert await read(b"", b"gzip") == b""


def test_closing_closes_what_is_packed() -> None:
    pieces = Pieces(b"", 1)
    unpacked(pieces, b"gzip").close()

    assert pieces.closed
