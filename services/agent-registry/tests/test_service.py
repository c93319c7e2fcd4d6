"""The service as its clients see it: real gRPC, PostgreSQL and NATS."""

import asyncio
import json
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import jwt
import nats
import pytest
import pytest_asyncio
from agent_registry import keys
from agent_registry.main import compose
from agent_registry.settings import Settings
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from eventlog.codec import Codec
from eventlog.ending import end
from eventlog.memory import MemoryEventLog
from eventlog.records import ANY, Append, Context, StreamId
from eventlog.relay import Relay
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2, status_pb2
from launcher.processes import Warden
from launcher.testing import RunningPostgres, running_nats
from nats.aio.client import Client
from servicekit.clock import SystemClock
from servicekit.peers import PeerChannel
from servicekit.testing import FakeClock, Served, serve_in_process, settings_for
from synod.agent_registry.v1 import agent_registry_pb2 as pb
from synod.agent_registry.v1.agent_registry_pb2_grpc import AgentRegistryStub
from synod.agent_runtime.events import RunCancelled, RunCompleted, RunFailed, RunStarted
from synod.common.event import Event
from synod.common.ids import derived_id
from synod.common.values import Failure
from synod.eventlog.v1 import eventlog_pb2 as log_pb
from synod.eventlog.v1.eventlog_pb2_grpc import EventLogStub
from synod.tool_executor.events import ToolRegistered

pytestmark = pytest.mark.asyncio(loop_scope="module")

DEADLINE_S = 30.0
DEV_KEY = "syn_dev_" + "d" * 43
LEDGER_KEY = "syn_svc-cost-ledger_" + "s" * 43
EXAMPLE = Path(__file__).parents[3] / "deploy" / "examples" / "model-scout" / "agents.yaml"
EXAMPLE_TOOLS = ("csv_profile", "sql_query", "calc", "python_exec", "chart_render", "file_write")
HEARTBEAT_S = 0.1


class ForeignLog:
    """The log of another service, with the stream that it fills."""

    def __init__(self, client: Client, service: str, types: tuple[type[Event], ...]) -> None:
        self.log = MemoryEventLog()
        self.relay = Relay(self.log, client, service)
        self._codec: Codec[Event] = Codec(types, sealed_below=True)

    async def tell(self, *events: Event, stream_id: str = "x") -> None:
        context = Context(tenant="local", actor="test")
        for event in events:
            id = getattr(event, "run_id", stream_id)
            encoded = self._codec.encode(event, at=SystemClock().now())
            await self.log.append(Append(StreamId(event.AGGREGATE, id), ANY, (encoded,), context))


@dataclass(slots=True)
class World:
    """The registry, its clock, and the services that it listens to."""

    served: Served[Settings]
    clock: FakeClock
    channel: PeerChannel
    tools: ForeignLog
    runtime: ForeignLog

    @property
    def stub(self) -> AgentRegistryStub:
        return AgentRegistryStub(self.channel)

    def stub_with(self, token: str) -> AgentRegistryStub:
        return AgentRegistryStub(self.served.connect(token))

    async def authenticate(self, key: str) -> pb.AuthenticateResponse:
        return await self.stub.Authenticate(pb.AuthenticateRequest(api_key=key))

    async def agent(self, name: str) -> pb.Agent:
        return await self.stub.GetAgent(pb.GetAgentRequest(agent=name))


