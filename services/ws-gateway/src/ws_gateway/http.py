"""How HTTP is read from the wire: by llhttp, in C, with a limit that it does not have of its own."""

from typing import Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_BYTES_MAX: Final = 64 * 1024
"""The request line and the headers of a request, as far as they come in pieces that hold nothing else."""


class BoundedHttp(HttpToolsProtocol):
    """One connection. All of a head is kept in memory until it ends: one that does not end is refused, and cut off."""

    _heads: int = 0
    _in_head: bool = True
    _head_bytes: int = 0

    def data_received(self, data: bytes) -> None:
        within, heads = self._in_head, self._heads
        super().data_received(data)
        if not (within and self._in_head and heads == self._heads):
            self._head_bytes = 0
            return
        self._head_bytes += len(data)
        if self._head_bytes > HEAD_BYTES_MAX and not self.transport.is_closing():
            self.send_400_response(f"The head of the request is larger than {HEAD_BYTES_MAX} bytes.")

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self._heads, self._in_head = self._heads + 1, False

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._in_head = True
