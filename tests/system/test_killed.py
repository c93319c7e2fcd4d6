"""A gateway is killed (kill -9) at moments that no other process sees: before an attempt, or its answer, is on record.

What it is about to store is held back by its database until it is dead, and is then lost with its connection.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc
import psycopg
import pytest
from launcher.layout import MODELS
from launcher.programs import environment
from psycopg.sql import SQL, Literal
from synod.common.ids import new_id
from synod.cost_ledger.v1 import cost_ledger_pb2 as ledger_pb
from synod.llm_gateway.v1 import llm_gateway_pb2 as pb
from synod_client import Synod

from .conftest import RunningSystem
from .replicas import LOOK_AGAIN_S, gateways
from .rush import billed, events, reservation, settled

pytestmark = pytest.mark.system

PROVIDER, NAME = "simulator", "sim-1"
INPUT_NANO, OUTPUT_NANO = 100, 400
RICH_NANO = 10**9
WAIT_S = 30
SETTLED, SUSPENSE = ledger_pb.RESERVATION_STATE_SETTLED, ledger_pb.RESERVATION_STATE_SUSPENSE
KEY = 2_271_560_481
"""Of the advisory lock that whoever is held back waits for."""
HOLD_BACK = """
create function eventlog.held_back() returns trigger language plpgsql as $$ begin
    if new.type = {type} and new.correlation = {run_id} then perform pg_advisory_xact_lock({key}); end if;
    return new;
end $$;
create trigger held_back before insert on eventlog.events for each row execute function eventlog.held_back();
"""
LET_GO = "drop trigger held_back on eventlog.events; drop function eventlog.held_back();"
WAITING = "select pid from pg_locks where locktype = 'advisory' and objid = %s and not granted"


@dataclass(frozen=True)
class HeldBack:
    """Events of one type and run are not stored by anybody."""

    connection: psycopg.AsyncConnection[tuple[int]]

    async def reached(self) -> None:
        """Somebody stores such an event now."""
        async with asyncio.timeout(WAIT_S):
            while True:
                if await self._waiting():
                    return
                await asyncio.sleep(LOOK_AGAIN_S)

    async def lost(self) -> None:
        """What was to be stored is not, and nobody tries any more."""
        async with asyncio.timeout(WAIT_S):
            while pids := await self._waiting():
                for pid in pids:
                    await self.connection.execute("select pg_terminate_backend(%s)", (pid,))
                await asyncio.sleep(LOOK_AGAIN_S)

    async def _waiting(self) -> list[int]:
        found = await self.connection.execute(WAITING, (KEY,))
        return [pid for (pid,) in await found.fetchall()]


@asynccontextmanager
async def held_back(running: RunningSystem, type_: str, run_id: str) -> AsyncIterator[HeldBack]:
    layout = running.system.layout
    service = next(each for each in layout.services if each.name == MODELS)
    dsn = environment(layout, running.system.credentials, service)["SYNOD_POSTGRES_DSN"]
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        await connection.execute("select pg_advisory_lock(%s)", (KEY,))
        values = {"type": Literal(type_), "run_id": Literal(run_id), "key": Literal(KEY)}
        await connection.execute(SQL(HOLD_BACK).format(**values))
        held = HeldBack(connection)
        try:
            yield held
        finally:
            await held.lost()
            await connection.execute(LET_GO)


@dataclass(frozen=True)
class Caller:
    """Asks the same request of one gateway and of another; its budget has the run's id."""

    running: RunningSystem
    synod: Synod
    request: pb.GenerateRequest

    @property
    def run_id(self) -> str:
        return self.request.attribution.run_id

    async def answered_after(self, type_: str) -> pb.GenerateResponse:
        """The answer of a gateway that was asked after another was killed as it was about to store such an event."""
        async with gateways(self.running.system, 2) as replicas:
            async with held_back(self.running, type_, self.run_id) as held:
                call = asyncio.create_task(replicas.generate(1, self.request))
                await held.reached()
                await replicas.kill(1)
                with pytest.raises(grpc.aio.AioRpcError):
                    await call
            assert await events(self.synod, "llm-gateway", self.run_id, type_) == []
            return await replicas.generate(0, self.request)

    async def states(self) -> dict[str, "ledger_pb.ReservationState"]:
        """Of each reservation, once none is merely held."""
        return {id: each.state for id, each in (await settled(self.synod, self.run_id)).items()}


@pytest.fixture
async def caller(running: RunningSystem, synod: Synod) -> Caller:
    scope = ledger_pb.Attribution(run_id=new_id("run"))
    await synod.set_price(PROVIDER, NAME, 1_000 * INPUT_NANO, 1_000 * OUTPUT_NANO)
    await synod.set_budget(scope.run_id, RICH_NANO, scope=scope)
    texts = ((pb.ROLE_SYSTEM, "answer: one two three"), (pb.ROLE_USER, scope.run_id))
    request = pb.GenerateRequest(
        request_id=new_id("req"),
        model=f"{PROVIDER}/{NAME}",
        messages=[pb.Message(role=role, parts=[pb.Part(text=text)]) for role, text in texts],
        max_output_tokens=16,
        attribution=scope,
    )
    return Caller(running, synod, request)


def nano(answer: pb.GenerateResponse) -> int:
    return INPUT_NANO * answer.usage.input_tokens + OUTPUT_NANO * answer.usage.output_tokens


async def test_group_02_killed_between_reserving_and_recording_the_attempt_one_hold_is_used_and_nobody_asked_twice(
    caller: Caller,
) -> None:
    answer = await caller.answered_after("ModelCallAttemptStarted")

    assert answer.message.parts[0].text == "one two three"
    (reserved,) = await events(caller.synod, "cost-ledger", caller.run_id, "CostReserved")
    assert reserved["reservation_id"] == answer.reservation_id
    assert await caller.states() == {answer.reservation_id: SETTLED}
    assert len(await billed(caller.running.system, caller.run_id)) == 1
    budget = await caller.synod.budget(caller.run_id)
    assert (budget.posted, budget.pending) == (nano(answer), 0)


async def test_group_02_killed_after_the_last_byte_and_before_the_answer_is_on_record_what_it_cost_stays_held(
    caller: Caller,
) -> None:
    answer = await caller.answered_after("ModelCallCompleted")

    assert answer.message.parts[0].text == "one two three"
    (failed,) = await events(caller.synod, "llm-gateway", caller.run_id, "ModelCallAttemptFailed")
    assert (failed["failure"]["reason"], failed["billed"]) == ("GATEWAY_STOPPED", "unknown")
    lost = failed["reservation_id"]
    assert lost != answer.reservation_id
    assert await caller.states() == {lost: SUSPENSE, answer.reservation_id: SETTLED}
    # The provider bills both answers. One is posted, and for the other enough is held until an invoice tells.
    assert len(await billed(caller.running.system, caller.run_id)) == 2
    budget = await caller.synod.budget(caller.run_id)
    assert budget.posted == nano(answer)
    assert budget.pending == (await reservation(caller.synod, lost)).reserved_nano_usd >= nano(answer)
