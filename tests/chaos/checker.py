"""The judgement over a round, pure: what clients were told against what is there.

Each rule yields what it finds; none stops at the first.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

from .history import FORBIDDEN, POISON, Acked, Entry, Evidence, Refused, Told


class Kind(Enum):
    """What can be wrong. The value is what the table calls it."""

    MISSING = "missing"
    """Acknowledged, and not in the log."""
    TWICE = "twice"
    """In the log more than once."""
    TORN = "torn"
    """A request stored in part."""
    UNTRUE = "untrue"
    """An answer that the log belies: refused yet stored, another position or version, an expectation that did not hold."""
    INVENTED = "invented"
    """Stored, and nobody asked for it."""
    HOLE = "holes"
    """Positions, or versions of a stream, that do not count 1, 2, 3."""
    DISORDER = "out of order"
    """Begun after another's acknowledgement, stored before it; or seen by a tail against the order of the log."""
    UNSEEN = "unseen"
    """In the log, and a tail went past it."""
    STREAM = "stream differs"
    """JetStream's sequence, id or hash is not the log's."""
    VIEW = "views differ"
    """A view is not what the log folds to."""
    CHAIN = "chain broken"
    """The hash chain does not verify."""
    DIED = "died"
    """A process ended by an error of the log, not by us."""
    STUCK = "stuck"
    """No progress in time after a fault."""


@dataclass(frozen=True, slots=True)
class Violation:
    """One finding; `step` is the fault during which it was acknowledged, None where that cannot be said."""

    kind: Kind
    detail: str
    step: int | None = None


def check(evidence: Evidence) -> list[Violation]:
    """Every violation in the evidence."""
    return [violation for rule in RULES for violation in rule(evidence)]


def acknowledged_is_there(evidence: Evidence) -> Iterator[Violation]:
    stored = {entry.id for entry in evidence.log}
    for told in evidence.told:
        if isinstance(told.answer, Acked):
            for event_id in told.request.ids():
                if event_id not in stored:
                    yield Violation(Kind.MISSING, f"{event_id}, acknowledged at {told.answer.position}", told.step)


def nothing_is_there_twice(evidence: Evidence) -> Iterator[Violation]:
    steps = {event_id: told.step for told in evidence.told for event_id in told.request.ids()}
    for event_id, count in Counter(entry.id for entry in evidence.log).items():
        if count > 1:
            yield Violation(Kind.TWICE, f"{event_id} is stored {count} times", steps.get(event_id))


def requests_are_whole(evidence: Evidence) -> Iterator[Violation]:
    """Whatever its caller was told: all of a request is stored, or none."""
    stored = {entry.id for entry in evidence.log}
    for told in evidence.told:
        there = [event_id in stored for event_id in told.request.ids()]
        if any(there) and not all(there):
            detail = f"{told.request.key}: {sum(there)} of {len(there)} events are stored, told {told.answer}"
            yield Violation(Kind.TORN, detail, told.step)


def answers_are_true(evidence: Evidence) -> Iterator[Violation]:
    where = {entry.id: entry for entry in evidence.log}
    for told in evidence.told:
        found = [where[event_id] for event_id in told.request.ids() if event_id in where]
        if isinstance(told.answer, Refused) and found:
            yield Violation(Kind.UNTRUE, f"{told.request.key} was refused ({told.answer.reason}), is stored", told.step)
        elif isinstance(told.answer, Acked) and found:
            yield from _position_is_true(told, told.answer, found)
            if evidence.versioned:
                yield from _versions_are_true(told, told.answer, found)
        if found and evidence.versioned:
            yield from _expectations_held(told, where)
        if found and any(entry.type == FORBIDDEN for entry in found):
            yield Violation(Kind.UNTRUE, f"{told.request.key} is stored, which the database forbids", told.step)


def _position_is_true(told: Told, answer: Acked, found: Sequence[Entry]) -> Iterator[Violation]:
    position = max(entry.position for entry in found)
    if answer.position != position:
        yield Violation(Kind.UNTRUE, f"{told.request.key}: told position {answer.position}, at {position}", told.step)


def _versions_are_true(told: Told, answer: Acked, found: Sequence[Entry]) -> Iterator[Violation]:
    versions = {entry.id: entry.version for entry in found}
    for write, version in zip(told.request.writes, answer.versions, strict=False):
        if versions.get(write.ids[-1], version) != version:
            detail = f"{write.stream}: told version {version}, at {versions[write.ids[-1]]}"
            yield Violation(Kind.UNTRUE, detail, told.step)


def _expectations_held(told: Told, where: dict[str, Entry]) -> Iterator[Violation]:
    for write in told.request.writes:
        first = where.get(write.ids[0])
        if write.expected is not None and first is not None and first.version != write.expected + 1:
            detail = f"{write.stream}: expected version {write.expected}, stored as {first.version}"
            yield Violation(Kind.UNTRUE, detail, told.step)


