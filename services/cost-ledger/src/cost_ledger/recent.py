"""A persistent memory of the newest names: what is added beyond its size drives out the oldest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from rpds import HashTrieMap

V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Recent(Generic[V]):
    """At most `names_max` names with a value each, in the order in which they were first added."""

    names_max: int
    values: HashTrieMap[str, V] = field(default_factory=HashTrieMap)
    order: HashTrieMap[int, str] = field(default_factory=HashTrieMap)
    added: int = 0

    @classmethod
    def of(cls, names_max: int, items: Iterable[tuple[str, V]]) -> Recent[V]:
        recent: Recent[V] = cls(names_max)
        for name, value in items:
            recent = recent.add(name, value)
        return recent

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def get(self, name: str) -> V | None:
        return self.values.get(name)

    def items(self) -> Iterator[tuple[str, V]]:
        """The oldest first."""
        for index in range(self.added - len(self.order), self.added):
            yield self.order[index], self.values[self.order[index]]

    def add(self, name: str, value: V) -> Recent[V]:
        """A memory that holds `value` for `name`; a name that is known keeps its place."""
        values = self.values.insert(name, value)
        if name in self.values:
            return Recent(self.names_max, values, self.order, self.added)
        order = self.order.insert(self.added, name)
        if len(order) > self.names_max:
            oldest = self.added - self.names_max
            values, order = values.discard(order[oldest]), order.discard(oldest)
        return Recent(self.names_max, values, order, self.added + 1)