def settings(dsn: str, nats_url: str, directory: Path, key: Ed25519PrivateKey) -> Settings:
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    files = {
        "signing.pem": private,
        "dev.key": DEV_KEY.encode(),
        "master.key": b64encode(b"m" * 32),
        "service-keys.json": json.dumps({"cost-ledger": keys.sha256(LEDGER_KEY)}).encode(),
    }
    for name, content in files.items():
        (directory / name).write_bytes(content)
    return settings_for(
        Settings,
        dsn,
        nats_url,
        signing_key_file=directory / "signing.pem",
        master_key_file=directory / "master.key",
        dev_key_file=directory / "dev.key",
        service_keys_file=directory / "service-keys.json",
        heartbeat_interval_ms=int(HEARTBEAT_S * 1000),
        restarts_max=2,
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(
    postgres_server: RunningPostgres, launcher_warden: Warden, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[World]:
    """One registry for all tests of this file; each uses names of its own. Its NATS is fresh, since streams have one name."""
    key, clock = Ed25519PrivateKey.generate(), FakeClock()
    with (
        postgres_server.fresh_database() as dsn,
        running_nats(tmp_path_factory.mktemp("nats"), launcher_warden) as server,
    ):
        client = await nats.connect(server.url)
        tools = ForeignLog(client, "tool-executor", (ToolRegistered,))
        runtime = ForeignLog(client, "agent-runtime", (RunStarted, RunCompleted, RunFailed, RunCancelled))
        relays = [asyncio.create_task(foreign.relay.run()) for foreign in (tools, runtime)]
        given = settings(dsn, server.url, tmp_path_factory.mktemp("keys"), key)
        async with serve_in_process(compose, given, clock=clock, key=key) as served:
            # The clock is moved by hours, so the tests' own token lives for a year.
            channel = served.connect(served.token(ttl=timedelta(days=365)))
            yield World(served, clock, channel, tools, runtime)
        await end(*relays)
        await client.close()


async def until(ask: Callable[[], Awaitable[Any]], found: Callable[[Any], bool]) -> Any:
    """The first answer that is what was waited for; fails with the last answer at the deadline."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + DEADLINE_S
    while not found(answer := await ask()):
        if loop.time() > deadline:
            pytest.fail(f"still waiting after {DEADLINE_S} s; the last answer was {answer!r}")
        await asyncio.sleep(0.01)
    return answer


async def refusal(call: Awaitable[Any]) -> tuple[grpc.StatusCode, str, status_pb2.Status]:
    """Code, message and details of a call that must be refused."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    trailers = dict(caught.value.trailing_metadata() or ())
    status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])  # type: ignore[arg-type]
    return caught.value.code(), caught.value.details() or "", status


def reason(status: status_pb2.Status) -> str:
    info = error_details_pb2.ErrorInfo()
    next(detail for detail in status.details if detail.Is(info.DESCRIPTOR)).Unpack(info)
    return info.reason


def violations(status: status_pb2.Status) -> list[tuple[str, str]]:
    bad = error_details_pb2.BadRequest()
    next(detail for detail in status.details if detail.Is(bad.DESCRIPTOR)).Unpack(bad)
    return [(violation.field, violation.description) for violation in bad.field_violations]


def agent_yaml(name: str, *capabilities: str, instructions: str = "Answer.") -> str:
    return (
        f"apiVersion: synod/v1\nkind: Agent\nmetadata: {{name: {name}}}\nspec:\n  model: {{name: sim-1}}\n"
        f"  instructions: {instructions}\n  capabilities: [{', '.join(capabilities)}]\n"
    )


async def define(world: World, text: str) -> list[pb.Definition]:
    return list((await world.stub.Define(pb.DefineRequest(yaml=text))).definitions)


async def create(world: World, name: str, *capabilities: str) -> pb.Agent:
    await define(world, agent_yaml(name, *capabilities))
    return await world.stub.CreateAgent(pb.CreateAgentRequest(definition=name))


# ------------------------------------------------------------------------------------------------------ identity


async def test_the_owner_key_of_the_first_start_opens_everything(world: World) -> None:
    answer = await world.authenticate(DEV_KEY)
    assert list(answer.principal.permissions) == ["*"]
    assert (answer.principal.name, answer.principal.tenant_id) == ("owner", "local")
    claims = jwt.decode(answer.token, options={"verify_signature": False, "verify_exp": False})
    assert (claims["iss"], claims["tid"], claims["exp"] - claims["iat"]) == ("synod", "local", 900)
    owner = world.stub_with(answer.token)
    assert len((await owner.ListPrincipals(pb.ListPrincipalsRequest(page_size=1))).principals) == 1


async def test_a_service_acts_in_any_tenant(world: World) -> None:
    answer = await world.authenticate(LEDGER_KEY)
    assert (answer.principal.id, answer.principal.tenant_id) == ("svc-cost-ledger", "*")
    service = world.stub_with(answer.token)
    listed = await service.ListPrincipals(pb.ListPrincipalsRequest(), metadata=(("synod-tenant", "local"),))
    assert "owner" in [principal.name for principal in listed.principals]
    code, message, _ = await refusal(service.ListPrincipals(pb.ListPrincipalsRequest()))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "synod-tenant" in message


@pytest.mark.parametrize(
    ("key", "why", "message"),
    [
        ("hello", "KEY_MALFORMED", "is not of the form syn_<key id>_<secret>"),
        ("syn_nobody_" + "x" * 43, "KEY_UNKNOWN", "no API key 'nobody' with this secret"),
        ("syn_dev_" + "x" * 43, "KEY_UNKNOWN", "no API key 'dev' with this secret"),
    ],
)
async def test_a_key_that_opens_nothing_is_refused(world: World, key: str, why: str, message: str) -> None:
    code, text, status = await refusal(world.authenticate(key))
    assert (code, reason(status)) == (grpc.StatusCode.UNAUTHENTICATED, why)
    assert message in text
    assert "x" * 43 not in text


