"""The books of all tenants: each is kept by one writer that takes commands in the order in which they came.

A writer decides a batch of commands, each against the book after the ones before, and appends all their events in one
request that expects the version it decided on. If another process appended first, it folds what is new and decides the
whole batch again. So no two processes ever admit against the same money, and 200 concurrent commands cost few commits.

Nothing is answered before the book is proved current: by an append that succeeded, or, if a batch has no events, by
reading that the stream has no newer ones.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from eventlog.codec import Codec
from eventlog.errors import DuplicateEventId, VersionConflict
from eventlog.log import EventLog
from eventlog.records import Append, Context, NewEvent, StreamId
from pydantic import ValidationError
from synod.common.event import Event
from synod.common.ids import derived_uuid, uuid7
from synod.cost_ledger.events import (
    EVENTS,
    BudgetCommitmentReached,
    BudgetForecastChanged,
    BudgetThresholdReached,
    ChargeRerated,
    CostCharged,
    CostReserved,
    CostSettled,
    FuzzyPriceUsed,
    ProviderInvoiceImported,
    ReconciliationDifferenceFound,
    ReservationExpired,
    ReservationReleased,
)

from cost_ledger import snapshots
from cost_ledger.book import EMPTY, Book
from cost_ledger.commands import Command, Look
from cost_ledger.decoding import Decoder, known_event
from cost_ledger.domain import decide
from cost_ledger.errors import AlreadyRecorded, BookBusy, BookContended, LedgerError, TooMuchAtOnce
from cost_ledger.folding import fold
from cost_ledger.ports import Clock

AGGREGATE: Final = "book"
BATCH_COMMANDS_MAX: Final = 256
BATCH_EVENTS_MAX: Final = 512
"""A batch is cut after the command that reaches it."""
REQUEST_EVENTS_MAX: Final = 1_000
"""What the log takes in one request. A batch is cut before the command that would pass it."""
WAITING_COMMANDS_MAX: Final = 10_000
ATTEMPTS_MAX: Final = 64
BOOKS_OPEN_MAX: Final = 1_000
PAGE_EVENTS: Final = 1_000
SNAPSHOT_EVENTS: Final = 2_000

CODEC: Final[Codec[Event]] = Codec(EVENTS)
decoded: Final = Decoder(CODEC)
"""An event of the ledger's own log."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Executed:
    """The book right after a command, and the events that the command led to."""

    book: Book
    events: tuple[Event, ...]


Booked = Callable[[tuple[Event, ...]], None]
"""Is told the events of each command that was carried out; it must be quick and must not raise."""


def _nobody(_events: tuple[Event, ...]) -> None:
    """Nobody counts."""


