"""A newer release writes events that this one has never heard of: they go through every part of it, and harm none."""

import json
from datetime import UTC, datetime

import aiohttp
import nats
import pytest
from eventlog.postgres import PostgresEventLog
from eventlog.records import NO_STREAM, Append, Context, NewEvent, StreamId
from launcher.layout import SERVICES
from launcher.programs import environment
from nats.aio.client import Client
from nats.aio.msg import Msg
from synod.common.ids import uuid7
from synod.common.subjects import event_stream
from synod_client import Synod

from .conftest import Command, RunningSystem
from .definitions import CALCULATOR

pytestmark = pytest.mark.system
DATA = b'{"wish": "unheard of", "parts": [1, {"two": null}], "text": "\\u00fc"}'


async def append(running: RunningSystem, type_name: str, type_version: int) -> dict[str, int]:
    """Append such an event to the log of every service, as its own newer release would; the positions."""
    positions = {}
    for service in SERVICES:
        dsn = environment(running.system.layout, running.system.credentials, service)["SYNOD_POSTGRES_DSN"]
        event = NewEvent(type_name, type_version, DATA, uuid7(), datetime.now(UTC))
        stream = StreamId("wish", event.id.hex)
        async with await PostgresEventLog.open(dsn) as log:
            appended = await log.append(Append(stream, NO_STREAM, (event,), Context("local", "a newer release")))
        positions[service.name] = appended.position
    return positions


async def published(client: Client, service: str, position: int) -> Msg:
    """The message at a position, once the relay has got there."""
    subscription = await client.jetstream().subscribe(
        f"synod.*.evt.{service}.wish.>", ordered_consumer=True, stream=event_stream(service)
    )
    while (message := await subscription.next_msg(timeout=30)).metadata.sequence.stream < position:
        continue
    return message


async def test_an_event_from_the_future_passes_through_client_relay_gateway_and_views(
    running: RunningSystem, synod: Synod, command: Command
) -> None:
    ends = running.endpoints
    headers = {"Authorization": f"Bearer {ends.api_key}"}
    async with (
        await nats.connect(running.system.observer_url) as client,
        aiohttp.ClientSession(headers=headers) as http,
    ):
        for service, position in (await append(running, "WishFulfilled", 7)).items():
            (event,) = (await synod.read(service, after=position - 1, limit=1)).events
            assert (event.type, event.type_version, event.data) == ("WishFulfilled", 7, DATA)
            assert (await published(client, service, position)).data == DATA
            page = f"{ends.edge}/api/v1/events/{service}?cursor={position - 1}&limit=1"
            async with http.get(page) as answer:
                assert answer.status == 200, await answer.text()
                (shown,) = (await answer.json())["data"]
            assert (shown["type"], shown["data"]) == ("WishFulfilled", json.loads(DATA))
    assert command("events", "verify").returncode == 0
    assert command("views", "verify").returncode == 0
    await synod.define(CALCULATOR)
    await synod.grant("calculator", "calc")
    assert (await synod.wait((await synod.start("calculator", "go")).id)).result_sha256


async def test_a_known_event_of_a_future_version_is_set_aside_by_views_and_told(
    running: RunningSystem, command: Command
) -> None:
    """A view must not guess what it says; the views go on, and say what they left out."""
    position = (await append(running, "ProposalDecided", 9))["consensus"]
    parked = json.loads(command("views", "parked", "consensus", "--json").stdout)
    while not any(int(each["position"]) == position for each in parked):
        parked = json.loads(command("views", "parked", "consensus", "--json").stdout)
    (told,) = (each for each in parked if int(each["position"]) == position)
    assert "this release knows up to version 1" in told["error"]
    assert command("views", "redrive", "consensus", told["view"], str(position), "--skip").returncode == 0
    assert command("events", "verify", "consensus").returncode == 0
