"""A second attempt beside a slow one: when it is made, who wins, and that each attempt ends once, whatever happens."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field, replace

import pytest
from eventlog.codec import Codec
from eventlog.memory import MemoryEventLog
from eventlog.records import Context
from hypothesis import given, settings
from hypothesis import strategies as st
from llm_gateway import errors, execution
from llm_gateway.admission import Admission
from llm_gateway.answer_cache import AnswerCache
from llm_gateway.application import Gateway, call_id
from llm_gateway.caching import Cacheable, CachePolicy
from llm_gateway.catalogue import Catalogue, Deployment, KnownModel, ProviderEntry
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
)
from llm_gateway.execution import Asked, Terms, Tools
from llm_gateway.flight import Began, Broken, CallEvent
from llm_gateway.hedging import Hedge
from llm_gateway.journal import Journal
from llm_gateway.limits import LimitRule, Line, Priority
from llm_gateway.ports import Reservation
from llm_gateway.providers.catalog import OPENAI
from llm_gateway.renewals import Renewals
from llm_gateway.retrying import RetryBudget, RetryTerms
from llm_gateway.telemetry import Telemetry
from llm_gateway.testing import FakeLedger, FakeWorkers, MemoryCacheStore, MemoryResults
from llm_gateway.translate import AnswerRecords
from opentelemetry.trace import NoOpTracer
from prometheus_client import CollectorRegistry
from servicekit.clock import SystemClock
from servicekit.telemetry import Logger
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
TURNS = 60
"""Of the event loop, within which everything that can happen has happened."""
CONTEXT = Context(tenant="local", actor="usr_ada", correlation="run_1")
CALL = call_id("local", "req")
AT_ONCE = Hedge(after_s=0.0, pays_twice=True)
ASKED = Asked(
    "req",
    "fake/m",
    (),
    ModelRequest("", (Message("user", (Text("Hi"),)),), max_output_tokens=100),
    Attribution(tenant_id="local"),
    "same",
)


class Scripted:
    """Says each word, and ends, when it is told to. It is known by the name that its answers carry."""

    name = "fake"

    def __init__(self, model: str) -> None:
        self.answer = ModelResponse(
            Message("assistant", (Text(model),)), "stop", "stop", Usage.of((UsageLine("output", 3),)), "r", model
        )
        self.asked = 0
        self.left = 0
        self._told: asyncio.Queue[StreamPart | errors.ProviderError] = asyncio.Queue()

    def tell(self, part: StreamPart | errors.ProviderError | None = None) -> None:
        """Without a part: the whole answer."""
        self._told.put_nowait(part or Completed(self.answer))

    async def generate(self, request: ModelRequest, deadline: float) -> ModelResponse:
        async for part in self.stream(request, deadline):
            if isinstance(part, Completed):
                return part.response
        raise AssertionError("a script ends")

    async def stream(self, request: ModelRequest, deadline: float) -> AsyncGenerator[StreamPart, None]:
        self.asked += 1
        try:
            while True:
                part = await self._told.get()
                if isinstance(part, errors.ProviderError):
                    raise part
                yield part
                if isinstance(part, Completed):
                    return
        finally:
            self.left += 1


class SlowLedger(FakeLedger):
    """Answers the second reservation when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.reached, self.answers = asyncio.Event(), asyncio.Event()

    async def reserve(self, reservation: Reservation, context: Context) -> None:
        await super().reserve(reservation, context)
        if len(self.reservations) == 2:
            self.reached.set()
            await self.answers.wait()


