"""Calls from the first request to their one end: with fakes of provider, ledger and store, on a log in memory."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass, field, replace

import pytest
from eventlog.clock import SystemClock
from eventlog.codec import Codec
from eventlog.errors import LogUnavailable
from eventlog.memory import MemoryEventLog
from eventlog.records import Append, Appended, Context, StoredEvent, StreamId
from llm_gateway import errors, translate
from llm_gateway.admission import Admission
from llm_gateway.application import Gateway, call_id
from llm_gateway.catalogue import Catalogue, KnownModel, ProviderEntry
from llm_gateway.circuits import Circuits, CircuitTerms
from llm_gateway.domain import (
    Abort,
    Answer,
    Completed,
    Message,
    ModelRequest,
    ModelResponse,
    Reasoning,
    ReasoningDone,
    StreamPart,
    Text,
    TextDelta,
    Usage,
    UsageLine,
    UsageUpdated,
)
from llm_gateway.execution import Asked, Terms, Tools
from llm_gateway.flight import Began, Broken, CallEvent
from llm_gateway.journal import Journal
from llm_gateway.limits import LimitRule, Line
from llm_gateway.ports import Reservation
from llm_gateway.providers.catalog import OPENAI
from llm_gateway.providers.profile import CapabilityProfile
from llm_gateway.providers.provider import Provider
from llm_gateway.providers.testing import FakeProvider
from llm_gateway.renewals import TTL_S, Renewals
from llm_gateway.retrying import RetryBudget, RetryTerms
from llm_gateway.stock import ASK_WITHIN_S, Stock
from llm_gateway.telemetry import Telemetry
from llm_gateway.testing import FakeLedger, FakeWorkers, MemoryResults, MemoryStockEvents
from llm_gateway.translate import AnswerRecords
from opentelemetry.trace import NoOpTracer
from prometheus_client import CollectorRegistry
from servicekit.telemetry import Logger
from servicekit.testing import FakeClock
from synod.common.event import Event
from synod.common.values import Attribution
from synod.llm_gateway.events import (
    EVENTS,
    ModelCallAttemptFailed,
    ModelCallAttemptStarted,
    ModelCallCancelled,
    ModelCallCompleted,
    ModelCallFailed,
)

WAIT_S = 30
CONTEXT = Context(tenant="local", actor="usr_ada", correlation="run_1")
USAGE = Usage.of((UsageLine("input", 7), UsageLine("output", 3)))
HELLO = ModelResponse(Message("assistant", (Text("hello"),)), "stop", "stop", USAGE, "resp_1", "m")
REQUEST = ModelRequest("", (Message("user", (Text("Hi"),)),), max_output_tokens=100)
AT_ONCE = RetryTerms(initial_s=0.0, max_s=0.0)
RETRYABLE = (
    errors.ProviderUnreachable,
    errors.ProviderTimedOut,
    errors.ProviderConflict,
    errors.ProviderRateLimited,
    errors.ProviderOverloaded,
    errors.ProviderFailed,
    errors.StreamInterrupted,
    errors.MalformedResponse,
)
FINAL = (
    errors.RequestRejected,
    errors.UnsupportedParameter,
    errors.AuthenticationRejected,
    errors.PaymentRequired,
    errors.PermissionRejected,
    errors.ModelNotFound,
    errors.DeadlineExceeded,
)


def asked(request_id: str = "req", *, fallback: tuple[str, ...] = (), sha256: str = "same") -> Asked:
    attribution = Attribution(tenant_id="local", agent="scout", run_id="run_1")
    return Asked(request_id, "fake/m", fallback, REQUEST, attribution, sha256)


class HeldProvider:
    """Streams `words`, then waits to be released; with `error` it ends in that instead of an answer."""

    name = "fake"

    def __init__(self, words: tuple[str, ...] = (), error: errors.ProviderError | None = None) -> None:
        self.words = words
        self.error = error
        self.asked = 0
        self.reported = Usage.of((UsageLine("input", 7),))
        self.reached = asyncio.Event()
        self.released = asyncio.Event()

    async def generate(self, request: ModelRequest, deadline: float) -> ModelResponse:
        self.asked += 1
        self.reached.set()
        await self.released.wait()
        return HELLO

    async def stream(self, request: ModelRequest, deadline: float) -> AsyncGenerator[StreamPart, None]:
        self.asked += 1
        yield UsageUpdated(self.reported)
        for word in self.words:
            yield TextDelta(word)
        self.reached.set()
        await self.released.wait()
        if self.error is not None:
            raise self.error
        yield Completed(HELLO)


class ThinkingProvider(HeldProvider):
    """Plays the next of `scripts` at each attempt."""

    def __init__(self, scripts: Iterable[tuple[StreamPart | errors.ProviderError, ...]]) -> None:
        super().__init__()
        self.scripts = deque(scripts)

    async def stream(self, request: ModelRequest, deadline: float) -> AsyncGenerator[StreamPart, None]:
        for part in self.scripts.popleft():
            if isinstance(part, errors.ProviderError):
                raise part
            yield part


@dataclass
class World:
    """A gateway over fakes, of which a second one can be made on the same log and store, as after a crash."""

    provider: Provider
    other: Provider = field(default_factory=FakeProvider)
    ledger: FakeLedger = field(default_factory=FakeLedger)
    log: MemoryEventLog = field(default_factory=MemoryEventLog)
    results: MemoryResults = field(default_factory=MemoryResults)
    terms: Terms = field(default_factory=lambda: Terms(retry=AT_ONCE))
    circuit: CircuitTerms = field(default_factory=lambda: CircuitTerms(failures_max=1000, outcomes_min=1000))
    abort: Abort = "drain"
    profile: CapabilityProfile = OPENAI
    hold_s: float = TTL_S
    spare_s: float = 0.0
    stock_events: MemoryStockEvents = field(default_factory=MemoryStockEvents)
    admission: Admission = field(default_factory=Admission)
    living: set[str] = field(default_factory=set)
    workers: FakeWorkers = field(init=False)
    registry: CollectorRegistry = field(init=False)
    renewals: Renewals = field(init=False)
    stock: Stock = field(init=False)
    gateway: Gateway = field(init=False)

    def __post_init__(self) -> None:
        self.gateway = self.start()

    def start(self, worker: str = "gw_1") -> Gateway:
        """One process of the service, alive as long as its name is in `living`."""
        self.living.add(worker)
        self.log.side_table = self.results.store
        self.workers = FakeWorkers(worker, self.living)
        entries = (
            ProviderEntry(
                "fake", "openai-chat", self.profile, self.provider, models=(KnownModel("m"),), abort=self.abort
            ),
            ProviderEntry("other", "openai-chat", OPENAI, self.other, models=(KnownModel("m"),)),
            ProviderEntry("off", "openai-chat", OPENAI, None, "set OFF_KEY", models=(KnownModel("m"),)),
        )
        clock = SystemClock()
        self.registry = CollectorRegistry()
        tools = Tools(
            ledger=self.ledger,
            journal=Journal(self.log, Codec(EVENTS), clock),
            results=self.results,
            workers=self.workers,
            codec=AnswerRecords(),
            clock=clock,
            telemetry=Telemetry(NoOpTracer(), self.registry, Logger("test"), frozenset({"fake/m"})),
            retry_budget=RetryBudget(),
            circuits=Circuits(self.circuit),
            admission=self.admission,
            terms=self.terms,
            renewals=Renewals(self.ledger, self.hold_s),
            stock=Stock(self.ledger, self.stock_events, self.workers, self.spare_s, self.workers.now),
        )
        assert tools.stock is not None
        self.renewals, self.stock = tools.renewals, tools.stock
        return Gateway(Catalogue(entries), tools)

    def draining(self) -> float:
        return self.registry.get_sample_value("model_calls_draining") or 0.0

    async def events(self) -> list[Event]:
        codec: Codec[Event] = Codec(EVENTS)
        decoded = [codec.decode(stored) for stored in await self.log.read()]
        return [event for event in decoded if isinstance(event, Event)]

    async def types(self) -> list[str]:
        return [event.type_name() for event in await self.events()]

    async def generate(self, call: Asked | None = None, left_s: float | None = None) -> Answer:
        async with asyncio.timeout(WAIT_S):
            return await self.gateway.generate(call or asked(), CONTEXT, left_s)

    async def stream(self, call: Asked | None = None) -> list[CallEvent]:
        async with asyncio.timeout(WAIT_S):
            return [event async for event in self.gateway.stream(call or asked(), CONTEXT, None)]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 - what is waited for offers no event
            await asyncio.sleep(0)


async def logged(world: World, last: str) -> None:
    async with asyncio.timeout(WAIT_S):
        while (await world.types())[-1:] != [last]:  # noqa: ASYNC110 - the log in memory offers no event
            await asyncio.sleep(0)


STARTED = "ModelCallAttemptStarted"
ANSWERED = [STARTED, "ModelCallCompleted"]


# --- the way that goes well ---


async def test_an_answer_is_reserved_accepted_and_completed_once() -> None:
    world = World(FakeProvider([HELLO]))

    answer = await world.generate()

    assert answer.message == HELLO.message
    assert await world.types() == ANSWERED
    (reserved,) = world.ledger.reservations
    completed = (await world.events())[-1]
    assert isinstance(completed, ModelCallCompleted)
    assert reserved.id == answer.reservation_id == completed.reservation_id == f"{call_id('local', 'req')}:1"
    assert (completed.input_tokens, completed.output_tokens, completed.usage_source) == (7, 3, "provider_final")
    assert (completed.attribution.model, completed.attribution.agent) == ("fake/m", "scout")


async def test_a_stream_shows_its_beginning_its_content_and_one_answer() -> None:
    events = await World(FakeProvider([HELLO])).stream()

    began, delta, answer = events
    assert began == Began("fake/m", 1, f"{call_id('local', 'req')}:1")
    assert delta == TextDelta("hello")
    assert isinstance(answer, Answer)


async def test_a_stream_begins_with_what_was_left_out_of_the_request() -> None:
    warnings = ("top_k is not supported by m and was left out",)
    began, *_, answer = await World(FakeProvider([replace(HELLO, warnings=warnings)])).stream()

    assert isinstance(began, Began)
    assert isinstance(answer, Answer)
    assert began.warnings == answer.warnings == warnings
    assert tuple(translate.from_event(1, began).started.warnings) == warnings


async def test_the_time_from_each_piece_of_a_stream_to_the_next_is_measured() -> None:
    provider = HeldProvider(("one ", "two ", "three"))
    provider.released.set()
    world = World(provider)
    await world.stream()

    name = "gen_ai_client_operation_time_per_output_chunk_seconds_count"
    assert world.registry.get_sample_value(name, {"provider": "fake", "model": "fake/m"}) == 2


async def test_without_usage_an_upper_bound_is_counted() -> None:
    world = World(FakeProvider([replace(HELLO, usage=None)]))

    answer = await world.generate()

    assert answer.usage_source == "gateway_counted"
    assert answer.usage.input_tokens == world.ledger.reservations[0].input_tokens_max
    assert 0 < answer.usage.output_tokens <= 100


async def test_a_limit_that_was_not_given_is_reserved_and_asked_for() -> None:
    provider = FakeProvider([HELLO])
    world = World(provider, terms=Terms(output_tokens_default=50))

    await world.generate(replace(asked(), request=replace(REQUEST, max_output_tokens=None)))

    assert world.ledger.reservations[0].output_tokens_max == 50
    assert provider.requests[0].max_output_tokens == 50


# --- the same request again ---


async def test_group_18_a_repeat_gets_the_answer_on_record() -> None:
    provider = FakeProvider([HELLO])
    world = World(provider)
    first = await world.generate()

    again = await world.generate()
    streamed = await world.stream()

    assert again == replace(first, replayed=True)
    assert streamed == [again]
    assert len(provider.requests) == len(world.ledger.reservations) == 1
    assert await world.types() == ANSWERED


async def test_a_second_request_joins_the_call_in_flight() -> None:
    provider = HeldProvider(("he", "llo"))
    world = World(provider)
    first = asyncio.create_task(world.stream())
    await provider.reached.wait()
    second = asyncio.create_task(world.stream())
    third = asyncio.create_task(world.generate())
    await asyncio.sleep(0)
    provider.released.set()

    assert await first == await second
    assert await third == (await first)[-1]
    assert provider.asked == 1
    assert await world.types() == ANSWERED


async def test_other_content_under_the_same_request_id_is_refused() -> None:
    provider = HeldProvider()
    world = World(provider)
    first = asyncio.create_task(world.generate())
    await provider.reached.wait()

    with pytest.raises(errors.RequestIdReused, match="'req' stands for another request"):
        await world.generate(asked(sha256="other"))
    provider.released.set()
    await first
    with pytest.raises(errors.RequestIdReused):
        await world.generate(asked(sha256="other"))
    assert await world.types() == ANSWERED


async def test_group_21_two_tenants_may_use_the_same_request_id() -> None:
    world = World(FakeProvider([HELLO, HELLO]))
    await world.generate()

    other = replace(CONTEXT, tenant="other")
    answer = await world.gateway.generate(asked(sha256="other"), other, None)

    assert not answer.replayed


async def test_an_answer_that_has_expired_is_not_asked_for_again() -> None:
    world = World(FakeProvider([HELLO]))
    await world.generate()
    world.results.kept.clear()

    with pytest.raises(errors.AnswerExpired, match="ask again with a new request_id"):
        await world.generate()


async def test_a_failed_call_stays_failed() -> None:
    world = World(FakeProvider([errors.RequestRejected("too long", status=400)]))

    for _ in range(2):
        with pytest.raises(errors.CallFailed, match="too long"):
            await world.generate()

    assert await world.types() == [STARTED, "ModelCallAttemptFailed", "ModelCallFailed"]


# --- attempts that fail ---


@pytest.mark.parametrize("kind", RETRYABLE)
async def test_a_passing_failure_is_tried_again_under_a_reservation_of_its_own(
    kind: type[errors.ProviderError],
) -> None:
    world = World(FakeProvider([kind("trouble"), HELLO]))

    answer = await world.generate()

    assert answer.reservation_id.endswith(":2")
    assert [reserved.id[-2:] for reserved in world.ledger.reservations] == [":1", ":2"]
    assert await world.types() == [STARTED, "ModelCallAttemptFailed", *ANSWERED]


@pytest.mark.parametrize("kind", FINAL)
async def test_a_final_failure_ends_the_call(kind: type[errors.ProviderError]) -> None:
    provider = FakeProvider([kind("no")])
    world = World(provider)

    with pytest.raises(errors.CallFailed) as caught:
        await world.generate()

    assert caught.value.failure.reason in ("PROVIDER_REFUSED", "PROVIDER_ACCOUNT_REFUSED", "PROVIDER_UNAVAILABLE")
    assert not caught.value.failure.retryable
    assert (await world.types())[-2:] == ["ModelCallAttemptFailed", "ModelCallFailed"]


async def test_attempts_at_one_model_are_limited() -> None:
    provider = FakeProvider([errors.ProviderOverloaded("busy", status=529)] * 3)
    world = World(provider)

    with pytest.raises(errors.CallFailed, match="busy") as caught:
        await world.generate()

    assert caught.value.failure.reason == "PROVIDER_UNAVAILABLE"
    assert len(provider.requests) == 3
    assert (await world.types()).count("ModelCallFailed") == 1


@pytest.mark.parametrize(
    ("error", "billed"),
    [
        (errors.ProviderRateLimited("slow down", status=429), "no"),
        (errors.RequestRejected("bad", status=400), "no"),
        (errors.ProviderOverloaded("busy", status=529), "no"),
        (errors.ProviderFailed("broken", status=500), "unknown"),
        (errors.StreamInterrupted("cut"), "unknown"),
        (errors.ProviderTimedOut("silence"), "unknown"),
    ],
)
async def test_a_reservation_is_given_back_only_on_proof(error: errors.ProviderError, billed: str) -> None:
    world = World(FakeProvider([error]), terms=Terms(retry=RetryTerms(attempts_max=1)))

    with pytest.raises(errors.CallFailed):
        await world.generate()

    failed = next(event for event in await world.events() if isinstance(event, ModelCallAttemptFailed))
    assert failed.billed == billed


async def test_a_fallback_is_asked_when_a_model_cannot_be_reached() -> None:
    other = FakeProvider([HELLO], name="other")
    world = World(FakeProvider([errors.ProviderUnreachable("gone")] * 3), other)

    answer = await world.generate(asked(fallback=("other/m",)))

    assert answer.model == "other/m"
    started = [event for event in await world.events() if isinstance(event, ModelCallAttemptStarted)]
    assert [(event.model, event.attempt) for event in started] == [
        *(("fake/m", number) for number in (1, 2, 3)),
        ("other/m", 4),
    ]
    assert world.ledger.reservations[-1].model == "other/m"


async def test_a_fallback_is_asked_at_once_when_the_account_is_refused() -> None:
    world = World(FakeProvider([errors.AuthenticationRejected("key", status=401)]), FakeProvider([HELLO], "other"))

    assert (await world.generate(asked(fallback=("other/m",)))).model == "other/m"


async def test_a_rejected_request_is_not_taken_elsewhere() -> None:
    other = FakeProvider([HELLO], "other")
    world = World(FakeProvider([errors.RequestRejected("bad", status=400)]), other)

    with pytest.raises(errors.CallFailed):
        await world.generate(asked(fallback=("other/m",)))
    assert not other.requests


async def test_a_wait_beyond_the_deadline_fails_at_once_and_says_how_long() -> None:
    world = World(FakeProvider([errors.ProviderRateLimited("slow down", status=429, retry_after_s=3600)]))

    with pytest.raises(errors.CallFailed) as caught:
        await world.generate(left_s=30)

    assert (caught.value.failure.reason, caught.value.retry_after_s) == ("RATE_LIMITED", 3600)


async def test_group_10_a_storm_of_failures_runs_out_of_retries() -> None:
    provider = FakeProvider([errors.ProviderOverloaded("busy", status=503)] * 100)
    world = World(provider)

    for number in range(20):
        with pytest.raises(errors.CallFailed):
            await world.generate(asked(f"req{number}"))

    assert len(provider.requests) <= 20 + 10 + 20 * 0.1


async def test_what_an_attempt_thought_without_a_text_is_not_shown_before_its_content() -> None:
    """So that it may still fail in silence."""
    silent = [ReasoningDone(Reasoning("", "d", name)) for name in (b"failed", b"before", b"after")]
    cut = errors.StreamInterrupted("cut")
    world = World(ThinkingProvider([(silent[0], cut), (silent[1], TextDelta("hello"), silent[2], Completed(HELLO))]))

    began, *shown, _ = await world.stream()
    assert isinstance(began, Began)
    assert (began.attempt, shown) == (2, [silent[1], TextDelta("hello"), silent[2]])


async def test_an_answer_of_reasoning_without_a_text_comes_whole() -> None:
    silent = Reasoning("", "d", b"x")
    thought = replace(HELLO, message=Message("assistant", (silent,)))
    world = World(ThinkingProvider([(ReasoningDone(silent), Completed(thought))]))

    assert [type(event) for event in await world.stream()] == [Answer]


async def test_group_13_nothing_is_retried_once_content_was_shown() -> None:
    provider = HeldProvider(("he",), errors.StreamInterrupted("cut"))
    provider.released.set()
    world = World(provider)

    events = await world.stream()

    assert [type(event) for event in events] == [Began, TextDelta, Broken]
    assert provider.asked == 1
    failed = [event for event in await world.events() if isinstance(event, ModelCallAttemptFailed)]
    assert failed[0].billed == "unknown"
    assert (await world.types())[-1] == "ModelCallFailed"


async def test_a_failure_before_content_is_raised_not_shown() -> None:
    provider = HeldProvider((), errors.RequestRejected("bad", status=400))
    provider.released.set()

    with pytest.raises(errors.CallFailed, match="bad"):
        await World(provider).stream()


# --- the ledger ---


async def test_a_refusal_of_the_ledger_reaches_the_caller_and_nothing_else_happens() -> None:
    provider, refusal = FakeProvider([HELLO]), errors.LedgerRefused("BUDGET_EXHAUSTED", RuntimeError("empty"))
    world = World(provider, ledger=FakeLedger([refusal]))

    with pytest.raises(errors.LedgerRefused) as caught:
        await world.generate()

    assert caught.value is refusal
    assert not provider.requests
    assert await world.types() == []
    assert (await world.generate()).message == HELLO.message


async def test_without_the_ledger_nothing_is_spent() -> None:
    provider = FakeProvider([HELLO])
    world = World(provider, ledger=FakeLedger([errors.LedgerUnavailable("down")]))

    with pytest.raises(errors.LedgerUnavailable):
        await world.generate()

    assert not provider.requests


async def test_group_12_a_retry_that_the_budget_does_not_cover_ends_the_call() -> None:
    refusal = errors.LedgerRefused("BUDGET_EXHAUSTED", RuntimeError("empty"))
    world = World(FakeProvider([errors.ProviderFailed("broken")]), ledger=FakeLedger([None, refusal]))

    with pytest.raises(errors.LedgerRefused):
        await world.generate()
    with pytest.raises(errors.CallFailed) as caught:
        await world.generate()

    assert caught.value.failure.reason == "BUDGET_EXHAUSTED"
    assert (await world.types()).count("ModelCallFailed") == 1


class Purse(FakeLedger):
    """Covers one model and no other."""

    def __init__(self, covered: str) -> None:
        super().__init__()
        self.covered = covered

    async def reserve(self, reservation: Reservation, context: Context) -> None:
        if reservation.model != self.covered:
            raise errors.LedgerRefused("BUDGET_EXHAUSTED", RuntimeError(reservation.model))
        await super().reserve(reservation, context)


async def test_group_12_a_fallback_is_reserved_at_its_own_model_and_not_asked_if_the_budget_does_not_cover_it() -> None:
    away, dear = FakeProvider([errors.ModelNotFound("gone")]), FakeProvider([HELLO])
    world = World(away, other=dear, ledger=Purse("fake/m"))

    with pytest.raises(errors.LedgerRefused):
        await world.generate(asked(fallback=("other/m",)))

    assert (len(away.requests), len(dear.requests)) == (1, 0)
    assert [each.model for each in world.ledger.reservations] == ["fake/m"]
    assert [each for each in await world.types() if each != "ModelCallAttemptFailed"] == [
        "ModelCallAttemptStarted",
        "ModelCallFailed",
    ]


async def test_money_is_held_again_for_a_call_that_outlives_its_hold_until_it_ends() -> None:
    provider = HeldProvider()
    world = World(provider, hold_s=0.0)
    call = asyncio.create_task(world.generate())
    await provider.reached.wait()

    await world.renewals.renew_due()
    provider.released.set()
    await call
    await world.renewals.renew_due()

    assert world.ledger.renewals == [(f"{call_id('local', 'req')}:1", 0.0)]


# --- callers who leave ---


async def leave(world: World, provider: HeldProvider) -> None:
    """Ask for a stream, read until the provider has been reached, and go."""
    async with aclosing(world.gateway.stream(asked(), CONTEXT, None)) as events:
        if provider.words:
            await anext(events)
        else:
            reading = asyncio.ensure_future(anext(events))
            await provider.reached.wait()
            reading.cancel()
            await asyncio.wait([reading])
    await provider.reached.wait()


@pytest.mark.parametrize("words", [(), ("he",), ("he", "llo")])
async def test_a_caller_who_leaves_does_not_stop_the_call(words: tuple[str, ...]) -> None:
    provider = HeldProvider(words)
    world = World(provider)
    await leave(world, provider)

    provider.released.set()
    await logged(world, "ModelCallCompleted")

    assert (await world.generate()).message == HELLO.message
    assert await world.types() == ANSWERED
    assert provider.asked == 1


async def test_a_cancelled_caller_does_not_stop_the_call() -> None:
    provider = HeldProvider()
    world = World(provider)
    caller = asyncio.create_task(world.generate())
    await provider.reached.wait()
    caller.cancel()
    await asyncio.wait([caller])

    provider.released.set()
    await logged(world, "ModelCallCompleted")

    assert await world.types() == ANSWERED


async def test_draining_ends_after_its_time_and_charges_what_was_delivered() -> None:
    provider = HeldProvider(("hello",))
    world = World(provider, terms=Terms(drain_s=0.01))
    await leave(world, provider)

    await logged(world, "ModelCallCancelled")

    cancelled = (await world.events())[-1]
    assert isinstance(cancelled, ModelCallCancelled)
    assert [(line.direction, line.quantity) for line in cancelled.usage] == [("input", 7), ("output", 5)]
    with pytest.raises(errors.CallCancelled, match="use a new request_id"):
        await world.generate()


async def test_draining_without_content_leaves_the_bill_unknown() -> None:
    provider = HeldProvider()
    world = World(provider, terms=Terms(drain_s=0.01))
    await leave(world, provider)

    await logged(world, "ModelCallFailed")

    failed = (await world.events())[-2]
    assert isinstance(failed, ModelCallAttemptFailed)
    assert failed.billed == "unknown"


async def test_group_07_more_drains_than_allowed_end_at_once() -> None:
    provider = HeldProvider(("hello",))
    world = World(provider, terms=Terms(drains_max=0))
    await leave(world, provider)

    await logged(world, "ModelCallCancelled")

    assert provider.asked == 1


async def test_who_comes_back_while_a_call_drains_gets_its_answer() -> None:
    provider = HeldProvider(("hello",))
    world = World(provider)
    await leave(world, provider)
    assert world.draining() == 1

    again = asyncio.create_task(world.stream())
    await until(lambda: world.draining() == 0)
    provider.released.set()

    assert [type(event) for event in await again] == [Began, TextDelta, Answer]


class StumblingLog(MemoryEventLog):
    """Fails the append number `fails_at`, counted from 1, after it was stored: the answer is lost."""

    def __init__(self, fails_at: int) -> None:
        super().__init__()
        self.fails_at = fails_at
        self.appends = 0

    async def append(self, *appends: Append) -> Appended:
        self.appends += 1
        appended = await super().append(*appends)
        if self.appends == self.fails_at:
            raise LogUnavailable("the connection was lost")
        return appended


class LateLog(MemoryEventLog):
    """Stores the append number `held`, counted from 1, once it is let go, whoever has stopped waiting for it by then."""

    def __init__(self, held: int) -> None:
        super().__init__()
        self.held = held
        self.appends = 0
        self.reached = asyncio.Event()
        self.let_go = asyncio.Event()

    async def append(self, *appends: Append) -> Appended:
        self.appends += 1
        if self.appends != self.held:
            return await super().append(*appends)
        self.reached.set()
        return await asyncio.shield(asyncio.ensure_future(self._late(*appends)))

    async def _late(self, *appends: Append) -> Appended:
        await self.let_go.wait()
        return await super().append(*appends)


async def leave_at(log: LateLog, world: World) -> None:
    """Ask for an answer, wait until the append is held, and go."""
    caller = asyncio.create_task(world.generate())
    await log.reached.wait()
    caller.cancel()
    await asyncio.wait([caller])


@pytest.mark.parametrize("spare", [False, True])
async def test_who_leaves_while_the_start_is_recorded_leaves_nothing_in_doubt(spare: bool) -> None:
    provider, log = FakeProvider([HELLO]), LateLog(1)
    world = await with_spares(provider, log) if spare else World(provider, log=log)
    await leave_at(log, world)
    log.let_go.set()
    await logged(world, "ModelCallFailed")

    failed, ended = (await world.events())[1:]
    assert isinstance(failed, ModelCallAttemptFailed)
    assert isinstance(ended, ModelCallFailed)
    assert (failed.billed, ended.failure.reason) == ("no", "CALL_ABANDONED")
    assert provider.requests == []


async def test_a_stop_while_the_start_is_recorded_asks_nobody_and_leaves_the_call_to_its_repeat() -> None:
    provider, log = FakeProvider([HELLO]), LateLog(1)
    world = World(provider, log=log)
    caller = asyncio.create_task(world.generate())
    await log.reached.wait()

    stopping = asyncio.create_task(world.gateway.close())
    await asyncio.sleep(0)
    caller.cancel()
    log.let_go.set()
    await asyncio.wait([stopping, caller])

    (failed,) = (await world.events())[1:]
    assert isinstance(failed, ModelCallAttemptFailed)
    assert failed.billed == "no"
    assert provider.requests == []
    world.gateway = world.start()
    assert (await world.generate()).reservation_id.endswith(":2")


async def test_who_leaves_while_a_failure_is_recorded_leaves_no_call_open() -> None:
    provider, log = FakeProvider([errors.ProviderOverloaded("busy"), HELLO]), LateLog(2)
    world = World(provider, log=log, abort="free")
    await leave_at(log, world)
    log.let_go.set()
    await logged(world, "ModelCallFailed")

    assert await world.types() == [STARTED, "ModelCallAttemptFailed", "ModelCallFailed"]
    assert len(provider.requests) == 1


async def test_who_leaves_while_the_log_may_have_the_start_leaves_nothing_in_doubt() -> None:
    """The answer of the append was lost, and it is to be said again."""
    provider, log = FakeProvider([HELLO]), StumblingLog(1)
    world = World(provider, log=log)
    caller = asyncio.create_task(world.generate())
    await until(lambda: log.appends == 1)

    caller.cancel()
    await asyncio.wait([caller])
    await logged(world, "ModelCallFailed")

    failed = (await world.events())[1]
    assert isinstance(failed, ModelCallAttemptFailed)
    assert failed.billed == "no"
    assert provider.requests == []


async def test_who_comes_back_while_the_start_is_recorded_gets_an_answer() -> None:
    provider, log = FakeProvider([HELLO]), LateLog(1)
    world = World(provider, log=log)
    await leave_at(log, world)

    again = asyncio.create_task(world.generate())
    await asyncio.sleep(0)
    log.let_go.set()

    assert (await again).message == HELLO.message
    assert await world.types() == ANSWERED
    assert len(provider.requests) == 1


async def test_a_call_whose_callers_leave_because_the_process_stops_stays_open() -> None:
    provider = HeldProvider()
    world = World(provider, abort="free")
    caller = asyncio.create_task(world.generate())
    await provider.reached.wait()

    stopping = asyncio.create_task(world.gateway.close())
    await asyncio.sleep(0)
    caller.cancel()
    await asyncio.wait([stopping, caller])

    assert await world.types() == [STARTED, "ModelCallAttemptFailed"]


class DeafLog(StumblingLog):
    """Cannot be read a first time either."""

    deaf = True

    async def read_stream(self, stream: StreamId, *, after: int = 0, limit: int = 1000) -> list[StoredEvent]:
        deaf, self.deaf = self.deaf, False
        if deaf:
            raise LogUnavailable("the connection was lost")
        return await super().read_stream(stream, after=after, limit=limit)


@pytest.mark.parametrize("fails_at", [1, 2])
async def test_who_leaves_while_the_log_is_away_leaves_no_call_open(fails_at: int) -> None:
    log = DeafLog(fails_at)
    world = World(FakeProvider([errors.ProviderOverloaded("busy"), HELLO]), log=log, abort="free")
    caller = asyncio.create_task(world.generate())
    await until(lambda: log.appends == fails_at)

    caller.cancel()
    await until(lambda: not world.gateway._flights)

    assert await world.types() == [STARTED, "ModelCallAttemptFailed", "ModelCallFailed"]


class ClosedLog(MemoryEventLog):
    """Stores nothing from the append number `closes_at` on, counted from 1, until it is opened."""

    def __init__(self, closes_at: int) -> None:
        super().__init__()
        self.closes_at = closes_at
        self.appends = 0
        self.is_closed = True

    async def append(self, *appends: Append) -> Appended:
        self.appends += 1
        if self.is_closed and self.appends >= self.closes_at:
            raise LogUnavailable("down")
        return await super().append(*appends)


async def test_who_leaves_before_a_second_start_could_be_recorded_leaves_no_call_open() -> None:
    log = ClosedLog(3)
    world = World(FakeProvider([errors.ProviderOverloaded("busy"), HELLO]), log=log, abort="free")
    caller = asyncio.create_task(world.generate())
    await until(lambda: log.appends == 3)

    caller.cancel()
    log.is_closed = False
    await until(lambda: not world.gateway._flights)

    assert await world.types() == [STARTED, "ModelCallAttemptFailed", "ModelCallFailed"]


async def test_so_does_not_who_leaves_when_another_process_has_made_the_second_start() -> None:
    log = ClosedLog(3)
    world = World(FakeProvider([errors.ProviderOverloaded("busy"), HELLO]), log=log, abort="free")
    here = world.gateway
    caller = asyncio.create_task(here.generate(asked(), CONTEXT, None))
    await until(lambda: log.appends == 3)
    log.is_closed = False
    busy = FakeProvider([errors.ProviderOverloaded("busy"), HELLO])
    world.provider, world.terms = busy, Terms(retry=RetryTerms(initial_s=0.3, max_s=0.3))
    elsewhere = asyncio.create_task(world.start("gw_2").generate(asked(), CONTEXT, None))
    await until(lambda: len(busy.requests) == 1)
    await logged(world, "ModelCallAttemptFailed")

    caller.cancel()
    await until(lambda: not here._flights)

    assert (await elsewhere).message == HELLO.message


def taken_over(world: World, *, by: Provider, retry: RetryTerms) -> "asyncio.Task[Answer]":
    """The call of another process, that takes the one of before for dead."""
    world.living.discard("gw_1")
    world.provider, world.terms = by, Terms(retry=retry)
    return asyncio.create_task(world.start("gw_2").generate(asked(), CONTEXT, None))


async def test_who_leaves_ends_no_call_that_another_process_has_taken_over() -> None:
    first = HeldProvider()
    world = World(first, abort="free")
    here = world.gateway
    caller = asyncio.create_task(here.generate(asked(), CONTEXT, None))
    await first.reached.wait()
    busy = FakeProvider([errors.ProviderOverloaded("busy"), HELLO])
    elsewhere = taken_over(world, by=busy, retry=RetryTerms(initial_s=0.3, max_s=0.3))
    await until(lambda: len(busy.requests) == 1)
    await logged(world, "ModelCallAttemptFailed")

    caller.cancel()
    await asyncio.wait([caller])
    await until(lambda: not here._flights)

    assert (await elsewhere).message == HELLO.message
    assert "ModelCallFailed" not in await world.types()


async def test_a_process_stops_though_its_call_was_taken_over_while_it_recorded_the_answer() -> None:
    log = LateLog(2)
    world = World(FakeProvider([HELLO]), log=log)
    here, held = world.gateway, HeldProvider()
    caller = asyncio.create_task(here.generate(asked(), CONTEXT, None))
    await log.reached.wait()
    elsewhere = taken_over(world, by=held, retry=AT_ONCE)
    await held.reached.wait()

    stopping = asyncio.create_task(here.close())
    await asyncio.sleep(0)
    log.let_go.set()
    async with asyncio.timeout(WAIT_S):
        await stopping
        await asyncio.wait([caller])
    held.released.set()

    assert (await elsewhere).message == HELLO.message


async def test_who_leaves_ends_no_attempt_of_another_process() -> None:
    log = LateLog(2)
    world = World(HeldProvider(), log=log)
    provider = world.provider
    assert isinstance(provider, HeldProvider)
    elsewhere, here = world.gateway, world.start("gw_2")
    first = asyncio.create_task(elsewhere.generate(asked(), CONTEXT, None))
    await provider.reached.wait()
    second = asyncio.create_task(here.generate(asked(), CONTEXT, None))
    await log.reached.wait()

    second.cancel()
    await asyncio.wait([second])
    log.let_go.set()
    await until(lambda: not here._flights)
    provider.released.set()

    assert (await first).message == HELLO.message
    assert await world.types() == ANSWERED


# --- crashes ---


async def crash(world: World, provider: HeldProvider) -> None:
    """Bring a call to the middle of its attempt and forget the gateway, as a killed process does."""
    caller = asyncio.create_task(world.generate())
    await provider.reached.wait()
    await kill(world, caller)


async def kill(world: World, caller: "asyncio.Task[Answer]") -> None:
    """Whatever the old gateway still does, it does to a log and a store that nobody reads."""
    world.log, world.results = await copied(world.log), replaced(world.results)
    world.gateway = world.start()
    caller.cancel()
    await asyncio.wait([caller])


def replaced(results: MemoryResults) -> MemoryResults:
    copy = MemoryResults()
    copy.kept.update(results.kept)
    return copy


async def copied(log: MemoryEventLog) -> MemoryEventLog:
    """The log as a crash left it, which the process that is dead cannot write to."""
    copy = MemoryEventLog()
    codec: Codec[Event] = Codec(EVENTS)
    for stored in await log.read():
        event = codec.decode(stored)
        assert isinstance(event, Event)
        new = codec.encode(event, id=stored.id, at=stored.occurred_at)
        await copy.append(Append(stored.stream, stored.version - 1, (new,), CONTEXT))
    return copy


async def test_group_02_a_repeat_after_a_crash_ends_the_old_attempt_as_unknown_and_makes_a_new_one() -> None:
    provider = HeldProvider()
    world = World(provider)
    await crash(world, provider)
    provider.released.set()

    answer = await world.generate()

    assert answer.reservation_id.endswith(":2")
    assert await world.types() == [STARTED, "ModelCallAttemptFailed", *ANSWERED]
    failed = (await world.events())[1]
    assert isinstance(failed, ModelCallAttemptFailed)
    assert (failed.attempt, failed.billed, failed.failure.reason) == (1, "unknown", "GATEWAY_STOPPED")


async def test_a_start_ends_the_attempts_that_a_crash_left_running() -> None:
    provider = HeldProvider()
    world = World(provider)
    await crash(world, provider)
    orphan = [(call_id("local", "req"), CONTEXT)]

    await world.gateway.end_orphans(orphan)
    await world.gateway.end_orphans(orphan)

    assert await world.types() == [STARTED, "ModelCallAttemptFailed"]


async def test_group_02_a_crash_before_an_answer_could_be_recorded_leaves_no_event_that_promises_it() -> None:
    provider, never = FakeProvider([HELLO, HELLO]), 1_000_000
    world = World(provider, results=MemoryResults(failures=never))
    caller = asyncio.create_task(world.generate())
    await until(lambda: world.results.failures < never)
    assert await world.types() == [STARTED]
    await kill(world, caller)

    answer = await world.generate()

    assert answer.reservation_id.endswith(":2")
    assert await world.types() == [STARTED, "ModelCallAttemptFailed", *ANSWERED]
    assert [kept.attempt for kept in world.results.kept.values()] == [2]


async def test_a_stop_ends_attempts_as_unknown_and_leaves_the_call_to_its_repeat() -> None:
    provider = HeldProvider()
    world = World(provider)
    caller = asyncio.create_task(world.generate())
    await provider.reached.wait()

    await world.gateway.close()
    await asyncio.wait([caller])

    assert await world.types() == [STARTED, "ModelCallAttemptFailed"]
    with pytest.raises(errors.GatewayStopping):
        await world.generate(asked("another"))
    world.gateway = world.start()
    provider.released.set()
    assert (await world.generate()).message == HELLO.message


async def test_a_stop_in_the_middle_of_a_stream_ends_it_in_one_error() -> None:
    provider = HeldProvider(("he",))
    world = World(provider)
    caller = asyncio.create_task(world.stream())
    await provider.reached.wait()

    await world.gateway.close()

    *_, broken = await caller
    assert isinstance(broken, Broken)
    assert (broken.failure.reason, broken.failure.retryable) == ("STOPPING", True)


@pytest.mark.parametrize("fails_at", [1, 2])
async def test_an_append_whose_answer_was_lost_is_not_repeated(fails_at: int) -> None:
    world = World(FakeProvider([HELLO]), log=StumblingLog(fails_at))

    await world.generate()

    assert await world.types() == ANSWERED


async def test_a_store_that_stumbles_is_tried_again() -> None:
    world = World(FakeProvider([HELLO]), results=MemoryResults(failures=2))

    assert (await world.generate()).message == HELLO.message
    assert await world.types() == ANSWERED


# --- what is refused ---


async def test_an_unknown_model_is_refused_before_anything_is_recorded() -> None:
    world = World(FakeProvider([HELLO]))

    with pytest.raises(errors.UnknownModel) as caught:
        await world.generate(replace(asked(), model="fake/mm"))

    assert caught.value.near[0] == "fake/m"
    assert await world.types() == []


async def test_a_model_without_a_key_says_what_to_set() -> None:
    with pytest.raises(errors.ModelUnavailable, match="set OFF_KEY"):
        await World(FakeProvider()).generate(replace(asked(), model="off/m"))


async def test_more_calls_than_allowed_are_refused() -> None:
    provider = HeldProvider()
    world = World(provider, terms=Terms(calls_max=1))
    first = asyncio.create_task(world.generate())
    await provider.reached.wait()

    with pytest.raises(errors.TooManyCalls, match="repeat later"):
        await world.generate(asked("second"))
    provider.released.set()
    await first


@pytest.mark.parametrize("abort", ["drain", "estimate", "free"])
@pytest.mark.parametrize("chunks", [0, 1, 3])
async def test_group_07_a_caller_who_leaves_is_charged_by_the_providers_policy(abort: Abort, chunks: int) -> None:
    provider = HeldProvider(("he",) * chunks)
    world = World(provider, abort=abort, terms=Terms(retry=AT_ONCE, drain_s=WAIT_S * 10))
    leaving = asyncio.create_task(world.stream())
    await provider.reached.wait()
    leaving.cancel()
    await asyncio.wait([leaving])

    if abort == "drain":
        await until(lambda: world.draining() == 1)
        provider.released.set()
        await logged(world, "ModelCallCompleted")
        return
    await logged(world, "ModelCallCancelled" if chunks else "ModelCallFailed")
    events = await world.events()
    if chunks:
        cancelled = events[-1]
        assert isinstance(cancelled, ModelCallCancelled)
        charged = [line.quantity for line in cancelled.usage]
        assert charged == ([] if abort == "free" else [7, 2 * chunks])
    else:
        failed = events[-2]
        assert isinstance(failed, ModelCallAttemptFailed)
        assert failed.billed == ("no" if abort == "free" else "unknown")


@pytest.mark.parametrize(
    ("wish", "reasons", "hidden"),
    [
        ({}, False, []),
        ({}, True, [98]),
        ({"reasoning_effort": "none"}, True, []),
        ({"reasoning_effort": "high"}, False, [98]),
        ({"reasoning_mode": "adaptive"}, False, [98]),
        ({"reasoning_mode": "between_tools"}, False, [98]),
        ({"reasoning_tokens_max": 50}, True, [50]),
        ({"reasoning_tokens_max": 0}, True, []),
        ({"reasoning_tokens_max": 0, "reasoning_effort": "high"}, False, []),
    ],
)
async def test_group_07_an_estimate_keeps_what_was_reported_and_adds_the_reasoning_that_may_have_been(
    wish: dict[str, object], reasons: bool, hidden: list[int]
) -> None:
    provider = HeldProvider(("he",))
    provider.reported = Usage.of((UsageLine("input", 2), UsageLine("input", 5, cache="read")))
    world = World(provider, abort="estimate", profile=replace(OPENAI, reasons=reasons))
    call = replace(asked(), request=replace(REQUEST, **wish))  # type: ignore[arg-type]
    leaving = asyncio.create_task(world.stream(call))
    await provider.reached.wait()
    leaving.cancel()
    await asyncio.wait([leaving])
    await logged(world, "ModelCallCancelled")

    cancelled = (await world.events())[-1]
    assert isinstance(cancelled, ModelCallCancelled)
    told = [(line.direction, line.cache, line.quantity) for line in cancelled.usage if not line.reasoning]
    assert told == [("input", "none", 2), ("input", "read", 5), ("output", "none", 2)]
    assert [line.quantity for line in cancelled.usage if line.reasoning] == hidden
    assert cancelled.usage_source == "provider_partial"


async def test_an_answer_without_usage_is_charged_with_the_reasoning_asked_for() -> None:
    world = World(FakeProvider([replace(HELLO, usage=None)]))

    answer = await world.generate(replace(asked(), request=replace(REQUEST, reasoning_effort="low")))

    assert answer.usage.output_tokens == 100


async def test_an_answer_without_usage_of_a_model_that_reasons_by_itself_is_charged_with_all_that_was_reserved() -> (
    None
):
    world = World(FakeProvider([replace(HELLO, usage=None)]), profile=replace(OPENAI, reasons=True))

    answer = await world.generate()

    (reserved,) = world.ledger.reservations
    assert answer.usage.output_tokens == reserved.output_tokens_max == 100


async def test_group_13_a_rate_limit_in_the_middle_of_a_stream_ends_it_at_once() -> None:
    provider = HeldProvider(("he",), errors.ProviderRateLimited("slow down", status=429, retry_after_s=0.0))
    provider.released.set()
    world = World(provider)

    *_, broken = await world.stream()

    assert isinstance(broken, Broken)
    assert (broken.failure.reason, provider.asked) == ("RATE_LIMITED", 1)
    assert (await world.types())[-2:] == ["ModelCallAttemptFailed", "ModelCallFailed"]


REFUSALS = (
    errors.AuthenticationRejected("key", status=401),
    errors.PaymentRequired("money", status=402),
    errors.PermissionRejected("region", status=403),
    errors.ModelNotFound("unknown", status=404),
    errors.ProviderRateLimited("slow down", status=429),
    errors.ProviderRateLimited("slow down", status=429, retry_after_s=0.0),
)


@pytest.mark.parametrize("refusal", REFUSALS)
async def test_group_10_no_call_is_lost_while_a_fallback_works_however_often_the_first_refuses(
    refusal: errors.ProviderError,
) -> None:
    always = CircuitTerms(failures_max=1000, refusals_max=1000, outcomes_min=1000, limited_s=0.0)
    world = World(FakeProvider([refusal] * 300), FakeProvider([HELLO] * 100, "other"), circuit=always)

    answers = [await world.generate(asked(f"req{number}", fallback=("other/m",))) for number in range(100)]

    assert {answer.model for answer in answers} == {"other/m"}


@pytest.mark.parametrize("refusal", REFUSALS[:5])
async def test_group_10_calls_go_straight_to_the_fallback_once_the_first_has_refused(
    refusal: errors.ProviderError,
) -> None:
    first = FakeProvider([refusal] * 300)
    pausing = CircuitTerms(open_s=60, limited_s=60)
    world = World(first, FakeProvider([HELLO] * 100, "other"), circuit=pausing)

    answers = [await world.generate(asked(f"req{number}", fallback=("other/m",))) for number in range(100)]

    assert {answer.model for answer in answers} == {"other/m"}
    assert len(first.requests) == 3


# --- circuits ---

AFTER_TWO = CircuitTerms(failures_max=2, open_s=60)


def cut_stream() -> HeldProvider:
    provider = HeldProvider(("he",), errors.StreamInterrupted("cut"))
    provider.released.set()
    return provider


async def test_group_11_streams_that_break_after_their_beginning_open_the_circuit() -> None:
    provider = cut_stream()
    world = World(provider, circuit=AFTER_TWO)
    for number in range(2):
        (*_, end) = await world.stream(asked(f"req{number}"))
        assert isinstance(end, Broken)

    before = await world.types()
    with pytest.raises(errors.ModelSuspended, match="fake/m has failed too often") as caught:
        await world.stream(asked("req2"))

    assert 0 < caught.value.retry_after_s <= 60
    assert provider.asked == 2
    assert len(world.ledger.reservations) == 2
    assert await world.types() == before


async def test_group_11_callers_who_leave_do_not_open_the_circuit() -> None:
    provider = HeldProvider(("he",))
    world = World(provider, circuit=AFTER_TWO, terms=Terms(retry=AT_ONCE, drains_max=0))
    for number in range(4):
        provider.reached.clear()
        async with aclosing(world.gateway.stream(asked(f"req{number}"), CONTEXT, None)) as events:
            await anext(events)
        await logged(world, "ModelCallCancelled")

    provider.released.set()
    assert isinstance((await world.stream(asked("last")))[-1], Answer)


async def test_group_11_a_fallback_is_asked_at_once_while_the_circuit_is_open() -> None:
    other = FakeProvider([HELLO, HELLO], name="other")
    world = World(FakeProvider([errors.ProviderFailed("500")] * 2), other, circuit=AFTER_TWO)
    first = await world.generate(asked("req1", fallback=("other/m",)))
    second = await world.generate(asked("req2", fallback=("other/m",)))

    assert (first.model, first.reservation_id[-2:]) == ("other/m", ":3")
    assert (second.model, second.reservation_id[-2:]) == ("other/m", ":1")


async def test_a_rate_limit_that_one_call_met_is_waited_for_by_the_next() -> None:
    limited = errors.ProviderRateLimited("slow down", status=429, retry_after_s=3600)
    provider = FakeProvider([limited])
    world = World(provider)
    with pytest.raises(errors.CallFailed):
        await world.generate(left_s=1)

    with pytest.raises(errors.ModelSuspended) as caught:
        await world.generate(asked("req2"), left_s=1)
    assert caught.value.limited
    assert len(provider.requests) == 1


async def limit_other(world: World, other: FakeProvider, seconds: float) -> None:
    """The fallback's provider asks a call of its own for a pause."""
    other.outcomes.append(errors.ProviderRateLimited("slow down", status=429, retry_after_s=seconds))
    with pytest.raises(errors.CallFailed):
        await world.generate(replace(asked("limited"), model="other/m"), left_s=seconds / 2)
    other.outcomes.append(HELLO)


