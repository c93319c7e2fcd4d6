"""What a writer knows of the end of its log, and how long it may rely on it.

Every writer moves the head under its lock. As long as the head is where this writer left it, nobody else wrote, so the
streams end in the database where it remembers that they do. A group may then be decided without asking, and stored by one
statement that does nothing if the head has moved: one round trip instead of two, and no look-up for each event.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping

from eventlog.admission import Head, Request, StreamHead
from eventlog.records import NO_STREAM, Append, StreamId

_REST_GROUPS_MAX = 64


class Tail:
    """The head after this writer's last commit, and the ends of at most `streams_max` streams, newest use first."""

    def __init__(self, streams_max: int) -> None:
        self._streams_max = streams_max
        self._streams: OrderedDict[StreamId, StreamHead] = OrderedDict()
        self._head: Head | None = None
        self._rest = 0
        self._next_rest = 1

    def basis(self, requests: Iterable[Request]) -> tuple[Head, dict[StreamId, StreamHead]] | None:
        """What the requests can be decided on without asking the database; None if that is not known for certain."""
        if self._head is None:
            return None
        if self._rest > 0:
            self._rest -= 1
            return None
        streams: dict[StreamId, StreamHead] = {}
        for request in requests:
            for append in request:
                if not self._recall(append, streams):
                    return None
        return self._head, streams

    def _recall(self, append: Append, streams: dict[StreamId, StreamHead]) -> bool:
        end = self._streams.get(append.stream)
        if end is not None:
            streams[append.stream] = end
        elif append.expected != NO_STREAM or not append.events:
            # Unknown. One that must be new is found out by the index of (stream, version), if it is not.
            return False
        if append.fence is not None:
            epoch = self._streams.get(append.fence.stream)
            if epoch is None:
                return False
            streams[append.fence.stream] = epoch
        return True

    def learn(self, before: Head, after: Head, streams: Mapping[StreamId, StreamHead]) -> None:
        """A commit moved the head from `before` to `after`; `streams` are the ends of all streams it named."""
        if before != self._head:
            self._streams.clear()
        self._head = after
        for stream, end in streams.items():
            self._streams[stream] = end
            self._streams.move_to_end(stream)
        while len(self._streams) > self._streams_max:
            self._streams.popitem(last=False)

    def confirm(self, after: Head, streams: Mapping[StreamId, StreamHead]) -> None:
        """What `basis` gave was true: the group was stored upon it."""
        self._next_rest = 1
        assert self._head is not None
        self.learn(self._head, after, streams)

    def overtaken(self) -> None:
        """Somebody else moved the head. While that goes on, try ever less often."""
        self.forget()
        self._rest = self._next_rest
        self._next_rest = min(2 * self._next_rest, _REST_GROUPS_MAX)

    def forget(self) -> None:
        """Nothing is certain any more."""
        self._head = None
        self._streams.clear()
