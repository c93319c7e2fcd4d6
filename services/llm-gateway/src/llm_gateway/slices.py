"""One limit for all processes of the service: what it has left, handed out in slices. Pure; times are in seconds.

Each limit key has one book, and who holds the book owns the limit. A process never lets a call pass on the limit
itself: it is handed a slice, amounts that the book counts as used from then on, and lets calls pass on that. A slice is
valid for `valid_s`; what is left of it goes back into the book when the next one is handed out, and is lost with a
process that dies. So whoever dies or cannot reach the book, no more passes than the limit:

      book ── slice of 40 requests ──▶ process A ──▶ calls          within any time t at most  rate * t + burst:
        │                                  │                        the book itself allows for a burst that is
        │ ◀──── 12 of them left ───────────┘                        shorter by 2 * valid_s, because a slice may be
        └──── slice of 10 requests ──▶ process B ──▶ calls          used, or come back, so much later

Calls at once are slots. A process holds them as long as it comes back; those of one that does not are free after
`held_s`. Processes that find too little wait in the book's line, first come first served, and share the rest evenly.
The clock of a book is that of the database; a process counts a slice's time from before it asked for it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from llm_gateway.limits import MINUTE_S, LimitRule, Need, Rate

ACTIVE_S: Final = 10.0
"""A limit is asked for ahead of calls as long after the last one, so that the next one finds a slice."""
AHEAD: Final = 1.5
"""How much more than in the last slice is asked for."""
HELD_SLICES: Final = 10.0
WAITING_SLICES: Final = 3.0
SLOT_SLICES: Final = 0.25
"""In slices: how long slots are held for a process that does not come back, how long its place in the line is, and when
one that found no slot asks again.
"""
RENEWED_SHARE: Final = 0.75
"""A slice is brought back after so much of its time, so that what is left of it is not lost."""
PAUSE_S: Final = 0.005
"""The shortest time between two questions about the same limit."""


class Amounts(NamedTuple):
    """What rates count, in the order of a book's meters."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0

    def plus(self, other: "Amounts", sign: int = 1) -> "Amounts":
        return Amounts(*(one + sign * two for one, two in zip(self, other, strict=True)))

    def covers(self, other: "Amounts") -> bool:
        return all(one >= two for one, two in zip(self, other, strict=True))


NOTHING: Final = Amounts()


@dataclass(frozen=True, slots=True)
class SliceTerms:
    """`slice_s` is how long a slice is valid, unless the limit's burst is shorter than four of them."""

    slice_s: float = 0.5

    def valid_s(self, rule: LimitRule) -> float:
        return min(self.slice_s, rule.burst_s / 4)

    @property
    def held_s(self) -> float:
        return HELD_SLICES * self.slice_s


@dataclass(frozen=True, slots=True)
class Held:
    """Slots of one process, free again at `until`."""

    slots: int
    until: float


@dataclass(frozen=True, slots=True)
class Waiting:
    """A process that found too little for its first call; forgotten at `until` unless it comes back."""

    member: str
    least: Amounts
    slots: int
    until: float


@dataclass(frozen=True, slots=True)
class Book:
    """The state of one limit key. `full_at` is when all that was handed out has flowed off, for each rate."""

    full_at: tuple[float, float, float] = (0.0, 0.0, 0.0)
    held: Mapping[str, Held] = field(default_factory=dict)
    waiting: tuple[Waiting, ...] = ()


@dataclass(frozen=True, slots=True)
class Want:
    """What a process brings back and asks for.

    `least` is what its first waiting call takes, and nothing if none waits; `most` what is of use to it. `returned` was
    in its last slice and is not used, or was used beyond it if negative. It holds `running` slots and wants `slots` more.
    """

    least: Amounts = NOTHING
    most: Amounts = NOTHING
    returned: Amounts = NOTHING
    running: int = 0
    slots: int = 0

    @property
    def waits(self) -> bool:
        return self.least != NOTHING


