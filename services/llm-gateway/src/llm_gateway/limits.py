"""Rate limits and the line before them. Pure; times are seconds on one monotonic clock.

A limit has four meters: requests, input tokens and output tokens by the minute, and calls at once. A call takes its
upper bound from all of them when it is admitted and gives back what it did not use when it ends.

Calls that find no room wait in a line. Classes of priority go one before the other, and a call moves up one class for
each `aging_s` that it has waited, so that none starves. Within a class tenants share by start-time fair queueing
(Goyal, Vin, Cheng 1996): who asked for much stands behind who asked for little. A call that does not fit keeps back
those behind it that want the same meters, and nobody else. Where a limit has shares, the last fifth of it is kept for the
classes that have not had theirs.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Annotated, ClassVar, Final, Literal, Protocol, TypeAlias

from pydantic import ConfigDict, Field

MINUTE_S: Final = 60.0
BORROWED_SHARE: Final = 0.8
"""While less of a limit is used, classes of priority may have more than their shares of it."""
BORROW_LOOK_S: Final = 0.25
Priority = Literal["high", "normal", "low"]
Per = Literal["provider", "model", "tenant", "tenant_model"]
_RANKS: Final[Mapping[Priority, int]] = {"high": 0, "normal": 1, "low": 2}
_LIMITS: Final = ("requests_per_min", "input_tokens_per_min", "output_tokens_per_min", "concurrent")
_Limit: TypeAlias = Annotated[int, Field(ge=0, le=10**12)]
_Share: TypeAlias = Annotated[float, Field(gt=0, le=1)]
_Burst: TypeAlias = Annotated[float, Field(ge=1, allow_inf_nan=False)]
"""A slice of a shared limit is a quarter of it at most, and has to reach from one look at the book to the next."""


def precedes(one: Priority, other: Priority) -> bool:
    """Whether calls of one class go before those of the other that ask at the same moment."""
    return _RANKS[one] < _RANKS[other]


@dataclass(frozen=True, slots=True)
class LimitRule:
    """Limits of each `per`, for models whose "provider/model" matches the pattern `models`; 0 is no limit.

    `burst_s` is how much of a minute may come at once. The shares are of the limit, by class of priority: while less than
    BORROWED_SHARE of it is used, each class may have what it wants, beyond that no more than its share; 1 holds no class.

    A rule that was mistyped would let everything pass: the bounds and names hold where it is read from the settings.
    Raises ValueError for one that limits nothing.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    per: Per
    models: Annotated[str, Field(min_length=1)] = "*"
    requests_per_min: _Limit = 0
    input_tokens_per_min: _Limit = 0
    output_tokens_per_min: _Limit = 0
    concurrent: _Limit = 0
    burst_s: _Burst = 10.0
    high_share: _Share = 1.0
    normal_share: _Share = 1.0
    low_share: _Share = 1.0

    def __post_init__(self) -> None:
        if not any(getattr(self, name) for name in _LIMITS):
            raise ValueError(f"limits nothing; give one of {', '.join(_LIMITS)}")

    def share(self, priority: Priority) -> float:
        match priority:
            case "high":
                return self.high_share
            case "normal":
                return self.normal_share
            case "low":
                return self.low_share

    def key(self, tenant: str, model: str) -> tuple[str, ...]:
        match self.per:
            case "provider":
                return (model.partition("/")[0],)
            case "model":
                return (model,)
            case "tenant":
                return (tenant,)
            case "tenant_model":
                return (tenant, model)


@dataclass(frozen=True, slots=True)
class Need:
    """What a call takes: one request, and tokens."""

    input_tokens: int
    output_tokens: int


