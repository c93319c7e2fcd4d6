"""Fakes of the ports, for tests of what stands on them. The fake of a provider is in providers/testing.py."""

import asyncio
import zlib
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from math import inf

from eventlog.binary import from_int, to_int
from eventlog.errors import LogUnavailable
from eventlog.records import Context
from eventlog.side_table import SideRow

from llm_gateway.errors import StoreUnavailable
from llm_gateway.ports import Entry, Kept, Reservation


class FakeLedger:
    """Does whatever is asked and remembers it; `refusals` are raised first, one for each request. So many `spares` it makes
    ahead.
    """

    def __init__(self, refusals: Iterable[Exception | None] = ()) -> None:
        self.reservations: list[Reservation] = []
        self.ahead: list[Reservation] = []
        self.asked_ahead: list[Sequence[Reservation]] = []
        self.released: list[str] = []
        self.renewals: list[tuple[str, float]] = []
        self.refusals = deque(refusals)
        self.spares = 1_000_000

    async def reserve(self, reservation: Reservation, context: Context) -> None:
        await asyncio.sleep(0)
        refusal = self.refusals.popleft() if self.refusals else None
        if refusal is not None:
            raise refusal
        self.reservations.append(reservation)

    async def reserve_ahead(self, reservations: Sequence[Reservation], context: Context) -> Collection[str]:
        await asyncio.sleep(0)
        refusal = self.refusals.popleft() if self.refusals else None
        if refusal is not None:
            raise refusal
        self.asked_ahead.append(reservations)
        held = reservations[: self.spares]
        self.spares -= len(held)
        self.ahead += held
        return {each.id for each in held}

    async def release(self, reservation_id: str, context: Context) -> None:
        await asyncio.sleep(0)
        refusal = self.refusals.popleft() if self.refusals else None
        if refusal is not None:
            raise refusal
        self.released.append(reservation_id)

    async def renew(self, reservation_id: str, ttl_s: float, context: Context) -> None:
        await asyncio.sleep(0)
        refusal = self.refusals.popleft() if self.refusals else None
        if refusal is not None:
            raise refusal
        self.renewals.append((reservation_id, ttl_s))


class FakeWorkers:
    """One of several processes that share `living`. Its lock is confirmed at every moment, unless `confirmed` says when the
    lock of a holder last was.
    """

    def __init__(self, own: str = "gw_1", living: set[str] | None = None) -> None:
        self.own = own
        self.holder = f"{own}.1"
        self.living = {own} if living is None else living
        self.living.add(self.holder)
        self.confirmed: dict[str, float] = {}
        self.asked: list[str] = []
        self.down = False
        self.now: Callable[[], float] = lambda: asyncio.get_running_loop().time()
        self._holders = 1

    def confirmed_at(self, holder: str) -> float:
        always = self.now() if holder == self.holder else -inf
        return self.confirmed.get(holder, always)

    def freeze(self) -> None:
        """Nothing more is heard of the lock."""
        self.confirmed.setdefault(self.holder, self.now())

    def lose_lock(self) -> None:
        """The lock is lost now, and taken again under a new name."""
        self.freeze()
        self.living.discard(self.holder)
        self._holders += 1
        self.holder = f"{self.own}.{self._holders}"
        self.living.add(self.holder)

    async def alive(self, name: str) -> bool:
        self.asked.append(name)
        await asyncio.sleep(0)
        if self.down:
            raise StoreUnavailable("the store is down")
        return name in self.living


class MemoryStockEvents:
    """What was told of stocks. It fails as often as `failures` says, then works."""

    def __init__(self, failures: int = 0) -> None:
        self.stocks: list[tuple[str, str]] = []
        self.unused: list[str] = []
        self.failures = failures

    async def opened(self, tenant: str, holder: str) -> None:
        await self._reach()
        self.stocks.append((tenant, holder))

    async def returned(self, tenant: str, holder: str, reservation_ids: Sequence[str]) -> None:
        await self._reach()
        self.unused += reservation_ids

    async def _reach(self) -> None:
        await asyncio.sleep(0)
        if self.failures:
            self.failures -= 1
            raise LogUnavailable("the log is down")


class MemoryResults:
    """Results that never expire, and the side table of a MemoryEventLog. It fails as often as `failures` says, then works."""

    def __init__(self, failures: int = 0) -> None:
        self.kept: dict[str, Kept] = {}
        self.failures = failures

    def row(self, call_id: str, kept: Kept) -> SideRow:
        return call_id.encode(), kept.answer, from_int(kept.attempt)

    def store(self, rows: Sequence[SideRow]) -> None:
        self._reach()
        for call_id, answer, attempt in rows:
            assert call_id is not None and answer is not None and attempt is not None
            before, kept = self.kept.get(call_id.decode()), Kept(answer, to_int(attempt))
            if before is None or before.attempt <= kept.attempt:
                self.kept[call_id.decode()] = kept

    async def find(self, call_id: str) -> Kept | None:
        await asyncio.sleep(0)
        self._reach()
        return self.kept.get(call_id)

    def _reach(self) -> None:
        if self.failures:
            self.failures -= 1
            raise StoreUnavailable("the store is down")


class MemoryCacheStore:
    """A cache store that removes nothing. While `down` it cannot be reached."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.tenants: dict[str, str] = {}
        self.down = False

    async def find(self, key: str) -> Entry | None:
        await self._reach()
        return self.entries.get(key)

    async def put(self, key: str, tenant: str, entry: Entry) -> None:
        await self._reach()
        self.entries[key] = entry
        self.tenants[key] = tenant

    async def _reach(self) -> None:
        await asyncio.sleep(0)
        if self.down:
            raise StoreUnavailable("the store is down")


def a_pdf(pages: int, *, packed: bool = False) -> bytes:
    """A document of empty pages, as far as one has to look at it to count them; `packed` into an object stream."""
    objects = b" ".join([b"<</Type/Page/Parent 2 0 R>>"] * pages)
    if not packed:
        return b"%PDF-1.4\n2 0 obj<</Type/Pages>>endobj\n" + objects
    data = zlib.compress(objects)
    head = b"%%PDF-1.5\n3 0 obj<</Type/ObjStm/N %d/Filter/FlateDecode/Length %d>>stream\r\n" % (pages, len(data))
    return head + data + b"\nendstream endobj"