async def test_a_fallback_that_is_limited_for_longer_than_the_caller_waits_is_not_asked() -> None:
    other = FakeProvider(name="other")
    world = World(FakeProvider([errors.AuthenticationRejected("key", status=401)]), other)
    await limit_other(world, other, 3600)

    with pytest.raises(errors.CallFailed, match="key"):
        await world.generate(asked(fallback=("other/m",)), left_s=5)

    assert len(other.requests) == 1
    assert (await world.types())[-1] == "ModelCallFailed"


async def test_a_fallback_that_is_limited_for_less_is_waited_for() -> None:
    other = FakeProvider(name="other")
    world = World(FakeProvider([errors.AuthenticationRejected("key", status=401)]), other)
    await limit_other(world, other, 0.1)
    limited_s = world.gateway._tools.circuits.limited_s("other/m", asked_at := asyncio.get_running_loop().time())

    answer = await world.generate(asked(fallback=("other/m",)), left_s=WAIT_S)

    assert answer.model == "other/m"
    assert asyncio.get_running_loop().time() - asked_at >= limited_s > 0


async def test_a_fallback_without_a_limit_is_asked_before_one_that_would_have_to_be_waited_for() -> None:
    other, third = FakeProvider(name="other"), FakeProvider([HELLO], "third")
    world = World(FakeProvider([errors.AuthenticationRejected("key", status=401)]), other)
    await limit_other(world, other, 3600)
    entries = world.gateway._router.catalogue.entries
    world.gateway.use(
        Catalogue((*entries, ProviderEntry("third", "openai-chat", OPENAI, third, models=(KnownModel("m"),))))
    )

    answer = await world.generate(asked(fallback=("other/m", "third/m")))

    assert answer.model == "third/m"
    assert len(other.requests) == 1