async def test_a_viewer_reads_with_a_key_until_it_expires_or_is_revoked(world: World) -> None:
    viewer = await world.stub.CreatePrincipal(
        pb.CreatePrincipalRequest(name="vera", kind=pb.PRINCIPAL_KIND_USER, roles=["viewer"], request_id="vera")
    )
    expires_at = Timestamp()
    expires_at.FromDatetime(world.clock.now() + timedelta(hours=1))
    request = pb.CreateApiKeyRequest(principal_id=viewer.id, label="laptop", expires_at=expires_at)
    created = await world.stub.CreateApiKey(request)
    token = (await world.authenticate(created.secret)).token
    reader = world.stub_with(token)
    await reader.ListDefinitions(pb.ListDefinitionsRequest())
    code, message, _ = await refusal(reader.Define(pb.DefineRequest(yaml="x")))
    assert code is grpc.StatusCode.PERMISSION_DENIED
    assert "definitions.create" in message

    listed = await world.stub.ListApiKeys(pb.ListApiKeysRequest(principal_id=viewer.id))
    assert [key.label for key in listed.keys] == ["laptop"]
    assert created.secret not in str(listed)

    lasting = await world.stub.CreateApiKey(pb.CreateApiKeyRequest(principal_id=viewer.id, label="server"))
    await world.stub.RevokeApiKey(pb.RevokeApiKeyRequest(id=lasting.key.id, reason="lost on a train"))
    code, message, status = await refusal(world.authenticate(lasting.secret))
    assert (code, reason(status)) == (grpc.StatusCode.UNAUTHENTICATED, "KEY_REVOKED")
    assert "was revoked: lost on a train" in message

    world.clock.advance(3601)
    code, message, status = await refusal(world.authenticate(created.secret))
    assert (code, reason(status)) == (grpc.StatusCode.UNAUTHENTICATED, "KEY_EXPIRED")
    assert f"(laptop) expired at {expires_at.ToDatetime():%Y-%m-%dT%H:%M:%SZ}" in message
    assert "CreateApiKey" in message


async def test_principals_are_idempotent_by_request_and_unique_by_name(world: World) -> None:
    request = pb.CreatePrincipalRequest(name="bob", kind=pb.PRINCIPAL_KIND_AGENT, roles=["agent"], request_id="r1")
    first, again = await world.stub.CreatePrincipal(request), await world.stub.CreatePrincipal(request)
    assert first == again
    request.request_id = "r2"
    code, message, _ = await refusal(world.stub.CreatePrincipal(request))
    assert code is grpc.StatusCode.ALREADY_EXISTS
    assert "bob" in message


async def person(world: World, name: str, request_id: str = "") -> pb.Principal:
    request = pb.CreatePrincipalRequest(
        name=name, kind=pb.PRINCIPAL_KIND_USER, roles=["viewer"], request_id=request_id or f"create {name}"
    )
    return await world.stub.CreatePrincipal(request)


async def names(world: World) -> dict[str, str]:
    return {each.id: each.name for each in (await world.stub.ListPrincipals(pb.ListPrincipalsRequest())).principals}


async def test_a_person_is_erased_by_name_and_the_log_still_verifies(world: World) -> None:
    ada, grace = await person(world, "Ada Lovelace"), await person(world, "Grace Hopper")
    log: Any = EventLogStub(world.channel)
    done = await log.EraseSubject(log_pb.EraseSubjectRequest(data_subject=ada.id, reason="asked"))
    assert (done.key_destroyed, list(done.views_rebuilt)) == (True, ["principals"])
    known = await names(world)
    assert (known[ada.id], known[grace.id]) == ("[erased]", "Grace Hopper")
    verified, compared = await asyncio.gather(
        log.Verify(log_pb.VerifyRequest()), log.VerifyView(log_pb.VerifyViewRequest(name="principals"))
    )
    assert (verified.ok, compared.equal) == (True, True)


async def test_the_name_of_a_person_is_stored_nowhere_in_the_clear_but_in_the_view(world: World) -> None:
    await person(world, "Katherine Johnson")
    log: Any = EventLogStub(world.channel)
    created = await log.Read(
        log_pb.ReadRequest(page_size=1000, filter=log_pb.EventFilter(types=["UserCreated"], tenant="local"))
    )
    assert created.events
    assert not any(b"Katherine" in event.data for event in created.events)


async def test_an_id_of_a_person_is_not_computed_from_the_name_alone(world: World) -> None:
    marie = await person(world, "Marie Curie")
    assert marie.id != derived_id("prn", "local", "Marie Curie")
    assert (await person(world, "Marie Curie")).id == marie.id
    code, message, _ = await refusal(person(world, "Marie Curie", "another request"))
    assert (code, "Marie Curie" in message) == (grpc.StatusCode.ALREADY_EXISTS, True)


