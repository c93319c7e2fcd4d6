"""The semantic cache: answers to requests that mean nearly the same. Off unless the service names a model for it, and
used only for requests whose policy says `similar`.

Two requests are compared by the last thing their users said; all else must be equal (tenant, model, policy, what was said
before, tools, parameters). What was said becomes a vector by this gateway's own Embed, charged like any call. Vectors lie
in the memory of each process, bounded in number; the answers they lead to lie in the cache of exact answers and expire
there. How alike what was found is, is measured for hits and misses, so that the threshold can be judged.
"""

import math
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from operator import mul
from typing import Final, TypeAlias

from eventlog.records import Context
from synod.common.values import Attribution

ENTRIES_MAX: Final = 200
"""Vectors compared for one request, the newest of its scope: 2 ms at 256 dimensions."""
SCOPES_MAX: Final = 1_000

Vector: TypeAlias = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class SimilarTerms:
    """`model` makes the vectors, of so many `dimensions`; `likeness_min` is the least cosine that counts as the same."""

    model: str
    dimensions: int = 256
    likeness_min: float = 0.95


@dataclass(frozen=True, slots=True)
class Look:
    """What a text was found to be like: the key of the nearest answer and how alike, 0 and empty without any."""

    scope: str
    vector: Vector
    key: str = ""
    likeness: float = 0.0


class LikenessIndex:
    """The newest vectors of each scope, and the keys of their answers. The scopes used least recently are forgotten."""

    def __init__(self, entries_max: int = ENTRIES_MAX, scopes_max: int = SCOPES_MAX) -> None:
        self._entries_max = entries_max
        self._scopes_max = scopes_max
        self._scopes: OrderedDict[str, deque[tuple[Vector, str]]] = OrderedDict()

    def add(self, scope: str, vector: Vector, key: str) -> None:
        entries = self._scopes.setdefault(scope, deque(maxlen=self._entries_max))
        entries.append((vector, key))
        self._scopes.move_to_end(scope)
        if len(self._scopes) > self._scopes_max:
            self._scopes.popitem(last=False)

    def look(self, scope: str, vector: Vector) -> Look:
        entries = self._scopes.get(scope, ())
        likeness, key = max(((_cosine(vector, known), key) for known, key in entries), default=(0.0, ""))
        return Look(scope, vector, key, likeness)


Embed: TypeAlias = Callable[[str, str, Context, Attribution], Awaitable[Sequence[float] | None]]
"""From a text to its vector, as part of the call with this id; None when there is none to be had now."""


class SimilarAnswers:
    def __init__(self, terms: SimilarTerms, observe: Callable[[float, bool], None], index: LikenessIndex) -> None:
        """`observe` is told how alike the nearest answer was, and whether that was enough."""
        self.terms = terms
        self._observe = observe
        self._index = index
        self.embed: Embed | None = None

    async def look(self, call_id: str, scope: str, text: str, context: Context, owner: Attribution) -> Look | None:
        """None when the text could not be compared. The key is empty unless what was found is alike enough."""
        found = await self.embed(call_id, text, context, owner) if self.embed else None
        vector = _unit(found) if found else None
        if vector is None:
            return None
        look = self._index.look(scope, vector)
        hit = bool(look.key) and look.likeness >= self.terms.likeness_min
        self._observe(look.likeness, hit)
        return look if hit else Look(scope, vector)

    def remember(self, look: Look, key: str) -> None:
        self._index.add(look.scope, look.vector, key)


def _unit(values: Sequence[float]) -> Vector | None:
    """Of length one; None for a text that nothing is known of."""
    length = math.sqrt(sum(map(mul, values, values)))
    return tuple(value / length for value in values) if length else None


def _cosine(one: Vector, other: Vector) -> float:
    """Of two vectors of length one; 0 for those of different models."""
    return sum(map(mul, one, other)) if len(one) == len(other) else 0.0