# --- limits ---


def one_at_a_time(**rule: int) -> Admission:
    return Admission(Line((LimitRule("model", **(rule or {"concurrent": 1})),)))  # type: ignore[arg-type]


async def test_a_call_beyond_the_limit_waits_and_holds_no_money_meanwhile() -> None:
    provider = HeldProvider()
    world = World(provider, admission=one_at_a_time())
    first = asyncio.create_task(world.generate(asked("req1")))
    await provider.reached.wait()
    second = asyncio.create_task(world.generate(asked("req2")))
    await until(lambda: len(world.admission.line) == 1)

    assert len(world.ledger.reservations) == 1
    provider.released.set()
    await first
    await second
    assert provider.asked == len(world.ledger.reservations) == 2


async def test_a_limit_without_room_in_time_refuses_before_anything_is_recorded() -> None:
    provider = FakeProvider([HELLO])
    world = World(provider, admission=one_at_a_time(requests_per_min=1))
    await world.generate(asked("req1"))

    with pytest.raises(errors.RateLimited) as caught:
        await world.generate(asked("req2"), left_s=5)

    assert caught.value.retry_after_s > 5
    assert len(world.ledger.reservations) == 1
    assert await world.types() == ANSWERED


async def test_tokens_that_were_not_used_are_given_back_to_the_limit() -> None:
    bound = 150  # the request's input bound, and 100 tokens of output
    world = World(FakeProvider([HELLO] * 4), admission=one_at_a_time(output_tokens_per_min=6 * bound))
    for number in range(4):
        await world.generate(asked(f"req{number}"), left_s=1)
    assert len(world.ledger.reservations) == 4


