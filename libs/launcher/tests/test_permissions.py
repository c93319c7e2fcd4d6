"""What each service may not do on the servers they share, tried on real ones for every pair of services."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import nats
import nats.errors
import psycopg
import pytest
from eventlog.ending import end
from eventlog.memory import MemoryEventLog
from eventlog.past import read_past
from eventlog.past_server import PastServer
from eventlog.records import StoredEvent
from eventlog.sources import StreamSource
from eventlog.testing import a_stream, an_append, an_event
from launcher.bus import authorization
from launcher.databases import provision
from launcher.keys import ADMINISTRATOR, CLIENT, NATS_CLIENTS, OBSERVER
from launcher.layout import SERVICES
from launcher.nats import EmbeddedNats, NatsUser, url
from launcher.postgres import new_password
from launcher.streams import make_streams, plans_of
from launcher.testing import RunningNats, RunningPostgres
from nats.aio.client import Client
from nats.js.api import AckPolicy, ConsumerConfig
from servicekit.nats_admin import administrator
from synod.common.subjects import event_stream, past_subject

NAMES = tuple(service.name for service in SERVICES)
DATABASES = tuple(service.module for service in SERVICES)
DEADLINE_S = 30.0
SILENCE_S = 0.2
PASSWORDS = dict.fromkeys((*NAMES, *NATS_CLIENTS), "password")
OTHERS = (*NAMES, OBSERVER, CLIENT)
"""Everybody but the administrator."""
QUEUES = ("CMD_AGENT_RUNTIME", "DLQ_AGENT_RUNTIME", "CMD_AGENTS", "ANS_AGENTS")
STREAMS = (*map(event_stream, NAMES), *QUEUES, "CHECKPOINTS")
CHANGES = (
    *("STREAM.CREATE", "STREAM.UPDATE", "STREAM.DELETE", "STREAM.PURGE", "STREAM.MSG.DELETE", "STREAM.SNAPSHOT"),
    *("STREAM.RESTORE", "STREAM.PEER.REMOVE", "STREAM.LEADER.STEPDOWN", "CONSUMER.LIST", "CONSUMER.NAMES"),
)
MAY_CHANGE = {("agent-runtime", "STREAM.MSG.DELETE", "DLQ_AGENT_RUNTIME")}
"""A dead letter that was put back into its queue is taken from the dead letters."""
READS = {
    "agent-registry": {"agent-runtime", "tool-executor"},
    "cost-ledger": {"llm-gateway", "tool-executor"},
    "consensus": set(),
    "tool-executor": set(),
    "llm-gateway": set(),
    "agent-runtime": {"consensus"},
    "ws-gateway": set(NAMES),
    OBSERVER: set(NAMES),
    CLIENT: set(),
}
"""Whose events each may read: the table of architecture.md, written down a second time on purpose."""


def running(directory: Any, warden: Any, who_may_what: Any) -> RunningNats:
    """A server with the streams of the whole system."""
    warden.watch_directory(directory)
    server = RunningNats(EmbeddedNats(directory, authorization=who_may_what), warden)
    server.start()
    make_streams(url(server.server.port, NatsUser(ADMINISTRATOR, PASSWORDS[ADMINISTRATOR])), SERVICES)
    return server


@pytest.fixture(scope="module")
def shared_nats(tmp_path_factory: pytest.TempPathFactory, launcher_warden: Any) -> Iterator[RunningNats]:
    """A server with the accounts, users and permissions of the whole system."""
    server = running(tmp_path_factory.mktemp("nats"), launcher_warden, authorization(SERVICES, PASSWORDS))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def lax_nats(tmp_path_factory: pytest.TempPathFactory, launcher_warden: Any) -> Iterator[RunningNats]:
    """The same, but its users may say and hear everything in their accounts."""
    lax = json.loads(json.dumps(authorization(SERVICES, PASSWORDS)))
    for account in lax["accounts"].values():
        for user in account["users"]:
            del user["permissions"]
    server = running(tmp_path_factory.mktemp("lax"), launcher_warden, lax)
    yield server
    server.stop()


@pytest.fixture(params=["shared_nats", "lax_nats"])
def hub(request: pytest.FixtureRequest) -> RunningNats:
    found: RunningNats = request.getfixturevalue(request.param)
    return found


@asynccontextmanager
async def connected(server: RunningNats, user: str) -> AsyncIterator[tuple[Client, asyncio.Queue[str]]]:
    """A client, and what the server refused it."""
    refused: asyncio.Queue[str] = asyncio.Queue()

    async def on_error(error: Exception) -> None:
        refused.put_nowait(str(error).lower())

    prefix = "_INBOX_client" if user == CLIENT else "_INBOX"
    client = await nats.connect(server.url, user=user, password=PASSWORDS[user], error_cb=on_error, inbox_prefix=prefix)
    try:
        yield client, refused
    finally:
        await client.close()


async def refusals(queue: asyncio.Queue[str], count: int) -> list[str]:
    """So many refusals, in alphabetical order."""
    async with asyncio.timeout(DEADLINE_S):
        return sorted([await queue.get() for _ in range(count)])


def event_of(service: str) -> str:
    return f"synod.acme.evt.{service}.thing.thg_1.thinghappened"


def refusal(subject: str) -> str:
    subject = subject.replace("$JS.API", "SYNOD.API")
    return f'nats: permissions violation for publish to "{subject.lower()}"'


async def messages(server: RunningNats) -> dict[str, int]:
    """How many messages every stream holds."""
    async with administrator(server.url, ADMINISTRATOR, PASSWORDS[ADMINISTRATOR]) as admin:
        infos = [info async for info in admin._pages("STREAM.LIST", "streams")]
        assert await admin.drift(plans_of(SERVICES)) == ()
    return {info["config"]["name"]: info["state"]["messages"] for info in infos}  # type: ignore[index,call-overload,misc]


async def is_answered(client: Client, subject: str, body: bytes = b"", timeout_s: float = DEADLINE_S) -> bool:
    """Whether JetStream answers at all, be it with an error of its own."""
    try:
        await client.request(subject, body, timeout=timeout_s)
    except (nats.errors.NoRespondersError, nats.errors.TimeoutError):
        return False
    return True


@pytest.mark.parametrize("user", NAMES)
async def test_a_service_publishes_its_own_events_and_no_others(shared_nats: RunningNats, user: str) -> None:
    others = sorted(event_of(other) for other in NAMES if other != user)
    before = await messages(shared_nats)
    async with connected(shared_nats, user) as (client, refused):
        acknowledged = await client.jetstream().publish(event_of(user), b"{}")
        for subject in others:
            await client.publish(subject, b"{}")
        assert await refusals(refused, len(others)) == [refusal(subject) for subject in others]
        assert refused.empty()
    own = event_stream(user)
    assert (acknowledged.stream, acknowledged.seq) == (own, before[own] + 1)
    assert await messages(shared_nats) == {**before, own: before[own] + 1}


@pytest.mark.parametrize("user", NATS_CLIENTS)
async def test_who_is_no_service_publishes_no_event(shared_nats: RunningNats, user: str) -> None:
    subjects = sorted(event_of(name) for name in NAMES)
    async with connected(shared_nats, user) as (client, refused):
        for subject in subjects:
            await client.publish(subject, b"{}")
        assert await refusals(refused, len(subjects)) == [refusal(subject) for subject in subjects]


@pytest.mark.parametrize("subject", [event_of(NAMES[0]), "synod.acme.cmd.agent-runtime.run", "synod.sys.consensus.hb"])
async def test_an_observer_publishes_nothing(shared_nats: RunningNats, subject: str) -> None:
    async with connected(shared_nats, OBSERVER) as (client, refused):
        await client.publish(subject, b"{}")
        assert await refusals(refused, 1) == [refusal(subject)]


@pytest.mark.parametrize("user", [name for name in OTHERS if name != "agent-runtime"])
async def test_only_agent_runtime_sends_itself_commands_and_takes_them(shared_nats: RunningNats, user: str) -> None:
    subjects = sorted(
        [
            "synod.acme.cmd.agent-runtime.run",
            "synod.acme.dlq.agent-runtime",
            "$JS.API.CONSUMER.MSG.NEXT.CMD_AGENT_RUNTIME.agent-runtime-run",
            "$JS.ACK.CMD_AGENT_RUNTIME.agent-runtime-run.1.1.1.1.0",
        ]
    )
    async with connected(shared_nats, user) as (client, refused):
        for subject in subjects:
            await client.publish(subject, b"{}")
        assert await refusals(refused, len(subjects)) == sorted(map(refusal, subjects))


@pytest.mark.parametrize("user", OTHERS)
async def test_nobody_but_the_administrator_changes_a_stream(shared_nats: RunningNats, user: str) -> None:
    stolen = json.dumps(
        {"name": "STOLEN", "subjects": ["x.>"], "republish": {"src": ">", "dest": event_of("consensus")}}
    )
    forbidden = [
        f"$JS.API.{verb}.{stream}"
        for verb in CHANGES
        for stream in (*STREAMS, "STOLEN", "KV_STOLEN", "OBJ_STOLEN")
        if (user, verb, stream) not in MAY_CHANGE
    ]
    before = await messages(shared_nats)
    async with connected(shared_nats, user) as (client, refused):
        for subject in forbidden:
            await client.publish(subject, stolen.encode(), reply=client.new_inbox())
        assert await refusals(refused, len(forbidden)) == sorted(map(refusal, forbidden))
    assert await messages(shared_nats) == before


@pytest.mark.parametrize("user", OTHERS)
async def test_nobody_but_the_administrator_deletes_a_consumer_of_commands(shared_nats: RunningNats, user: str) -> None:
    forbidden = [
        f"$JS.API.CONSUMER.{verb}.CMD_AGENT_RUNTIME.agent-runtime-run"
        for verb in ("DELETE", "CREATE", "DURABLE.CREATE", "PAUSE", "UNPIN", "LEADER.STEPDOWN")
    ]
    async with connected(shared_nats, user) as (client, refused):
        for subject in forbidden:
            await client.publish(subject, b"{}")
        assert await refusals(refused, len(forbidden)) == sorted(map(refusal, forbidden))
    assert await messages(shared_nats)


@pytest.mark.parametrize("user", OTHERS)
async def test_whose_events_one_reads_is_as_the_architecture_says(shared_nats: RunningNats, user: str) -> None:
    forbidden = []
    async with connected(shared_nats, user) as (client, refused):
        for other in NAMES:
            if other == user:
                assert await is_answered(client, f"$JS.API.STREAM.INFO.{event_stream(other)}")
            for subject, body in reading(event_stream(other)):
                if other in READS[user]:
                    assert await is_answered(client, subject, body)
                elif other != user or "STREAM.INFO" not in subject:
                    forbidden.append(subject)
                    await client.publish(subject, body, reply=client.new_inbox())
        assert await refusals(refused, len(forbidden)) == sorted(map(refusal, forbidden))
        assert refused.empty()


def reading(stream: str) -> list[tuple[str, bytes]]:
    """What a reader of a stream asks."""
    config = {
        "name": "c",
        "ack_policy": "none",
        "deliver_policy": "new",
        "mem_storage": True,
        "inactive_threshold": 10**9,
    }
    return [
        (f"$JS.API.STREAM.INFO.{stream}", b""),
        (f"$JS.API.DIRECT.GET.{stream}", b'{"seq":1}'),
        (f"$JS.API.CONSUMER.CREATE.{stream}.c", json.dumps({"stream_name": stream, "config": config}).encode()),
        (f"$JS.API.CONSUMER.MSG.NEXT.{stream}.c", b'{"no_wait":true}'),
        (f"$JS.API.CONSUMER.DELETE.{stream}.c", b""),
    ]


@pytest.mark.parametrize("user", OTHERS)
async def test_nobody_hears_what_is_said_to_others(shared_nats: RunningNats, user: str) -> None:
    subjects = (">", "synod.>", "synod.*.evt.>", "synod.*.cmd.>", "$JS.>", "_R_.>", "_INBOX_administrator.>")
    async with connected(shared_nats, user) as (client, refused):
        for subject in subjects:
            await client.subscribe(subject)
        found = await refusals(refused, len(subjects))
    assert found == sorted(f'nats: permissions violation for subscription to "{each.lower()}"' for each in subjects)


@pytest.mark.parametrize("user", OTHERS)
async def test_no_answer_can_be_sent_into_a_foreign_stream(hub: RunningNats, user: str) -> None:
    """A server sends its answer where the request says, without asking whether the asker may publish there."""
    targets = [event_of(name) for name in NAMES if name != user]
    targets += [] if user == "agent-runtime" else ["synod.acme.cmd.agent-runtime.run"]
    async with connected(hub, user) as (client, _):
        if user in NAMES:
            await client.jetstream().publish(event_of(user), b"{}")
        before = await messages(hub)
        for target in targets:
            await client.publish("$JS.API.INFO", b"", reply=target)
            await client.publish(f"$JS.API.STREAM.INFO.{event_stream(user)}", b"", reply=target)
            for other in READS[user]:
                await client.publish(f"$JS.API.DIRECT.GET.{event_stream(other)}", b'{"seq":1}', reply=target)
            if user in NAMES:
                await client.publish(event_of(user), b"{}", reply=target)
        await is_answered(
            client, f"$JS.API.STREAM.INFO.{event_stream(user) if user in NAMES else 'CMD_AGENTS'}", timeout_s=1
        )
        after = await messages(hub)
    own = event_stream(user)
    published = len(targets) if user in NAMES else 0
    assert after == {**before, **({own: before[own] + published} if user in NAMES else {})}


@pytest.mark.parametrize("user", [user for user in OTHERS if READS[user]])
async def test_no_consumer_pushes_into_a_foreign_stream(shared_nats: RunningNats, user: str) -> None:
    source = sorted(READS[user] - {user})[0]
    victim = next(name for name in NAMES if name not in (user, source))
    async with connected(shared_nats, source) as (owner, _):
        await owner.jetstream().publish(event_of(source), b"{}")
    before = await messages(shared_nats)
    async with connected(shared_nats, OBSERVER) as (observer, _), connected(shared_nats, user) as (client, _):
        await observer.subscribe("_INBOX.>")
        for number, target in enumerate((event_of(victim), f"$JS.API.STREAM.DELETE.{event_stream(victim)}")):
            config = ConsumerConfig(
                name=f"push-{user}-{number}", deliver_subject=target, ack_policy=AckPolicy.NONE, inactive_threshold=1
            )
            info = await client.jetstream().add_consumer(event_stream(source), config)
            assert not info.push_bound
        # A consumer that did deliver would have done so before one that was made later.
        probe = await client.jetstream().pull_subscribe(
            "", stream=event_stream(source), config=ConsumerConfig(ack_policy=AckPolicy.NONE)
        )
        assert await probe.fetch(1, timeout=DEADLINE_S)
    assert await messages(shared_nats) == before


@pytest.mark.parametrize("user", OTHERS)
async def test_accounts_hold_where_permissions_do_not(lax_nats: RunningNats, user: str) -> None:
    before = await messages(lax_nats)
    async with connected(lax_nats, user) as (client, _):
        for stream in STREAMS:
            for verb in ("STREAM.DELETE", "STREAM.PURGE"):
                await client.publish(f"$JS.API.{verb}.{stream}", b"", reply=client.new_inbox())
                await client.publish(f"SYNOD.API.{verb}.{stream}", b"", reply=client.new_inbox())
        for name in NAMES:
            if name != user:
                await client.publish(event_of(name), b"{}")
        assert not await is_answered(client, "$JS.API.STREAM.DELETE.CHECKPOINTS", timeout_s=SILENCE_S)
    assert await messages(lax_nats) == before


async def test_a_service_reads_what_another_published(shared_nats: RunningNats) -> None:
    async with (
        connected(shared_nats, "llm-gateway") as (owner, _),
        connected(shared_nats, "cost-ledger") as (reader, no),
    ):
        last = (await owner.jetstream().publish(event_of("llm-gateway"), b"{}")).seq
        assert await StreamSource(reader, "llm-gateway").head() == last
        pulled = await reader.jetstream().pull_subscribe(
            "",
            stream="EVT_LLM_GATEWAY",
            config=ConsumerConfig(ack_policy=AckPolicy.NONE, opt_start_seq=last, deliver_policy="by_start_sequence"),  # type: ignore[arg-type]
        )
        (message,) = await pulled.fetch(1, timeout=DEADLINE_S)
        assert (message.subject, message.metadata.sequence.stream) == (event_of("llm-gateway"), last)
        assert no.empty()


@asynccontextmanager
async def answering(server: RunningNats, name: str) -> AsyncIterator[list[StoredEvent]]:
    """The events of a service that answers for its past."""
    log = MemoryEventLog()
    await log.append(an_append(a_stream(), *[an_event() for _ in range(3)]))
    async with connected(server, name) as (owner, refused):
        task = asyncio.create_task(PastServer(log, owner, name).run())
        try:
            await is_answered(owner, "$JS.API.INFO")  # by then it listens
            yield await log.read(0, limit=10)
            assert refused.empty()
        finally:
            await end(task)


@pytest.mark.parametrize("owner", NAMES)
async def test_who_reads_a_stream_may_ask_for_its_past_and_nobody_else(shared_nats: RunningNats, owner: str) -> None:
    subject = past_subject(owner)
    async with answering(shared_nats, owner) as events:
        for user in OTHERS:
            async with connected(shared_nats, user) as (client, refused):
                if owner in READS[user] and user != OBSERVER:
                    assert await read_past(client, owner, 0, 10, DEADLINE_S) == events
                    assert refused.empty()
                else:
                    await client.publish(subject, b'{"after": 0, "limit": 1}', reply=client.new_inbox())
                    assert await refusals(refused, 1) == [refusal(subject)]


@pytest.mark.parametrize("user", [user for user in NAMES if user != "llm-gateway"])
async def test_only_the_owner_answers_for_its_past(shared_nats: RunningNats, user: str) -> None:
    subject = past_subject("llm-gateway")
    async with connected(shared_nats, user) as (client, refused):
        await client.subscribe(subject)
        assert await refusals(refused, 1) == [f'nats: permissions violation for subscription to "{subject}"']


@pytest.mark.parametrize("into", [event_of("llm-gateway"), event_of("cost-ledger"), "synod.acme.cmd.agent-runtime.run"])
async def test_no_answer_about_the_past_is_sent_into_a_stream(hub: RunningNats, into: str) -> None:
    before = await messages(hub)
    async with answering(hub, "llm-gateway"), connected(hub, "cost-ledger") as (reader, _):
        await reader.publish(past_subject("llm-gateway"), b'{"after": 0, "limit": 3}', reply=into)
        # Answered one after another: by now that request is.
        assert len(await read_past(reader, "llm-gateway", 0, 10, DEADLINE_S)) == 3
    assert await messages(hub) == before


async def test_an_observer_follows_as_any_client_of_jetstream_does(shared_nats: RunningNats) -> None:
    async with connected(shared_nats, "consensus") as (owner, _), connected(shared_nats, OBSERVER) as (observer, no):
        last = (await owner.jetstream().publish(event_of("consensus"), b"{}")).seq
        following = await observer.jetstream().subscribe("synod.*.evt.consensus.>", ordered_consumer=True)
        async with asyncio.timeout(DEADLINE_S):
            sequences = [(await following.next_msg(DEADLINE_S)).metadata.sequence.stream for _ in range(last)]
        assert sequences == list(range(1, last + 1))
        assert no.empty()


async def test_tokens_reach_the_observer(shared_nats: RunningNats) -> None:
    async with connected(shared_nats, "agent-runtime") as (owner, _), connected(shared_nats, OBSERVER) as (observer, _):
        heard = await observer.subscribe("synod.*.tok.*")
        await is_answered(observer, "$JS.API.INFO")
        await owner.publish("synod.acme.tok.run_1", b"hi")
        assert (await heard.next_msg(DEADLINE_S)).data == b"hi"


@pytest.mark.parametrize("user", [user for user in OTHERS if user != "agent-runtime"])
async def test_only_agent_runtime_says_tokens_and_only_the_observer_hears_them_too(
    shared_nats: RunningNats, user: str
) -> None:
    said, heard = "synod.acme.tok.run_1", "synod.*.tok.*"
    async with connected(shared_nats, user) as (client, refused):
        await client.publish(said, b"{}")
        assert await refusals(refused, 1) == [refusal(said)]
        if user != OBSERVER:
            await client.subscribe(heard)
            assert await refusals(refused, 1) == [f'nats: permissions violation for subscription to "{heard}"']


@pytest.mark.parametrize("user", OTHERS)
async def test_nobody_says_that_another_is_as_its_checkpoint_says(shared_nats: RunningNats, user: str) -> None:
    forbidden = sorted(refusal(f"synod.sys.{name}.checkpoint") for name in NAMES if name != user)
    async with connected(shared_nats, user) as (client, refused):
        for name in NAMES:
            if name != user:
                await client.publish(f"synod.sys.{name}.checkpoint", b"{}")
        assert await refusals(refused, len(forbidden)) == forbidden


async def test_checkpoints_are_kept_though_nobody_listens(shared_nats: RunningNats) -> None:
    before = await messages(shared_nats)
    async with connected(shared_nats, "consensus") as (client, refused):
        await client.publish("synod.sys.consensus.checkpoint", b"{}")
        await is_answered(client, "$JS.API.INFO")
        await client.publish("synod.sys.cost-ledger.checkpoint", b"{}")
        assert await refusals(refused, 1) == [refusal("synod.sys.cost-ledger.checkpoint")]
    assert await messages(shared_nats) == {**before, "CHECKPOINTS": before["CHECKPOINTS"] + 1}


def test_nobody_connects_without_a_password(shared_nats: RunningNats) -> None:
    host, _, port = shared_nats.url.removeprefix("nats://").rpartition(":")
    with (
        socket.create_connection((host, int(port)), timeout=DEADLINE_S) as connection,
        connection.makefile("rwb") as lines,
    ):
        assert lines.readline().startswith(b"INFO ")
        lines.write(b"CONNECT {}\r\nPING\r\n")
        lines.flush()
        assert lines.readline() == b"-ERR 'Authorization Violation'\r\n"


@pytest.fixture(scope="module")
def roles(postgres_server: RunningPostgres) -> Iterator[dict[str, str]]:
    """A role and a database of each service on the session's server: their passwords."""
    passwords = {name: new_password() for name in DATABASES}
    provision(postgres_server.dsn(), passwords)
    yield passwords
    with psycopg.connect(postgres_server.dsn(), autocommit=True) as connection:
        for name in DATABASES:
            connection.execute(f"drop database {name} with (force)")
            connection.execute(f"drop role {name}")


