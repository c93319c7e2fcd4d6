"""How many pages a PDF has at most, without reading it as one. Pure."""

import re
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

PAGES_MAX: Final = 1000
"""No provider takes more: Gemini 1,000 pages, Anthropic 600 (100 below a context of a million tokens)."""
UNPACKED_BYTES_MAX: Final = 16 * 1024 * 1024
"""How much of a document's packed objects is looked at; a document with more counts as the longest one."""
NAMES_MAX: Final = 100_000
"""How often a document may name what its pages are counted by; one that does more often counts as the longest one."""
_PIECE_BYTES: Final = 16 * 1024
"""As much is unpacked at once: deflate makes a thousand times as much of it at most."""


def _spelled(name: str) -> bytes:
    """Matches the name however it is written: any character may stand as # and its code (ISO 32000-1, 7.3.5)."""
    return b"".join(b"(?:%c|#(?i:%02x))" % (code, code) for code in name.encode())


def _pattern(syntax: bytes) -> re.Pattern[bytes]:
    """One in which a space stands for any white space of PDF, and words are never given up again once they matched."""
    return re.compile(syntax.replace(b" ", rb"[\x00\t\n\f\r\x20]"))


_NAMED: Final = re.compile(
    b"/(?=[PKCE#])(?:(?P<page>%s)|(?P<kids>%s)|(?P<count>%s)|(?P<encrypt>%s))(?![A-Za-z])"
    % (_spelled("Page"), _spelled("Kids"), _spelled("Count"), _spelled("Encrypt"))
)
_KIDS: Final = _pattern(rb" *+\[ *+((?:[0-9]{1,10}+ ++[0-9]++ ++R *+)*+)\]")
_REFERENCE: Final = _pattern(rb"([0-9]++) ++[0-9]++ ++R")
_COUNT: Final = _pattern(rb" *+[+-]?([0-9]{1,9}+)(?![0-9])(?! ++[0-9]++ ++R)")
_STREAM: Final = _pattern(
    rb"obj *+<<(?: |[0-9]|[R\[\]]|/(?:Type|ObjStm|N|First|Length|Filter|FlateDecode|Extends))*+>> *+stream\r?\n"
)
"""The head of a stream that has nothing in it but what writers put into that of an object stream."""
_DEFLATED: Final = _pattern(rb"/Filter *+(?:/FlateDecode|\[ *+/FlateDecode *+\])(?= |[/>])")
_OBJECT_STREAM: Final = _pattern(
    b"/(?=[OF#])(?:%s|%s *+(?:%%|[0-9]++(?! ++[0-9]++ ++R)))" % (_spelled("ObjStm"), _spelled("First"))
)
"""What only the head of an object stream has: its type, or the offset of its first object. In outlines /First refers."""


class _Untold(Exception):
    """The bytes do not tell how many pages there are."""


def pages_bound(data: bytes) -> int:
    """At least as many pages as any reader finds in the document, and never more than providers take.

    Readers go by different things (ISO 32000-1, 7.7.3): objects of the type /Page, the /Count of a node of the page tree,
    or the objects that /Kids refer to. So it is the largest of these, wherever they stand: in the file or in an object stream
    (7.5.7), which is deflated. Trees of names and of forms have /Kids too, and are counted. What is encrypted, packed
    otherwise, or said by reference counts as the longest document there is, since nothing follows from its bytes.
    """
    try:
        bound = _bound(_texts(data))
    except _Untold:
        return PAGES_MAX
    return min(bound or PAGES_MAX, PAGES_MAX)


def _bound(texts: Iterator[bytes]) -> int:
    pages, count = 0, 0
    kids: list[Sequence[int]] = []
    found = ((text, named) for text in texts for named in _NAMED.finditer(text))
    for number, (within, named) in enumerate(found):
        if number == NAMES_MAX:
            raise _Untold
        match named.lastgroup:
            case "page":
                pages += 1
            case "count":
                count = max(count, int(_said(_COUNT, within, named.end())))
            case "kids":
                if references := _references(_said(_KIDS, within, named.end())):
                    kids.append(references)
            case _:
                raise _Untold
    return max(pages, count, _leaves(kids))


def _said(pattern: re.Pattern[bytes], text: bytes, at: int) -> bytes:
    """The value that stands there. A reference or a comment in its place hides it."""
    value = pattern.match(text, at)
    if value is None:
        raise _Untold
    return value[1]


def _references(array: bytes) -> Sequence[int]:
    if array.count(b"R") >= PAGES_MAX:
        raise _Untold
    return [int(number) for number in _REFERENCE.findall(array)]


def _leaves(kids: Sequence[Sequence[int]]) -> int:
    """At most so many leaves has a tree of nodes with these kids, whichever of them belong to which node.

    Where each object is referred to once, all nodes of a tree but its root are referred to as well, and are no leaves; if there
    are several trees, none has more leaves than all would have as one. Else a node may be reached in as many ways as all the
    nodes above it together, times as often as one of them names it; at worst the largest nodes are the lowest.
    """
    references = [reference for array in kids for reference in array]
    if len(set(references)) == len(references):
        return len(references) - max(0, len(kids) - 1)
    often = max(max(Counter(array).values()) for array in kids)
    leaves, ways = 0, 0
    for size in sorted(map(len, kids)):
        own = max(1, often * ways)
        leaves, ways = leaves + own * size, ways + own
        if leaves >= PAGES_MAX:
            break
    return leaves


def _texts(data: bytes) -> Iterator[bytes]:
    """The file, and what its object streams hold. No byte is unpacked twice: a document may be made to take long."""
    if _OBJECT_STREAM.search(_STREAM.sub(b" ", data)):
        raise _Untold
    yield data
    end, left = 0, UNPACKED_BYTES_MAX
    for head in _STREAM.finditer(data):
        if not _OBJECT_STREAM.search(head[0]):
            continue
        if head.start() < end or head[0].count(b"/Filter") != 1 or not _DEFLATED.search(head[0]):
            raise _Untold
        unpacked, end = _unpacked(data, head.end(), left)
        left -= len(unpacked)
        yield unpacked


def _unpacked(data: bytes, at: int, bytes_max: int) -> tuple[bytes, int]:
    """What is deflated there, and where it ends. Raises _Untold if it is not all there, no Deflate, or too large."""
    unpacking, pieces, size = zlib.decompressobj(), list[bytes](), 0
    while not unpacking.eof:
        packed = data[at : at + _PIECE_BYTES]
        if not packed or size > bytes_max:
            raise _Untold
        try:
            pieces.append(unpacking.decompress(packed))
        except zlib.error:
            raise _Untold from None
        at, size = at + len(packed), size + len(pieces[-1])
    return b"".join(pieces), at - len(unpacking.unused_data)
