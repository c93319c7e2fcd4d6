"""A parser for server-sent events that works on bytes and copies each byte once or twice. Pure.

Standard: WHATWG HTML, section 9.2.6 "Interpreting an event stream". Lines end with LF, CRLF or CR; an event that is
not closed by an empty line is discarded, which is what lets a cut stream be told from a finished one. `id` and
`retry` are not used by model providers and are ignored. Splitting happens on ASCII bytes, so a UTF-8 character cut
between two chunks is safe.
"""

from typing import NamedTuple

from llm_gateway.errors import MalformedResponse

LINE_BYTES_MAX = 10 * 1024 * 1024
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class SseEvent(NamedTuple):
    """`name` is empty for an event without one; several data lines are joined with LF."""

    name: bytes
    data: bytes


class SseParser:
    """Feed it chunks as they arrive; each call returns the events that the chunk completed.

    Raises MalformedResponse for a line, or the data of one event, above `line_bytes_max`.
    """

    def __init__(self, line_bytes_max: int = LINE_BYTES_MAX) -> None:
        self._line_bytes_max = line_bytes_max
        self._pieces: list[bytes] = []
        self._pieces_bytes = 0
        self._after_cr = False
        self._at_start = True
        self._name = b""
        self._data: list[bytes] = []
        self._data_bytes = 0

    def feed(self, chunk: bytes) -> list[SseEvent]:
        events: list[SseEvent] = []
        for line in self._lines(chunk):
            if line:
                self._field(line)
            elif self._data:
                events.append(self._take_event())
            else:
                self._name = b""
        return events

    def _lines(self, chunk: bytes) -> list[bytes]:
        if self._after_cr or b"\r" in chunk:
            chunk = self._with_plain_line_ends(chunk)
        if self._is_whole(chunk):
            return chunk[:-1].split(b"\n")
        first, *others = chunk.split(b"\n")
        self._keep(first)
        if not others:
            return []
        lines = [self._take_line(), *others[:-1]]
        self._keep(others[-1])
        return lines

    def _is_whole(self, chunk: bytes) -> bool:
        """Nothing is left from before and nothing will be left, as with servers that send event by event: almost all."""
        return chunk[-1:] == b"\n" and not self._pieces and not self._at_start and len(chunk) <= self._line_bytes_max

    def _with_plain_line_ends(self, chunk: bytes) -> bytes:
        if self._after_cr and chunk:
            chunk = chunk.removeprefix(b"\n")
            self._after_cr = False
        self._after_cr = chunk.endswith(b"\r")
        return chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _keep(self, piece: bytes) -> None:
        """Pieces of an unfinished line are joined only once it ends, so that a long line costs no quadratic copying."""
        if piece:
            self._pieces.append(piece)
            self._pieces_bytes += len(piece)
            self._check(self._pieces_bytes)

    def _take_line(self) -> bytes:
        line = b"".join(self._pieces)
        self._pieces.clear()
        self._pieces_bytes = 0
        if self._at_start:
            self._at_start = False
            return line.removeprefix(_BYTE_ORDER_MARK)
        return line

    def _field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
            self._data_bytes += len(value)
            if self._data_bytes > self._line_bytes_max:
                self._check(self._data_bytes)
        elif name == b"event":
            self._name = value

    def _take_event(self) -> SseEvent:
        event = SseEvent(self._name, self._data[0] if len(self._data) == 1 else b"\n".join(self._data))
        self._name = b""
        self._data = []
        self._data_bytes = 0
        return event

    def _check(self, size: int) -> None:
        if size > self._line_bytes_max:
            raise MalformedResponse(f"a line of the event stream is longer than {self._line_bytes_max} bytes")