@dataclass
class World:
    hedge: Hedge | None = AT_ONCE
    abort: Abort = "drain"
    ledger: FakeLedger = field(default_factory=FakeLedger)
    retry_budget: RetryBudget = field(default_factory=RetryBudget)
    admission: Admission = field(default_factory=Admission)
    attempts_max: int = 1
    log: MemoryEventLog = field(default_factory=MemoryEventLog)

    def __post_init__(self) -> None:
        self.first, self.rival = Scripted("first"), Scripted("rival")
        entry = ProviderEntry(
            "fake",
            "openai-chat",
            OPENAI,
            self.first,
            models=(KnownModel("m", hedge=self.hedge),),
            abort=self.abort,
            further=(Deployment("b", self.rival),),
        )
        clock, self.results, self.registry = SystemClock(), MemoryResults(), CollectorRegistry()
        self.log.side_table = self.results.store
        self.tools = Tools(
            ledger=self.ledger,
            journal=Journal(self.log, Codec(EVENTS), clock),
            results=self.results,
            workers=FakeWorkers(),
            codec=AnswerRecords(),
            clock=clock,
            telemetry=Telemetry(NoOpTracer(), self.registry, Logger("test"), frozenset({"fake/m"})),
            retry_budget=self.retry_budget,
            circuits=Circuits(CircuitTerms(failures_max=1000, outcomes_min=1000)),
            admission=self.admission,
            terms=Terms(drain_s=0.0, retry=RetryTerms(self.attempts_max, initial_s=0.0, max_s=0.0)),
            renewals=Renewals(self.ledger),
            balancing="order",
            cache=AnswerCache(MemoryCacheStore(), clock),
        )
        self.gateway = Gateway(Catalogue((entry,)), self.tools)

    def generating(self) -> "asyncio.Task[Answer]":
        return asyncio.create_task(self.gateway.generate(ASKED, CONTEXT, None))

    def streaming(self) -> "asyncio.Task[list[CallEvent]]":
        async def collect() -> list[CallEvent]:
            return [event async for event in self.gateway.stream(ASKED, CONTEXT, None)]

        return asyncio.create_task(collect())

    async def events(self) -> list[Event]:
        codec: Codec[Event] = Codec(EVENTS)
        decoded = [codec.decode(stored) for stored in await self.log.read()]
        return [event for event in decoded if isinstance(event, Event)]

    async def told(self) -> list[str]:
        """The attempts' events by type and number."""
        return [
            f"{each.type_name().removeprefix('ModelCall')} {number_of(each)}".strip() for each in await self.events()
        ]


def number_of(event: Event) -> str:
    return str(getattr(event, "attempt", ""))


async def settled() -> None:
    for _ in range(TURNS):
        await asyncio.sleep(0)


async def until_asked(provider: Scripted) -> None:
    async with asyncio.timeout(WAIT_S):
        while not provider.asked:  # noqa: ASYNC110 - a provider offers no event
            await asyncio.sleep(0)


RACED = ["AttemptStarted 1", "AttemptStarted 2"]


async def test_a_rival_answers_where_the_first_attempt_is_slow_and_both_are_reserved_and_recorded() -> None:
    world = World()
    call = world.generating()
    await until_asked(world.rival)
    world.rival.tell()

    answer = await call

    assert (answer.message.text, answer.reservation_id) == ("rival", f"{CALL}:2")
    assert [each.id for each in world.ledger.reservations] == [f"{CALL}:1", f"{CALL}:2"]
    assert await world.told() == [*RACED, "AttemptFailed 1", "Completed 2"]
    outrun = (await world.events())[-2]
    assert isinstance(outrun, ModelCallAttemptFailed)
    assert (outrun.failure.reason, outrun.billed, outrun.reservation_id) == ("OUTRUN", "unknown", f"{CALL}:1")
    assert (world.first.asked, world.first.left) == (1, 1)
    assert world.registry.get_sample_value("model_calls_hedged_total", {"provider": "fake", "model": "fake/m"}) == 1
    assert (await world.generating()).replayed


async def test_the_first_attempt_may_still_win() -> None:
    world = World()
    call = world.generating()
    await until_asked(world.rival)
    world.first.tell()

    assert (await call).message.text == "first"
    assert await world.told() == [*RACED, "AttemptFailed 2", "Completed 1"]
    assert world.rival.left == 1


async def test_of_a_stream_only_the_attempt_that_speaks_first_is_shown() -> None:
    world = World()
    call = world.streaming()
    await until_asked(world.rival)
    world.rival.tell(TextDelta("ri"))
    world.first.tell(TextDelta("fi"))
    world.first.tell()
    await settled()
    world.rival.tell(TextDelta("val"))
    world.rival.tell()

    began, *deltas, answer = await call
    assert began == Began("fake/m", 2, f"{CALL}:2")
    assert "".join(delta.text for delta in deltas if isinstance(delta, TextDelta)) == "rival"
    assert isinstance(answer, Answer)
    assert await world.told() == [*RACED, "AttemptFailed 1", "Completed 2"]


