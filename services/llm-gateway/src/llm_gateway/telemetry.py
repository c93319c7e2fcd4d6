"""What is told about model calls: a span each, metrics with bounded labels, log lines without content."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import Final, Literal

from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer
from opentelemetry.util.types import AttributeValue
from prometheus_client import CollectorRegistry
from servicekit.meters import Counter, Gauge, Histogram, HistogramSeries
from servicekit.telemetry import Logger
from synod.common.values import Attribution

from llm_gateway import genai, span_attributes
from llm_gateway.calls import Lost
from llm_gateway.catalogue import model_of
from llm_gateway.domain import Answer, ModelRequest, Usage
from llm_gateway.errors import GatewayError, LedgerRefused, RosterInvalid

LIKENESS_BUCKETS: Final = (0.5, 0.7, 0.8, 0.85, 0.9, 0.92, 0.94, 0.95, 0.96, 0.97, 0.98, 0.99, 0.999, 1.0)
_UNLISTED: Final = "other"


class Pace:
    """The time from each piece of an answer to the next, as its provider sends them."""

    __slots__ = ("_at", "_series")

    def __init__(self, series: HistogramSeries, now: float) -> None:
        self._series = series
        self._at = now

    def piece(self, now: float) -> None:
        """One more after the first; times in seconds on one clock."""
        self._series.observe(now - self._at)
        self._at = now


class Used:
    """Tokens that providers counted, by direction, cache, reasoning and modality. A failed inference counts as 0, so that
    its model is there to be seen.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, documentation: str) -> Counter:
            return Counter(name, documentation, ("provider", "model", "modality"), registry=registry)

        self._input = counter(genai.USED_INPUT, "Input tokens, cached ones included")
        self._output = counter(genai.USED_OUTPUT, "Output tokens, reasoning included")
        self._cache_read = counter(genai.USED_CACHE_READ, "Of the input, tokens read from the provider's cache")
        self._cache_write = counter(genai.USED_CACHE_WRITE, "Of the input, tokens written to the provider's cache")
        self._reasoning = counter(genai.USED_REASONING, "Of the output, tokens of reasoning")

    def count(self, labels: tuple[str, str], usage: Usage) -> None:
        for line in usage.lines:
            modality = line.modality if line.modality in genai.MODALITIES else genai.UNKNOWN_MODALITY
            total = self._input if line.direction == "input" else self._output
            total.labels(*labels, modality).inc(line.quantity)
            if line.cache != "none":
                part = self._cache_read if line.cache == "read" else self._cache_write
                part.labels(*labels, modality).inc(line.quantity)
            if line.reasoning:
                self._reasoning.labels(*labels, modality).inc(line.quantity)

    def count_failed(self, labels: tuple[str, str]) -> None:
        for total in (self._input, self._output):
            total.labels(*labels, genai.UNKNOWN_MODALITY).inc(0)


class CallSpan:
    """A span that is current within a block, `described` if it is recorded, and in error when the block raises a
    GatewayError. A class, because every call has one and a generator costs twice as much.
    """

    __slots__ = ("_described", "_span", "_started")

    def __init__(
        self, started: AbstractContextManager[Span], described: Callable[[], Mapping[str, AttributeValue]]
    ) -> None:
        self._started = started
        self._described = described
        self._span: Span

    def __enter__(self) -> Span:
        span = self._span = self._started.__enter__()
        if span.is_recording():
            span.set_attributes(self._described())
        return span

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, GatewayError):
            self._span.set_attribute(genai.ERROR_TYPE, type(error).__name__)
            self._span.set_status(StatusCode.ERROR)
        self._started.__exit__(kind, error, traceback)


