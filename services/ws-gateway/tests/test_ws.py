"""The WebSocket protocol as its clients see it: chat, channels without gap or duplicate, and frames that are wrong."""

import json
from typing import Any

import edge_fakes as fakes
import pytest
from edge_world import Client, Frame, System, until
from jsonschema import Draft202012Validator
from servicekit.errors import NotFound
from synod.ws_gateway.v1 import ws_gateway_pb2 as pb
from synod.ws_gateway.v1.ws_gateway_pb2_grpc import WsGatewayStub
from websockets.exceptions import ConnectionClosed

pytestmark = pytest.mark.asyncio(loop_scope="module")
EVENTS = "events:agent-runtime"


def offsets(frames: list[Frame]) -> list[int]:
    return [int(frame["offset"]) for frame in frames]  # type: ignore[call-overload]


async def publications(client: Client, count: int) -> list[Frame]:
    return [await client.next("publication") for _ in range(count)]


# Who is there


async def test_first_message_says_who_it_is(system: System) -> None:
    async with system.client(token=None) as client:
        answer = await client.ask("auth", "authenticated", token=fakes.API_KEY)
    assert (answer["principal_id"], answer["tenant_id"]) == ("usr_key", "local")


async def test_header_says_who_it_is(system: System) -> None:
    headers = {"Authorization": f"Bearer {system.fake.token_for('usr_ada')}"}
    async with system.client(token=None, additional_headers=headers) as client:
        assert (await client.next("authenticated"))["principal_id"] == "usr_ada"


async def test_wrong_key_is_told_why_and_closed_with_4401(system: System) -> None:
    async with system.client(token=None) as client:
        await client.send("auth", token=fakes.EXPIRED_KEY)
        error = await client.next("system_error")
        assert error["code"] == "KEY_EXPIRED"
        assert await client.closed() == (4401, "KEY_EXPIRED")


async def test_nothing_is_answered_before_it_is_known_who_asks(system: System) -> None:
    async with system.client(token=None) as client:
        await client.send("get_system_metrics")
        error = await client.next("system_error")
        assert (error["code"], error["ref"]) == ("NOT_AUTHENTICATED", "c1")
        await client.ask("auth", "authenticated", token=fakes.API_KEY)


async def test_foreign_origin_is_refused_and_a_local_one_is_not(system: System) -> None:
    async with system.client(token=None, origin="https://evil.example") as client:
        assert (await client.closed())[0] == 4403
    async with system.client(origin="http://localhost:3000") as client:
        await client.ask("ping", "pong")


# Chat


async def test_chat_streams_tokens_as_they_are_produced(system: System) -> None:
    system.fake.updates = [fakes.token(1, "Hello "), fakes.update(5, "ModelCallSucceeded"), fakes.token(2, "world")]
    async with system.client() as client:
        created = await client.ask("create_stream", "stream_created", agent="analyst")
        assert created["stream_id"] == fakes.CONVERSATION_ID
        ref = await client.send("stream_chat", stream_id=created["stream_id"], message="hi")
        end = await client.next("chat_response_complete")
    chat = [frame for frame in client.got if frame.get("stream_id") and frame["ref"] == ref]
    assert [frame["type"] for frame in chat] == [
        "chat_response_start", "chat_response_token", "chat_response_token", "chat_response_complete",
    ]  # fmt: skip
    assert [frame["text"] for frame in chat[1:3]] == ["Hello ", "world"]
    assert (end["text"], end["run_id"]) == ("Hello world", fakes.RUN_ID)


async def test_tokens_come_while_the_run_goes_on(system: System) -> None:
    system.fake.hold_run = fakes.asyncio.Event()
    system.fake.updates = [fakes.token(1, "Hel")]
    async with system.client() as client:
        await client.send("stream_chat", stream_id=fakes.CONVERSATION_ID, message="hi")
        assert (await client.next("chat_response_token"))["text"] == "Hel"
        await client.ask("ping", "pong")
        system.fake.hold_run.set()
        await client.next("chat_response_complete")


async def test_failed_turn_is_a_stream_error(system: System) -> None:
    system.fake.run = fakes.a_run("FAILED", failure={"reason": "BUDGET_EXHAUSTED", "message": "5 of 10 left"})
    async with system.client() as client:
        await client.send("stream_chat", stream_id=fakes.CONVERSATION_ID, message="hi")
        error = await client.next("stream_error")
    assert (error["code"], error["message"], error["run_id"]) == ("BUDGET_EXHAUSTED", "5 of 10 left", fakes.RUN_ID)


async def test_unknown_stream_is_a_stream_error(system: System) -> None:
    async with system.client() as client:
        await client.send("stream_chat", stream_id="cnv_9", message="hi")
        error = await client.next("stream_error")
    assert error["code"] == "NOT_FOUND"
    assert "create_stream makes one" in str(error["message"])


