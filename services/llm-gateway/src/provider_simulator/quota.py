"""Rate limits as providers have them: for each key, told in the headers of every answer, refused with 429 beyond. Pure.

Both styles are sent, x-ratelimit-* and anthropic-ratelimit-*; who reads one ignores the other.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from pydantic import BaseModel, ConfigDict, Field

MINUTE_S = 60.0


class QuotaTerms(BaseModel):
    """Body of PUT /simulator/quota: what each key may do in a minute, and at once; 0 is no limit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    requests_per_min: int = Field(default=0, ge=0)
    tokens_per_min: int = Field(default=0, ge=0)


@dataclass
class _Bucket:
    """Full at the start; filled again evenly over a minute."""

    size: int
    left: float
    at: float

    def fill(self, now: float) -> None:
        self.left = min(self.size, self.left + (now - self.at) * self.size / MINUTE_S)
        self.at = now

    def full_in_s(self) -> float:
        return (self.size - self.left) * MINUTE_S / self.size


@dataclass
class Quotas:
    """The buckets of each key. Times are seconds since 1970."""

    terms: QuotaTerms = field(default_factory=QuotaTerms)
    _buckets: dict[tuple[str, str], _Bucket] = field(default_factory=dict)

    def set(self, terms: QuotaTerms) -> None:
        self.terms = terms
        self._buckets.clear()

    def take(self, key: str, tokens: int, now: float) -> float | None:
        """None if the request may pass, else the seconds after which it may."""
        wanted = [(self._bucket(key, kind, size, now), amount) for kind, size, amount in self._limits(tokens)]
        waits = [(amount - bucket.left) * MINUTE_S / bucket.size for bucket, amount in wanted]
        if any(wait_s > 0 for wait_s in waits):
            return max(waits)
        for bucket, amount in wanted:
            bucket.left -= amount
        return None

    def headers(self, key: str, now: float) -> Mapping[str, str]:
        return dict(self._headers(key, now))

    def _headers(self, key: str, now: float) -> Iterator[tuple[str, str]]:
        for kind, size, _ in self._limits(0):
            bucket = self._bucket(key, kind, size, now)
            left, reset_s = str(math.floor(bucket.left)), bucket.full_in_s()
            yield f"x-ratelimit-limit-{kind}", str(size)
            yield f"x-ratelimit-remaining-{kind}", left
            yield f"x-ratelimit-reset-{kind}", f"{math.ceil(reset_s * 1000)}ms"
            yield f"anthropic-ratelimit-{kind}-limit", str(size)
            yield f"anthropic-ratelimit-{kind}-remaining", left
            time = datetime.fromtimestamp(now, UTC) + timedelta(seconds=reset_s)
            yield f"anthropic-ratelimit-{kind}-reset", time.isoformat()

    def _limits(self, tokens: int) -> Iterator[tuple[str, int, int]]:
        if self.terms.requests_per_min:
            yield "requests", self.terms.requests_per_min, 1
        if self.terms.tokens_per_min:
            yield "tokens", self.terms.tokens_per_min, tokens

    def _bucket(self, key: str, kind: str, size: int, now: float) -> _Bucket:
        bucket = self._buckets.setdefault((key, kind), _Bucket(size, size, now))
        bucket.fill(now)
        return bucket
