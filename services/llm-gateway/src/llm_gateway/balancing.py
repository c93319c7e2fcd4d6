"""Which of several deployments of a model is asked first. Pure; times are seconds on one monotonic clock.

What is known of a deployment is what its calls showed: how many run, and how long the first content took lately. That is
a peak-sensitive average: a slow call counts at once, and is forgotten over `decay_s` (Twitter's Finagle, Peak EWMA).
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

Strategy = Literal["order", "affinity", "p2c", "weighted", "least_in_flight"]
"""As written; the same deployment for the same conversation, whose prompt its provider then has in a cache; the better of
two drawn; drawn by weight; the one with the fewest calls.
"""
DECAY_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Load:
    """`first_content_s` is 0 while nothing is known."""

    in_flight: int = 0
    first_content_s: float = 0.0

    @property
    def cost(self) -> float:
        """What one more call would wait, in proportion; a deployment without calls is worth a try."""
        return self.first_content_s * (self.in_flight + 1)


@dataclass(frozen=True, slots=True)
class Place:
    """A deployment among its like: `key` tells it apart."""

    key: str
    weight: int = 1
    load: Load = field(default_factory=Load)


class Loads:
    """What the calls of this process showed, by deployment and model."""

    def __init__(self, decay_s: float = DECAY_S) -> None:
        self._decay_s = decay_s
        self._in_flight: dict[str, int] = {}
        self._seen: dict[str, tuple[float, float]] = {}

    def enter(self, key: str) -> None:
        self._in_flight[key] = self._in_flight.get(key, 0) + 1

    def leave(self, key: str, now: float, first_content_s: float | None) -> None:
        """The call has ended; `first_content_s` is None when there was none."""
        self._in_flight[key] -= 1
        if first_content_s is not None:
            before, at = self._seen.get(key, (0.0, now))
            kept = math.exp(-(now - at) / self._decay_s)
            average = first_content_s if first_content_s > before else before * kept + first_content_s * (1 - kept)
            self._seen[key] = (average, now)

    def of(self, key: str) -> Load:
        return Load(self._in_flight.get(key, 0), self._seen.get(key, (0.0, 0.0))[0])


def order(places: Sequence[Place], strategy: Strategy, affinity: bytes, draw: Callable[[], float]) -> list[int]:
    """The indexes of the places, first choice first. `draw` gives numbers in [0, 1); `affinity` names who asks for what."""
    if len(places) < 2:
        return list(range(len(places)))
    return _ORDERS[strategy](places, affinity, draw)


def _written(places: Sequence[Place], affinity: bytes, draw: Callable[[], float]) -> list[int]:
    return list(range(len(places)))


def _rendezvous(places: Sequence[Place], affinity: bytes, draw: Callable[[], float]) -> list[int]:
    """Highest random weight (Thaler, Ravishankar 1998): when a deployment goes, only what was its moves."""
    if not affinity:
        return _power_of_two(places, affinity, draw)
    return sorted(range(len(places)), key=lambda index: _score(places[index], affinity), reverse=True)


def _score(place: Place, affinity: bytes) -> float:
    digest = hashlib.blake2b(affinity, digest_size=8, key=place.key.encode()[:64]).digest()
    return -place.weight / math.log((int.from_bytes(digest, "big") + 1) / (2**64 + 2))


def _power_of_two(places: Sequence[Place], affinity: bytes, draw: Callable[[], float]) -> list[int]:
    """The better of two drawn by weight goes first, so that not all run to the best (Mitzenmacher 2001)."""
    drawn = _by_weight(places, affinity, draw)
    pair = sorted(drawn[:2], key=lambda index: places[index].load.cost)
    return [*pair, *sorted(drawn[2:], key=lambda index: places[index].load.cost)]


def _by_weight(places: Sequence[Place], affinity: bytes, draw: Callable[[], float]) -> list[int]:
    """Drawn without putting back (Efraimidis, Spirakis 2006)."""
    keys = [math.log(1.0 - draw()) / place.weight for place in places]
    return sorted(range(len(places)), key=lambda index: keys[index], reverse=True)


def _least_in_flight(places: Sequence[Place], affinity: bytes, draw: Callable[[], float]) -> list[int]:
    drawn = _by_weight(places, affinity, draw)
    return sorted(drawn, key=lambda index: places[index].load.in_flight / places[index].weight)


Order: TypeAlias = Callable[[Sequence[Place], bytes, Callable[[], float]], list[int]]
_ORDERS: Final[Mapping[Strategy, Order]] = {
    "order": _written,
    "affinity": _rendezvous,
    "p2c": _power_of_two,
    "weighted": _by_weight,
    "least_in_flight": _least_in_flight,
}