@pytest.mark.parametrize("refusal", [errors.LedgerUnavailable("away"), errors.LedgerRefused("NO", ValueError("no"))])
async def test_a_call_that_the_ledger_refuses_leaves_its_place_to_the_next(refusal: Exception) -> None:
    world = World(FakeProvider([HELLO]), ledger=FakeLedger([refusal]), admission=one_at_a_time())
    with pytest.raises(type(refusal)):
        await world.generate(asked("req1"))
    await world.generate(asked("req2"))


async def test_a_caller_who_leaves_the_line_is_forgotten() -> None:
    provider = HeldProvider()
    world = World(provider, admission=one_at_a_time())
    first = asyncio.create_task(world.generate(asked("req1")))
    await provider.reached.wait()
    second = asyncio.create_task(world.generate(asked("req2")))
    await until(lambda: len(world.admission.line) == 1)

    second.cancel()
    await until(lambda: len(world.admission.line) == 0)
    provider.released.set()
    await first
    assert (provider.asked, await world.types()) == (1, ANSWERED)


# --- several processes ---


async def test_a_call_that_another_process_carries_out_is_waited_for() -> None:
    provider = HeldProvider(("he", "llo"))
    world = World(provider)
    first = asyncio.create_task(world.stream())
    await provider.reached.wait()
    other = world.start("gw_2")

    second = asyncio.create_task(other.generate(asked(), CONTEXT, None))
    await until(lambda: len(world.workers.asked) > 1)
    provider.released.set()

    answer = (await first)[-1]
    assert isinstance(answer, Answer)
    async with asyncio.timeout(WAIT_S):
        assert await second == replace(answer, replayed=True)
    assert provider.asked == 1
    assert await world.types() == ANSWERED


