"""Keeps the head and the tail of a stream whose length nobody knows."""

from collections import deque

from tool_executor.sandboxes.sandbox import Output


class Capture:
    """Holds at most `kept_bytes` of what is fed: the first half as it came, the rest as a moving tail."""

    def __init__(self, kept_bytes: int) -> None:
        self._head_room = kept_bytes // 2
        self._tail_room = kept_bytes - self._head_room
        self._head = bytearray()
        self._tail: deque[bytes] = deque()
        self._tail_bytes = 0
        self.size_bytes = 0

    def feed(self, chunk: bytes) -> None:
        self.size_bytes += len(chunk)
        free = self._head_room - len(self._head)
        self._head += chunk[:free]
        if rest := chunk[free:]:
            self._tail.append(rest)
            self._tail_bytes += len(rest)
            self._drop_old()

    def output(self) -> Output:
        tail = b"".join(self._tail)
        omitted = self.size_bytes - len(self._head) - len(tail)
        if not omitted:
            return Output(_text(bytes(self._head) + tail), self.size_bytes)
        gap = f"\n[... {omitted} bytes omitted ...]\n"
        return Output(_text(bytes(self._head)) + gap + _text(tail), self.size_bytes, truncated=True)

    def _drop_old(self) -> None:
        while self._tail_bytes > self._tail_room:
            oldest = self._tail.popleft()
            kept = oldest[max(0, len(oldest) - (self._tail_room - self._tail_bytes + len(oldest))) :]
            self._tail_bytes -= len(oldest) - len(kept)
            if kept:
                self._tail.appendleft(kept)


def _text(raw: bytes) -> str:
    """Bytes that are no UTF-8 are data too; a cut may also fall inside a character."""
    return raw.decode("utf-8", errors="replace")