class Rate:
    """One meter as a generic cell rate algorithm: `full_at` is when everything taken has flowed off again."""

    def __init__(self, per_min: float, burst_s: float) -> None:
        self._seconds_each = MINUTE_S / per_min
        self._burst_s = burst_s
        self._full_at = 0.0

    def wait_s(self, now: float, amount: float, ahead: float = 0) -> float:
        """Until `amount` fits behind what is `ahead`. More than the burst fits when the meter is empty."""
        room_s = max(self._burst_s, amount * self._seconds_each)
        return max(0.0, max(self._full_at, now) + (ahead + amount) * self._seconds_each - room_s - now)

    def saturation(self, now: float) -> float:
        """How much of the burst is used, from 0."""
        return max(0.0, self._full_at - now) / self._burst_s

    def take(self, now: float, amount: float) -> None:
        """More than there is room for is a debt that flows off first; a negative amount is given back."""
        self._full_at = max(self._full_at, now) + amount * self._seconds_each

    def set_backlog(self, now: float, seconds: float) -> None:
        """As somebody else has counted: all that was taken flows off in so many seconds."""
        self._full_at = now + seconds


class Metered(Protocol):
    """What a line asks the meters of a rule for one key. Times are seconds on the line's clock."""

    @property
    def rule(self) -> LimitRule: ...

    @property
    def sharers(self) -> int:
        """How many processes share the limit now, this one included."""
        ...

    def saturation(self, now: float) -> float:
        """How much of the limit is used, from 0 to 1 or beyond."""
        ...

    def wait_s(self, now: float, need: Need) -> float:
        """0 if the need fits, else when to ask again; infinite while only the end of a call can help."""
        ...

    def rates_wait_s(self, now: float, need: Need, ahead: Sequence[Need]) -> float:
        """At least so long behind those ahead, calls that run left out of account."""
        ...

    def take(self, now: float, need: Need) -> None: ...

    def settle(self, now: float, need: Need, used: Need | None) -> None:
        """The call has ended. `used` is None when the provider counts nothing of it."""
        ...


class Meters:
    """The meters of one rule for one key, in one process. Implements Metered."""

    sharers: Final = 1

    def __init__(self, rule: LimitRule) -> None:
        self.rule = rule
        self._requests = _rate(rule.requests_per_min, rule.burst_s)
        self._input = _rate(rule.input_tokens_per_min, rule.burst_s)
        self._output = _rate(rule.output_tokens_per_min, rule.burst_s)
        self._free = rule.concurrent or math.inf

    def saturation(self, now: float) -> float:
        used = [rate.saturation(now) for rate in self._rates() if rate]
        slots = self.rule.concurrent
        return max([*used, 1 - self._free / slots] if slots else used, default=0.0)

    def wait_s(self, now: float, need: Need) -> float:
        """Until the need fits; infinite while as many calls run as may."""
        return self.rates_wait_s(now, need, ()) if self._free >= 1 else math.inf

    def rates_wait_s(self, now: float, need: Need, ahead: Sequence[Need]) -> float:
        """Behind those ahead, and without the calls that run, of which nobody knows when they end."""
        amounts = zip(self._rates(), _amounts((need,)), _amounts(ahead), strict=True)
        return max((rate.wait_s(now, own, others) for rate, own, others in amounts if rate), default=0.0)

    def take(self, now: float, need: Need) -> None:
        self._free -= 1
        self._add(now, 1, need.input_tokens, need.output_tokens)

    def settle(self, now: float, need: Need, used: Need | None) -> None:
        """The call has ended. `used` is None when the provider counts nothing of it."""
        self._free += 1
        if used is None:
            self._add(now, -1, -need.input_tokens, -need.output_tokens)
        else:
            self._add(now, 0, used.input_tokens - need.input_tokens, used.output_tokens - need.output_tokens)

    def _rates(self) -> tuple[Rate | None, Rate | None, Rate | None]:
        return (self._requests, self._input, self._output)

    def _add(self, now: float, *amounts: int) -> None:
        for rate, amount in zip(self._rates(), amounts, strict=True):
            if rate is not None:
                rate.take(now, amount)


