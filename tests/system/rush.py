"""200 requests at once for the price of ten, through gateways of which one is killed in the middle.

Each request costs the same to the nano-dollar: input is free, and the answer is cut at its token limit, so that its upper
bound is its cost. The provider is the simulator. What it counts is what it bills, also for answers that nobody got.

The two are held against each other call by call, by the id that the provider gave its answer, so that an error in one call
cannot make up for an error in another.

A call whose gateway died has an unknown outcome: its hold moves to suspense and goes on counting. What the ledger has of
itself, before anybody tells it, must hold the simulator's count between what is posted and that with what is in suspense.
Only then the count comes as a final invoice, which says how many of the unknown were billed. After it nothing may be left
to explain.
"""

import asyncio
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal

import aiohttp
import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from launcher.system import System
from servicekit.errors import from_rpc_error
from synod.common.ids import new_id
from synod.cost_ledger.v1 import cost_ledger_pb2 as ledger_pb
from synod.cost_ledger.v1.cost_ledger_pb2_grpc import CostLedgerStub
from synod.eventlog.v1.eventlog_pb2 import EventFilter
from synod.llm_gateway.v1 import llm_gateway_pb2 as pb
from synod_client import Synod

from .replicas import LOOK_AGAIN_S, Gateways

REQUESTS: Final = 200
AFFORDED: Final = 10
REPLICAS: Final = 4
PROVIDER, NAME = "simulator", "sim-slow"
MODEL: Final = f"{PROVIDER}/{NAME}"
"""Answers after two seconds: time enough to kill a gateway while its provider is at work."""
OUTPUT_TOKENS: Final = 64
TOKEN_NANO: Final = 400
LIMIT_NANO: Final = AFFORDED * OUTPUT_TOKENS * TOKEN_NANO
ANSWER: Final = "answer: " + "word " * OUTPUT_TOKENS
WAIT_S: Final = 60
REPEATS_MAX: Final = 20

Moment = Literal["reserved", "asked", "answered"]
MOMENTS: Final[dict[Moment, tuple[str, str, int]]] = {
    "reserved": ("cost-ledger", "CostReserved", 1),
    "asked": ("llm-gateway", "ModelCallAttemptStarted", AFFORDED),
    "answered": ("llm-gateway", "ModelCallCompleted", 1),
}
"""When a gateway is killed: once a log has so many of these events of the rush."""


@dataclass(frozen=True)
class Billed:
    """An answer as the simulator counted it."""

    response_id: str
    request_id: str
    nano: int


@dataclass(frozen=True)
class Settled:
    """A call as the ledger settled it, and which answer of the provider the gateway says it is for."""

    response_id: str
    request_id: str
    nano: int


@dataclass(frozen=True)
class Outcome:
    """What came of a rush. Amounts are nano-USD; `simulator_nano` is what the simulator counted, at the same price.

    `posted_nano` and `suspense_nano` are the ledger's own, before the invoice told it the count.
    """

    answered: int
    refused: int
    admitted: int
    unknown: int
    settled: int
    posted_nano: int
    suspense_nano: int
    spent_nano: int
    pending_nano: int
    unexplained_nano: int
    simulator_nano: int
    billed: tuple[Billed, ...] = ()
    settlements: tuple[Settled, ...] = ()
    doubtful: tuple[str, ...] = ()
    """Of each reservation in suspense, the request."""


async def rush(gateways: Gateways, synod: Synod, moment: Moment) -> Outcome:
    """One rush on a budget of its own, with a gateway killed at the moment, until everything is settled."""
    run_id, since = new_id("run"), datetime.now(UTC)
    scope = ledger_pb.Attribution(run_id=run_id)
    await synod.set_price(PROVIDER, NAME, 0, 1_000 * TOKEN_NANO)
    await synod.set_budget(run_id, LIMIT_NANO, scope=scope)
    before = await billed_nano(gateways.system)
    calls = [asyncio.create_task(asked(gateways, number, scope)) for number in range(REQUESTS)]
    await kill_in_the_middle(gateways, synod, run_id, moment)
    ends = Counter(await asyncio.gather(*calls))
    reservations = await settled(synod, run_id)
    states = Counter(each.state for each in reservations.values())
    simulator_nano = await billed_nano(gateways.system) - before
    unaided = await synod.budget(run_id)
    reconciled = await synod.import_invoice(invoice(run_id, since, simulator_nano))
    budget = await synod.budget(run_id)
    return Outcome(
        answered=ends["answered"],
        refused=ends["refused"],
        admitted=states.total(),
        unknown=states[ledger_pb.RESERVATION_STATE_SUSPENSE],
        settled=states[ledger_pb.RESERVATION_STATE_SETTLED],
        posted_nano=unaided.posted,
        suspense_nano=unaided.pending,
        spent_nano=budget.posted,
        pending_nano=budget.pending,
        unexplained_nano=reconciled.difference_nano_usd,
        simulator_nano=simulator_nano,
        billed=await billed(gateways.system, run_id),
        settlements=settlements(await events(synod, "llm-gateway", run_id, "ModelCallCompleted"), reservations),
        doubtful=doubtful(await events(synod, "llm-gateway", run_id, "ModelCallAttemptStarted"), reservations),
    )