async def test_who_bears_an_erased_name_is_somebody_else(world: World) -> None:
    log: Any = EventLogStub(world.channel)
    first = await person(world, "Emmy Noether")
    await log.EraseSubject(log_pb.EraseSubjectRequest(data_subject=first.id, reason="asked"))
    second = await person(world, "Emmy Noether", "another request")
    assert second.id != first.id
    known = await names(world)
    assert (known[first.id], known[second.id]) == ("[erased]", "Emmy Noether")


async def test_the_key_of_an_erased_person_opens_until_it_is_revoked(world: World) -> None:
    """Erasing is about data; what somebody may do is decided by keys."""
    log: Any = EventLogStub(world.channel)
    lise = await person(world, "Lise Meitner")
    key = await world.stub.CreateApiKey(pb.CreateApiKeyRequest(principal_id=lise.id, label="laptop"))
    await log.EraseSubject(log_pb.EraseSubjectRequest(data_subject=lise.id, reason="asked"))
    assert (await world.authenticate(key.secret)).principal.name == "[erased]"


async def test_nobody_is_called_as_the_erased_are(world: World) -> None:
    code, message, _ = await refusal(person(world, "[erased]"))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert "not be [erased]" in message


async def test_nobody_makes_a_principal_more_powerful_than_himself(world: World) -> None:
    limited = world.stub_with(world.served.token(["principals.create", "keys.create"]))
    request = pb.CreatePrincipalRequest(name="mallory", kind=pb.PRINCIPAL_KIND_USER, roles=["owner"])
    code, message, status = await refusal(limited.CreatePrincipal(request))
    assert (code, reason(status)) == (grpc.StatusCode.PERMISSION_DENIED, "ROLE_NOT_GRANTABLE")
    assert "role 'owner' includes *" in message
    owner = (await world.authenticate(DEV_KEY)).principal
    code, _, status = await refusal(limited.CreateApiKey(pb.CreateApiKeyRequest(principal_id=owner.id)))
    assert reason(status) == "ROLE_NOT_GRANTABLE"


async def test_another_tenant_sees_nothing_of_this_one(world: World) -> None:
    agent = await create(world, "secluded")
    stranger = world.stub_with(world.served.token(tenant="elsewhere"))
    assert not (await stranger.ListPrincipals(pb.ListPrincipalsRequest())).principals
    assert not (await stranger.ListAgents(pb.ListAgentsRequest())).agents
    owner = (await world.authenticate(DEV_KEY)).principal
    calls = (
        stranger.GetAgent(pb.GetAgentRequest(agent=agent.id)),
        stranger.ChangeAgentState(pb.ChangeAgentStateRequest(agent_id=agent.id, state=pb.AGENT_STATE_TERMINATED)),
        stranger.GetDefinition(pb.GetDefinitionRequest(reference="secluded")),
        stranger.GetDefinition(pb.GetDefinitionRequest(reference=agent.definition_digest)),
        stranger.CreateApiKey(pb.CreateApiKeyRequest(principal_id=owner.id)),
        stranger.RevokeApiKey(pb.RevokeApiKeyRequest(id="dev")),
    )
    for call in calls:
        assert (await refusal(call))[0] is grpc.StatusCode.NOT_FOUND


# --------------------------------------------------------------------------------------------------- definitions


async def test_same_content_is_the_same_version_and_a_change_is_a_new_one(world: World) -> None:
    (first,) = await define(world, agent_yaml("versioned"))
    (again,) = await define(world, agent_yaml("versioned") + "# a comment\n")
    (second,) = await define(world, agent_yaml("versioned", instructions="Answer well."))
    assert (first.version, first.created) == (1, True)
    assert (again.version, again.created, again.digest) == (1, False, first.digest)
    assert (second.version, second.created) == (2, True)
    for reference, version in (("versioned", 2), ("versioned@1", 1), (first.digest, 1), (second.digest, 2)):
        found = await world.stub.GetDefinition(pb.GetDefinitionRequest(reference=reference))
        assert (found.name, found.version) == ("versioned", version)


async def test_validating_only_registers_nothing(world: World) -> None:
    answer = await world.stub.Define(pb.DefineRequest(yaml=agent_yaml("imagined"), validate_only=True))
    assert [(definition.version, definition.created) for definition in answer.definitions] == [(1, False)]
    code, message, _ = await refusal(world.stub.GetDefinition(pb.GetDefinitionRequest(reference="imagined")))
    assert code is grpc.StatusCode.NOT_FOUND
    assert "no definition 'imagined'" in message