async def test_what_was_thought_without_a_text_decides_no_race_and_is_shown_with_the_first_content() -> None:
    silent = {name: ReasoningDone(Reasoning("", "d", name)) for name in (b"first", b"rival", b"later")}
    world = World()
    call = world.streaming()
    await until_asked(world.rival)
    world.first.tell(silent[b"first"])
    world.rival.tell(silent[b"rival"])
    await settled()
    world.rival.tell(TextDelta("rival"))
    world.rival.tell(silent[b"later"])
    await settled()
    world.rival.tell()

    assert (await call)[1:-1] == [silent[b"rival"], TextDelta("rival"), silent[b"later"]]


async def test_where_a_cancelled_answer_is_free_the_loser_gives_back_what_it_held() -> None:
    world = World(Hedge(after_s=0.0), abort="free")
    call = world.generating()
    await until_asked(world.rival)
    world.rival.tell()
    await call

    outrun = (await world.events())[-2]
    assert isinstance(outrun, ModelCallAttemptFailed)
    assert outrun.billed == "no"


@pytest.mark.parametrize("abort", ["drain", "estimate"])
async def test_where_a_cancelled_answer_is_billed_there_is_no_rival_unless_its_owner_pays_for_both(
    abort: Abort,
) -> None:
    world = World(Hedge(after_s=0.0), abort=abort)
    call = world.generating()
    await until_asked(world.first)
    await settled()
    world.first.tell()

    await call
    assert world.rival.asked == 0


async def test_a_model_of_which_nobody_said_so_has_no_rivals() -> None:
    world = World(None)
    call = world.generating()
    await until_asked(world.first)
    await settled()
    world.first.tell()

    await call
    assert await world.told() == ["AttemptStarted 1", "Completed 1"]


async def test_once_content_was_shown_there_is_no_rival() -> None:
    world = World()
    world.first.tell(TextDelta("fi"))
    call = world.streaming()
    await until_asked(world.first)
    await settled()
    world.first.tell()

    await call
    assert world.rival.asked == 0


async def test_a_rival_counts_against_the_budget_of_repeats() -> None:
    world = World(retry_budget=RetryBudget(share=0.0, reserve=1.0))
    for request_id, rivals in (("one", 1), ("two", 1)):
        call = asyncio.create_task(world.gateway.generate(replace(ASKED, request_id=request_id), CONTEXT, None))
        await settled()
        world.first.tell()
        await call
        assert world.rival.asked == rivals


WITHDRAWN = ["AttemptStarted 1", "AttemptStarted 2", "AttemptFailed 2"]


@pytest.mark.parametrize(
    ("refusal", "told"),
    [
        (errors.LedgerRefused("BUDGET_EXHAUSTED", RuntimeError("empty")), ["AttemptStarted 1"]),
        (errors.LedgerUnavailable("down"), WITHDRAWN),
    ],
)
async def test_a_rival_that_may_not_be_paid_for_leaves_the_first_attempt_alone(
    refusal: Exception, told: list[str]
) -> None:
    world = World(ledger=FakeLedger([None, refusal]), admission=Admission(Line((LimitRule("model", concurrent=2),))))
    call = world.generating()
    await until_asked(world.first)
    await settled()
    world.first.tell()

    await call
    assert await world.told() == [*told, "Completed 1"]
    assert world.rival.asked == 0
    # What the limits handed out for both is back.
    for request_id in ("two", "three"):
        following = asyncio.create_task(world.gateway.generate(replace(ASKED, request_id=request_id), CONTEXT, None))
        await settled()
        world.first.tell()
        world.rival.tell()
        await following


async def without_an_answer_for_the_rival() -> "tuple[World, asyncio.Task[Answer]]":
    """What the first attempt's rival was reserved with may be held, though the ledger's answer was lost."""
    world = World(ledger=FakeLedger([None, errors.LedgerUnavailable("no answer within 5 s")]))
    call = world.generating()
    await until_asked(world.first)
    await settled()
    return world, call


async def test_what_a_rival_may_have_reserved_is_told_as_not_billed() -> None:
    world, call = await without_an_answer_for_the_rival()
    world.first.tell()

    assert (await call).message.text == "first"
    assert await world.told() == [*WITHDRAWN, "Completed 1"]
    unused = (await world.events())[-2]
    assert isinstance(unused, ModelCallAttemptFailed)
    assert (unused.failure.reason, unused.billed, unused.reservation_id) == ("RESERVATION_LOST", "no", f"{CALL}:2")