async def test_a_call_of_a_process_that_died_is_begun_again_under_another_reservation() -> None:
    dead = HeldProvider(("he",))
    world = World(dead)
    lost = asyncio.create_task(world.stream())
    await dead.reached.wait()
    world.provider = FakeProvider([HELLO])
    other = world.start("gw_2")
    world.living.discard("gw_1")

    async with asyncio.timeout(WAIT_S):
        answer = await other.generate(asked(), CONTEXT, None)

    assert answer.reservation_id.endswith(":2")
    failed = next(event for event in await world.events() if isinstance(event, ModelCallAttemptFailed))
    assert (failed.failure.reason, failed.billed) == ("GATEWAY_STOPPED", "unknown")
    dead.released.set()
    (*_, broken) = await lost
    assert isinstance(broken, Broken)
    assert broken.failure.reason == "CALL_TAKEN_OVER"
    assert (await world.types()).count("ModelCallCompleted") == 1
    assert await other.generate(asked(), CONTEXT, None) == replace(answer, replayed=True)


async def test_a_process_that_was_held_for_dead_and_showed_nothing_gives_the_answer_on_record() -> None:
    slow = HeldProvider()
    world = World(slow)
    first = asyncio.create_task(world.generate())
    await slow.reached.wait()
    world.provider = FakeProvider([replace(HELLO, provider_response_id="resp_2")])
    other = world.start("gw_2")
    world.living.discard("gw_1")
    async with asyncio.timeout(WAIT_S):
        answer = await other.generate(asked(), CONTEXT, None)
    slow.released.set()

    assert await first == replace(answer, replayed=True)
    assert answer.provider_response_id == "resp_2"


