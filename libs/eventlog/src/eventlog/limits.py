"""Everything has a limit, named with its unit, in one place."""

from __future__ import annotations

from dataclasses import dataclass

from eventlog.patience import ANSWER_TIMEOUT_S


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one open log."""

    data_bytes_max: int = 768 * 1024
    """Data of one event. Below the 1 MiB that a NATS server takes by default, headers included."""
    request_events_max: int = 1_000
    """Events of one append."""
    queue_events_max: int = 20_000
    """Events that wait for the writer before callers are held back."""
    queue_timeout_s: float = 5.0
    """How long a caller is held back before QueueFull."""
    group_events_max: int = 1_000
    """Events of one transaction, unless a single request has more."""
    group_bytes_max: int = 8 * 1024 * 1024
    """Data of one transaction, the rows beside its events included, unless a single request has more."""
    streams_remembered_max: int = 8_192
    """Streams whose ends the writer need not ask for, those used last; some 350 bytes each."""
    reconnect_timeout_s: float = 30.0
    """How long a group waits for the database to come back before LogUnavailable."""
    answer_timeout_s: float = ANSWER_TIMEOUT_S
    """How long the database may take for one statement before its connection is given up. A group is then committed by
    another one; readers are told LogUnavailable."""
    announce_s: float = 0.02
    """So long after a commit other processes are notified of it, once for all that were committed until then."""
    poll_interval_s: float = 0.25
    """How often the head is read when no notification arrives."""
    readers_max: int = 4
    """Connections for reading."""
    page_bytes: int = 8 * 1024 * 1024
    """Data of one page for a follower: the page ends once it has so much. From the database it comes in pieces of
    `page_events`, which end it as a whole."""
    newest_events: int = 4_096
    """Newest events held in memory for followers."""
    newest_bytes: int = 8 * 1024 * 1024
    """Data of them."""
    page_events: int = 1_000
    """Events of one page when the log reads for itself (verification, folds)."""