# Events


async def test_events_arrive_with_their_position_as_offset(system: System) -> None:
    async with system.client() as client:
        joined = await client.ask("subscribe", "subscribed", channel=EVENTS)
        position = await system.append("RunStarted", input="x")
        (got,) = await publications(client, 1)
    assert (got["offset"], got["epoch"]) == (position, joined["epoch"])
    assert got["event"]["type"] == "RunStarted"  # type: ignore[index]
    assert got["event"]["data"] == {"input": "x"}  # type: ignore[index]


async def test_who_comes_back_misses_nothing_and_gets_nothing_twice(system: System) -> None:
    async with system.client() as client:
        epoch = (await client.ask("subscribe", "subscribed", channel=EVENTS))["epoch"]
        seen = [await system.append() for _ in range(3)]
        assert offsets(await publications(client, 3)) == seen
    missed = [await system.append() for _ in range(5)]
    async with system.client() as client:
        joined = await client.ask("subscribe", "subscribed", channel=EVENTS, offset=seen[-1], epoch=epoch)
        assert joined["recovered"] is True
        assert offsets(joined["publications"]) == missed  # type: ignore[arg-type]
        later = [await system.append() for _ in range(3)]
        assert offsets(await publications(client, 3)) == later


async def test_recovery_is_whole_while_events_go_on_happening(system: System) -> None:
    start = await system.append()
    async with system.client() as client:
        appending = fakes.asyncio.create_task(_append_many(system, 200))
        joined = await client.ask("subscribe", "subscribed", channel=EVENTS, offset=start)
        got = offsets(joined["publications"])  # type: ignore[arg-type]
        last = await appending
        while got[-1:] != [last]:
            got += offsets(await publications(client, 1))
    assert got == list(range(start + 1, last + 1))


async def _append_many(system: System, count: int) -> int:
    position = 0
    for _ in range(count):
        position = await system.append()
    return position


async def test_other_epoch_is_not_recovered(system: System) -> None:
    position = await system.append()
    async with system.client() as client:
        joined = await client.ask("subscribe", "subscribed", channel=EVENTS, offset=position - 1, epoch="EVT@other")
        assert (joined["recovered"], joined["publications"]) == (False, [])
        following = await system.append()
        assert offsets(await publications(client, 1)) == [following]


async def test_offset_that_was_never_reached_is_not_recovered(system: System) -> None:
    async with system.client() as client:
        joined = await client.ask("subscribe", "subscribed", channel=EVENTS, offset=10_000_000)
    assert joined["recovered"] is False


async def test_tenants_do_not_see_each_other(system: System) -> None:
    async with system.client() as client:
        start = (await client.ask("subscribe", "subscribed", channel=EVENTS))["offset"]
        await system.append(tenant="other", run="run_other")
        own = await system.append()
        assert offsets(await publications(client, 1)) == [own]
        await client.ask("unsubscribe", "unsubscribed", channel=EVENTS)
        again = await client.ask("subscribe", "subscribed", channel=EVENTS, offset=start)
        assert offsets(again["publications"]) == [own]  # type: ignore[arg-type]


async def test_events_need_their_permission(system: System) -> None:
    system.fake.permissions = ("agents.read",)
    async with system.client(token=system.fake.token_for()) as client:
        await client.send("subscribe", channel=EVENTS)
        error = await client.next("system_error")
    assert error["code"] == "PERMISSION_DENIED"
    assert "events.read" in str(error["message"])


async def test_after_unsubscribe_nothing_comes(system: System) -> None:
    async with system.client() as client:
        await client.ask("subscribe", "subscribed", channel=EVENTS)
        await client.ask("unsubscribe", "unsubscribed", channel=EVENTS)
        await system.append()
        await client.ask("ping", "pong")
    assert "publication" not in {frame["type"] for frame in client.got}


async def test_many_clients_share_one_reader_of_a_stream(system: System) -> None:
    async def consumers() -> int | None:
        return (await system.served.host.nats.jetstream().stream_info("EVT_AGENT_RUNTIME")).state.consumer_count

    async with system.client() as first, system.client() as second:
        await first.ask("subscribe", "subscribed", channel=EVENTS)
        await system.append()
        await first.next("publication")
        alone = await consumers()
        await second.ask("subscribe", "subscribed", channel=EVENTS)
        position = await system.append()
        assert offsets(await publications(first, 1)) == offsets(await publications(second, 1)) == [position]
        # Not more than before; fewer when the reader of an earlier test has just gone.
        assert (await consumers() or 0) <= (alone or 0)


# Runs and monitoring