async def test_of_two_processes_that_begin_at_once_one_asks_the_provider() -> None:
    provider = HeldProvider()
    provider.released.set()
    world = World(provider)
    gateways = [world.gateway, *(world.start(f"gw_{number}") for number in range(2, 6))]

    async with asyncio.timeout(WAIT_S):
        answers = await asyncio.gather(*(gateway.generate(asked(), CONTEXT, None) for gateway in gateways))

    assert provider.asked == 1
    assert sum(answer.replayed for answer in answers) == 4
    assert await world.types() == ANSWERED
    assert {reserved.id for reserved in world.ledger.reservations} == {f"{call_id('local', 'req')}:1"}


async def test_the_sweep_leaves_calls_of_living_processes_alone() -> None:
    provider = HeldProvider(("he",))
    world = World(provider)
    first = asyncio.create_task(world.stream())
    await provider.reached.wait()
    other = world.start("gw_2")
    orphans = [(call_id("local", "req"), CONTEXT)]

    await other.end_orphans(orphans)
    assert await world.types() == [STARTED]
    world.living.discard("gw_1")
    await other.end_orphans(orphans)
    assert (await world.types())[-1] == "ModelCallAttemptFailed"
    provider.released.set()
    await first


# --- with what was reserved ahead ---

HOURS_S = 10_000.0