class ClassMeter:
    """What one class of priority uses of a limit in this process, held to its part of the limit."""

    def __init__(self, rule: LimitRule, share: float) -> None:
        self._slots = rule.concurrent * share
        self._running = 0
        per_min = (rule.requests_per_min, rule.input_tokens_per_min, rule.output_tokens_per_min)
        self._rates = tuple(Rate(share * limit, rule.burst_s) if limit else None for limit in per_min)

    def wait_s(self, now: float, need: Need, sharers: int) -> float:
        """0 if the class has not had its share yet; of a limit that others share, that is a part."""
        if self._slots and self._running >= max(1.0, self._slots / sharers):
            return math.inf
        amounts = zip(self._rates, _amounts((need,)), strict=True)
        return max((rate.wait_s(now, amount * sharers) for rate, amount in amounts if rate), default=0.0)

    def take(self, now: float, need: Need) -> None:
        self._running += 1
        for rate, amount in zip(self._rates, _amounts((need,)), strict=True):
            if rate is not None:
                rate.take(now, amount)

    def leave(self) -> None:
        """The call has ended. Its rates keep its upper bound: a class is held to what it asked for."""
        self._running -= 1


@dataclass(eq=False, slots=True)
class Ticket:
    """A call before, in or past the line. `until` is when its callers stop waiting, `start` its place in fair queueing."""

    tenant: str
    model: str
    need: Need
    priority: Priority
    asked_at: float
    until: float
    meters: tuple[Metered, ...]
    start: float = 0.0
    admitted: bool = False


@dataclass(frozen=True, slots=True)
class LineTerms:
    """`length_max` bounds the calls that wait; `aging_s` is what one class of priority is worth."""

    length_max: int = 1000
    aging_s: float = 10.0