async def test_where_a_rival_could_not_be_made_the_next_attempt_asks_there_under_a_number_of_its_own() -> None:
    world, call = await without_an_answer_for_the_rival()
    world.first.tell(errors.ProviderFailed("first broke"))
    await until_asked(world.rival)
    world.rival.tell()

    answer = await call
    assert (answer.message.text, answer.reservation_id) == ("rival", f"{CALL}:3")
    assert await world.told() == [*WITHDRAWN, "AttemptFailed 1", "AttemptStarted 3", "Completed 3"]


async def test_a_rival_does_not_wait_for_room_within_the_limits() -> None:
    world = World(admission=Admission(Line((LimitRule("model", concurrent=1),))))
    call = world.generating()
    await until_asked(world.first)
    await settled()
    world.first.tell()

    await call
    assert world.rival.asked == 0


@pytest.mark.parametrize("comes_first", [True, False])
async def test_a_call_waits_for_an_equal_one_of_a_lower_priority_whose_rival_waits_for_room(
    monkeypatch: pytest.MonkeyPatch, comes_first: bool
) -> None:
    monkeypatch.setattr(execution, "RIVAL_PATIENCE_S", WAIT_S)
    world = World(admission=Admission(Line((LimitRule("model", concurrent=1),))))
    equal = replace(ASKED, cacheable=Cacheable(CachePolicy("on"), "same"))

    def generating(priority: Priority) -> "asyncio.Task[Answer]":
        asked = replace(equal, request_id=priority, priority=priority)
        return asyncio.create_task(world.gateway.generate(asked, CONTEXT, None))

    low = generating("low")
    if not comes_first:
        await settled()
        assert len(world.admission.line) == 1
    high = generating("high")
    await settled()
    assert len(world.admission.line) == 1
    world.first.tell()

    assert ((await low).cache, (await high).cache) == ("miss", "hit")
    assert (world.first.asked, world.rival.asked) == (1, 0)


async def test_a_rival_that_is_not_needed_any_more_once_it_is_paid_for_is_told_as_not_billed() -> None:
    ledger = SlowLedger()
    world = World(ledger=ledger)
    call = world.generating()
    await ledger.reached.wait()
    world.first.tell()

    assert (await call).message.text == "first"
    assert await world.told() == ["AttemptStarted 1", "AttemptStarted 2", "AttemptFailed 2", "Completed 1"]
    unused = (await world.events())[-2]
    assert isinstance(unused, ModelCallAttemptFailed)
    assert (unused.billed, unused.reservation_id, world.rival.asked) == ("no", f"{CALL}:2", 0)


async def test_when_one_of_two_attempts_fails_the_other_answers() -> None:
    world = World()
    call = world.generating()
    await until_asked(world.rival)
    world.rival.tell(errors.ProviderOverloaded("busy", status=529))
    await settled()
    world.first.tell()

    assert (await call).message.text == "first"
    refused = (await world.events())[-2]
    assert isinstance(refused, ModelCallAttemptFailed)
    assert (refused.attempt, refused.billed, refused.failure.reason) == (2, "no", "PROVIDER_UNAVAILABLE")


async def test_when_both_fail_the_call_ends_once_with_what_the_last_said() -> None:
    world = World()
    call = world.generating()
    await until_asked(world.rival)
    world.first.tell(errors.ProviderFailed("first broke"))
    await settled()
    world.rival.tell(errors.ProviderFailed("rival broke"))

    with pytest.raises(errors.CallFailed, match="rival broke"):
        await call
    assert await world.told() == [*RACED, "AttemptFailed 1", "AttemptFailed 2", "Failed"]


async def test_a_repeat_after_both_failed_has_the_next_number() -> None:
    world = World(attempts_max=2)
    call = world.generating()
    await until_asked(world.rival)
    world.first.tell(errors.ProviderFailed("first broke"))
    world.rival.tell(errors.ProviderFailed("rival broke"))
    await settled()
    world.rival.tell()

    assert (await call).reservation_id == f"{CALL}:3"
    assert (await world.told())[-2:] == ["AttemptStarted 3", "Completed 3"]


async def test_when_the_winner_breaks_after_content_the_call_ends_and_the_loser_too() -> None:
    world = World()
    call = world.streaming()
    await until_asked(world.rival)
    world.rival.tell(TextDelta("ri"))
    world.rival.tell(errors.StreamInterrupted("cut"))

    events = await call
    assert [type(event) for event in events] == [Began, TextDelta, Broken]
    assert await world.told() == [*RACED, "AttemptFailed 1", "AttemptFailed 2", "Failed"]


