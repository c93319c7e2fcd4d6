"""What the limits of providers leave, as they say themselves. Pure; times are seconds on one monotonic clock.

A provider knows best how much of its limits is used: other programs may use the same key. Each answer tells it anew; until
then what was sent since is taken off, and what flows back is added. A call that finds no room waits, or goes elsewhere,
instead of being refused over there. So the gateway slows down as a limit is used up, and recovers as it is filled again:

      wide ──── less than LOW_SHARE remains: calls pass only as fast as the limit is filled ────▶ narrow
        ▲                                                                                            │
        └──────────────────────────── more than HIGH_SHARE remains ──────────────────────────────────┘
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from llm_gateway.limits import MINUTE_S, Need
from llm_gateway.providers.quota import Meter, Quota

LOW_SHARE: Final = 0.1
HIGH_SHARE: Final = 0.3
CHANGED_SHARE: Final = 0.05
"""A limit that differs by more is another one."""
FORGOTTEN_S: Final = 120.0
"""What a provider said longer ago says nothing about now."""


@dataclass(frozen=True, slots=True)
class Adjusted:
    """The rate at which calls may pass has changed, for this meter of this circuit."""

    circuit: str
    meter: Meter
    from_per_min: int
    to_per_min: int
    remaining: int


class ProviderMeter:
    """One limit of one key, as it was said last."""

    def __init__(self, quota: Quota, now: float) -> None:
        self.per_min = quota.limit
        self._narrow = False
        self._limit = quota.limit
        self.observe(quota, now)

    def observe(self, quota: Quota, now: float) -> tuple[int, int] | None:
        """The rates per minute before and after, if that changes anything."""
        self._seen_at, self._remaining, self._taken = now, quota.remaining, 0
        self._refill = (quota.limit - quota.remaining) / quota.reset_s if quota.reset_s else quota.limit / MINUTE_S
        narrow = quota.remaining < quota.limit * (HIGH_SHARE if self._narrow else LOW_SHARE)
        same = narrow == self._narrow and abs(quota.limit - self._limit) <= CHANGED_SHARE * self._limit
        self._narrow, self._limit = narrow, quota.limit
        if same:
            return None
        before, self.per_min = self.per_min, round(self._refill * MINUTE_S) if narrow else quota.limit
        return before, self.per_min

    def take(self, amount: int) -> None:
        self._taken += amount

    def wait_s(self, amount: int, now: float) -> float:
        """Until so much fits, or all there can be."""
        if now - self._seen_at > FORGOTTEN_S:
            return 0.0
        left = 0 if self._narrow else self._remaining
        room = min(float(self._limit), left + self._refill * (now - self._seen_at)) - self._taken
        missing = min(amount, self._limit) - room
        if missing <= 0:
            return 0.0
        return missing / self._refill if self._refill else FORGOTTEN_S


class Headroom:
    """What remains at each circuit of which its provider has said anything."""

    def __init__(self) -> None:
        self._meters: dict[str, dict[Meter, ProviderMeter]] = {}

    def observe(self, circuit: str, told: Sequence[Quota], now: float) -> tuple[Adjusted, ...]:
        """What the headers of one answer say, and what changes by it."""
        return tuple(self._observed(circuit, told, now))

    def wait_s(self, circuit: str, need: Need, now: float) -> float:
        """Until the call fits into all limits of the circuit; 0 where nothing is known."""
        meters = self._meters.get(circuit)
        if not meters:
            return 0.0
        amounts = _amounts(need)
        return max(meter.wait_s(amounts[name], now) for name, meter in meters.items())

    def take(self, circuit: str, need: Need) -> None:
        """A call is on its way of which the provider has not told yet."""
        meters = self._meters.get(circuit)
        if meters:
            amounts = _amounts(need)
            for name, meter in meters.items():
                meter.take(amounts[name])

    def _observed(self, circuit: str, told: Sequence[Quota], now: float) -> Iterator[Adjusted]:
        meters = self._meters.setdefault(circuit, {})
        for quota in told:
            known = meters.get(quota.meter)
            if known is None:
                known = meters[quota.meter] = ProviderMeter(quota, now)
                changed = (quota.limit, known.per_min) if known.per_min != quota.limit else None
            else:
                changed = known.observe(quota, now)
            if changed:
                yield Adjusted(circuit, quota.meter, *changed, remaining=quota.remaining)


def _amounts(need: Need) -> Mapping[Meter, int]:
    return {
        "requests": 1,
        "tokens": need.input_tokens + need.output_tokens,
        "input_tokens": need.input_tokens,
        "output_tokens": need.output_tokens,
    }