@dataclass(frozen=True, slots=True)
class Grant:
    """A slice. `slots` holds those that run; `wait_s` is until it is worth to ask again; `backlog_s` what has to flow
    off before each rate is empty; `sharers` how many processes use the limit now.
    """

    amounts: Amounts
    slots: int
    wait_s: float
    backlog_s: tuple[float, float, float]
    sharers: int


def hand_out(book: Book, rule: LimitRule, member: str, want: Want, now: float, terms: SliceTerms) -> tuple[Book, Grant]:
    """The next slice for `member`, and the book after it."""
    rates = _per_min(rule)
    full_at = _used(book.full_at, rates, want.returned, now, -1)
    others = {name: held for name, held in book.held.items() if name != member and held.until > now}
    line = tuple(one for one in book.waiting if one.until > now)
    left = _left(rule, full_at, others, _ahead(line, member), want, now, terms)
    fits = left.fits(want)
    rivals = 1 + sum(1 for one in line if one.member != member)

    amounts = left.amounts(want, rivals) if fits else NOTHING
    slots = left.slots(want, rivals) if fits else 0
    full_at = _used(full_at, rates, amounts, now, 1)
    held = {**others, member: Held(want.running + slots, now + terms.held_s)}
    own = Waiting(member, want.least, min(1, want.slots), now + WAITING_SLICES * terms.slice_s)
    line = _rejoined(line, own, out=fits or not want.waits)
    requests, input_tokens, output_tokens = (max(0.0, at - now) for at in full_at)
    grant = Grant(
        amounts,
        max(0, want.running + slots - left.owed_slots),
        0.0 if fits else left.wait_s(want, rates, terms),
        (requests, input_tokens, output_tokens),
        len(held),
    )
    return Book(full_at, held, line), grant