async def test_a_misspelt_reference_is_told_what_is_near(world: World) -> None:
    await define(world, agent_yaml("cartographer"))
    _, message, _ = await refusal(world.stub.GetDefinition(pb.GetDefinitionRequest(reference="cartografer")))
    assert "did you mean cartographer?" in message
    code, message, _ = await refusal(world.stub.GetDefinition(pb.GetDefinitionRequest(reference="a@newest")))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "name@version (such as analyst@2)" in message


async def test_every_problem_is_a_violation_with_its_field(world: World) -> None:
    text = (
        agent_yaml("wrong").replace("sim-1", "7") + "---\n" + agent_yaml("Wrong").replace("kind: Agent", "kind: Agnt")
    )
    code, message, status = await refusal(define(world, text))
    assert (code, reason(status)) == (grpc.StatusCode.INVALID_ARGUMENT, "DEFINITIONS_INVALID")
    assert "nothing was registered, 2 problems found" in message
    assert violations(status) == [
        (
            "documents[0].spec.model.name",
            "document 1, line 5, spec.model.name = 7: must be text; put it in quotes",
        ),
        (
            "documents[1].kind",
            "document 2, line 10, kind = 'Agnt': no such kind; use Agent or Team; did you mean Agent?",
        ),
    ]


async def test_a_hundred_problems_still_fit_into_an_answer(world: World) -> None:
    steps = "".join(f"    - {{id: s{number}, agent: nobody-{'x' * 50}, task: go}}\n" for number in range(60))
    text = f"apiVersion: synod/v1\nkind: Team\nmetadata: {{name: huge}}\nspec:\n  steps:\n{steps}"
    _, message, status = await refusal(define(world, text))
    assert "60 problems found" in message
    shown = violations(status)
    assert 10 < len(shown) < 60
    assert shown[-1] == ("yaml", f"and {61 - len(shown)} more; correct these first")


async def test_nothing_is_registered_of_a_request_with_a_mistake(world: World) -> None:
    await refusal(define(world, agent_yaml("innocent") + "---\n" + agent_yaml("guilty").replace("Agent", "Agnt")))
    code, *_ = await refusal(world.stub.GetDefinition(pb.GetDefinitionRequest(reference="innocent")))
    assert code is grpc.StatusCode.NOT_FOUND


async def test_tools_are_checked_once_the_catalogue_is_known(world: World) -> None:
    text = agent_yaml("toolsmith") + "  tools: [calc]\n"
    code, message, status = await refusal(world.stub_with(world.served.token()).Define(pb.DefineRequest(yaml=text)))
    assert (code, reason(status)) == (grpc.StatusCode.UNAVAILABLE, "CATALOGUE_UNKNOWN")
    assert "the tools calc cannot be checked: the catalogue is not known yet" in message

    await world.tools.tell(*(tool(name) for name in EXAMPLE_TOOLS))
    (defined,) = await until(lambda: defined_or_none(world, text), lambda found: found is not None)
    assert defined.created
    _, message, _ = await refusal(define(world, text.replace("calc", "calk")))
    assert "spec.tools[0] = 'calk': no such tool; did you mean calc?" in message

    definitions = await define(world, EXAMPLE.read_text())
    assert (definitions[-1].name, definitions[-1].kind) == ("model-scout", "Team")


def tool(name: str) -> ToolRegistered:
    return ToolRegistered(
        name=name,
        tool_version="1.0.0",
        digest="d" * 64,
        description="",
        parameters_json="{}",
        result_json="{}",
        effect="pure",
        min_level="none",
        timeout_ms=1000,
    )


async def defined_or_none(world: World, text: str) -> list[pb.Definition] | None:
    try:
        return await define(world, text)
    except grpc.aio.AioRpcError as error:
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        return None


async def test_pages_of_definitions_cover_all_once(world: World) -> None:
    for number in range(5):
        await define(world, agent_yaml(f"paged-{number}"))
    request, names = pb.ListDefinitionsRequest(page_size=2), []
    while True:
        answer = await world.stub.ListDefinitions(request)
        names += [definition.name for definition in answer.definitions]
        if not answer.next_page_token:
            break
        request.page_token = answer.next_page_token
    assert names == sorted(set(names))
    assert {f"paged-{number}" for number in range(5)} <= set(names)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (pb.ListDefinitionsRequest(page_token="!"), "page_token = '!': is not a page token of this method"),
        (pb.ListDefinitionsRequest(page_token="WyJhIl0="), "is not a page token of this method"),
        (pb.ListDefinitionsRequest(page_size=1001), "page_size = 1001: must be from 1 to 1000"),
        (pb.ListDefinitionsRequest(page_size=-1), "page_size = -1: must be from 1 to 1000"),
    ],
)
async def test_a_wrong_page_is_refused(world: World, request_: pb.ListDefinitionsRequest, message: str) -> None:
    code, text, _ = await refusal(world.stub.ListDefinitions(request_))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert message in text


