"""Waiting between attempts: exponential with full jitter.

Source: "Exponential Backoff And Jitter", AWS Architecture Blog, 2015. Full jitter spreads clients that failed together.
"""

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """delay_s(n) is drawn evenly between 0 (or half, without full jitter) and min(max_s, initial_s * factor**n)."""

    initial_s: float = 0.1
    factor: float = 2.0
    max_s: float = 10.0
    full_jitter: bool = True

    def ceiling_s(self, attempt: int) -> float:
        """The longest delay after failed attempt number `attempt`, counted from 0."""
        # The exponent is bounded because a float overflows long before a supervised task stops retrying.
        return min(self.max_s, self.initial_s * self.factor ** min(attempt, 64))

    def delay_s(self, attempt: int, draw: float | None = None) -> float:
        """Seconds to wait after failed attempt number `attempt`; `draw` in [0, 1) replaces the random number."""
        ceiling_s = self.ceiling_s(attempt)
        draw = random.random() if draw is None else draw
        return ceiling_s * draw if self.full_jitter else ceiling_s * (0.5 + draw / 2)