async def with_spares(provider: Provider, log: MemoryEventLog | None = None) -> World:
    """A gateway that has reserved ahead for its next calls."""
    world = World(FakeProvider([HELLO, HELLO]), spare_s=HOURS_S)
    await world.generate(asked("one"))
    await world.generate(asked("two"))
    await until(lambda: bool(world.ledger.ahead))
    assert len(world.ledger.reservations) == 2
    world.provider, world.log = provider, log or MemoryEventLog()
    stock = world.stock
    world.gateway = world.start()
    world.gateway._tools = replace(world.gateway._tools, stock=stock)
    world.stock, stock.workers = stock, world.workers
    return world


async def returned(world: World) -> list[str]:
    await world.stock.return_unused()
    return world.stock_events.unused


async def test_a_call_takes_what_was_reserved_ahead_and_all_that_follows_names_it() -> None:
    provider = FakeProvider([HELLO])
    world = await with_spares(provider)

    answer = await world.generate()

    started, completed = await world.events()
    assert isinstance(started, ModelCallAttemptStarted)
    assert isinstance(completed, ModelCallCompleted)
    ahead = world.ledger.ahead[0].id
    assert started.reservation_id == completed.reservation_id == answer.reservation_id == ahead
    assert len(world.ledger.reservations) == 2
    assert await returned(world) == []


