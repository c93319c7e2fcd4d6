"""How many pages a PDF has at most, without reading it as one. Pure."""

import re
import zlib
from collections.abc import Iterator
from typing import Final

PAGES_MAX: Final = 1000
"""No provider takes more: Gemini 1,000 pages, Anthropic 600 (100 below a context of a million tokens)."""
UNPACKED_BYTES_MAX: Final = 16 * 1024 * 1024
"""How much of a document's packed objects is looked at; a document with more counts as the longest one."""

_PAGE: Final = re.compile(rb"/Page(?![A-Za-z])")


def pages_bound(data: bytes) -> int:
    """At least as many pages as the document has, and never more than providers take.

    Each page is an object of the type /Page (ISO 32000-1, 7.7.3.3), which stands in the file as it is or inside an object
    stream (7.5.7), which is deflated. What is packed or encrypted otherwise counts as the longest document there is: from
    its bytes nothing follows, since deflate packs equal pages into less than a byte each.
    """
    found, left = len(_PAGE.findall(data)), UNPACKED_BYTES_MAX
    for packed in _object_streams(data):
        unpacked = _unpacked(packed, left)
        if unpacked is None:
            return PAGES_MAX
        left -= len(unpacked)
        found += len(_PAGE.findall(unpacked))
    return min(found or PAGES_MAX, PAGES_MAX)


def _object_streams(data: bytes) -> Iterator[bytes]:
    """What stands in them. Each byte is looked at once: a document may be made to take long."""
    end = 0
    while (name := data.find(b"/ObjStm", end)) >= 0:
        begin = data.find(b"stream", name)
        end = data.find(b"endstream", begin + 6)
        if begin < 0 or end < 0:
            yield b""
            return
        yield data[begin + 6 : end].lstrip(b"\r\n")


def _unpacked(packed: bytes, bytes_max: int) -> bytes | None:
    """None if it is not all there, no Deflate, or larger than it may be."""
    unpacking = zlib.decompressobj()
    try:
        unpacked = unpacking.decompress(packed, bytes_max) if bytes_max > 0 else b""
    except zlib.error:
        return None
    return unpacked if unpacking.eof else None
