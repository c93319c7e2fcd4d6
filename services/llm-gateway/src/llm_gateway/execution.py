"""One call carried out: reserve, record the intent, ask the provider, record the outcome. Every step is an event before
the next one begins, so that a crash between two of them leaves a state from which someone else goes on.
"""

import asyncio
import hashlib
import itertools
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from typing import Final, Literal, NoReturn, TypeVar
from uuid import UUID

from eventlog.errors import LogUnavailable, QueueFull, VersionConflict
from eventlog.records import Context
from eventlog.side_table import SideRow
from servicekit.clock import Clock
from servicekit.retry import Backoff
from synod.common.event import Event
from synod.common.ids import uuid7
from synod.common.values import Attribution, Failure
from synod.llm_gateway.events import (
    Acceptance,
    ConsideredModel,
    ModelCallAttemptStarted,
    ModelCallCancelled,
    ModelCallCompleted,
    ModelCallServedFromCache,
)

from llm_gateway import billing, caching, calls, counting, domain, retrying
from llm_gateway.admission import Admission
from llm_gateway.aims import Aim, aims_of
from llm_gateway.answer_cache import AnswerCache, Asking
from llm_gateway.balancing import Loads, Strategy
from llm_gateway.caching import Cacheable
from llm_gateway.calls import OUTRUN, Billed, Call, Lost
from llm_gateway.catalogue import Target
from llm_gateway.circuits import Circuits, suspension
from llm_gateway.domain import (
    Answer,
    CacheUse,
    Completed,
    Delta,
    ModelRequest,
    ModelResponse,
    StreamPart,
    UsageLine,
    UsageUpdated,
)
from llm_gateway.embedding import EmbeddingTerms
from llm_gateway.errors import (
    AnswerExpired,
    CallCancelled,
    CallElsewhere,
    CallFailed,
    CallRefused,
    LedgerRefused,
    LedgerUnavailable,
    ModelSuspended,
    ProviderError,
    RateLimited,
    RequestIdReused,
    StoreUnavailable,
    TakenOver,
)
from llm_gateway.flight import Began, Flight
from llm_gateway.headroom import Headroom
from llm_gateway.hedging import Hedge, Race, RaceDecided
from llm_gateway.journal import Journal, Seen
from llm_gateway.limits import Need, Priority, Ticket
from llm_gateway.ports import AnswerCodec, Entry, Kept, Ledger, Reservation, Results, Workers
from llm_gateway.renewals import Renewals
from llm_gateway.retrying import RetryBudget, RetryTerms, Tried
from llm_gateway.routing import ANY, Considered, Policy
from llm_gateway.similar import Look, SimilarAnswers
from llm_gateway.stock import Spare, Stock
from llm_gateway.telemetry import Pace, Telemetry

