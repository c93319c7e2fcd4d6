"""What waits to be sent to one client: bounded in frames and bytes, with a policy for the client that reads slowly.

Frames that can be had again by offset, and answers, are kept: when there is no room for one, the connection ends and
the client recovers. Tokens and monitoring are worth something only now: the oldest of them makes room.
"""

from collections import deque
from typing import Literal

Policy = Literal["keep", "drop_oldest"]


class Outbox:
    """A queue that never grows beyond its limits."""

    def __init__(self, frames_max: int, bytes_max: int) -> None:
        self._frames_max = frames_max
        self._bytes_max = bytes_max
        self._frames: dict[int, bytes] = {}
        self._droppable: deque[int] = deque()
        self._next = 0
        self._bytes = 0
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._frames)

    def put(self, frame: bytes, policy: Policy) -> bool:
        """False when a frame that must be kept finds no room: the connection must end."""
        while not self._fits(frame) and self._drop_oldest():
            self.dropped += 1
        if not self._fits(frame):
            self.dropped += 1
            return policy == "drop_oldest"
        self._frames[self._next] = frame
        if policy == "drop_oldest":
            self._droppable.append(self._next)
        self._next += 1
        self._bytes += len(frame)
        return True

    def take(self) -> bytes | None:
        """The next frame to send."""
        if not self._frames:
            return None
        number = next(iter(self._frames))
        return self._remove(number)

    def _fits(self, frame: bytes) -> bool:
        return len(self._frames) < self._frames_max and self._bytes + len(frame) <= self._bytes_max

    def _drop_oldest(self) -> bool:
        while self._droppable:
            number = self._droppable.popleft()
            if number in self._frames:
                self._remove(number)
                return True
        return False

    def _remove(self, number: int) -> bytes:
        frame = self._frames.pop(number)
        self._bytes -= len(frame)
        # Numbers of frames that were sent must not pile up in the list of those that may be dropped.
        while self._droppable and self._droppable[0] not in self._frames:
            self._droppable.popleft()
        return frame