class Telemetry:
    """Labels are providers and listed models; a model that its owner named counts as "other"."""

    def __init__(self, tracer: Tracer, registry: CollectorRegistry, log: Logger, listed: frozenset[str]) -> None:
        self._tracer = tracer
        self._log = log
        self._listed = {model: (_provider(model), model) for model in listed}
        self._roster_problem = ""
        names = ("provider", "model")

        def seconds(name: str, documentation: str, labels: tuple[str, ...]) -> Histogram:
            return Histogram(name, documentation, labels, registry=registry, buckets=genai.DURATION_BUCKETS_S)

        self._seconds = seconds(
            genai.OPERATION_DURATION, "Time from a call to its answer, attempts included", (*names, "outcome")
        )
        self._first_chunk = seconds(genai.TIME_TO_FIRST_CHUNK, "Time from an attempt to its first content", names)
        self._output_token = Histogram(
            genai.TIME_PER_OUTPUT_TOKEN,
            "Time for each output token after the first",
            names,
            registry=registry,
            buckets=genai.OUTPUT_TOKEN_BUCKETS_S,
        )
        self._tokens = Histogram(
            genai.TOKEN_USAGE,
            "Tokens of answered calls",
            (*names, "type"),
            registry=registry,
            buckets=genai.TOKEN_BUCKETS,
        )
        self._output_chunk = seconds(
            genai.TIME_PER_OUTPUT_CHUNK, "Time from one piece of a streamed answer to the next", names
        )
        self._used = Used(registry)
        self._attempts_failed = Counter(
            "model_call_attempts_failed_total", "Attempts that failed", (*names, "reason", "billed"), registry=registry
        )
        self._hedged = Counter(
            "model_calls_hedged_total", "Attempts begun beside one that took too long", names, registry=registry
        )
        self._circuit = Gauge(
            "model_circuit_open",
            "1 while a model at a deployment is left alone after failures",
            (*names, "deployment"),
            registry=registry,
        )
        self._waiting = Gauge(
            "model_calls_waiting", "Calls that wait for room within the rate limits", registry=registry
        )
        self._waited = seconds(
            "model_call_limit_wait_seconds", "Time that calls waited for room within the rate limits", ("priority",)
        )
        self._cached = Counter(
            "model_cache_requests_total", "Calls that asked the cache", (*names, "outcome"), registry=registry
        )
        self._saved = Counter(
            "model_cache_saved_tokens_total",
            "Tokens that calls answered from the cache did not use",
            (*names, "type"),
            registry=registry,
        )
        self._likeness = Histogram(
            "model_cache_likeness",
            "How alike the nearest answer was that the semantic cache found",
            ("outcome",),
            registry=registry,
            buckets=LIKENESS_BUCKETS,
        )
        self._ahead = Counter(
            "model_reservations_ahead_total",
            "Reservations made before a call needed them, and those of them that one used",
            ("step",),
            registry=registry,
        )
        self.in_flight = Gauge("model_calls_in_flight", "Calls being carried out", registry=registry)
        self.draining = Gauge("model_calls_draining", "Of those, calls that nobody waits for", registry=registry)

    def call(
        self,
        model: str,
        request: ModelRequest,
        attribution: Attribution,
        *,
        stream: bool,
        operation: Literal["chat", "embeddings"] = "chat",
    ) -> "CallSpan":
        """The span of a call. It ends in an error when the block raises."""
        name = f"{operation} {model}"
        started = self._tracer.start_as_current_span(
            name, kind=SpanKind.CLIENT, record_exception=False, set_status_on_exception=False
        )

        def described() -> dict[str, AttributeValue]:
            asked = {genai.OPERATION: operation, genai.REQUEST_STREAM: stream}
            return {**_named(model, attribution), **asked, **span_attributes.of_request(request)}

        return CallSpan(started, described)

    def answered(self, span: Span, answer: Answer, seconds: float, first_content_s: float | None) -> None:
        if span.is_recording():
            span.set_attributes(span_attributes.of_answer(answer, first_content_s))
        labels = self._labels(answer.model)
        self._seconds.labels(*labels, "completed").observe(seconds)
        self._tokens.labels(*labels, "input").observe(answer.usage.input_tokens)
        self._tokens.labels(*labels, "output").observe(answer.usage.output_tokens)
        self._used.count(labels, answer.usage)
        if first_content_s is not None:
            self._first_chunk.labels(*labels).observe(first_content_s)
            if answer.usage.output_tokens > 1:
                each_s = (seconds - first_content_s) / (answer.usage.output_tokens - 1)
                self._output_token.labels(*labels).observe(max(0.0, each_s))

    def pace(self, model: str, now: float) -> Pace:
        """To be told of each piece of a streamed answer whose first has come now."""
        return Pace(self._output_chunk.labels(*self._labels(model)), now)

    def ended(self, model: str, outcome: str, seconds: float) -> None:
        """A call ended without an answer."""
        self._seconds.labels(*self._labels(model), outcome).observe(seconds)

    def served_from_cache(self, answer: Answer) -> None:
        """A call was answered with what another was charged for."""
        labels = self._labels(answer.model)
        self._cached.labels(*labels, "hit").inc()
        self._saved.labels(*labels, "input").inc(answer.usage.input_tokens)
        self._saved.labels(*labels, "output").inc(answer.usage.output_tokens)

    def similar_found(self, likeness: float, hit: bool) -> None:
        self._likeness.labels("hit" if hit else "miss").observe(likeness)

    def cache_missed(self, model: str) -> None:
        self._cached.labels(*self._labels(model), "miss").inc()

    def attempt_lost(self, call_id: str, lost: Lost) -> None:
        model, attempt, reason = lost.started.model, lost.started.attempt, lost.failure.reason
        labels = self._labels(model)
        self._attempts_failed.labels(*labels, reason, lost.billed).inc()
        self._used.count_failed(labels)
        self._log.warning(
            "model_call_attempt_failed", call=call_id, model=model, attempt=attempt, reason=reason, billed=lost.billed
        )

    def hedged(self, model: str) -> None:
        """A second attempt was begun beside one that took too long."""
        self._hedged.labels(*self._labels(model)).inc()

    def reserved_ahead(self, reservations: int) -> None:
        self._ahead.labels("made").inc(reservations)

    def stocks_not_closed(self, error: Exception) -> None:
        """What others have left is held on; it is looked at again."""
        self._log.warning("stocks_not_closed", error=error)

    def used_ahead(self) -> None:
        self._ahead.labels("used").inc()

    def circuit_changed(self, circuit: str, phase: str) -> None:
        model, deployment, _ = model_of(circuit)
        self._circuit.labels(*self._labels(model), deployment).set(phase == "open")
        self._log.warning("model_circuit", model=model, deployment=deployment, phase=phase)

    def calls_waiting(self, calls: int) -> None:
        self._waiting.set(calls)

    def call_waited(self, priority: str, seconds: float) -> None:
        self._waited.labels(priority).observe(seconds)

    def not_recorded(self, call_id: str, error: Exception) -> None:
        """The outcome of a call could not be written; it stays open until it is found again."""
        self._log.error("model_call_not_recorded", error=error, call=call_id)

    def not_renewed(self, reservation_id: str, error: LedgerRefused) -> None:
        """A call goes on whose hold the ledger has closed: somebody else has settled or released it."""
        self._log.warning("reservation_not_renewed", reservation=reservation_id, reason=error.reason)

    @contextmanager
    def roster_read(self) -> Iterator[None]:
        """A roster that cannot be used leaves the one before it in force; said once for each problem."""
        try:
            yield
            self._roster_problem = ""
        except RosterInvalid as error:
            if str(error) != self._roster_problem:
                self._roster_problem = str(error)
                self._log.error("roster_invalid", error=error)

    def _labels(self, model: str) -> tuple[str, str]:
        return self._listed.get(model) or (_provider(model), _UNLISTED)


def _named(model: str, attribution: Attribution) -> Mapping[str, str]:
    """Who is asked, and for whom."""
    provider = _provider(model)
    return {
        genai.PROVIDER: genai.PROVIDER_NAMES.get(provider, provider),
        genai.REQUEST_MODEL: model,
        genai.AGENT_NAME: attribution.agent,
        genai.CONVERSATION_ID: attribution.conversation_id,
    }


def _provider(model: str) -> str:
    return model.partition("/")[0]