def nothing_is_invented(evidence: Evidence) -> Iterator[Violation]:
    asked = {event_id for told in evidence.told for event_id in told.request.ids()}
    for entry in evidence.log:
        if entry.id not in asked:
            yield Violation(Kind.INVENTED, f"{entry.id} at {entry.position}")


def positions_are_contiguous(evidence: Evidence) -> Iterator[Violation]:
    yield from _contiguous("position", [entry.position for entry in evidence.log])


def versions_are_contiguous(evidence: Evidence) -> Iterator[Violation]:
    if not evidence.versioned:
        return
    streams: dict[str, list[int]] = defaultdict(list)
    for entry in evidence.log:
        streams[entry.stream].append(entry.version)
    for stream, versions in streams.items():
        yield from _contiguous(f"version of {stream}", versions)


def _contiguous(name: str, numbers: Iterable[int]) -> Iterator[Violation]:
    expected = 1
    for number in numbers:
        if number != expected:
            yield Violation(Kind.HOLE, f"{name} {number} follows {expected - 1}")
        expected = number + 1


def order_is_that_of_time(evidence: Evidence) -> Iterator[Violation]:
    """What began after an acknowledgement stands behind it, whatever the clocks of the writers said."""
    where = {entry.id: entry.position for entry in evidence.log}
    begun = sorted((told for told in evidence.told if told.request.key in where), key=lambda told: told.begun_s)
    ended = sorted((told for told in begun if isinstance(told.answer, Acked)), key=lambda told: told.ended_s)
    highest, acknowledged = 0, 0
    for told in begun:
        while acknowledged < len(ended) and ended[acknowledged].ended_s < told.begun_s:
            highest = max(highest, *(where.get(event_id, 0) for event_id in ended[acknowledged].request.ids()))
            acknowledged += 1
        first = min(where[event_id] for event_id in told.request.ids() if event_id in where)
        if first <= highest:
            yield Violation(
                Kind.DISORDER, f"{told.request.key} at {first}, {highest} was acknowledged before", told.step
            )


def tails_saw_everything(evidence: Evidence) -> Iterator[Violation]:
    for name, seen in evidence.tails.items():
        yield from _saw_everything(name, seen, evidence.log)


def _saw_everything(name: str, seen: Sequence[Entry], log: Sequence[Entry]) -> Iterator[Violation]:
    true_ids = {entry.position: entry.id for entry in log}
    last = 0
    for entry in seen:
        if entry.position <= last:
            yield Violation(Kind.DISORDER, f"{name} saw {entry.position} after {last}")
        if true_ids.get(entry.position) != entry.id:
            yield Violation(Kind.DISORDER, f"{name} saw {entry.id} at {entry.position}, where the log has another")
        last = max(last, entry.position)
    times = Counter(entry.position for entry in seen)
    for position in true_ids:
        if position not in times:
            yield Violation(Kind.UNSEEN, f"{name} never saw {position}")
    for position, count in times.items():
        if count > 1:
            yield Violation(Kind.TWICE, f"{name} saw {position} {count} times")


def stream_equals_log(evidence: Evidence) -> Iterator[Violation]:
    if evidence.stream is None:
        return
    published = [(entry.position, entry.id, entry.hash) for entry in evidence.stream]
    stored = [(entry.position, entry.id, entry.hash) for entry in evidence.log]
    for index in range(max(len(published), len(stored))):
        there, here = published[index : index + 1], stored[index : index + 1]
        if there != here:
            yield Violation(Kind.STREAM, f"the stream has {there}, the log has {here}")


def view_equals_fold(evidence: Evidence) -> Iterator[Violation]:
    if evidence.view is None:
        return
    if not evidence.view.equals_rebuilt:
        yield Violation(Kind.VIEW, "the view differs from one folded anew")
    tally = Counter(entry.stream for entry in evidence.log if entry.type != POISON)
    for stream in tally.keys() | evidence.view.tally.keys():
        if tally[stream] != evidence.view.tally.get(stream, 0):
            yield Violation(Kind.VIEW, f"{stream}: view {evidence.view.tally.get(stream, 0)}, log {tally[stream]}")
    poison = [entry.position for entry in evidence.log if entry.type == POISON]
    if sorted(evidence.view.parked) != poison:
        yield Violation(Kind.VIEW, f"parked {evidence.view.parked}, poisonous are {poison}")


def chain_verifies(evidence: Evidence) -> Iterator[Violation]:
    if evidence.chain_ok is False:
        yield Violation(Kind.CHAIN, "the log does not verify")


RULES: tuple[Callable[[Evidence], Iterator[Violation]], ...] = (
    acknowledged_is_there,
    nothing_is_there_twice,
    requests_are_whole,
    answers_are_true,
    nothing_is_invented,
    positions_are_contiguous,
    versions_are_contiguous,
    order_is_that_of_time,
    tails_saw_everything,
    stream_equals_log,
    view_equals_fold,
    chain_verifies,
)