async def test_when_the_callers_leave_both_attempts_end() -> None:
    world = World(abort="estimate")
    call = world.generating()
    await until_asked(world.rival)
    call.cancel()
    await settled()

    assert await world.told() == [*RACED, "AttemptFailed 2", "AttemptFailed 1", "Failed"]
    assert (world.first.left, world.rival.left) == (1, 1)


async def test_what_was_shown_of_the_winner_is_charged_when_the_callers_leave() -> None:
    world = World(abort="estimate")
    call = world.streaming()
    await until_asked(world.rival)
    world.rival.tell(TextDelta("ri"))
    await settled()
    call.cancel()
    await settled()

    assert await world.told() == [*RACED, "AttemptFailed 1", "Cancelled 2"]


async def test_a_crash_leaves_both_attempts_to_whoever_comes_back() -> None:
    world = World()
    call = world.generating()
    await until_asked(world.rival)
    await world.gateway.close()
    await asyncio.wait([call])

    assert await world.told() == [*RACED, "AttemptFailed 2", "AttemptFailed 1"]


async def test_what_a_dead_process_left_running_ends_as_unknown_for_both() -> None:
    dead, living = World(), World()
    call = dead.generating()
    await until_asked(dead.rival)
    living.log = dead.log
    living.tools = replace(living.tools, journal=dead.tools.journal, workers=FakeWorkers("gw_2"))
    gateway = Gateway(Catalogue(()), living.tools)

    await gateway.end_orphans([(CALL, CONTEXT)])

    failed = [event for event in await dead.events() if isinstance(event, ModelCallAttemptFailed)]
    assert [(event.attempt, event.billed) for event in failed] == [(1, "unknown"), (2, "unknown")]
    call.cancel()
    await dead.gateway.close()


STEPS = st.lists(st.tuples(st.booleans(), st.sampled_from(["word", "answer", "fail", "refuse", "turn", "leave"])))


@settings(max_examples=60, deadline=None)
@given(STEPS, st.booleans())
def test_whatever_two_attempts_do_the_call_ends_once_each_attempt_ends_once_and_one_alone_is_shown(
    steps: Sequence[tuple[bool, str]], free: bool
) -> None:
    asyncio.run(raced(steps, "free" if free else "estimate"))


async def raced(steps: Sequence[tuple[bool, str]], abort: Abort) -> None:
    world = World(abort=abort)
    call = world.streaming()
    await until_asked(world.first)
    for on_first, step in steps:
        provider = world.first if on_first else world.rival
        match step:
            case "word":
                provider.tell(TextDelta(provider.answer.model))
            case "answer":
                provider.tell()
            case "fail":
                provider.tell(errors.ProviderFailed("broke"))
            case "refuse":
                provider.tell(errors.ProviderOverloaded("busy", status=529))
            case "leave":
                call.cancel()
            case _:
                await settled()
    world.first.tell()
    world.rival.tell()
    async with asyncio.timeout(WAIT_S):
        await asyncio.wait([call])
    await settled()

    events = await world.events()
    ends = [each for each in events if isinstance(each, ModelCallCompleted | ModelCallFailed | ModelCallCancelled)]
    assert ends == events[-1:]
    begun = [each.attempt for each in events if isinstance(each, ModelCallAttemptStarted)]
    outcomes = ModelCallAttemptFailed | ModelCallCompleted | ModelCallCancelled
    assert sorted(each.attempt for each in events if isinstance(each, outcomes)) == begun
    assert [each.id for each in world.ledger.reservations] == [f"{CALL}:{number}" for number in begun]
    assert world.first.asked == world.first.left
    assert world.rival.asked == world.rival.left
    if not call.cancelled() and call.exception() is None:
        words = {event.text for event in call.result() if isinstance(event, TextDelta)}
        assert not ({"first", "rival"} <= {word[:5] for word in words})


async def test_when_the_callers_leave_a_rival_that_is_just_being_paid_for_ends_as_not_billed() -> None:
    ledger = SlowLedger()
    world = World(abort="estimate", ledger=ledger)
    call = world.generating()
    await ledger.reached.wait()
    call.cancel()
    await settled()

    failed = [each for each in await world.events() if isinstance(each, ModelCallAttemptFailed)]
    assert [(each.reservation_id, each.billed) for each in failed] == [(f"{CALL}:2", "no"), (f"{CALL}:1", "unknown")]
    assert (await world.told())[-1] == "Failed"
    assert world.rival.asked == 0