@dataclass(slots=True)
class Line:
    """Who is admitted next. Nothing happens by itself: ask `admit` whenever time has passed or a call has ended."""

    rules: tuple[LimitRule, ...] = ()
    terms: LineTerms = field(default_factory=LineTerms)
    make: Callable[[LimitRule, tuple[str, ...]], Metered] = lambda rule, key: Meters(rule)
    """How the meters of a rule for one key are made."""
    _meters: dict[tuple[LimitRule, tuple[str, ...]], Metered] = field(default_factory=dict)
    _classes: dict[tuple[Metered, Priority], ClassMeter] = field(default_factory=dict)
    _waiting: list[Ticket] = field(default_factory=list)
    _finish: dict[str, float] = field(default_factory=dict)
    _virtual: float = 0.0

    def __len__(self) -> int:
        return len(self._waiting)

    def ticket(self, tenant: str, model: str, need: Need, priority: Priority, now: float, until: float) -> Ticket:
        meters = tuple([self._of(rule, tenant, model) for rule in self.rules if fnmatchcase(model, rule.models)])
        return Ticket(tenant, model, need, priority, now, until, meters)

    def hopeless_s(self, ticket: Ticket, now: float) -> float | None:
        """How long the ticket would wait at least, if that is too long or the line is full; else None."""
        ahead = [other for other in self._waiting if self._rank(other, now) <= self._rank(ticket, now)]
        wait_s = max(
            (
                meters.rates_wait_s(now, ticket.need, [other.need for other in ahead if meters in other.meters])
                for meters in ticket.meters
            ),
            default=0.0,
        )
        full = len(self._waiting) >= self.terms.length_max
        return wait_s if now + wait_s > ticket.until or full else None

    def join(self, ticket: Ticket) -> None:
        """Behind those of the same tenant; the larger the need, the later the tenant's next one."""
        ticket.start = max(self._virtual, self._finish.get(ticket.tenant, 0.0))
        self._finish[ticket.tenant] = ticket.start + 1 + ticket.need.input_tokens + ticket.need.output_tokens
        self._waiting.append(ticket)

    def leave(self, ticket: Ticket) -> None:
        """Its callers wait no longer."""
        if ticket in self._waiting:
            self._waiting.remove(ticket)

    def admit(self, now: float) -> list[Ticket]:
        """Those that fit now, in their order; they have taken what they need."""
        admitted: list[Ticket] = []
        held: set[Metered] = set()
        for ticket in self.in_order(now):
            if self._class_wait_s(ticket, now):
                continue  # and keeps nobody back: the others have had less
            if held.isdisjoint(ticket.meters) and all(not one.wait_s(now, ticket.need) for one in ticket.meters):
                self._take(ticket, now)
                admitted.append(ticket)
            else:
                held.update(ticket.meters)
        return admitted

    def in_order(self, now: float) -> list[Ticket]:
        """Those that wait, as they are to be admitted."""
        return sorted(self._waiting, key=lambda ticket: (self._rank(ticket, now), ticket.start))

    def depths(self) -> Mapping[str, int]:
        """How many calls wait, by model."""
        return Counter(ticket.model for ticket in self._waiting)

    def late(self, now: float) -> list[Ticket]:
        """Those whose callers have stopped waiting; they are out of the line."""
        gone = [ticket for ticket in self._waiting if ticket.until <= now]
        for ticket in gone:
            self._waiting.remove(ticket)
        return gone

    def settle(self, ticket: Ticket, now: float, used: Need | None) -> None:
        for meters in ticket.meters:
            meters.settle(now, ticket.need, used)
            if held := self._class_of(meters, ticket.priority):
                held.leave()

    def next_at(self, now: float) -> float:
        """When it is worth asking again, if no call ends before."""
        return min((now + wait_s for wait_s in self._waits(now)), default=math.inf)

    def _waits(self, now: float) -> Iterator[float]:
        for ticket in self._waiting:
            wait_s = max((meters.wait_s(now, ticket.need) for meters in ticket.meters), default=0.0)
            # A class may have room sooner than by its share: as soon as others use less.
            held_s = min(self._class_wait_s(ticket, now), BORROW_LOOK_S)
            yield min(max(wait_s, held_s), ticket.until - now)

    def _class_wait_s(self, ticket: Ticket, now: float) -> float:
        """How long the share of its class holds the ticket back."""
        waits = (
            held.wait_s(now, ticket.need, meters.sharers)
            for meters in ticket.meters
            if (held := self._class_of(meters, ticket.priority)) and meters.saturation(now) >= BORROWED_SHARE
        )
        return max(waits, default=0.0)

    def _class_of(self, meters: Metered, priority: Priority) -> ClassMeter | None:
        share = meters.rule.share(priority)
        if share >= 1:
            return None
        key = (meters, priority)
        if key not in self._classes:
            self._classes[key] = ClassMeter(meters.rule, share)
        return self._classes[key]

    def _take(self, ticket: Ticket, now: float) -> None:
        ticket.admitted = True
        self._waiting.remove(ticket)
        self._virtual = max(self._virtual, ticket.start)
        if not self._waiting:
            self._finish.clear()
            self._virtual = 0.0
        for meters in ticket.meters:
            meters.take(now, ticket.need)
            if held := self._class_of(meters, ticket.priority):
                held.take(now, ticket.need)

    def _rank(self, ticket: Ticket, now: float) -> int:
        return max(0, _RANKS[ticket.priority] - int((now - ticket.asked_at) / self.terms.aging_s))

    def _of(self, rule: LimitRule, tenant: str, model: str) -> Metered:
        key = (rule, rule.key(tenant, model))
        if key not in self._meters:
            self._meters[key] = self.make(*key)
        return self._meters[key]


def _rate(per_min: int, burst_s: float) -> Rate | None:
    return Rate(per_min, burst_s) if per_min else None


def _amounts(needs: Sequence[Need]) -> tuple[int, int, int]:
    return (len(needs), sum(need.input_tokens for need in needs), sum(need.output_tokens for need in needs))