async def test_a_failed_attempt_names_it_too_and_the_next_one_reserves_for_itself() -> None:
    world = await with_spares(FakeProvider([errors.ProviderOverloaded("busy"), HELLO]))

    answer = await world.generate()

    failed = (await world.events())[1]
    assert isinstance(failed, ModelCallAttemptFailed)
    assert failed.reservation_id == world.ledger.ahead[0].id
    assert answer.reservation_id == f"{call_id('local', 'req')}:2" == world.ledger.reservations[-1].id


async def test_a_call_that_is_tried_often_is_no_caller_who_calls_often() -> None:
    world = World(
        FakeProvider([errors.ProviderOverloaded("busy"), errors.ProviderOverloaded("busy"), HELLO]), spare_s=HOURS_S
    )

    await world.generate()

    assert len(world.ledger.reservations) == 3
    assert not world.stock._making
    assert world.ledger.ahead == []


async def test_a_repeat_of_an_answered_call_gives_back_what_it_took() -> None:
    provider = FakeProvider([HELLO])
    world = await with_spares(provider)
    first = await world.generate()
    world.gateway._landed_before.clear()  # as another process, which has to look

    assert await world.generate() == replace(first, replayed=True)
    assert len(provider.requests) == 1
    assert await returned(world) == [world.ledger.ahead[1].id]


async def test_a_start_that_cannot_be_recorded_gives_it_back() -> None:
    tried = asyncio.Event()

    class Down(MemoryEventLog):
        async def append(self, *appends: Append) -> Appended:
            tried.set()
            raise LogUnavailable("down")

    provider = FakeProvider([HELLO])
    world = await with_spares(provider, Down())
    waiting = asyncio.create_task(world.generate())
    await tried.wait()
    await world.gateway.close()

    with pytest.raises((asyncio.CancelledError, LogUnavailable, errors.CallEnded)):
        await waiting
    assert provider.requests == []
    assert await returned(world) == [world.ledger.ahead[0].id]


async def test_nobody_is_asked_under_one_that_others_may_soon_return() -> None:
    """The start takes so long to record that the lock may be lost meanwhile: the attempt ends, and the next reserves anew."""
    clock = FakeClock()
    clock.advance(asyncio.get_running_loop().time())

    class Slow(MemoryEventLog):
        async def append(self, *appends: Append) -> Appended:
            appended = await super().append(*appends)
            world.workers.freeze()
            clock.advance(ASK_WITHIN_S)
            return appended

    provider = FakeProvider([HELLO])
    world = await with_spares(provider, Slow())
    world.stock.now = world.workers.now = clock.monotonic

    answer = await world.generate()

    assert await world.types() == [STARTED, "ModelCallAttemptFailed", *ANSWERED]
    lost = (await world.events())[1]
    assert isinstance(lost, ModelCallAttemptFailed)
    assert (lost.failure.reason, lost.billed) == ("RESERVATION_LOST", "no")
    assert lost.reservation_id == world.ledger.ahead[0].id
    assert answer.reservation_id == f"{call_id('local', 'req')}:2" == world.ledger.reservations[-1].id
    assert len(provider.requests) == 1


def in_another_process(world: World) -> None:
    """The gateway is one that knows nothing of the calls before, and has no spare ones."""
    world.spare_s = 0
    world.gateway = world.start()


async def test_a_repeat_elsewhere_frees_what_it_reserved_for_an_attempt_that_had_a_spare_one() -> None:
    world = await with_spares(FakeProvider([HELLO]))
    first = await world.generate()
    in_another_process(world)

    assert await world.generate() == replace(first, replayed=True)
    own = f"{call_id('local', 'req')}:1"
    assert world.ledger.reservations[-1].id == own
    assert world.ledger.released == [own]


async def test_so_does_another_request_under_its_id() -> None:
    world = await with_spares(FakeProvider([HELLO]))
    await world.generate()
    in_another_process(world)

    with pytest.raises(errors.RequestIdReused):
        await world.generate(asked(sha256="other"))
    assert world.ledger.released == [f"{call_id('local', 'req')}:1"]


async def test_a_repeat_elsewhere_frees_nothing_that_the_attempt_was_reserved_with() -> None:
    world = World(FakeProvider([HELLO]))
    first = await world.generate()
    in_another_process(world)

    assert await world.generate() == replace(first, replayed=True)
    assert world.ledger.released == []


async def test_a_repeat_is_answered_though_what_it_reserved_cannot_be_freed() -> None:
    world = await with_spares(FakeProvider([HELLO]))
    first = await world.generate()
    in_another_process(world)
    world.ledger.refusals.extend((None, errors.LedgerUnavailable("down")))

    assert await world.generate() == replace(first, replayed=True)


async def test_a_call_that_may_have_reserved_for_itself_before_does_so_again() -> None:
    world = await with_spares(FakeProvider([HELLO]))
    world.ledger.refusals.append(errors.LedgerUnavailable("no answer"))
    stock, world.gateway._tools = world.stock, replace(world.gateway._tools, stock=None)
    with pytest.raises(errors.LedgerUnavailable):
        await world.generate()
    world.gateway._tools = replace(world.gateway._tools, stock=stock)

    answer = await world.generate()

    assert answer.reservation_id == f"{call_id('local', 'req')}:1" == world.ledger.reservations[-1].id