@dataclass(frozen=True, slots=True)
class _Left:
    """What a member may have, those ahead of it served. `empty` when nothing at all is used and nobody is ahead;
    `owed_slots` are those that it holds and that others wait for.
    """

    rates: tuple[float, ...]
    free_slots: float
    owed_slots: int
    empty: bool

    def fits(self, want: Want) -> bool:
        """Whether the first call does. More than the burst fits when the meters are empty."""
        if not want.waits:
            return True
        rates_fit = self.empty or all(left >= least for left, least in zip(self.rates, want.least, strict=True))
        return rates_fit and self.free_slots >= min(1, want.slots)

    def amounts(self, want: Want, rivals: int) -> Amounts:
        """At least the first call; what is beyond it is shared with those who wait."""
        shares = (
            most if left == math.inf else max(least, min(most, int(left / rivals)))
            for most, least, left in zip(want.most, want.least, self.rates, strict=True)
        )
        return Amounts(*(max(0, share) for share in shares))

    def slots(self, want: Want, rivals: int) -> int:
        """Beside those that run."""
        if self.free_slots <= 0 or not want.slots:
            return 0
        return int(min(want.slots, self.free_slots, max(1, self.free_slots // rivals)))

    def wait_s(self, want: Want, rates: Sequence[int], terms: SliceTerms) -> float:
        """Until the first call may fit; nobody knows when a slot becomes free."""
        waits = (
            (needed - left) * MINUTE_S / per_min
            for left, per_min, needed in zip(self.rates, rates, want.least, strict=True)
            if per_min
        )
        slot_s = SLOT_SLICES * terms.slice_s if self.free_slots < 1 else 0.0
        return min(terms.slice_s, max(PAUSE_S, slot_s, *waits))


def _left(
    rule: LimitRule,
    full_at: tuple[float, float, float],
    others: Mapping[str, Held],
    ahead: tuple[Waiting, ...],
    want: Want,
    now: float,
    terms: SliceTerms,
) -> _Left:
    room = _room(full_at, _per_min(rule), rule.burst_s - 2 * terms.valid_s(rule), now)
    promised = sum(one.slots for one in ahead)
    free = rule.concurrent - sum(held.slots for held in others.values()) - want.running
    return _Left(
        rates=tuple(left - sum(one.least[meter] for one in ahead) for meter, left in enumerate(room)),
        free_slots=free - promised if rule.concurrent else math.inf,
        owed_slots=min(want.running, max(0, promised - max(0, free))) if rule.concurrent else 0,
        empty=not ahead and all(at <= now for at in full_at),
    )


def _per_min(rule: LimitRule) -> tuple[int, int, int]:
    return (rule.requests_per_min, rule.input_tokens_per_min, rule.output_tokens_per_min)


def _used(
    full_at: tuple[float, float, float], rates: tuple[int, int, int], amounts: Amounts, now: float, sign: int
) -> tuple[float, float, float]:
    moved = (
        max(at, now) + sign * amount * MINUTE_S / per_min if per_min else 0.0
        for at, per_min, amount in zip(full_at, rates, amounts, strict=True)
    )
    requests, input_tokens, output_tokens = moved
    return (requests, input_tokens, output_tokens)


def _room(full_at: Sequence[float], rates: Sequence[int], burst_s: float, now: float) -> list[float]:
    """What fits now; infinite where there is no limit."""
    return [
        (burst_s - max(0.0, at - now)) * per_min / MINUTE_S if per_min else math.inf
        for at, per_min in zip(full_at, rates, strict=True)
    ]


def _ahead(line: tuple[Waiting, ...], member: str) -> tuple[Waiting, ...]:
    """Those who came before; all, if the member does not wait yet."""
    names = [one.member for one in line]
    return line[: names.index(member)] if member in names else line


def _rejoined(line: tuple[Waiting, ...], own: Waiting, *, out: bool) -> tuple[Waiting, ...]:
    """The member's place is kept as long as it waits; once served it goes behind all others."""
    if out:
        return tuple(one for one in line if one.member != own.member)
    kept = tuple(own if one.member == own.member else one for one in line)
    return kept if own in kept else (*kept, own)


# --- in the process ---


class SlicedMeters:
    """The meters of one rule for one key, on slices of a limit that other processes share. Implements Metered.

    Times are of the process's monotonic clock. `due` says when to bring a want to the book, `want` makes it and puts the
    slice aside, `receive` takes the next one.
    """

    def __init__(self, rule: LimitRule, terms: SliceTerms) -> None:
        self.rule = rule
        self._terms = terms
        self._has_rates = tuple(bool(per_min) for per_min in _per_min(rule))
        self._slice = NOTHING
        self._settled = NOTHING
        self._valid_until = 0.0
        self._renew_at = 0.0
        self._wanted_at = -math.inf
        self.sharers = 1
        self._slots: float = 0 if rule.concurrent else math.inf
        self._running = 0
        self._spent = NOTHING
        self._typical = NOTHING
        self._used_at = -math.inf
        self._ask_at = 0.0
        self._whole = tuple(Rate(per_min, rule.burst_s) if per_min else None for per_min in _per_min(rule))

    def saturation(self, now: float) -> float:
        """Of the whole limit by what the book said last, and of this process's part of the calls at once."""
        used = [rate.saturation(now) for rate in self._whole if rate]
        slots = self.rule.concurrent
        return max([*used, self._running * self.sharers / slots] if slots else used, default=0.0)

    def wait_s(self, now: float, need: Need) -> float:
        """0 if the slice at hand has room, else until it is worth to look again."""
        if self._free() < 1:
            return math.inf
        if self._valid(now).covers(self._rated(_amounts(need))):
            return 0.0
        return max(PAUSE_S, self._ask_at - now)

    def rates_wait_s(self, now: float, need: Need, ahead: Sequence[Need]) -> float:
        """What it would be at least if no other process asked, by what the book said last."""
        total = [sum(column) for column in zip((0, 0, 0), *map(_amounts, ahead), strict=True)]
        pairs = zip(self._whole, _amounts(need), total, strict=True)
        return max((rate.wait_s(now, own, others) for rate, own, others in pairs if rate), default=0.0)

    def take(self, now: float, need: Need) -> None:
        taken = _amounts(need)
        self._slice = self._slice.plus(self._rated(taken), -1)
        self._spent, self._typical = self._spent.plus(taken), taken
        self._running += 1
        self._used_at = now

    def settle(self, now: float, need: Need, used: Need | None) -> None:
        """The difference goes back to the book, with the next want."""
        self._running -= 1
        actual = NOTHING if used is None else Amounts(1, used.input_tokens, used.output_tokens)
        self._settled = self._settled.plus(_amounts(need)).plus(actual, -1)

    def due(self, now: float, waiting: Sequence[Need]) -> float:
        """When to ask the book next; infinite when nobody wants anything."""
        if waiting and self.wait_s(now, waiting[0]):
            return self._ask_at
        busy = self._running or self._settled != NOTHING or now - self._used_at < ACTIVE_S
        return max(self._ask_at, self._renew_at) if busy else math.inf

    def want(self, now: float, waiting: Sequence[Need]) -> Want:
        """What is brought back and asked for. `waiting` in the order in which they are to be admitted.

        Until the answer nothing passes: what the process still had is the book's again.
        """
        returned = self._valid(now).plus(self._settled)
        spare = self._spare(now)
        known = [_amounts(need) for need in waiting]
        most = Amounts(*(sum(column) for column in zip(spare, *known, strict=True)))
        self._slice, self._settled, self._spent, self._wanted_at = NOTHING, NOTHING, NOTHING, now
        self._slots = self._running if self.rule.concurrent else math.inf
        return Want(
            least=known[0] if known else NOTHING,
            most=self._rated(most),
            returned=self._rated(returned),
            running=self._running if self.rule.concurrent else 0,
            slots=len(waiting) + spare.requests if self.rule.concurrent else 0,
        )

    def receive(self, grant: Grant, asked_at: float, now: float) -> None:
        """The slice that was asked for at `asked_at`."""
        valid_s = self._terms.valid_s(self.rule)
        self._slice, self._valid_until = grant.amounts, asked_at + valid_s
        self._renew_at = asked_at + RENEWED_SHARE * valid_s
        self.sharers = max(1, grant.sharers)
        self._slots = grant.slots if self.rule.concurrent else math.inf
        self._ask_at = now + grant.wait_s
        for rate, backlog_s in zip(self._whole, grant.backlog_s, strict=True):
            if rate is not None:
                rate.set_backlog(now, backlog_s)

    def failed(self, now: float, pause_s: float) -> None:
        """The book could not be reached: what was brought back is lost, nothing passes, and it is asked later."""
        self._ask_at = now + pause_s

    def _free(self) -> float:
        return self._slots - self._running

    def _spare(self, now: float) -> Amounts:
        """For calls to come: somewhat more than came lately, and room for one like the last; nothing after a while."""
        if now - self._used_at >= ACTIVE_S:
            return NOTHING
        slices = self._terms.valid_s(self.rule) / max(now - self._wanted_at, PAUSE_S)
        lately = (math.ceil(amount * AHEAD * slices) for amount in self._spent)
        return Amounts(*(max(pair) for pair in zip(lately, self._typical, strict=True)))

    def _valid(self, now: float) -> Amounts:
        return self._slice if now < self._valid_until else NOTHING

    def _rated(self, amounts: Amounts) -> Amounts:
        """Only what the rule limits."""
        return Amounts(*(amount if has else 0 for amount, has in zip(amounts, self._has_rates, strict=True)))


def _amounts(need: Need) -> Amounts:
    return Amounts(1, need.input_tokens, need.output_tokens)