class Books:
    """Opens the book of a tenant when it is first needed, and closes the one least used when too many are open."""

    def __init__(
        self, log: EventLog, clock: Clock, *, snapshot_events: int = SNAPSHOT_EVENTS, booked: Booked | None = None
    ) -> None:
        self.log = log
        self._booked = booked or _nobody
        self._clock = clock
        self._snapshot_events = snapshot_events
        self._writers: OrderedDict[str, BookWriter] = OrderedDict()

    async def execute(self, command: Command, context: Context) -> Executed:
        """Carry a command out in the book of the context's tenant.

        Raises what the domain refuses; BookBusy, BookContended, AlreadyRecorded; and the errors of the log, after which
        the outcome is unknown and the command may be repeated.
        """
        (outcome,) = await self.execute_many(((command, context),))
        if isinstance(outcome, LedgerError):
            raise outcome
        return outcome

    async def execute_many(
        self, commands: Sequence[tuple[Command, Context]], patience_s: float = 0.0
    ) -> list[Executed | LedgerError]:
        """Carry commands out in their order, those of a tenant in one turn of its book if it has room for them.

        They may wait `patience_s` for commands that may not, to be committed with them and before them. What `execute`
        would raise of a command itself is that command's outcome; the errors of the log are raised.
        """
        if not commands:
            return []
        request = _Request(len(commands))
        for index, (command, context) in enumerate(commands):
            self._writer(context.tenant).submit(_Waiting(command, context, request, index, patience_s))
        await request.answered
        outcomes: list[Executed | LedgerError] = []
        for outcome in request.verdicts:
            if isinstance(outcome, Executed):
                self._booked(outcome.events)
            elif not isinstance(outcome, LedgerError):
                raise outcome
            outcomes.append(outcome)
        return outcomes

    async def read(self, tenant: str) -> Book:
        """The newest state, whichever process wrote it."""
        return (await self.execute(Look(), Context(tenant, actor=AGGREGATE))).book

    async def close(self) -> None:
        """Answer all that waits, then stop."""
        writers, self._writers = list(self._writers.values()), OrderedDict()
        for writer in writers:
            await writer.close()

    def _writer(self, tenant: str) -> BookWriter:
        if tenant not in self._writers:
            self._writers[tenant] = BookWriter(self.log, self._clock, tenant, self._snapshot_events)
            self._retire()
        self._writers.move_to_end(tenant)
        return self._writers[tenant]

    def _retire(self) -> None:
        if len(self._writers) > BOOKS_OPEN_MAX:
            _, writer = self._writers.popitem(last=False)
            writer.retire()


class _Request:
    """Commands that one caller waits for. `answered` is done when each has its verdict; who cancels it has left."""

    def __init__(self, commands: int) -> None:
        self.answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.verdicts: list[Executed | Exception] = [_UNDECIDED] * commands
        self._undecided = commands

    def tell(self, index: int, verdict: Executed | Exception) -> None:
        """The verdict on a command; only the first one counts."""
        if self.answered.done() or self.verdicts[index] is not _UNDECIDED:
            return
        self.verdicts[index] = verdict
        self._undecided -= 1
        if not self._undecided:
            self.answered.set_result(None)


_UNDECIDED: Final = RuntimeError("nothing is decided yet")


@dataclass(frozen=True, slots=True)
class _Waiting:
    command: Command
    context: Context
    request: _Request
    index: int
    patience_s: float

    @property
    def is_given_up(self) -> bool:
        return self.request.answered.done()

    def tell(self, verdict: Executed | Exception) -> None:
        self.request.tell(self.index, verdict)


@dataclass(frozen=True, slots=True)
class _Round:
    """A batch decided, not yet proved: the verdict on each command, the requests to the log, the book after all."""

    book: Book
    verdicts: tuple[Executed | LedgerError, ...]
    appends: tuple[Append, ...]
    events: int