RECORD_ATTEMPTS_MAX: Final = 8
CONFLICTS_MAX: Final = 8
RECORD_BACKOFF: Final = Backoff(initial_s=0.05, max_s=2.0)
CONSIDERED_MAX: Final = 20
"""Offers that an event tells of."""
RIVAL_PATIENCE_S: Final = 0.01
"""How long a rival waits for room within the limits: it is there at once, or others need it more."""
LOOK_BACKOFF: Final = Backoff(initial_s=0.02, max_s=0.5)
"""Between two looks at a call that another process carries out."""
CRASHED: Final = Failure(
    reason="GATEWAY_STOPPED",
    message="the gateway stopped before the outcome of the attempt was known",
    retryable=True,
)
TAKEN_OVER: Final = Failure(
    reason="CALL_TAKEN_OVER",
    message="another process took this one for dead and carries the call out; repeat it with the same request_id",
    retryable=True,
)
HOLD_LOST: Final = Failure(
    reason="RESERVATION_LOST",
    message="the gateway could not be sure any more of what it had reserved, and asked nobody under it",
    retryable=True,
)
ABANDONED: Final = Failure(
    reason="CALL_ABANDONED",
    message="the call's callers left and it took too long to finish without them",
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Asked:
    """What a caller asks for. `sha256` is of the whole request, so that a request id can be told to mean the same.

    `attribution` says whose cost it is. `request.model` is not used: each attempt has a target of its own.
    """

    request_id: str
    model: str
    fallback_models: tuple[str, ...]
    request: ModelRequest
    attribution: Attribution
    sha256: str
    priority: Priority = "normal"
    policy: Policy = ANY
    cacheable: Cacheable | None = None
    embedding: EmbeddingTerms | None = None

    @property
    def operation(self) -> Literal["chat", "embeddings"]:
        return "chat" if self.embedding is None else "embeddings"


@dataclass(frozen=True, slots=True)
class Terms:
    """Limits of calls. Times in seconds; see Settings."""

    output_tokens_default: int = 4096
    call_max_s: float = 900.0
    drain_s: float = 120.0
    drains_max: int = 100
    calls_max: int = 1000
    retry: RetryTerms = field(default_factory=RetryTerms)


@dataclass(frozen=True, slots=True)
class Tools:
    """What carrying out a call needs."""

    ledger: Ledger
    journal: Journal
    results: Results
    workers: Workers
    codec: AnswerCodec
    clock: Clock
    telemetry: Telemetry
    retry_budget: RetryBudget
    circuits: Circuits
    admission: Admission
    terms: Terms
    renewals: Renewals
    stock: Stock | None = None
    cache: AnswerCache | None = None
    similar: SimilarAnswers | None = None
    draw: Callable[[], float] = random.random
    loads: Loads = field(default_factory=Loads)
    headroom: Headroom = field(default_factory=Headroom)
    balancing: Strategy = "affinity"


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt at one target; `began_s` is when it was started, on the clock of the event loop."""

    number: int
    aim: Aim
    began_s: float
    started: ModelCallAttemptStarted

    @property
    def reservation_id(self) -> str:
        return self.started.reservation_id


class Execution:
    """Carries out one call, once. `repeated` says that it is known to be on record."""

    def __init__(
        self,
        id: str,
        asked: Asked,
        targets: Sequence[Target],
        context: Context,
        flight: Flight,
        tools: Tools,
        *,
        stream: bool,
        repeated: bool = False,
        considered: tuple[Considered, ...] = (),
    ) -> None:
        self._id = id
        self._considered = considered
        self._asked = asked
        self._aims = aims_of(targets, asked.request, asked.attribution, tools.terms.output_tokens_default)
        self._context = context
        self._flight = flight
        self._tools = tools
        self._stream = stream
        self._repeated = repeated
        # The one that runs, or shows content, or has answered; and a rival beside it, of which nothing was shown.
        self._attempt: Attempt | None = None
        self._rival: Attempt | None = None
        self._race: Race | None = None
        # What became of rivals, to be recorded with the end of the attempt that outran them.
        self._lost: tuple[Lost, ...] = ()
        self._number = 0
        # The last attempt that a provider was asked in.
        self._last_asked = 0
        self._pace: Pace | None = None
        self._reported: dict[int, domain.Usage] = {}
        self._warned: dict[int, tuple[str, ...]] = {}
        # By attempt, what was thought before there was any content to show.
        self._thought: dict[int, list[domain.ReasoningDone]] = {}
        self._ours = False
        self._ticket: Ticket | None = None
        # Told of lines, where equal requests wait for what becomes of this call.
        self._asking: Asking | None = None
        self._recorder = Recorder(id, context, tools, flight)
        self._now = asyncio.get_running_loop().time

    async def run(self) -> Answer:
        """The answer, new or on record. Raises CallRefused, CallEnded, or what the log or the store raise."""
        try:
            # Almost every id is new, so it is not looked up: the log refuses to begin a call a second time.
            answer = None if self._repeated else await self._carried_out(Call())
            while answer is None:
                await self._flight.heed()
                call = await self._found()
                answer = await (self._recorded(call) if call.ended else self._carried_out(call))
            return answer
        except asyncio.CancelledError:
            await self._flight.last(self._interrupted())
            if self._flight.abandoned:
                raise CallCancelled(self._asked.request_id) from None
            raise
        finally:
            self._leave_limits(None)

    async def _carried_out(self, call: Call) -> Answer | None:
        """The answer; None if what `call` says turns out to be old. A call that is known is not refused for want of money."""
        try:
            return await self._answered(call)
        except TakenOver:
            return None
        except CallRefused:
            if self._ours or call.phase != "new" or (await self._recorder.load()).phase == "new":
                raise
            return None

    async def _found(self) -> Call:
        """The call as recorded, once nobody else carries it out; an attempt left behind is ended first."""
        for look in itertools.count():
            call = await self._recorder.load()
            calls.check_same(call, self._asked.request_id, self._asked.sha256)
            if not await self._recorder.runs_elsewhere(call):
                return await self._recorder.end_orphan(call)
            if self._now() > self._flight.ends_at:
                break
            await asyncio.sleep(LOOK_BACKOFF.delay_s(look))
        raise CallElsewhere(self._asked.request_id)

    async def _recorded(self, call: Call) -> Answer:
        """What an ended call ended with."""
        if call.phase == "cancelled":
            raise CallCancelled(self._asked.request_id)
        if call.failure is not None:
            raise CallFailed(call.failure)
        kept = await self._tools.results.find(self._id)
        if kept is None:
            raise AnswerExpired(self._asked.request_id)
        return replace(self._tools.codec.load(kept.answer), replayed=True)

    # --- what others have been answered ---

    async def _answered(self, call: Call) -> Answer:
        """By what an equal request of this tenant got, where that is allowed and there; else by a model."""
        cache, cacheable, model = self._tools.cache, self._asked.cacheable, self._aims[0].target.id
        if cache is None or cacheable is None:
            return await self._carry_out(call)
        key = caching.cache_key(self._context.tenant, model, cacheable)
        async with cache.turn(key, self._asked.priority) as turn:
            self._asking = turn.asking
            if turn.found is not None:
                return await self._serve(turn.found)
            look = await self._look(cacheable)
            if look is not None and look.key and (alike := await cache.find(look.key)) is not None:
                return await self._serve(alike, look.likeness)
            self._tools.telemetry.cache_missed(model)
            answer = await self._carry_out(call)
            if answer.model == model and caching.may_keep(cacheable.policy, answer):
                data = self._tools.codec.dump(answer)
                turn.kept = await cache.keep(key, self._context.tenant, cacheable.policy, data)
                if look is not None and turn.kept is not None and self._tools.similar is not None:
                    self._tools.similar.remember(look, key)
        return answer

    async def _look(self, cacheable: Cacheable) -> Look | None:
        """What was said before that means the same; None where that is not asked for or cannot be known."""
        similar, model = self._tools.similar, self._aims[0].target.id
        if similar is None or not cacheable.said:
            return None
        scope = caching.scope_key(self._context.tenant, model, cacheable)
        return await similar.look(self._id, scope, cacheable.said, self._context, self._asked.attribution)

    async def _serve(self, entry: Entry, likeness: float = 1.0) -> Answer:
        """Another's answer as this call's own, on record like any, shown like any."""
        call = await self._recorder.load()
        if call.phase not in ("new", "waiting"):
            raise TakenOver
        source = self._tools.codec.load(entry.answer)
        answer, aim = caching.as_hit(source, self._asked.request_id), self._aims[0]
        data = self._tools.codec.dump(answer)
        served = ModelCallServedFromCache(
            request_id=answer.request_id,
            model=answer.model,
            attribution=aim.attribution,
            source_reservation_id=source.reservation_id,
            input_tokens=answer.usage.input_tokens,
            output_tokens=answer.usage.output_tokens,
            usage=billing.usage_lines(answer.usage),
            finish_reason=answer.finish_reason,
            response_sha256=hashlib.sha256(data).hexdigest(),
            likeness_of_10000=min(round(likeness * caching.EXACT_OF_10000), caching.EXACT_OF_10000),
            simulated=answer.simulated,
        )
        serving = self._recorder.serve(Kept(data, call.attempt), served, self._acceptance(aim))
        ended = await self._flight.unbroken(serving)
        if not calls.has_completed(ended, call.attempt):
            raise TakenOver
        self._tools.telemetry.served_from_cache(answer)
        for delta in caching.deltas_of(answer.message):
            self._flight.show(Began(answer.model, 0, "", "hit", answer.warnings), delta)
        return answer

    async def _carry_out(self, call: Call) -> Answer:
        self._tools.retry_budget.earn()
        telemetry, aim, began_s = self._tools.telemetry, self._aims[0], self._now()
        operation, owner = self._asked.operation, self._asked.attribution
        with telemetry.call(aim.target.id, aim.request, owner, stream=self._stream, operation=operation) as span:
            try:
                answer = await self._tried(call)
            except CallFailed as error:
                telemetry.ended(aim.target.id, error.failure.reason, self._now() - began_s)
                raise
            telemetry.answered(span, answer, self._now() - began_s, self._first_content_s())
        return answer

    async def _tried(self, call: Call) -> Answer:
        """One attempt after another, until one answers or none may follow."""
        number, target, tries = call.attempt + 1, await self._first(), 1
        # A refusal goes to the caller as it is; a call that was accepted before stays open for a repeat.
        spare = await self._reserve_first(number, self._aims[target])
        while True:
            attempt = await self._begin(number, self._aims[target], spare)
            hedge = self._hedge(target)
            try:
                response = await (self._raced(attempt, target + 1, hedge) if hedge else self._watched(attempt))
            except ProviderError as error:
                error.content_delivered = self._flight.began is not None
                # A rival that failed too was at the next target; one that was withdrawn has asked nobody there.
                target += any(each.failure not in (OUTRUN, HOLD_LOST) for each in self._lost)
                tried = Tried(target, len(self._aims), tries, self._left_s(), self._has_sibling(target))
                following = self._next(error, tried)
                await self._attempt_failed(error, last=following is None)
                if following is None:
                    raise CallFailed(retrying.failure_of(error), error.retry_after_s) from error
                # Before the wait, so that whoever comes meanwhile waits for room of his own.
                self._take_room(following.target)
                await asyncio.sleep(following.delay_s)
                tries = tries + 1 if self._same_model(following.target, target) else 1
                number, target = self._number + 1, following.target
                await self._reserve_again(number, self._aims[target], error)
                spare = None
            else:
                return await self._completed(response)

    def _next(self, error: ProviderError, tried: Tried) -> retrying.Next | None:
        following = retrying.next_attempt(error, tried, self._tools.terms.retry, self._tools.draw())
        if following is not None and (following.target != tried.target or self._suspended_s(tried.target)):
            following = self._elsewhere(tried)
        if following is None or self._is_allowed(error, tried, following):
            return following
        # No repeat is left. Another target may still be asked, if that is none.
        following = self._elsewhere(tried)
        return None if following is None or retrying.costs(error, tried.target, following.target) else following

    def _is_allowed(self, error: ProviderError, tried: Tried, following: retrying.Next) -> bool:
        return not retrying.costs(error, tried.target, following.target) or self._tools.retry_budget.spend()

    def _elsewhere(self, tried: Tried) -> retrying.Next | None:
        """The first target behind it that takes calls now; else the one that does soonest, if it is only limited and the
        callers wait for so long.
        """
        soonest: retrying.Next | None = None
        following = retrying.next_target(tried)
        while following is not None:
            wait_s = self._wait_s(following.target)
            if not wait_s:
                return following
            if not self._suspended_s(following.target) and wait_s < (soonest.delay_s if soonest else tried.left_s):
                soonest = retrying.Next(following.target, wait_s)
            following = retrying.next_target(replace(tried, target=following.target))
        return soonest

    def _has_sibling(self, target: int) -> bool:
        """Whether the model is served by the next target too, and can be asked there now."""
        following = target + 1
        if following == len(self._aims) or not self._same_model(following, target):
            return False
        return not self._wait_s(following)

    def _same_model(self, one: int, other: int) -> bool:
        return self._aims[one].target.id == self._aims[other].target.id

    # --- two attempts at once ---

    def _hedge(self, target: int) -> Hedge | None:
        """Whether a rival may be begun at the next target, should this one take too long."""
        first = self._aims[target].target
        hedge = first.hedge
        return hedge if hedge and hedge.suits(first.abort) and self._has_sibling(target) else None

    async def _raced(self, first: Attempt, sibling: int, hedge: Hedge) -> ModelResponse:
        """The answer of the attempt, or of a rival that was faster; raises what the last of them failed with."""
        race = self._race = Race()
        race.enter(first.number, self._watched(first))
        try:
            if await race.quiet_for(hedge.after_s) and self._may_hedge(sibling):
                await self._enter_rival(race, self._aims[sibling])
            won = await race.won()
        except ProviderError:
            self._place(race, race.leader or next(reversed(race.failures)))
            raise
        finally:
            await race.close()
            self._race = None
        self._place(race, won[0])
        return won[1]

    def _may_hedge(self, sibling: int) -> bool:
        """Asked again once it is needed, since much may have changed; and what it costs of the budget of repeats."""
        return self._left_s() > 0 and self._has_sibling(sibling - 1) and self._tools.retry_budget.spend()

    async def _enter_rival(self, race: Race, aim: Aim) -> None:
        """Reserves, records and asks, as for any attempt; what is refused to a rival is no reason to end the call."""
        number = self._number + 1
        rival = self._rival = self._prepared(number, aim, self._reservation_id(number))
        try:
            await race.unless_decided(self._reserve(rival.number, aim, self._now() + RIVAL_PATIENCE_S))
        except (LedgerRefused, RateLimited):
            self._rival = None
            self._leave_limits(None)
            return
        except (RaceDecided, LedgerUnavailable) as why:
            # Whether the ledger holds it is not known; that nobody was asked is.
            self._withdraw(rival, OUTRUN if isinstance(why, RaceDecided) else HOLD_LOST)
            return
        call = await self._recorder.append(lambda call: calls.rival(call, rival.started))
        if not calls.has_begun(call, rival.started):
            self._taken_over()
        self._number = rival.number
        if race.decided():
            self._withdraw(rival, OUTRUN)
            return
        self._tools.telemetry.hedged(aim.target.id)
        race.enter(rival.number, self._watched(rival))

    def _place(self, race: Race, winner: int) -> None:
        """The attempt that counts, and what became of the other."""
        first, rival = self._attempt, self._rival
        assert first is not None
        if rival is None:
            return
        self._attempt, other = (first, rival) if first.number == winner else (rival, first)
        self._rival, error = None, race.failures.get(other.number)
        if isinstance(error, ProviderError):
            self._lost = (*self._lost, Lost(other.started, retrying.failure_of(error), retrying.billed(error)))
        else:
            self._drop(other, OUTRUN, "no" if other.aim.target.abort == "free" else "unknown")

    def _withdraw(self, rival: Attempt, why: Failure) -> None:
        """Nobody was asked under it."""
        self._rival = None
        self._drop(rival, why, "no")

    def _drop(self, rival: Attempt, why: Failure, billed: Billed) -> None:
        self._leave_limits(None)
        self._number = max(self._number, rival.number)
        self._lost = (*self._lost, Lost(rival.started, why, billed))

    # --- circuits ---

    async def _first(self) -> int:
        """The first target that takes calls now. Waits out a provider's rate limit, if no target is without."""
        while True:
            waits: list[float] = []
            for index in range(len(self._aims)):
                waits.append(self._wait_s(index))
                if not waits[index]:
                    self._take_room(index)
                    return index
            wait_s = min(waits)
            self._check_wait(waits.index(wait_s), wait_s)
            await asyncio.sleep(wait_s)

    def _check_wait(self, target: int, wait_s: float) -> None:
        """Raises ModelSuspended when the target is not worth waiting for, or not so long."""
        model = self._aims[target].target.id
        if suspended_s := self._suspended_s(target):
            raise ModelSuspended(suspension(model, suspended_s), suspended_s, limited=False)
        if wait_s >= self._left_s():
            limited = f"{model} is not to be asked for {wait_s:.1f} s more, says its provider"
            raise ModelSuspended(limited, wait_s, limited=True)

    def _leave_limits(self, used: Need | None) -> None:
        """Gives back what the attempt did not use of its limits; None when the provider counts nothing of it."""
        ticket, self._ticket = self._ticket, None
        if ticket is not None:
            self._tools.admission.leave(ticket, used)

    def _suspended_s(self, target: int) -> float:
        return self._tools.circuits.suspended_s(self._aims[target].target.circuit, self._now())

    def _take_room(self, target: int) -> None:
        """A call is on its way, of which its provider has not told yet."""
        aim = self._aims[target]
        self._tools.headroom.take(aim.target.circuit, aim.need)

    def _wait_s(self, target: int) -> float:
        """How long it has failed too often to be asked, its provider wants not to be, or has no room by its own account."""
        aim, now = self._aims[target], self._now()
        circuit, circuits = aim.target.circuit, self._tools.circuits
        room_s = self._tools.headroom.wait_s(circuit, aim.need, now)
        return max(circuits.suspended_s(circuit, now), circuits.limited_s(circuit, now), room_s)

    async def _watched(self, attempt: Attempt) -> ModelResponse:
        """Asks, and tells the circuit how it ended, for a stream at its end. Callers who leave say nothing about it."""
        circuits, loads, circuit, began_s = (
            self._tools.circuits,
            self._tools.loads,
            attempt.aim.target.circuit,
            self._now(),
        )
        ticket, self._ticket = self._ticket, None
        probe = circuits.enter(circuit, began_s)
        loads.enter(circuit)
        self._tools.renewals.enter(attempt.reservation_id, self._context)
        failed: ProviderError | None = None
        answered, used = False, attempt.aim.need
        try:
            response = await self._ask(attempt)
            answered, used = True, _used(response.usage) or used
            return response
        except ProviderError as error:
            failed = error
            raise
        finally:
            now = self._now()
            self._tools.renewals.leave(attempt.reservation_id)
            circuits.leave(circuit, now, failed, answered=answered, probe=probe)
            shown_s = (self._flight.first_content_at or now) - began_s
            loads.leave(circuit, now, shown_s if answered else None)
            unbilled = failed is not None and retrying.billed(failed) == "no"
            if ticket is not None:
                self._tools.admission.leave(ticket, None if unbilled else used)

    # --- reservations ---

    async def _reserve_first(self, number: int, aim: Aim) -> Spare | None:
        """With what was reserved ahead, if it was. A further attempt of the call has waited anyway, and is no other call.

        A call that was tried before may have a reservation of its own already, whose answer was lost: it asks for that again.
        """
        await self._enter_limits(aim, self._flight.wanted_until)
        reservation = self._reservation(number, aim)
        stock = None if self._recorder.looked else self._tools.stock
        spare = None if stock is None else await stock.take(reservation, self._context)
        if spare is None:
            await self._tools.ledger.reserve(reservation, self._context)
        return spare

    async def _reserve_again(self, number: int, aim: Aim, cause: ProviderError) -> None:
        """A further attempt that may not be made ends the call."""
        try:
            await self._reserve(number, aim, self._flight.wanted_until)
        except LedgerRefused as error:
            await self._give_up(Failure(reason=error.reason, message=str(error)))
            raise
        except RateLimited as error:
            await self._give_up(Failure(reason=retrying.RATE_LIMITED, message=str(error), retryable=True))
            raise
        except LedgerUnavailable as error:
            failure = retrying.failure_of(cause)
            told = failure.model_copy(update={"message": f"{failure.message}; and no further attempt: {error}"})
            await self._give_up(told)
            raise CallFailed(told, cause.retry_after_s) from error

    async def _reserve(self, number: int, aim: Aim, until: float) -> None:
        await self._enter_limits(aim, until)
        await self._tools.ledger.reserve(self._reservation(number, aim), self._context)

    async def _enter_limits(self, aim: Aim, until: float) -> None:
        """Before anything is reserved: money is not held while a call waits for room."""
        self._leave_limits(None)
        # A rival waits beside an attempt that may be answered any moment: that holds nobody up.
        asking = self._asking if self._race is None else None
        if asking is not None:
            asking.enter_line()
        try:
            self._ticket = await self._tools.admission.enter(
                self._context.tenant, aim.target.id, aim.need, self._asked.priority, until
            )
        finally:
            if asking is not None:
                asking.leave_line()

    def _reservation(self, number: int, aim: Aim) -> Reservation:
        target, request, need = aim.target, aim.request, aim.need
        return Reservation(
            id=self._reservation_id(number),
            attribution=aim.attribution,
            model=target.id,
            input_tokens_max=need.input_tokens,
            output_tokens_max=need.output_tokens,
            ttl_s=self._tools.renewals.ttl_s,
            terms=billing.price_terms(request),
            modalities=billing.modalities(request),
        )

    # --- attempts ---

    async def _begin(self, number: int, aim: Aim, spare: Spare | None) -> Attempt:
        """Records the intent; only then may the provider be asked."""
        attempt = self._prepared(number, aim, self._reservation_id(number) if spare is None else spare.id)
        await (self._begin_with_own(attempt) if spare is None else self._begin_with_spare(attempt, spare))
        return attempt

    async def _begin_with_own(self, attempt: Attempt) -> None:
        try:
            await self._record_start(attempt)
        except (TakenOver, RequestIdReused):
            await self._free_own(attempt)
            raise

    async def _begin_with_spare(self, attempt: Attempt, spare: Spare) -> None:
        assert self._tools.stock is not None
        try:
            await self._record_start(attempt)
            if not self._tools.stock.may_ask(spare):
                await self._lost_hold(attempt)
        except BaseException:
            # Whatever the log says of it now: only this process would have asked under it.
            self._tools.stock.give_back(spare)
            raise

    async def _free_own(self, attempt: Attempt) -> None:
        """Where the attempt is on record with a spare one, or the call was answered without, no repeat will ask under what
        was reserved in the call's own name.
        """
        call = await self._recorder.load()
        if calls.is_passed_over(call, attempt.started):
            # If it cannot be freed now it is in doubt when its time is over, as any whose process is gone.
            with suppress(LedgerRefused, LedgerUnavailable):
                await self._tools.ledger.release(attempt.reservation_id, self._context)

    async def _record_start(self, attempt: Attempt) -> None:
        started, sha256 = attempt.started, self._asked.sha256
        unseen, self._attempt = not self._recorder.looked, attempt
        call = await self._recorder.append(lambda call: calls.begin(call, started, sha256))
        # An attempt like this one is not this one, if the call was thought to be new and was not.
        if not calls.has_begun(call, started) or (unseen and self._recorder.looked):
            self._attempt, self._ours = None, False
            raise TakenOver
        self._ours, self._flight.abort, self._number = True, attempt.aim.target.abort, attempt.number

    async def _lost_hold(self, attempt: Attempt) -> NoReturn:
        """It took so long to record that others may soon return what it was reserved with: another attempt reserves anew."""
        lost = Lost(attempt.started, HOLD_LOST, "no")
        self._tools.telemetry.attempt_lost(self._id, lost)
        await self._recorder.append(lambda call: calls.fail(call, (lost,)))
        self._attempt = None
        raise TakenOver

    def _prepared(self, number: int, aim: Aim, reservation_id: str) -> Attempt:
        target = aim.target
        started = ModelCallAttemptStarted(
            request_id=self._asked.request_id,
            attempt=number,
            model=target.id,
            provider=target.provider.name,
            reservation_id=reservation_id,
            attribution=aim.attribution,
            worker=self._tools.workers.own,
            deployment=target.deployment,
            region=target.region,
            accepted=self._acceptance(aim) if number == 1 else None,
        )
        return Attempt(number, aim, self._now(), started)

    def _acceptance(self, aim: Aim) -> Acceptance:
        return Acceptance(
            model=self._asked.model,
            request_sha256=self._asked.sha256,
            input_tokens_max=aim.need.input_tokens,
            output_tokens_max=aim.need.output_tokens,
            operation=self._asked.operation,
            considered=self._considered_models(),
        )

    async def _ask(self, attempt: Attempt) -> ModelResponse:
        self._last_asked = attempt.number
        request, provider = attempt.aim.request, attempt.aim.target.provider
        if not self._stream:
            return await provider.generate(request, self._flight.ends_at)
        response: ModelResponse | None = None
        async with aclosing(provider.stream(request, self._flight.ends_at)) as parts:
            # Read to its end and not only to its answer: a connection left in the middle cannot be used again.
            async for part in parts:
                if isinstance(part, Completed):
                    response = part.response
                else:
                    self._received(attempt, part)
        assert response is not None, "a provider's stream ends in Completed or raises"
        return response

    def _received(self, attempt: Attempt, part: StreamPart) -> None:
        """Content is shown; all else is kept back, so that an attempt may still fail without anybody noticing."""
        match part:
            case UsageUpdated():
                self._reported[attempt.number] = part.usage
            case domain.Warned():
                self._warned[attempt.number] = part.warnings
            case domain.TextDelta() | domain.RefusalDelta() | domain.ReasoningDelta() | domain.ToolCallDelta():
                if self._race is None or self._race.leads(attempt.number):
                    self._show(attempt, part)
            case domain.ReasoningDone():
                self._show_in_place(attempt, part)
            case _:
                return

    def _show(self, attempt: Attempt, delta: Delta) -> None:
        began, now = self._flight.began, self._now()
        if began is None:
            target = attempt.aim.target
            warnings = (*target.warnings, *self._warned.get(attempt.number, ()))
            began = Began(target.id, attempt.number, attempt.reservation_id, self._cache_use, warnings)
            self._pace = self._tools.telemetry.pace(began.model, now)
            self._flight.show(began, delta, self._thought.get(attempt.number, ()))
            return
        if self._pace is not None:
            self._pace.piece(now)
        self._flight.show(began, delta)

    def _show_in_place(self, attempt: Attempt, done: domain.ReasoningDone) -> None:
        """Among the content of its attempt, and never instead of any: it decides no race and begins no stream."""
        began = self._flight.began
        if began is None:
            self._thought.setdefault(attempt.number, []).append(done)
        elif began.attempt == attempt.number:
            self._flight.show(began, done)

    # --- outcomes ---

    async def _attempt_failed(self, error: ProviderError, *, last: bool) -> None:
        attempt = self._attempt
        assert attempt is not None
        lost = (*self._told(), Lost(attempt.started, retrying.failure_of(error), retrying.billed(error)))
        self._tools.telemetry.attempt_lost(self._id, lost[-1])
        await self._recorder.append(lambda call: calls.fail(call, lost, last=last))
        self._attempt, self._lost = None, ()

    def _told(self) -> tuple[Lost, ...]:
        """What became of rivals, told to whoever watches."""
        for each in self._lost:
            self._tools.telemetry.attempt_lost(self._id, each)
        return self._lost

    async def _give_up(self, failure: Failure) -> None:
        await self._recorder.append(lambda call: calls.give_up(call, failure))

    async def _completed(self, response: ModelResponse) -> Answer:
        """The answer goes on record with the event that says so: without it the event would promise too much."""
        attempt = self._attempt
        assert attempt is not None
        answer = self._answer(attempt, response)
        data = self._tools.codec.dump(answer)
        event = self._completed_event(attempt, answer, response, data)
        recording = self._recorder.complete(Kept(data, attempt.number), event, self._told())
        call = await self._flight.unbroken(recording)
        if not calls.has_completed(call, attempt.number):
            self._taken_over()
        return answer

    def _taken_over(self) -> NoReturn:
        """Another process held this one for dead and ended the attempt. What it says counts, if nothing was shown yet."""
        self._attempt, self._rival, self._ours = None, None, False
        if self._flight.began is not None:
            raise CallFailed(TAKEN_OVER)
        raise TakenOver

    def _answer(self, attempt: Attempt, response: ModelResponse) -> Answer:
        target, usage = attempt.aim.target, response.usage or self._counted(attempt, response)
        return Answer(
            request_id=self._asked.request_id,
            message=response.message,
            finish_reason=response.finish_reason,
            usage=usage,
            usage_source="provider_final" if response.usage else "gateway_counted",
            model=target.id,
            provider_response_id=response.provider_response_id,
            reservation_id=attempt.reservation_id,
            warnings=(*target.warnings, *response.warnings),
            simulated=response.simulated or target.simulated,
            cache=self._cache_use,
            raw_finish_reason=response.raw_finish_reason,
        )

    def _counted(self, attempt: Attempt, response: ModelResponse) -> domain.Usage:
        """What is charged where the provider does not say: as much as it may have been."""
        need = attempt.aim.need
        visible = min(counting.output_bound(response.message), need.output_tokens)
        return domain.Usage.of((UsageLine("input", need.input_tokens), *self._output_lines(attempt, visible)))

    def _output_lines(self, attempt: Attempt, visible: int) -> tuple[UsageLine, ...]:
        """What was shown, and the reasoning that may have been billed besides."""
        aim = attempt.aim
        hidden = counting.hidden_bound(aim.request, visible, aim.need.output_tokens, reasons=aim.target.reasons)
        return UsageLine("output", visible), UsageLine("output", hidden, reasoning=True)

    def _completed_event(
        self, attempt: Attempt, answer: Answer, response: ModelResponse, data: bytes
    ) -> ModelCallCompleted:
        return ModelCallCompleted(
            request_id=answer.request_id,
            attempt=attempt.number,
            model=answer.model,
            provider=attempt.aim.target.provider.name,
            reservation_id=answer.reservation_id,
            attribution=attempt.aim.attribution,
            input_tokens=answer.usage.input_tokens,
            output_tokens=answer.usage.output_tokens,
            usage=billing.usage_lines(answer.usage),
            usage_source=answer.usage_source,
            finish_reason=answer.finish_reason,
            response_sha256=hashlib.sha256(data).hexdigest(),
            provider_response_id=answer.provider_response_id,
            duration_ms=_milliseconds(self._now() - attempt.began_s),
            first_content_ms=_milliseconds(self._first_content_s() or 0.0),
            simulated=answer.simulated,
            service_tier=billing.served_tier(attempt.aim.request, response),
        )

    async def _interrupted(self) -> None:
        """Cancelled in the middle: because nobody waits, or because the process stops. The call must not stay running.

        What was delivered to a caller who left is charged as counted here, where it is billed at all. Otherwise what the
        provider bills is unknown.
        """
        began, last = self._flight.began, self._flight.abandoned
        running = [each for each in (self._rival, self._attempt) if each is not None]
        shown = next((each for each in running if last and began and began.attempt == each.number), None)
        lost = (*self._lost, *(self._interrupted_one(each, last=last) for each in running if each is not shown))
        await self._recorder.look_if_in_doubt()
        if shown is not None:
            event = self._cancelled_event(shown)
            await self._recorder.append(lambda call: calls.end(call, event, lost))
        elif running:
            await self._recorder.append(lambda call: calls.fail(call, lost, last=last))
        if last and self._ours:
            # Unless another process has gone on with it, whose callers may wait.
            begun = self._number
            await self._recorder.append(lambda call: calls.give_up(call, ABANDONED) if call.attempt == begun else ())

    def _interrupted_one(self, attempt: Attempt, *, last: bool) -> Lost:
        free = attempt.number > self._last_asked or (last and attempt.aim.target.abort == "free")
        return Lost(attempt.started, ABANDONED if last else CRASHED, "no" if free else "unknown")

    def _cancelled_event(self, attempt: Attempt) -> ModelCallCancelled:
        reported, need = self._reported.get(attempt.number), attempt.aim.need
        counted = min(counting.delivered_bound(self._flight.deltas), need.output_tokens)
        visible = max(counted, reported.output_tokens if reported else 0)
        # What the provider has told of the input so far is final: cached tokens keep their price.
        asked = [line for line in reported.lines if line.direction == "input"] if reported else []
        asked = asked or [UsageLine("input", need.input_tokens)]
        usage = domain.Usage.of(
            (*asked, *self._output_lines(attempt, visible)), reported.tool_units if reported else ()
        )
        free = attempt.aim.target.abort == "free"
        return ModelCallCancelled(
            request_id=self._asked.request_id,
            attempt=attempt.number,
            reservation_id=attempt.reservation_id,
            usage=() if free else billing.usage_lines(usage),
            usage_source="provider_partial" if reported else "gateway_counted",
        )

    # --- values ---

    @property
    def _cache_use(self) -> CacheUse:
        return "" if self._asked.cacheable is None else "miss"

    def _considered_models(self) -> tuple[ConsideredModel, ...]:
        return tuple(
            ConsideredModel(model=one.model, deployment=one.deployment, verdict=one.verdict)
            for one in self._considered[:CONSIDERED_MAX]
        )

    def _reservation_id(self, number: int) -> str:
        return f"{self._id}:{number}"

    def _left_s(self) -> float:
        return self._flight.wanted_until - self._now()

    def _first_content_s(self) -> float | None:
        shown_at, attempt = self._flight.first_content_at, self._attempt
        return None if shown_at is None or attempt is None else shown_at - attempt.began_s


@dataclass(slots=True)
class Recorder:
    """Writes what happened to one call, and does not give up at the first difficulty: the outcome is worth money."""

    id: str
    context: Context
    tools: Tools
    flight: Flight | None = None
    """Of the call, if this process carries it out: what is written is then a step that is not broken off."""
    _seen: Seen = field(default_factory=Seen)
    _author: UUID = field(default_factory=uuid7)
    _is_in_doubt: bool = False
    """Whether what was to be appended last may be on record, though nothing has said so."""

    @property
    def looked(self) -> bool:
        """Whether the call was read from the log, and not only appended to."""
        return self._seen.looked

    async def load(self) -> Call:
        """The call as it is in the log. Raises LogUnavailable."""
        self._seen = await self.tools.journal.load(self.id, self._seen)
        return self._seen.call

    async def append(self, decide: Callable[[Call], Sequence[Event]], *rows: SideRow) -> Call:
        """The call after what was decided, stored with the rows. Raises LogUnavailable, QueueFull, and for rows
        StoreUnavailable, once patience is over.
        """
        self._is_in_doubt = True
        self._seen = await self._patiently(lambda: self._write(decide, rows))
        self._is_in_doubt = False
        return self._seen.call

    async def _write(self, decide: Callable[[Call], Sequence[Event]], rows: tuple[SideRow, ...]) -> Seen:
        writing = self._decided(decide, rows)
        return await (writing if self.flight is None else self.flight.step(writing))

    async def _decided(self, decide: Callable[[Call], Sequence[Event]], rows: tuple[SideRow, ...]) -> Seen:
        """After a conflict it is decided on what is on record now, and so is what is said again if the answer is lost."""
        for conflicts_left in reversed(range(CONFLICTS_MAX)):
            try:
                return await self.tools.journal.append(self.id, self._seen, decide, self.context, self._author, rows)
            except VersionConflict:
                if not conflicts_left:
                    raise
            await self.load()
        raise AssertionError("the last conflict is raised")

    async def look_if_in_doubt(self) -> None:
        """What is decided next is decided on what is on record, as far as the log can be read."""
        if self._is_in_doubt:
            with suppress(LogUnavailable):
                await self._patiently(self.load)

    async def complete(self, kept: Kept, event: ModelCallCompleted, lost: Sequence[Lost] = ()) -> Call:
        return await self.append(lambda call: calls.end(call, event, lost), self.tools.results.row(self.id, kept))

    async def serve(self, kept: Kept, served: ModelCallServedFromCache, accepted: Acceptance) -> Call:
        return await self.append(
            lambda call: calls.serve(call, served, accepted), self.tools.results.row(self.id, kept)
        )

    async def runs_elsewhere(self, call: Call) -> bool:
        """Whether another living process carries the call out now."""
        workers = self.tools.workers
        if not call.running or (worker := call.running[0].worker) == workers.own:
            return False
        return await workers.alive(worker)

    async def end_orphan(self, call: Call) -> Call:
        """Ends what somebody left running, as unknown: an answer is not on record without the event that says so."""
        if not call.running:
            return call
        lost = [Lost(each, CRASHED, "unknown") for each in call.running]
        for each in lost:
            self.tools.telemetry.attempt_lost(self.id, each)
        return await self.append(lambda call: calls.fail(call, lost))

    async def _patiently(self, write: Callable[[], Awaitable[T]]) -> T:
        for attempt in range(RECORD_ATTEMPTS_MAX):
            try:
                return await write()
            except (LogUnavailable, QueueFull, StoreUnavailable) as error:
                if attempt + 1 == RECORD_ATTEMPTS_MAX:
                    self.tools.telemetry.not_recorded(self.id, error)
                    raise
            await asyncio.sleep(RECORD_BACKOFF.delay_s(attempt))
        raise AssertionError("the last attempt returns or raises")


def _used(usage: domain.Usage | None) -> Need | None:
    """What a provider's limits count: what it reads from its cache, they mostly do not."""
    if usage is None:
        return None
    read = sum(line.quantity for line in usage.lines if line.cache == "read")
    return Need(usage.input_tokens - read, usage.output_tokens)


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)