async def test_run_is_followed_to_its_end(system: System) -> None:
    system.fake.updates = [fakes.update(3, "RunStarted"), fakes.token(1, "Hel"), fakes.update(7, "RunCompleted")]
    async with system.client() as client:
        await client.ask("subscribe", "subscribed", channel=f"run:{fakes.RUN_ID}", offset=3)
        end = await client.next("unsubscribed")
    told = [
        (frame["type"], frame.get("offset")) for frame in client.got if frame["type"] in ("agent_event", "run_token")
    ]
    assert told == [("run_token", None), ("agent_event", 7)]
    assert end["code"] == "RUN_ENDED"


async def test_watching_goes_on_where_a_broken_connection_left_it(system: System) -> None:
    system.fake.updates = [fakes.update(cursor, "StepStarted") for cursor in (3, 7, 9)]
    system.fake.break_watch_after = 7
    async with system.client() as client:
        await client.ask("subscribe", "subscribed", channel=f"run:{fakes.RUN_ID}")
        await client.next("unsubscribed")
    assert offsets([frame for frame in client.got if frame["type"] == "agent_event"]) == [3, 7, 9]


async def test_who_reads_too_slowly_is_closed_with_4408_and_can_come_back(system: System) -> None:
    async with system.client(max_queue=1) as client:
        await client.ask("subscribe", "subscribed", channel=EVENTS)
        start = await system.log.head()
        last = start

        async def dropped() -> bool:
            """Whether the outbox is full by now; if not, another event is put in."""
            nonlocal last
            last = await system.append(text="x" * 300_000)
            stub = WsGatewayStub(system.served.channel)
            found = [await stub.ListSessions(pb.ListSessionsRequest(closed=closed)) for closed in (False, True)]
            id = client.got[0]["session_id"]
            return any(one.id == id and one.frames_dropped for page in found for one in page.sessions)

        await until(dropped)
        got: list[int] = []
        with pytest.raises(ConnectionClosed) as closed:
            while True:
                got += offsets(await publications(client, 1))
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 4408
    assert got == list(range(start + 1, start + 1 + len(got)))
    assert got[-1] < last
    async with system.client(max_size=None) as client:
        joined = await client.ask("subscribe", "subscribed", channel=EVENTS, offset=last - 2)
        assert offsets(joined["publications"]) == [last - 1, last]  # type: ignore[arg-type]
        await client.ask("unsubscribe", "unsubscribed", channel=EVENTS)
        more = await client.ask("subscribe", "subscribed", channel=EVENTS, offset=start)
        assert more["recovered"] is False


async def test_monitoring_comes_again_and_again(system: System) -> None:
    system.fake.agents = []
    async with system.client() as client:
        await client.ask("subscribe_monitoring", "subscribed")
        await client.next("monitoring_update")

        async def shown() -> bool:
            """Only this session, now that those of earlier tests have ended; and the head, which is kept for a second."""
            metrics: Any = (await client.next("monitoring_update"))["metrics"]
            runtime = next(load for load in metrics["services"] if load["service"] == "agent-runtime")
            return (metrics["gateway"]["sessions_open"], runtime["events_head"]) == (1, await system.log.head())

        await until(shown)
        await client.ask("get_system_metrics", "system_metrics")
        await client.ask("get_agent_metrics", "agent_metrics")


async def test_heartbeat_is_heard_and_answered(system: System) -> None:
    async with system.client() as client:
        ping = await client.next("ping")
        await client.send("pong", ref=ping["id"])
        await client.ask("ping", "pong")


# What pages report


async def test_page_errors_become_events(system: System) -> None:
    async with system.client() as client:
        await client.ask("log_error", "acknowledged", message="x is undefined", detail="at app.js:1")
        await client.ask("client_log", "acknowledged", level="info", message="loaded")
        await client.ask("button_click", "acknowledged", button="start-run")
    async with system.http.get("/api/v1/events/ws-gateway", params={"type": "ClientErrorReported"}) as answer:
        *_, event = (await answer.json())["data"]
    assert event["data"]["message"] == "x is undefined"


async def test_session_is_listed_with_its_channels_and_closed_by_an_operator(system: System) -> None:
    stub = WsGatewayStub(system.served.channel)
    async with system.client() as client:
        await client.ask("subscribe", "subscribed", channel=EVENTS)
        session = await _open_session_with(stub, [EVENTS])
        await stub.CloseSession(pb.CloseSessionRequest(id=session.id, reason="maintenance"))
        assert await client.closed() == (4403, "maintenance")

    async def closed() -> bool:
        found = (await stub.ListSessions(pb.ListSessionsRequest(closed=True))).sessions
        return session.id in {found_session.id for found_session in found}

    await until(closed)


async def _open_session_with(stub: WsGatewayStub, channels: list[str]) -> pb.Session:
    """The one open session, as soon as the list, a view behind the log, shows it with these channels."""
    found: list[pb.Session] = []

    async def listed() -> bool:
        found[:] = (await stub.ListSessions(pb.ListSessionsRequest())).sessions
        return [list(session.channels) for session in found] == [channels]

    await until(listed)
    return found[0]