@pytest.mark.parametrize("role", DATABASES)
def test_a_role_connects_to_its_own_database_and_no_other(
    postgres_server: RunningPostgres, roles: dict[str, str], role: str
) -> None:
    with psycopg.connect(postgres_server.dsn(role, role, roles[role])) as connection:
        assert connection.execute("select current_database()").fetchone() == (role,)
    for other in ("postgres", "template1", *(name for name in DATABASES if name != role)):
        with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
            psycopg.connect(postgres_server.dsn(other, role, roles[role]))


def test_no_role_has_a_power_of_the_server_or_of_another_role(
    postgres_server: RunningPostgres, roles: dict[str, str]
) -> None:
    powers = "rolsuper or rolcreatedb or rolcreaterole or rolreplication or rolbypassrls"
    with psycopg.connect(postgres_server.dsn()) as connection:
        mighty = connection.execute(f"select rolname from pg_roles where rolname = any(%s) and ({powers})", [[*roles]])
        members = connection.execute(
            "select member::regrole from pg_auth_members where member::regrole::text = any(%s)", [[*roles]]
        )
        assert (mighty.fetchall(), members.fetchall()) == ([], [])


@pytest.mark.parametrize(
    "statement", ["create role intruder superuser", "create database mine", "copy (select 1) to program 'true'"]
)
def test_a_role_has_no_power_over_the_server(
    postgres_server: RunningPostgres, roles: dict[str, str], statement: str
) -> None:
    role = DATABASES[0]
    dsn = postgres_server.dsn(role, role, roles[role])
    with psycopg.connect(dsn, autocommit=True) as own, pytest.raises(psycopg.errors.InsufficientPrivilege):
        own.execute(statement)