def check(outcome: Outcome) -> None:
    """What must hold of every rush, whenever the gateway was killed."""
    assert outcome.admitted <= AFFORDED, outcome
    assert outcome.answered <= outcome.admitted, outcome
    assert outcome.answered + outcome.refused == REQUESTS, outcome
    check_unaided(outcome)
    check_each(outcome)
    assert outcome.spent_nano == outcome.simulator_nano, outcome
    assert (outcome.pending_nano, outcome.unexplained_nano) == (0, 0), outcome


def check_unaided(outcome: Outcome) -> None:
    """What the ledger has before the invoice: every call is settled or in suspense, once, and the count is in between."""
    call_nano = OUTPUT_TOKENS * TOKEN_NANO
    assert outcome.posted_nano == outcome.settled * call_nano, outcome
    assert outcome.suspense_nano == outcome.unknown * call_nano, outcome
    assert outcome.answered <= outcome.settled, outcome
    assert outcome.posted_nano <= outcome.simulator_nano <= outcome.posted_nano + outcome.suspense_nano, outcome


def check_each(outcome: Outcome) -> None:
    """Each settlement is of an answer of its own, of the same request and amount; what is over is in suspense."""
    answers = {each.response_id: each for each in outcome.billed}
    assert len(answers) == len(outcome.billed), outcome
    assert len(outcome.settlements) == outcome.settled, outcome
    for each in outcome.settlements:
        answer = answers.pop(each.response_id, None)
        assert answer == Billed(each.response_id, each.request_id, each.nano), (each, answer)
    # An answer that nobody settled is one of a request with a reservation that waits for the invoice, once for each.
    assert Counter(each.request_id for each in answers.values()) <= Counter(outcome.doubtful), outcome


async def asked(gateways: Gateways, number: int, scope: ledger_pb.Attribution) -> Literal["answered", "refused"]:
    """How a call ended, repeated at the next replica with the same id for as long as its gateway is away."""
    request = request_of(f"{scope.run_id}-{number}", scope)
    for repeat in range(REPEATS_MAX):
        try:
            answer = await gateways.generate((number + repeat) % len(gateways), request)
        except grpc.aio.AioRpcError as error:
            if from_rpc_error(error).reason == "BUDGET_EXHAUSTED":
                return "refused"
            if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
                raise
            await asyncio.sleep(LOOK_AGAIN_S)
        else:
            assert answer.usage.output_tokens == OUTPUT_TOKENS
            return "answered"
    raise AssertionError(f"{request.request_id} was not answered in {REPEATS_MAX} attempts")


def request_of(request_id: str, scope: ledger_pb.Attribution) -> pb.GenerateRequest:
    texts = ((pb.ROLE_SYSTEM, ANSWER), (pb.ROLE_USER, request_id))
    messages = [pb.Message(role=role, parts=[pb.Part(text=text)]) for role, text in texts]
    return pb.GenerateRequest(
        request_id=request_id, model=MODEL, messages=messages, max_output_tokens=OUTPUT_TOKENS, attribution=scope
    )


async def kill_in_the_middle(gateways: Gateways, synod: Synod, run_id: str, moment: Moment) -> None:
    """Of the gateways that were asked first for what was admitted, the one with most of it."""
    service, type_, count = MOMENTS[moment]
    await until(synod, service, run_id, type_, count)
    await gateways.kill(most_of(await events(synod, "llm-gateway", run_id, "ModelCallAttemptStarted"), len(gateways)))