# -------------------------------------------------------------------------------------------------------- agents


async def test_an_agent_is_created_once_for_a_request_and_unique_by_name(world: World) -> None:
    await define(world, agent_yaml("solo", "singing"))
    request = pb.CreateAgentRequest(definition="solo", request_id="one")
    first, again = await world.stub.CreateAgent(request), await world.stub.CreateAgent(request)
    assert first == again
    assert (first.state, first.name, first.definition_version) == (pb.AGENT_STATE_IDLE, "solo", 1)
    assert list(first.capabilities) == ["singing"]
    request.request_id = "two"
    code, message, status = await refusal(world.stub.CreateAgent(request))
    assert (code, reason(status)) == (grpc.StatusCode.ALREADY_EXISTS, "NAME_TAKEN")
    assert "solo" in message


async def test_many_requests_for_one_name_make_one_agent(world: World) -> None:
    await define(world, agent_yaml("contested"))
    calls = [
        world.stub.CreateAgent(pb.CreateAgentRequest(definition="contested", request_id=str(number)))
        for number in range(10)
    ]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(isinstance(answer, pb.Agent) for answer in answers) == 1


async def test_the_name_of_a_terminated_agent_is_free_again(world: World) -> None:
    first = await create(world, "mayfly")
    order = pb.ChangeAgentStateRequest(agent_id=first.id, state=pb.AGENT_STATE_TERMINATED, reason="evening")
    gone = await world.stub.ChangeAgentState(order)
    assert gone.state == pb.AGENT_STATE_TERMINATED
    assert (await world.agent(first.id)).state == pb.AGENT_STATE_TERMINATED
    second = await world.stub.CreateAgent(pb.CreateAgentRequest(definition="mayfly"))
    assert second.id != first.id
    assert (await world.agent("mayfly")).id == second.id


async def test_a_team_is_no_agent(world: World) -> None:
    await define(world, agent_yaml("player"))
    team = "apiVersion: synod/v1\nkind: Team\nmetadata: {name: club}\nspec:\n  steps:\n    - {id: a, agent: player, task: go}\n"
    await define(world, team)
    code, message, _ = await refusal(world.stub.CreateAgent(pb.CreateAgentRequest(definition="club")))
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "'club' is a Team" in message


async def test_the_least_busy_agent_with_all_capabilities_comes_first(world: World) -> None:
    busy = await create(world, "weaver-a", "weaving", "dyeing")
    free = await create(world, "weaver-b", "weaving", "dyeing")
    await create(world, "weaver-c", "weaving")
    await world.runtime.tell(started(busy.id, "run_weave_1"))
    await until(lambda: world.agent(busy.id), lambda agent: agent.busy == 1)
    request = pb.DiscoverAgentsRequest(capabilities=["weaving", "dyeing"])
    assert [agent.id for agent in (await world.stub.DiscoverAgents(request)).agents] == [free.id, busy.id]
    order = pb.ChangeAgentStateRequest(agent_id=free.id, state=pb.AGENT_STATE_SUSPENDED, reason="check")
    await world.stub.ChangeAgentState(order)
    assert [agent.id for agent in (await world.stub.DiscoverAgents(request)).agents] == [busy.id]
    assert not (await world.stub.DiscoverAgents(pb.DiscoverAgentsRequest(capabilities=["flying"]))).agents
    code, message, _ = await refusal(world.stub.DiscoverAgents(pb.DiscoverAgentsRequest(limit=101)))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "limit = 101" in message


def started(agent_id: str, run_id: str) -> RunStarted:
    return RunStarted(
        run_id=run_id,
        root_run_id=run_id,
        definition_name="x",
        definition_digest="d" * 64,
        definition_kind="Agent",
        spec_json="{}",
        agent_id=agent_id,
        input="go",
        workspace_id="w",
    )


def failed(agent_id: str, run_id: str) -> RunFailed:
    return RunFailed(
        run_id=run_id,
        root_run_id=run_id,
        agent_id=agent_id,
        definition_name="x",
        epoch=1,
        failure=Failure(reason="BROKEN", message="it broke"),
    )


def completed(agent_id: str, run_id: str) -> RunCompleted:
    return RunCompleted(
        run_id=run_id,
        root_run_id=run_id,
        agent_id=agent_id,
        definition_name="x",
        epoch=1,
        output="done",
        result_sha256="0" * 64,
    )