class BookWriter:
    """Keeps one book. Its task lives from construction to `close` or `retire`."""

    def __init__(self, log: EventLog, clock: Clock, tenant: str, snapshot_events: int) -> None:
        self._log = log
        self._clock = clock
        self._stream = StreamId(AGGREGATE, tenant)
        self._snapshot_events = snapshot_events
        self._waiting: deque[_Waiting] = deque()
        self._wanted = asyncio.Event()
        """Set while something waits that may wait no longer, and from `retire` on."""
        self._patience: asyncio.TimerHandle | None = None
        self._is_retired = False
        self._book = EMPTY
        self._version = 0
        self._saved = 0
        self._saving: asyncio.Task[None] | None = None
        self._started = False
        self._task = asyncio.create_task(self._run(), name=f"book {tenant}")

    def submit(self, waiting: _Waiting) -> None:
        """Queue a command. One that is given up before its turn is not decided."""
        if len(self._waiting) >= WAITING_COMMANDS_MAX:
            waiting.tell(BookBusy(self._stream.id, len(self._waiting)))
            return
        self._waiting.append(waiting)
        if waiting.patience_s <= 0:
            self._wanted.set()
        elif self._patience is None:
            self._patience = asyncio.get_running_loop().call_later(waiting.patience_s, self._wanted.set)

    def retire(self) -> None:
        """Stop after what waits, without waiting for it."""
        self._is_retired = True
        self._wanted.set()

    async def close(self) -> None:
        """Answer what waits, then stop."""
        self.retire()
        await self._task

    async def _run(self) -> None:
        while await self._is_wanted():
            batch = self._batch()
            try:
                await self._answer(batch)
            except Exception as error:  # noqa: BLE001  # the edge: it is raised to those who wait, and the writer lives on
                for waiting in batch:
                    waiting.tell(error)
            self._save_when_due()
        await self._save_what_is_due()

    async def _is_wanted(self) -> bool:
        """Once a command waits that may wait no longer; not when it is over."""
        await self._wanted.wait()
        return bool(self._waiting)

    def _batch(self) -> list[_Waiting]:
        taken = [self._waiting.popleft() for _ in range(min(len(self._waiting), BATCH_COMMANDS_MAX))]
        if not self._waiting:
            self._rest()
        # Who gave up before the decision is not decided for.
        return [waiting for waiting in taken if not waiting.is_given_up]

    def _rest(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        if not self._is_retired:
            self._wanted.clear()

    async def _answer(self, batch: Sequence[_Waiting]) -> None:
        await self._start()
        while batch:
            try:
                decided = await self._proved(batch)
            except DuplicateEventId as error:
                await self._answer_one_by_one(batch, error)
                return
            # Who has no time goes on first.
            told = sorted(zip(batch, decided.verdicts, strict=False), key=lambda pair: pair[0].patience_s)
            for waiting, verdict in told:
                waiting.tell(verdict)
            batch = batch[len(decided.verdicts) :]

    async def _answer_one_by_one(self, batch: Sequence[_Waiting], error: DuplicateEventId) -> None:
        """One of the commands repeats a fact that the book has forgotten; only that one is refused."""
        if len(batch) == 1:
            raise AlreadyRecorded(self._stream.id) from error
        for waiting in batch:
            try:
                await self._answer([waiting])
            except AlreadyRecorded as repeated:
                waiting.tell(repeated)

    async def _proved(self, batch: Sequence[_Waiting]) -> _Round:
        for _ in range(ATTEMPTS_MAX):
            decided = self._decide(batch)
            if await self._prove(decided):
                self._book, self._version = decided.book, self._version + decided.events
                return decided
        raise BookContended(self._stream.id, ATTEMPTS_MAX)

    async def _prove(self, decided: _Round) -> bool:
        """Whether the round holds; if not, the book is newer than it was."""
        if not decided.appends:
            return not await self._catch_up()
        try:
            await self._append(decided)
        except VersionConflict:
            await self._catch_up()
            return False
        except DuplicateEventId:
            # Stored by this process with its answer lost, or by another: then it is news. Else it was forgotten.
            if await self._catch_up():
                return False
            raise
        return True

    async def _append(self, decided: _Round) -> None:
        appended = await self._log.append(*decided.appends)
        if appended.duplicate:
            raise DuplicateEventId(decided.appends[0].events[0].id, "stored with the same content")

    def _decide(self, batch: Sequence[_Waiting]) -> _Round:
        book, version = self._book, self._version
        verdicts: list[Executed | LedgerError] = []
        appends: list[Append] = []
        for waiting in batch:
            if version - self._version >= BATCH_EVENTS_MAX:
                break
            try:
                events = decide(book, waiting.command)
                _refuse_too_many(events)
            except LedgerError as refusal:
                verdicts.append(refusal)
                continue
            if version - self._version + len(events) > REQUEST_EVENTS_MAX:
                break
            book = fold(book, events)
            verdicts.append(Executed(book, events))
            if events:
                appends.append(Append(self._stream, version, self._encode(events), waiting.context))
            version += len(events)
        return _Round(book, tuple(verdicts), tuple(appends), version - self._version)

    def _encode(self, events: tuple[Event, ...]) -> tuple[NewEvent, ...]:
        at = self._clock.now()
        return tuple([self._encoded(event, at) for event in events])

    def _encoded(self, event: Event, at: datetime) -> NewEvent:
        new = CODEC.encode(event, id=event_id(self._stream.id, event), at=at)
        decoded.learn(new, event)  # soon the views will ask
        return new

    async def _start(self) -> None:
        if self._started:
            return
        if snapshot := await self._log.load_snapshot(self._stream, snapshots.FOLD):
            self._restore(snapshot.version, snapshot.data)
        await self._catch_up()
        self._started = True

    def _restore(self, version: int, data: bytes) -> None:
        try:
            self._book, self._version, self._saved = snapshots.load(data), version, version
        except ValidationError as error:
            _log.warning("snapshot of %s at version %s is not readable, folding anew: %s", self._stream, version, error)

    async def _catch_up(self) -> bool:
        """Fold what others appended; whether there was anything."""
        before = self._version
        while page := await self._log.read_stream(self._stream, after=self._version, limit=PAGE_EVENTS):
            self._book = fold(self._book, (known_event(CODEC.decode(stored)) for stored in page))
            self._version = page[-1].version
        return self._version > before

    def _save_when_due(self) -> None:
        """Nobody waits for it: a snapshot only spares the next start some folding."""
        if self._saving is None and self._version - self._saved >= self._snapshot_events:
            saving = self._save_snapshot(self._book, self._version)
            self._saving = asyncio.create_task(saving, name=f"snapshot {self._stream.id}")

    async def _save_what_is_due(self) -> None:
        """What became due while the one before was saved is not left to the next start. Tried once."""
        if self._saving is not None:
            await self._saving
        self._save_when_due()
        if self._saving is not None:
            await self._saving

    async def _save_snapshot(self, book: Book, version: int) -> None:
        try:
            # The book is immutable, so a thread may read it while the next batch is decided.
            data = await asyncio.to_thread(snapshots.dump, book)
            await self._log.save_snapshot(self._stream, version, snapshots.FOLD, data)
            self._saved = version
        except Exception as error:  # noqa: BLE001  # nobody waits for it; tried again when the next batch is decided
            _log.warning("snapshot of %s was not saved: %r", self._stream, error)
        finally:
            self._saving = None


def _refuse_too_many(events: tuple[Event, ...]) -> None:
    """No request of its own would have room for them. Refused here, so that nothing else in the batch is."""
    if len(events) > REQUEST_EVENTS_MAX:
        remedy = "events would come of it; let fewer budgets match it, or ask for less at a time"
        raise TooMuchAtOnce(REQUEST_EVENTS_MAX, remedy)


def event_id(tenant: str, event: Event) -> UUID:
    """The id of an event: a function of its content for what may happen once only, so that the log refuses a second.

    This is what keeps a reservation or charge unique after the book has forgotten it.
    """
    match event:
        case CostReserved() | CostSettled() | ReservationReleased() | ReservationExpired():
            return derived_uuid(tenant, event.type_name(), event.reservation_id)
        case CostCharged():
            return derived_uuid(tenant, event.type_name(), event.charge_id)
        case ChargeRerated():
            return derived_uuid(tenant, event.type_name(), event.reservation_id, str(event.revision))
        case BudgetThresholdReached() | BudgetCommitmentReached():
            share = [event.share] if event.share else []
            window = (event.budget_id, event.window_start, str(event.threshold_percent), *share)
            return derived_uuid(tenant, event.type_name(), *window)
        case FuzzyPriceUsed():
            return derived_uuid(tenant, event.type_name(), event.model, event.price_version)
        case BudgetForecastChanged():
            window = (event.budget_id, event.window_start, str(event.revision))
            return derived_uuid(tenant, event.type_name(), *window)
        case ProviderInvoiceImported():
            return derived_uuid(tenant, event.type_name(), event.invoice_id)
        case ReconciliationDifferenceFound():
            return derived_uuid(tenant, event.type_name(), event.invoice_id, str(event.line))
        case _:
            return uuid7()