# Frames that are wrong


@pytest.mark.parametrize(
    ("frame", "code", "ref", "words"),
    [
        ("{oops", "MALFORMED_JSON", "", "is not JSON"),
        ("[1]", "NOT_AN_OBJECT", "", "no object"),
        (b"\x00", "NOT_TEXT", "", "binary"),
        ('{"id": "7"}', "UNKNOWN_TYPE", "7", "field 'type' is missing"),
        ('{"type": "subscrib", "id": "7"}', "UNKNOWN_TYPE", "7", "did you mean subscribe"),
        ('{"type": "subscribe", "id": "7"}', "INVALID_FIELD", "7", "field 'channel' of subscribe: field required"),
        ('{"type": "ping"}', "INVALID_FIELD", "", "field 'id' of ping: field required"),
        ('{"type": "subscribe", "id": "7", "channel": 5}', "INVALID_FIELD", "7", "valid string"),
        ('{"type": "ping", "id": "7", "x": 1}', "INVALID_FIELD", "7", "field 'x' of ping"),
        (
            json.dumps({"type": "client_log", "id": "7", "message": "x" * 70_000}),
            "FRAME_TOO_LARGE",
            "",
            "at most 65536",
        ),
        ('{"type": "subscribe", "id": "7", "channel": "events:x"}', "UNKNOWN_CHANNEL", "7", "there is no service 'x'"),
        ('{"type": "unsubscribe", "id": "7", "channel": "monitoring"}', "NOT_SUBSCRIBED", "7", "is not followed"),
        ('{"type": "subscribe", "id": "7", "channel": "run:run_9"}', "NOT_FOUND", "7", "run_9"),
        ('{"type": "auth", "id": "7", "token": "x"}', "ALREADY_AUTHENTICATED", "7", "open another"),
    ],
)
async def test_wrong_frame_is_told_what_is_wrong_and_the_connection_stays(
    system: System, frame: str | bytes, code: str, ref: str, words: str
) -> None:
    async with system.client() as client:
        await client.raw(frame)
        error = await client.next("system_error")
        assert (error["code"], error["ref"]) == (code, ref)
        assert words in str(error["message"])
        await client.ask("ping", "pong")


async def test_too_many_wrong_frames_end_the_connection(system: System) -> None:
    async with system.client() as client:
        for _ in range(5):
            await client.raw("nonsense")
        for _ in range(5):
            await client.next("system_error")
        assert (await client.closed())[0] == 4400


async def test_refusal_of_a_service_is_passed_on(system: System) -> None:
    system.fake.refusals["CreateConversation"] = NotFound("definition", "nobody", remedy="did you mean analyst?")
    async with system.client() as client:
        await client.send("create_stream", agent="nobody")
        error = await client.next("system_error")
    assert (error["code"], error["message"]) == ("NOT_FOUND", "no definition 'nobody'; did you mean analyst?")


# The document


async def test_every_live_frame_is_described_by_the_asyncapi_document(system: System) -> None:
    """Those of a client that does a little of everything, and of all tests that came before."""
    await _do_a_little_of_everything(system)
    async with system.http.get("/asyncapi.json") as answer:
        described = await answer.json()
    schemas = described["components"]["schemas"]
    sent = described["operations"]["send"]["messages"]
    messages = described["channels"]["edge"]["messages"]
    by_type = {
        messages[ref["$ref"].rsplit("/", 1)[-1]]["name"]: messages[ref["$ref"].rsplit("/", 1)[-1]] for ref in sent
    }
    kinds = {str(frame["type"]) for frame in system.frames}
    assert kinds >= {"authenticated", "publication", "subscribed", "agent_event", "run_token", "chat_response_token", "monitoring_update"}  # fmt: skip
    for frame in system.frames:
        name = by_type[str(frame["type"])]["payload"]["$ref"].rsplit("/", 1)[-1]
        Draft202012Validator({"$ref": f"#/components/schemas/{name}", "components": {"schemas": schemas}}).validate(
            frame
        )


async def _do_a_little_of_everything(system: System) -> None:
    system.fake.updates = [fakes.update(3, "RunStarted"), fakes.token(1, "Hel"), fakes.update(7, "RunCompleted")]
    async with system.client() as client:
        await client.ask("subscribe", "subscribed", channel=EVENTS)
        await system.append()
        await client.next("publication")
        await client.ask("subscribe_monitoring", "subscribed")
        await client.next("monitoring_update")
        await client.ask("subscribe", "subscribed", channel=f"run:{fakes.RUN_ID}")
        await client.next("unsubscribed")
        await client.send("stream_chat", stream_id=fakes.CONVERSATION_ID, message="hi")
        await client.next("chat_response_complete")
