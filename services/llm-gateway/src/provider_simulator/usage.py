"""What the simulator served: one record per request, totals per model. The figure to hold the ledger against."""

from collections import deque
from dataclasses import asdict, dataclass, field, replace
from typing import Literal

from provider_simulator.conversation import JsonObject, TokenUsage

RECORDS_MAX = 10_000
ASKED_CHARACTERS_MAX = 64

Outcome = Literal["answered", "failed", "cut", "disconnected"]


@dataclass(frozen=True, slots=True)
class ServedRequest:
    """One request. Tokens are zero, and the response has no id, for a request refused before an answer was made."""

    sequence: int
    dialect: str
    model: str
    stream: bool
    status: int
    outcome: Outcome
    input_tokens: int = 0
    output_tokens: int = 0
    cached_input_tokens: int = 0
    reasoning_tokens: int = 0
    response_id: str = ""
    asked: str = ""
    """The beginning of the last user message, by which a caller may find its own request."""


@dataclass(frozen=True, slots=True)
class ModelTotals:
    requests: int = 0
    answered: int = 0
    failed: int = 0
    cut: int = 0
    disconnected: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_input_tokens: int = 0
    reasoning_tokens: int = 0


@dataclass(slots=True)
class UsageBook:
    """Totals are exact for ever; only the newest RECORDS_MAX single records are kept.

    `in_progress` requests are not yet in either: a count is final once there are none.
    """

    in_progress: int = 0
    totals: dict[str, ModelTotals] = field(default_factory=dict)
    records: deque[ServedRequest] = field(default_factory=lambda: deque(maxlen=RECORDS_MAX))

    def record(self, served: ServedRequest) -> None:
        self.records.append(served)
        self.totals[served.model] = _added(self.totals.get(served.model, ModelTotals()), served)

    def clear(self) -> None:
        self.totals.clear()
        self.records.clear()

    def total(self) -> ModelTotals:
        """The sum over all models."""
        names = ModelTotals.__dataclass_fields__
        return ModelTotals(**{name: sum(getattr(one, name) for one in self.totals.values()) for name in names})

    def as_json(self) -> JsonObject:
        return {
            "in_progress": self.in_progress,
            "total": asdict(self.total()),
            "models": {model: asdict(totals) for model, totals in sorted(self.totals.items())},
            "records": [asdict(record) for record in self.records],
        }


def counted(served: ServedRequest, usage: TokenUsage) -> ServedRequest:
    return replace(
        served,
        input_tokens=usage.input,
        output_tokens=usage.output,
        cached_input_tokens=usage.cached_input,
        reasoning_tokens=usage.reasoning,
    )


def _added(totals: ModelTotals, served: ServedRequest) -> ModelTotals:
    return ModelTotals(
        requests=totals.requests + 1,
        answered=totals.answered + (served.outcome == "answered"),
        failed=totals.failed + (served.outcome == "failed"),
        cut=totals.cut + (served.outcome == "cut"),
        disconnected=totals.disconnected + (served.outcome == "disconnected"),
        input_tokens=totals.input_tokens + served.input_tokens,
        output_tokens=totals.output_tokens + served.output_tokens,
        cached_input_tokens=totals.cached_input_tokens + served.cached_input_tokens,
        reasoning_tokens=totals.reasoning_tokens + served.reasoning_tokens,
    )
