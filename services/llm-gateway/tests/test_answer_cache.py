"""Equal requests share one call of a model: at once, later, across processes, never across tenants."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from math import inf

import pytest
from eventlog.codec import Codec
from eventlog.errors import LogUnavailable
from eventlog.memory import MemoryEventLog
from eventlog.records import Append, Appended, Context
from llm_gateway import errors
from llm_gateway.admission import Admission
from llm_gateway.answer_cache import FRONT_S, AnswerCache, CacheTerms, Front
from llm_gateway.application import Gateway
from llm_gateway.caching import Cacheable, CachePolicy
from llm_gateway.catalogue import Catalogue, KnownModel, ProviderEntry
from llm_gateway.circuits import Circuits, CircuitTerms
from llm_gateway.domain import (
    Answer,
    Message,
    ModelRequest,
    ModelResponse,
    Text,
    TextDelta,
    ToolCall,
    Usage,
    UsageLine,
)
from llm_gateway.execution import Asked, Terms, Tools
from llm_gateway.flight import Began, CallEvent
from llm_gateway.journal import Journal
from llm_gateway.limits import LimitRule, Line, Need, Priority
from llm_gateway.ports import Entry
from llm_gateway.providers.catalog import OPENAI
from llm_gateway.providers.testing import FakeProvider, Outcome
from llm_gateway.renewals import Renewals
from llm_gateway.retrying import RetryBudget, RetryTerms
from llm_gateway.telemetry import Telemetry
from llm_gateway.testing import FakeLedger, FakeWorkers, MemoryCacheStore, MemoryResults
from llm_gateway.translate import AnswerRecords
from opentelemetry.trace import NoOpTracer
from prometheus_client import CollectorRegistry
from servicekit.telemetry import Logger
from servicekit.testing import FakeClock
from synod.common.event import Event
from synod.common.values import Attribution, Failure
from synod.llm_gateway.events import (
    EVENTS,
    Acceptance,
    ModelCallAttemptFailed,
    ModelCallAttemptStarted,
    ModelCallServedFromCache,
)

WAIT_S = 30
USAGE = Usage.of((UsageLine("input", 7), UsageLine("output", 3)))
HELLO = ModelResponse(Message("assistant", (Text("hello"),)), "stop", "stop", USAGE, "resp_1", "m")
CALLING = replace(HELLO, message=Message("assistant", (ToolCall("1", "f", "{}"),)), finish_reason="tool_calls")
REQUEST = ModelRequest("", (Message("user", (Text("Hi"),)),), max_output_tokens=100)
ON = CachePolicy("on")
TRIED = ModelCallAttemptStarted(
    request_id="two",
    attempt=1,
    model="fake/m",
    provider="fake",
    reservation_id="another:1",
    attribution=Attribution(),
    worker="gw_another",
    accepted=Acceptance(model="fake/m", request_sha256="same", input_tokens_max=1, output_tokens_max=1),
)
FAILED = ModelCallAttemptFailed(
    request_id="two",
    attempt=1,
    model="fake/m",
    reservation_id="another:1",
    failure=Failure(reason="PROVIDER_UNAVAILABLE", message="gone", retryable=True),
    billed="no",
)


def asked(request_id: str, content: str = "same", policy: CachePolicy | None = ON, model: str = "fake/m") -> Asked:
    cacheable = Cacheable(policy, content) if policy else None
    return Asked(request_id, model, ("other/m",), REQUEST, Attribution(agent="scout"), content, cacheable=cacheable)


@dataclass
class World:
    """Replicas of a gateway that share a log, the answers on record and the cache."""

    outcomes: Iterable[Outcome] = ()
    terms: CacheTerms = field(default_factory=CacheTerms)
    store: MemoryCacheStore = field(default_factory=MemoryCacheStore)
    log: MemoryEventLog = field(default_factory=MemoryEventLog)
    results: MemoryResults = field(default_factory=MemoryResults)
    ledger: FakeLedger = field(default_factory=FakeLedger)
    admission: Admission = field(default_factory=Admission)
    clock: FakeClock = field(default_factory=FakeClock)
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    def __post_init__(self) -> None:
        self.provider = FakeProvider(self.outcomes)
        self.other = FakeProvider([HELLO] * 3, "other")
        self.gateway = self.start()

    def start(self) -> Gateway:
        entries = tuple(
            ProviderEntry(each.name, "openai-chat", OPENAI, each, models=(KnownModel("m"),))
            for each in (self.provider, self.other)
        )
        self.registry = CollectorRegistry()
        self.log.side_table = self.results.store
        tools = Tools(
            ledger=self.ledger,
            journal=Journal(self.log, Codec(EVENTS), self.clock),
            results=self.results,
            workers=FakeWorkers(),
            codec=AnswerRecords(),
            clock=self.clock,
            telemetry=Telemetry(NoOpTracer(), self.registry, Logger("test"), frozenset({"fake/m"})),
            retry_budget=RetryBudget(),
            circuits=Circuits(CircuitTerms()),
            admission=self.admission,
            terms=Terms(retry=RetryTerms(attempts_max=1, initial_s=0.0, max_s=0.0)),
            renewals=Renewals(self.ledger),
            cache=AnswerCache(self.store, self.clock, self.terms),
        )
        return Gateway(Catalogue(entries, {"alias": "fake/m"}), tools)

    async def generate(self, call: Asked, tenant: str = "local", gateway: Gateway | None = None) -> Answer:
        async with asyncio.timeout(WAIT_S):
            return await (gateway or self.gateway).generate(call, Context(tenant, "usr_ada"), None)

    async def stream(self, call: Asked) -> list[CallEvent]:
        async with asyncio.timeout(WAIT_S):
            return [event async for event in self.gateway.stream(call, Context("local", "usr_ada"), None)]

    async def events(self) -> list[Event]:
        codec: Codec[Event] = Codec(EVENTS)
        return [event for stored in await self.log.read() if isinstance(event := codec.decode(stored), Event)]

    def counted(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(name, {"provider": "fake", "model": "fake/m", **labels}) or 0.0


async def test_an_equal_request_gets_the_answer_without_a_model_or_a_reservation() -> None:
    world = World([HELLO])
    first = await world.generate(asked("one"))
    second = await world.generate(asked("two"))

    assert (first.cache, second.cache) == ("miss", "hit")
    assert (second.message, second.usage, second.request_id) == (first.message, first.usage, "two")
    assert (second.usage_source, second.reservation_id) == ("gateway_cache", "")
    assert len(world.provider.requests) == len(world.ledger.reservations) == 1


async def test_each_call_from_the_cache_is_recorded_with_what_it_saved() -> None:
    world = World([HELLO])
    first = await world.generate(asked("one"))
    await world.generate(asked("two"))

    served = (await world.events())[-1]
    assert isinstance(served, ModelCallServedFromCache)
    assert served.accepted is not None
    assert (served.accepted.model, served.accepted.output_tokens_max) == ("fake/m", 100)
    assert (served.source_reservation_id, served.input_tokens, served.output_tokens) == (first.reservation_id, 7, 3)
    assert (served.request_id, served.attribution.model, served.likeness_of_10000) == ("two", "fake/m", 10_000)
    assert world.counted("model_cache_requests_total", outcome="hit") == 1
    assert world.counted("model_cache_requests_total", outcome="miss") == 1
    assert world.counted("model_cache_saved_tokens_total", type="output") == 3


class RivalsLog(MemoryEventLog):
    """Before the first answer from the cache is appended another process tries the call in vain; the answer to the append
    after that is lost.
    """

    tries = 0

    async def append(self, *appends: Append) -> Appended:
        (append,) = appends
        if append.events[0].type != "ModelCallServedFromCache":
            return await super().append(append)
        self.tries += 1
        if self.tries == 1:
            codec: Codec[Event] = Codec(EVENTS)
            lost = tuple(codec.encode(event, at=append.events[0].occurred_at) for event in (TRIED, FAILED))
            await super().append(Append(append.stream, 0, lost, append.context))
        appended = await super().append(append)
        if self.tries == 2:
            raise LogUnavailable("the connection was lost")
        return appended


async def test_group_18_what_is_said_again_after_a_conflict_and_a_lost_answer_is_the_same() -> None:
    world = World([HELLO], log=(log := RivalsLog()))
    await world.generate(asked("one"))
    answer = await world.generate(asked("two"))

    assert (answer.cache, log.tries) == ("hit", 3)
    *_, failed, served = await world.events()
    assert failed == FAILED
    assert isinstance(served, ModelCallServedFromCache)
    assert served.accepted is None
    assert (await world.generate(asked("two"), gateway=world.start())) == replace(answer, replayed=True)


async def test_group_18_a_repeat_of_a_call_from_the_cache_gets_the_recorded_answer() -> None:
    world = World([HELLO])
    await world.generate(asked("one"))
    served = await world.generate(asked("two"))
    length = len(await world.events())
    world.store.entries.clear()
    again = await world.generate(asked("two"), gateway=world.start())

    assert again == replace(served, replayed=True)
    assert len(await world.events()) == length


async def test_a_stream_gets_a_kept_answer_as_a_stream() -> None:
    world = World([HELLO])
    await world.generate(asked("one"))
    began, delta, answer = await world.stream(asked("two"))

    assert began == Began("fake/m", 0, "", "hit")
    assert delta == TextDelta("hello")
    assert isinstance(answer, Answer)
    assert answer.cache == "hit"


async def test_equal_requests_at_once_share_one_call_and_have_a_record_each() -> None:
    world = World([HELLO])
    answers = await asyncio.gather(*(world.generate(asked(f"req_{number}")) for number in range(20)))

    assert {answer.message.text for answer in answers} == {"hello"}
    assert [answer.cache for answer in answers].count("miss") == 1
    assert len(world.provider.requests) == 1
    types = [event.type_name() for event in await world.events()]
    assert types.count("ModelCallAttemptStarted") == 1
    assert types.count("ModelCallServedFromCache") == 19


async def in_line(world: World, calls: int) -> None:
    async with asyncio.timeout(WAIT_S):
        while len(world.admission.line) != calls:  # noqa: ASYNC110 - a line offers no event
            await asyncio.sleep(0)


async def test_a_call_does_not_wait_for_an_equal_one_that_it_goes_before_in_the_line() -> None:
    world = World([HELLO] * 2, admission=Admission(Line((LimitRule("model", concurrent=1),))))
    first = await world.admission.enter("local", "fake/m", Need(1, 1), "normal", inf)
    low = asyncio.create_task(world.generate(replace(asked("low"), priority="low")))
    await in_line(world, 1)
    other = asyncio.create_task(world.admission.enter("local", "fake/m", Need(1, 1), "normal", inf))
    await in_line(world, 2)
    high = asyncio.create_task(world.generate(replace(asked("high"), priority="high")))
    await in_line(world, 3)
    equal = asyncio.create_task(world.generate(asked("equal")))
    await asyncio.sleep(0)

    world.admission.leave(first, None)
    assert (await high).cache == "miss"
    assert (await equal).cache == "hit"
    assert not low.done()
    world.admission.leave(await other, None)
    assert (await low).cache == "miss"
    assert len(world.provider.requests) == 2


def both_at_once(world: World) -> "list[asyncio.Task[Answer]]":
    """A call of a low priority, and an equal one of a high priority that comes while that looks in the store."""
    priorities: tuple[Priority, ...] = ("low", "high")
    return [asyncio.create_task(world.generate(replace(asked(each), priority=each))) for each in priorities]


async def test_a_call_that_waits_for_an_equal_one_goes_before_it_once_that_is_in_the_line() -> None:
    world = World([HELLO] * 2, admission=Admission(Line((LimitRule("model", concurrent=1),))))
    first = await world.admission.enter("local", "fake/m", Need(1, 1), "normal", inf)
    other = asyncio.create_task(world.admission.enter("local", "fake/m", Need(1, 1), "normal", inf))
    low, high = both_at_once(world)
    await in_line(world, 3)

    world.admission.leave(first, None)
    assert (await high).cache == "miss"
    assert not low.done()
    world.admission.leave(await other, None)
    assert (await low).cache == "miss"
    assert len(world.provider.requests) == 2


async def test_a_call_that_waits_for_an_equal_one_goes_before_it_once_that_is_in_the_line_again() -> None:
    refusal = errors.ModelNotFound("gone")
    world = World([refusal, HELLO], admission=Admission(Line((LimitRule("model", concurrent=1),))))
    fallback = await world.admission.enter("local", "other/m", Need(1, 1), "normal", inf)
    low, high = both_at_once(world)

    assert (await high).model == "fake/m"
    assert not low.done()
    world.admission.leave(fallback, None)
    assert (await low).model == "other/m"


async def test_a_call_waits_for_an_equal_one_of_a_lower_priority_that_has_room_at_once() -> None:
    world = World([HELLO], admission=Admission(Line((LimitRule("model", concurrent=1),))))
    low, high = both_at_once(world)

    assert ((await low).cache, (await high).cache) == ("miss", "hit")


async def test_when_the_shared_call_fails_each_asks_for_itself() -> None:
    world = World([errors.RequestRejected("no"), *[HELLO] * 2])
    answers = await asyncio.gather(
        *(world.generate(asked(f"req_{number}")) for number in range(3)), return_exceptions=True
    )

    assert sum(isinstance(answer, errors.CallFailed) for answer in answers) == 1
    assert len(world.provider.requests) == 3


async def test_what_may_not_be_kept_is_given_to_nobody_else() -> None:
    world = World([CALLING] * 3)
    answers = await asyncio.gather(*(world.generate(asked(f"req_{number}")) for number in range(3)))

    assert {answer.cache for answer in answers} == {"miss"}
    assert len(world.provider.requests) == 3
    assert world.store.entries == {}


async def test_a_call_that_is_cancelled_leaves_its_turn_to_the_next() -> None:
    cache = AnswerCache(MemoryCacheStore(), FakeClock())
    entered = asyncio.Event()

    async def first() -> None:
        async with cache.turn("key"):
            entered.set()
            await asyncio.Event().wait()

    async def following() -> bytes | None:
        async with cache.turn("key") as turn:
            if turn.found is None:
                await asyncio.sleep(0)
                turn.kept = await cache.keep("key", "local", ON, b"answer")
                return None
            return turn.found.answer

    task = asyncio.create_task(first())
    await entered.wait()
    others = [asyncio.create_task(following()) for _ in range(3)]
    await asyncio.sleep(0)
    task.cancel()
    async with asyncio.timeout(WAIT_S):
        assert sorted(await asyncio.gather(*others), key=str) == [None, b"answer", b"answer"]


@pytest.mark.parametrize(
    "second", [asked("two", "other"), asked("two", policy=None), asked("two", policy=CachePolicy("on", ttl_s=9))]
)
async def test_other_content_no_policy_or_another_policy_asks_the_model(second: Asked) -> None:
    world = World([HELLO] * 2)
    await world.generate(asked("one"))
    answer = await world.generate(second)

    assert answer.cache == ("miss" if second.cacheable else "")
    assert len(world.provider.requests) == 2


async def test_group_21_another_tenant_never_gets_the_answer() -> None:
    world = World([HELLO] * 2)
    await world.generate(asked("one"), "local")
    answer = await world.generate(asked("one"), "other")

    assert answer.cache == "miss"
    assert len(world.provider.requests) == 2
    assert sorted(world.store.tenants.values()) == ["local", "other"]


async def test_an_alias_and_its_model_share_answers() -> None:
    world = World([HELLO])
    await world.generate(asked("one", model="alias"))
    assert (await world.generate(asked("two"))).cache == "hit"


async def test_a_fallbacks_answer_is_not_kept_as_the_models_own() -> None:
    world = World([errors.ModelNotFound("gone"), HELLO])
    first = await world.generate(asked("one"))
    second = await world.generate(asked("two"))

    assert (first.model, second.model, second.cache) == ("other/m", "fake/m", "miss")


async def test_replicas_share_answers_through_the_store() -> None:
    world = World([HELLO])
    await world.generate(asked("one"))
    assert (await world.generate(asked("two"), gateway=world.start())).cache == "hit"


async def test_answers_expire_by_the_policys_time_within_the_services() -> None:
    world = World([HELLO] * 4, CacheTerms(ttl_s=100, ttl_max_s=200))
    for policy, age_s in ((ON, 100), (CachePolicy("on", ttl_s=50), 50), (CachePolicy("on", ttl_s=999), 200)):
        name = f"{policy.ttl_s}"
        await world.generate(asked(f"{name}-1", name, policy))
        world.clock.advance(age_s - 1)
        assert (await world.generate(asked(f"{name}-2", name, policy))).cache == "hit"
        world.clock.advance(1)
        (entry,) = [entry for entry in world.store.entries.values() if entry.expires_at == world.clock.now()]
        assert entry
    world.store.entries.clear()
    assert (await world.generate(asked("last", "50", CachePolicy("on", ttl_s=50)))).cache == "miss"


async def test_what_was_deleted_from_the_store_is_soon_forgotten_by_each_process() -> None:
    world = World([HELLO] * 2)
    await world.generate(asked("one"))
    world.store.entries.clear()
    assert (await world.generate(asked("two"))).cache == "hit"
    world.clock.advance(FRONT_S)
    assert (await world.generate(asked("three"))).cache == "miss"


async def test_a_store_that_cannot_be_reached_is_a_miss_and_no_failure() -> None:
    world = World([HELLO] * 2)
    world.store.down = True
    assert (await world.generate(asked("one"))).cache == "miss"
    assert (await world.generate(asked("two"), gateway=world.start())).cache == "miss"


async def test_too_large_an_answer_is_not_kept() -> None:
    world = World([HELLO] * 2, CacheTerms(entry_bytes_max=10))
    await world.generate(asked("one"))
    assert (await world.generate(asked("two"))).cache == "miss"
    assert world.store.entries == {}


def test_the_front_forgets_what_was_used_least_recently() -> None:
    front, never = Front(bytes_max=20), FakeClock().now() + timedelta(days=1)
    for key in ("a", "b"):
        front.put(key, Entry(b"12345678", never), 0.0)
    assert front.find("a", 1.0) is not None
    front.put("c", Entry(b"12345678", never), 1.0)

    assert front.find("b", 1.0) is None
    assert [front.find(key, 1.0) is not None for key in ("a", "c")] == [True, True]
    front.put("huge", Entry(bytes(21), never), 1.0)
    assert front.find("huge", 1.0) is None