async def test_runs_move_an_agent_between_idle_and_active(world: World) -> None:
    agent = await create(world, "runner")
    await world.runtime.tell(started(agent.id, "run_r1"), started(agent.id, "run_r2"))
    both = await until(lambda: world.agent("runner"), lambda found: found.busy == 2)
    assert both.state == pb.AGENT_STATE_ACTIVE
    await world.runtime.tell(completed(agent.id, "run_r1"), completed(agent.id, "run_r2"))
    done = await until(lambda: world.agent("runner"), lambda found: found.busy == 0)
    assert (done.state, done.runs_completed) == (pb.AGENT_STATE_IDLE, 2)


async def test_an_agent_that_keeps_failing_is_taken_out_of_service(world: World) -> None:
    agent = await create(world, "wreck", "wrecking")
    for number in range(3):
        await world.runtime.tell(started(agent.id, f"run_w{number}"), failed(agent.id, f"run_w{number}"))
    wreck = await until(lambda: world.agent("wreck"), lambda found: found.state == pb.AGENT_STATE_FAILED)
    assert wreck.runs_failed == 3
    assert not (await world.stub.DiscoverAgents(pb.DiscoverAgentsRequest(capabilities=["wrecking"]))).agents
    resume = pb.ChangeAgentStateRequest(agent_id=agent.id, state=pb.AGENT_STATE_IDLE, reason="repaired")
    assert (await world.stub.ChangeAgentState(resume)).state == pb.AGENT_STATE_IDLE


@pytest.mark.parametrize("state", [pb.AGENT_STATE_UNSPECIFIED, pb.AGENT_STATE_ACTIVE, pb.AGENT_STATE_FAILED, 99])
async def test_only_orders_can_be_ordered(world: World, state: pb.AgentState.ValueType) -> None:
    code, message, _ = await refusal(
        world.stub.ChangeAgentState(pb.ChangeAgentStateRequest(agent_id="agt_x", state=state))
    )
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "state = " in message


# ------------------------------------------------------------------------------------------------- agents outside


async def register(world: World, name: str, request_id: str = "") -> pb.Agent:
    request = pb.RegisterExternalAgentRequest(name=name, capabilities=["ocr-" + name], request_id=request_id)
    return await world.stub.RegisterExternalAgent(request)


async def beat(world: World, agent: pb.Agent, busy: int = 0) -> pb.HeartbeatResponse:
    return await world.stub.Heartbeat(pb.HeartbeatRequest(agent_id=agent.id, incarnation=agent.incarnation, busy=busy))


async def test_an_agent_outside_registers_beats_and_says_how_busy_it_is(world: World) -> None:
    agent = await register(world, "outside", "once")
    assert (agent.external, agent.incarnation, agent.state) == (True, 1, pb.AGENT_STATE_IDLE)
    assert await register(world, "outside", "once") == agent
    answer = await beat(world, agent, busy=3)
    assert (answer.interval_ms, answer.state) == (int(HEARTBEAT_S * 1000), pb.AGENT_STATE_IDLE)
    seen = await world.agent("outside")
    assert (seen.busy, seen.HasField("last_heartbeat_at")) == (3, True)
    listed = await world.stub.ListAgents(pb.ListAgentsRequest(page_size=1000))
    assert next(item.busy for item in listed.agents if item.id == agent.id) == 3


async def test_a_silent_agent_is_suspect_then_offline_and_alive_when_heard_again(world: World) -> None:
    agent = await register(world, "silent")
    await beat(world, agent)
    world.clock.advance(3 * HEARTBEAT_S)
    await until(lambda: world.agent("silent"), lambda found: found.health == pb.AGENT_HEALTH_SUSPECT)
    discovery = pb.DiscoverAgentsRequest(capabilities=["ocr-silent"])
    assert not (await world.stub.DiscoverAgents(discovery)).agents
    world.clock.advance(3 * HEARTBEAT_S)
    await until(lambda: world.agent("silent"), lambda found: found.health == pb.AGENT_HEALTH_OFFLINE)
    await beat(world, agent)
    assert (await world.agent("silent")).health == pb.AGENT_HEALTH_ALIVE
    assert [found.id for found in (await world.stub.DiscoverAgents(discovery)).agents] == [agent.id]

    events = [json.loads(event.data) for event in await history(world, "AgentHealthChanged", agent.id)]
    assert [event["health"] for event in events] == ["suspect", "offline", "alive"]
    assert events[0]["evidence"] == "no heartbeat for 0.3 s, that is 3 intervals of 0.1 s"
    assert events[2]["evidence"] == "a heartbeat after 0.6 s of silence"


