"""A log compared with its hash chain and with what was signed about it, in one pass: the pure core of verification.

The chain finds what was changed without recomputing every hash after it, and names the position. A tail whose hashes
were all recomputed is a good chain: only a checkpoint signed before betrays it, and the finding names the first one
that no longer holds and the last one that does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from eventlog.chain import Verifier
from eventlog.merkle import CompactRange, leaf_hash
from eventlog.records import StoredEvent, Verified
from eventlog.signing import Checkpoint


class Audit:
    """Folds the events `first` to `last`, in order, into a finding.

    `anchor` is the hash before `first` and `tree` the tree over all events before it. `checkpoints` are believed:
    their signatures hold. Those up to `last` are compared, and so are those beyond it if `last` is the log's `head`.
    """

    def __init__(
        self, first: int, last: int, anchor: bytes, tree: CompactRange, checkpoints: Iterable[Checkpoint], head: int
    ) -> None:
        self._first = first
        self._last = last
        self._chain = Verifier(first, last, anchor)
        self._tree = tree
        due = sorted((c for c in checkpoints if c.position >= first), key=lambda checkpoint: checkpoint.position)
        self._due = [checkpoint for checkpoint in due if checkpoint.position <= last]
        self._beyond = next((checkpoint for checkpoint in due if checkpoint.position > head), None)
        self._whole = last >= head
        self._held: list[Checkpoint] = []
        self._refuted: Verified | None = None

    @property
    def done(self) -> bool:
        """Whether nothing further can change the finding."""
        return self._refuted is not None or self._chain.done

    @property
    def position(self) -> int:
        """The last position found good by the chain."""
        return self._chain.position

    def check(self, events: Sequence[StoredEvent]) -> None:
        """Take the events that follow those taken before."""
        while events and not self.done:
            count = self._due[0].position - self.position if self._due else len(events)
            self._extend(events[:count])
            events = events[count:]
            self._compare()

    def unreadable(self, position: int, reason: str) -> None:
        """The event at `position` is not there to be checked, or not as it was stored."""
        self._chain.unreadable(position, reason)

    def finding(self, head_hash: bytes | None = None) -> Verified:
        """The finding; `head_hash`, if given, is what the log claims as hash of its last event."""
        found = self._refuted or self._chain.finding(head_hash)
        if found.ok and self._whole and self._beyond is not None:
            found = self._missing(found, self._beyond)
        last_held = self._held[-1].position if self._held else 0
        return replace(found, checkpoints=len(self._held), attested_to=last_held)

    def _extend(self, events: Sequence[StoredEvent]) -> None:
        before = self.position
        self._chain.check(events)
        for event in events[: self.position - before]:
            self._tree.append(leaf_hash(event.hash))

    def _compare(self) -> None:
        while self._due and self._due[0].position == self.position and self._refuted is None:
            checkpoint = self._due.pop(0)
            if checkpoint.head_hash == self._chain.hash and checkpoint.root_hash == self._tree.root():
                self._held.append(checkpoint)
            else:
                self._refuted = self._rewritten(checkpoint)

    def _rewritten(self, checkpoint: Checkpoint) -> Verified:
        since = f"after position {self._held[-1].position}" if self._held else f"at position {self._first} or after"
        return Verified(
            self._first,
            self._last,
            checkpoint.position - self._first,
            ok=False,
            broken_at=checkpoint.position,
            reason=f"the history is not the one signed at {checkpoint.signed_at.isoformat()}: it was rewritten {since}",
            head_hash=self._chain.hash,
        )

    def _missing(self, found: Verified, checkpoint: Checkpoint) -> Verified:
        at = checkpoint.signed_at.isoformat()
        reason = f"the event is missing: {checkpoint.position} events were signed at {at}"
        return replace(found, ok=False, broken_at=found.last + 1, reason=reason)
