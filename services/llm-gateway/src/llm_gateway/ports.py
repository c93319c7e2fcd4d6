"""What the gateway needs of the world. Fakes are in testing.py."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from eventlog.records import Context
from eventlog.side_table import SideRow
from synod.common.values import Attribution

from llm_gateway.domain import Answer
from llm_gateway.limits import LimitRule
from llm_gateway.slices import Grant, Want


@dataclass(frozen=True, slots=True)
class Reservation:
    """An upper bound to hold before an attempt: tokens, for `ttl_s` seconds. `model` is "provider/model".

    `terms` are those that the price depends on, such as a service tier; `modalities` what the input holds besides text.
    `holder` is who makes it ahead of the call that will use it, empty for one that a call waits for.
    """

    id: str
    attribution: Attribution
    model: str
    input_tokens_max: int
    output_tokens_max: int
    ttl_s: float
    terms: Mapping[str, str] = field(default_factory=dict)
    modalities: tuple[str, ...] = ()
    holder: str = ""


class Ledger(Protocol):
    """Says whether money may be spent."""

    async def reserve(self, reservation: Reservation, context: Context) -> None:
        """Hold the bound, in the name of the context's actor; the same reservation again is no second one.

        Raises LedgerRefused, LedgerUnavailable.
        """
        ...

    async def reserve_ahead(self, reservations: Sequence[Reservation], context: Context) -> Collection[str]:
        """Hold those of these that leave much of every budget; their ids. Asks once. Raises as `reserve`."""
        ...

    async def release(self, reservation_id: str, context: Context) -> None:
        """Free a hold under which nobody was or will be asked. Asks once. Raises LedgerRefused, LedgerUnavailable."""
        ...

    async def renew(self, reservation_id: str, ttl_s: float, context: Context) -> None:
        """Let a hold live `ttl_s` from now on. Asks once. Raises LedgerRefused, LedgerUnavailable."""
        ...


@dataclass(frozen=True, slots=True)
class Kept:
    """An answer on record, of the attempt with this number."""

    answer: bytes
    attempt: int


class Results(Protocol):
    """Answers kept for repeats of their requests, until they expire. The owner of the store closes it."""

    def row(self, call_id: str, kept: Kept) -> SideRow:
        """The answer as the log stores it beside the event that promises it: without one there is not the other.

        That of a later attempt replaces that of an earlier one, never the other way.
        """
        ...

    async def find(self, call_id: str) -> Kept | None:
        """None when there is none or it has expired. Raises StoreUnavailable."""
        ...


@dataclass(frozen=True, slots=True)
class Entry:
    """An answer as it is on record, and until when it may be given to others who ask the same."""

    answer: bytes
    expires_at: datetime


class CacheStore(Protocol):
    """Answers to share, by key. The owner of the store closes it and removes what has expired."""

    async def find(self, key: str) -> Entry | None:
        """None when there is none or it has expired. Raises StoreUnavailable."""
        ...

    async def put(self, key: str, tenant: str, entry: Entry) -> None:
        """A later answer replaces an earlier one. Raises StoreUnavailable."""
        ...


class Workers(Protocol):
    """The processes of this service. A call that one of them carries out is left to it while it lives."""

    @property
    def own(self) -> str:
        """This process."""
        ...

    @property
    def holder(self) -> str:
        """The name under which this process reserves ahead: a new one each time its lock was lost and taken again."""
        ...

    def confirmed_at(self, holder: str) -> float:
        """When the lock of this process's holder was last known to be held, by the `boot_time` of workers.py as it was read
        before the database was asked. It stands still as soon as the lock, the database or the process does; -inf for a holder
        that is unknown or long gone.
        """
        ...

    async def alive(self, name: str) -> bool:
        """Whether the lock of a process, or of a holder, is held. Raises StoreUnavailable."""
        ...


class StockEvents(Protocol):
    """What the log is told of reservations made ahead. Raises LogUnavailable, QueueFull."""

    async def opened(self, tenant: str, holder: str) -> None:
        """The holder is about to reserve ahead; a second time this does nothing."""
        ...

    async def returned(self, tenant: str, holder: str, reservation_ids: Sequence[str]) -> None:
        """These have not been used, and will not be."""
        ...


class Books(Protocol):
    """The books of the limits that all processes share, by key. Whoever asks holds them for that moment alone."""

    async def exchange(self, member: str, wants: Mapping[str, tuple[LimitRule, Want]]) -> Mapping[str, Grant]:
        """A slice for each want. Raises StoreUnavailable; then what was brought back counts as used."""
        ...


class AnswerCodec(Protocol):
    """Between an answer and the bytes on record: the same answer, the same bytes."""

    def dump(self, answer: Answer) -> bytes: ...

    def load(self, data: bytes) -> Answer: ...