async def history(world: World, type: str, stream_id: str) -> list[Any]:
    answer = await EventLogStub(world.channel).Read(log_pb.ReadRequest(page_size=1000))
    return [event for event in answer.events if event.type == type and event.stream.endswith(stream_id)]


async def test_a_zombie_is_refused(world: World) -> None:
    first = await register(world, "undead")
    second = await register(world, "undead")
    assert (second.id, second.incarnation) == (first.id, 2)
    code, message, status = await refusal(beat(world, first))
    assert (code, reason(status)) == (grpc.StatusCode.FAILED_PRECONDITION, "STALE_INCARNATION")
    assert "register again with RegisterExternalAgent" in message
    await beat(world, second)


async def test_heartbeats_are_for_agents_outside(world: World) -> None:
    agent = await create(world, "insider")
    code, _, status = await refusal(beat(world, agent))
    assert (code, reason(status)) == (grpc.StatusCode.FAILED_PRECONDITION, "NOT_EXTERNAL")
    code, *_ = await refusal(world.stub.RegisterExternalAgent(pb.RegisterExternalAgentRequest(name="insider")))
    assert code is grpc.StatusCode.ALREADY_EXISTS
    code, *_ = await refusal(beat(world, pb.Agent(id="agt_nobody", incarnation=1)))
    assert code is grpc.StatusCode.NOT_FOUND


# ----------------------------------------------------------------------------------------------------- the whole


async def test_every_view_equals_one_that_is_folded_anew(world: World) -> None:
    """Last, so that all that the other tests did is in the views; rebuilding runtime_outcomes tells nothing twice."""
    log = EventLogStub(world.channel)
    views = [view.name for view in (await log.ListViews(log_pb.ListViewsRequest())).views]
    assert set(views) == {"principals", "definitions", "agents", "tools", "runtime_outcomes"}
    before = await log.Verify(log_pb.VerifyRequest())
    assert before.ok
    for view in views:
        verified = await log.VerifyView(log_pb.VerifyViewRequest(name=view))
        assert verified.equal, view
        await log.RebuildView(log_pb.RebuildViewRequest(name=view))
    after = await log.Verify(log_pb.VerifyRequest())
    assert (after.events, after.head_hash) == (before.events, before.head_hash)
    parked = await log.ListParkedEvents(log_pb.ListParkedEventsRequest())
    assert not parked.parked


async def test_a_second_start_on_the_same_data_adds_nothing_and_finds_everything(
    postgres_dsn: str, launcher_warden: Warden, tmp_path: Path
) -> None:
    key = Ed25519PrivateKey.generate()
    with running_nats(tmp_path / "nats", launcher_warden) as server:
        given = settings(postgres_dsn, server.url, tmp_path, key)
        async with serve_in_process(compose, given, key=key) as served:
            stub = AgentRegistryStub(served.channel)
            await stub.Define(pb.DefineRequest(yaml=agent_yaml("keeper", "keeping")))
            agent = await stub.CreateAgent(pb.CreateAgentRequest(definition="keeper"))
            first = await EventLogStub(served.channel).Verify(log_pb.VerifyRequest())
        async with serve_in_process(compose, given, key=key) as served:
            stub = AgentRegistryStub(served.channel)
            found = await stub.DiscoverAgents(pb.DiscoverAgentsRequest(capabilities=["keeping"]))
            assert [item.id for item in found.agents] == [agent.id]
            assert (await stub.Authenticate(pb.AuthenticateRequest(api_key=DEV_KEY))).token
            second = await EventLogStub(served.channel).Verify(log_pb.VerifyRequest())
            assert (second.events, second.head_hash) == (first.events, first.head_hash)


async def test_a_new_key_file_locks_the_old_key_out(postgres_dsn: str, launcher_warden: Warden, tmp_path: Path) -> None:
    key, new_key = Ed25519PrivateKey.generate(), "syn_dev2_" + "e" * 43
    with running_nats(tmp_path / "nats", launcher_warden) as server:
        given = settings(postgres_dsn, server.url, tmp_path, key)
        async with serve_in_process(compose, given, key=key):
            pass
        (tmp_path / "dev.key").write_text(new_key)
        async with serve_in_process(compose, given, key=key) as served:
            stub = AgentRegistryStub(served.channel)
            assert (await stub.Authenticate(pb.AuthenticateRequest(api_key=new_key))).token
            _, message, status = await refusal(stub.Authenticate(pb.AuthenticateRequest(api_key=DEV_KEY)))
            assert reason(status) == "KEY_REVOKED"
            assert "replaced by another key from the key file" in message
