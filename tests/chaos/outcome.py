"""What one round comes to."""

from collections import Counter
from dataclasses import dataclass, field

from .checker import Violation


@dataclass(frozen=True, slots=True)
class Step:
    """One fault, and how long it took from its beginning until everyone was back at work."""

    nemesis: str
    recovery_s: float


@dataclass(slots=True)
class Outcome:
    """What a round comes to. Counters are by the number of the step."""

    steps: list[Step] = field(default_factory=list)
    acked: Counter[int] = field(default_factory=Counter)
    unknown: Counter[int] = field(default_factory=Counter)
    events: int = 0
    violations: list[Violation] = field(default_factory=list)

    def nemesis(self, step: int | None) -> str:
        return self.steps[step].nemesis if step is not None and step < len(self.steps) else ""