async def until(synod: Synod, service: str, run_id: str, type_: str, count: int) -> None:
    """Returns when so many events of the rush are in the log."""
    async with asyncio.timeout(WAIT_S):
        while True:
            if len(await events(synod, service, run_id, type_)) >= count:
                return
            await asyncio.sleep(LOOK_AGAIN_S)


def most_of(started: Iterable[dict[str, Any]], replicas: int) -> int:
    numbers = Counter(int(str(event["request_id"]).rpartition("-")[2]) % replicas for event in started)
    return max(range(replicas), key=lambda replica: (numbers[replica], replica))


async def settled(synod: Synod, run_id: str) -> dict[str, ledger_pb.Reservation]:
    """The rush's reservations by id, once none is merely held."""
    async with asyncio.timeout(WAIT_S):
        while True:
            reserved = [event["reservation_id"] for event in await events(synod, "cost-ledger", run_id, "CostReserved")]
            assert len(reserved) == len(set(reserved))
            found = {reservation_id: await reservation(synod, reservation_id) for reservation_id in reserved}
            if all(each.state != ledger_pb.RESERVATION_STATE_HELD for each in found.values()):
                return found
            await asyncio.sleep(LOOK_AGAIN_S)


async def reservation(synod: Synod, reservation_id: str) -> ledger_pb.Reservation:
    ledger = CostLedgerStub(synod.connection.channel("cost-ledger"))
    request = ledger_pb.GetReservationRequest(reservation_id=reservation_id)
    return await synod.connection.call(ledger.GetReservation, request)


def settlements(
    completed: Iterable[dict[str, Any]], reservations: Mapping[str, ledger_pb.Reservation]
) -> tuple[Settled, ...]:
    """What the ledger has of each call that a gateway completed."""
    return tuple(
        Settled(
            event["provider_response_id"],
            event["request_id"],
            reservations[event["reservation_id"]].settled_nano_usd,
        )
        for event in completed
    )


def doubtful(started: Iterable[dict[str, Any]], reservations: Mapping[str, ledger_pb.Reservation]) -> tuple[str, ...]:
    """The request of each attempt whose reservation is in suspense."""
    states = {id: each.state for id, each in reservations.items()}
    suspense = ledger_pb.RESERVATION_STATE_SUSPENSE
    return tuple(event["request_id"] for event in started if states.get(event["reservation_id"]) == suspense)


async def events(synod: Synod, service: str, run_id: str, type_: str) -> list[dict[str, Any]]:
    where = EventFilter(types=[type_], correlation_id=run_id)
    return [json.loads(event.data) for event in (await synod.read(service, limit=1_000, where=where)).events]


async def billed_nano(system: System) -> int:
    """What the simulator has answered so far, at the price of the rush; once it is at work on nothing any more."""
    usage = await simulator_usage(system)
    return int(usage["models"].get(NAME, {}).get("output_tokens", 0)) * TOKEN_NANO


async def billed(system: System, run_id: str) -> tuple[Billed, ...]:
    """The answers of the rush, one by one, at its price."""
    records = (await simulator_usage(system))["records"]
    return tuple(
        Billed(record["response_id"], record["asked"], record["output_tokens"] * TOKEN_NANO)
        for record in records
        if record["asked"].startswith(run_id) and record["output_tokens"]
    )


async def simulator_usage(system: System) -> dict[str, Any]:
    """What the simulator served, once it is at work on nothing any more."""
    async with aiohttp.ClientSession(system.layout.simulator_url) as http, asyncio.timeout(WAIT_S):
        while True:
            async with http.get("/simulator/usage") as answer:
                usage: dict[str, Any] = await answer.json()
            if not usage["in_progress"]:
                return usage
            await asyncio.sleep(LOOK_AGAIN_S)


def invoice(invoice_id: str, since: datetime, amount_nano: int) -> ledger_pb.ImportInvoiceRequest:
    until = datetime.now(UTC)  # not later: the next rush begins at once, and nothing is billed by two invoices
    line = ledger_pb.InvoiceLine(model=MODEL, since=stamp(since), until=stamp(until), amount_nano_usd=amount_nano)
    return ledger_pb.ImportInvoiceRequest(invoice_id=invoice_id, provider=PROVIDER, lines=[line], clear_suspense=True)


def stamp(moment: datetime) -> Timestamp:
    found = Timestamp()
    found.FromDatetime(moment)
    return found
