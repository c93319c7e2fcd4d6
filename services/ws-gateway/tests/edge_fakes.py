"""The services behind the edge, faked at their gRPC contracts: what was asked is kept, what to answer is data.

One server plays all of them. The event log is the real contract over a log in memory, which a real relay publishes.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import grpc
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from eventlog.log import EventLog
from eventlog.rpc import EventLogServicer
from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp
from servicekit.auth import Principal, issue
from servicekit.errors import (
    BudgetExhausted,
    BudgetSuspended,
    NotFound,
    ServiceError,
    Unauthenticated,
    Unavailable,
    trailers,
)
from synod.agent_registry.v1 import agent_registry_pb2 as registry_pb
from synod.agent_registry.v1 import agent_registry_pb2_grpc as registry_grpc
from synod.agent_runtime.v1 import agent_runtime_pb2 as runtime_pb
from synod.agent_runtime.v1 import agent_runtime_pb2_grpc as runtime_grpc
from synod.consensus.v1 import consensus_pb2 as consensus_pb
from synod.consensus.v1 import consensus_pb2_grpc as consensus_grpc
from synod.cost_ledger.v1 import cost_ledger_pb2 as ledger_pb
from synod.cost_ledger.v1 import cost_ledger_pb2_grpc as ledger_grpc
from synod.eventlog.v1.eventlog_pb2_grpc import add_EventLogServicer_to_server
from synod.llm_gateway.v1 import llm_gateway_pb2 as llm_pb
from synod.llm_gateway.v1 import llm_gateway_pb2_grpc as llm_grpc
from synod.tool_executor.v1 import tool_executor_pb2 as tool_pb
from synod.tool_executor.v1 import tool_executor_pb2_grpc as tool_grpc

API_KEY = "syn_k1_secret"
EXPIRED_KEY = "syn_k0_secret"
RUN_ID = "run_1"
CONVERSATION_ID = "cnv_1"
T0 = datetime(2026, 1, 1, tzinfo=UTC)


async def refuse(context: grpc.aio.ServicerContext, error: ServiceError) -> None:
    await context.abort(error.code, error.message, trailers(error, "fake"))


def stamp(moment: datetime) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromDatetime(moment)
    return timestamp


def a_run(state: str = "COMPLETED", **more: object) -> runtime_pb.Run:
    values: dict[str, object] = {
        "id": RUN_ID,
        "tenant_id": "local",
        "state": f"RUN_STATE_{state}",
        "definition_name": "model-scout",
        "input": "which model?",
        "output": "Hello world",
        "root_run_id": RUN_ID,
        "model_calls": 1,
        "started_at": stamp(T0),
    }
    return runtime_pb.Run(**(values | more))  # type: ignore[arg-type]


def update(cursor: int, type: str, summary: str = "", run_id: str = RUN_ID) -> runtime_pb.RunUpdate:
    data = ParseDict({"run_id": run_id}, Struct())
    return runtime_pb.RunUpdate(
        cursor=cursor, run_id=run_id, agent="analyst", type=type, summary=summary or type, data=data, at=stamp(T0)
    )


def token(sequence: int, text: str, run_id: str = RUN_ID) -> runtime_pb.RunUpdate:
    data = ParseDict({"text": text}, Struct())
    return runtime_pb.RunUpdate(run_id=run_id, agent="analyst", type="Token", data=data, token_sequence=sequence)


@dataclass
class Asked:
    """What arrived: the request, who sent it, and how many seconds they wait."""

    method: str
    request: object
    authorization: str
    left_s: float | None


@dataclass
class FakeServices:
    """What the fakes answer; tests change it."""

    key: Ed25519PrivateKey
    permissions: tuple[str, ...] = ("*",)
    tenant: str = "local"
    token_life: timedelta = timedelta(hours=1)
    refusals: dict[str, ServiceError] = field(default_factory=dict)
    agents: list[registry_pb.Agent] = field(default_factory=list)
    updates: list[runtime_pb.RunUpdate] = field(default_factory=list)
    hold_run: asyncio.Event | None = None
    break_watch_after: int = 0
    run: runtime_pb.Run = field(default_factory=a_run)
    answer: llm_pb.GenerateResponse = field(default_factory=llm_pb.GenerateResponse)
    model_events: list[llm_pb.StreamEvent] = field(default_factory=list)
    break_stream: ServiceError | None = None
    hold_stream: bool = False
    stream_left: asyncio.Event = field(default_factory=asyncio.Event)
    refusals_once: dict[str, ServiceError] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)

    def reset(self) -> None:
        """Forget what was asked and what was ordered, in place: the servers hold this object."""
        self.__init__(self.key)  # type: ignore[misc]

    def requests(self, method: str) -> list[Asked]:
        return [asked for asked in self.asked if asked.method == method]

    async def take(self, method: str, request: object, context: grpc.aio.ServicerContext) -> None:
        metadata = dict(context.invocation_metadata() or ())
        authorization = str(metadata.get("authorization", ""))
        self.asked.append(Asked(method, request, authorization, context.time_remaining()))
        if refusal := self.refusals_once.pop(method, None) or self.refusals.get(method):
            await refuse(context, refusal)

    def token_for(self, id: str = "usr_key") -> str:
        principal = Principal(id, self.tenant, "user", self.permissions)
        return issue(self.key, principal, self.token_life, now=datetime.now(UTC))


@dataclass
class Registry(registry_grpc.AgentRegistryServicer):
    fake: FakeServices

    async def Authenticate(self, request, context):
        await self.fake.take("Authenticate", request, context)
        if request.api_key != API_KEY:
            reason = "KEY_EXPIRED" if request.api_key == EXPIRED_KEY else "KEY_UNKNOWN"
            await refuse(context, Unauthenticated(f"the API key is not valid: {reason}", reason=reason))
        expires = datetime.now(UTC) + self.fake.token_life
        return registry_pb.AuthenticateResponse(token=self.fake.token_for(), expires_at=stamp(expires))

    async def ListAgents(self, request, context):
        await self.fake.take("ListAgents", request, context)
        return registry_pb.ListAgentsResponse(agents=self.fake.agents, next_page_token="")

    async def GetAgent(self, request, context):
        await self.fake.take("GetAgent", request, context)
        await refuse(context, NotFound("agent", request.agent, remedy="see ListAgents"))

    async def Define(self, request, context):
        await self.fake.take("Define", request, context)
        return registry_pb.DefineResponse(definitions=[registry_pb.Definition(name="analyst", kind="Agent", version=1)])

    async def GetDefinition(self, request, context):
        await self.fake.take("GetDefinition", request, context)
        return registry_pb.Definition(name=request.reference, kind="Team", version=2)

    async def ListDefinitions(self, request, context):
        await self.fake.take("ListDefinitions", request, context)
        found = [registry_pb.Definition(name="model-scout", kind="Team", version=1)]
        return registry_pb.ListDefinitionsResponse(definitions=found, next_page_token="next")


@dataclass
class Runtime(runtime_grpc.AgentRuntimeServicer):
    fake: FakeServices

    async def StartRun(self, request, context):
        await self.fake.take("StartRun", request, context)
        return a_run("QUEUED", definition_name=request.definition, input=request.input, output="")

    async def GetRun(self, request, context):
        await self.fake.take("GetRun", request, context)
        if request.id != self.fake.run.id:
            await refuse(context, NotFound("run", request.id))
        return self.fake.run

    async def ListRuns(self, request, context):
        await self.fake.take("ListRuns", request, context)
        return runtime_pb.ListRunsResponse(runs=[self.fake.run])

    async def CancelRun(self, request, context):
        await self.fake.take("CancelRun", request, context)
        return a_run("CANCELLED")

    async def ReplayRun(self, request, context):
        await self.fake.take("ReplayRun", request, context)
        return runtime_pb.ReplayRunResponse(equal=True, runs=6, events=100)

    async def WatchRun(self, request, context) -> AsyncIterator[runtime_pb.RunUpdate]:
        await self.fake.take("WatchRun", request, context)
        for found in self.fake.updates:
            if found.type == "Token" or found.cursor > request.after_cursor:
                yield found
            if found.cursor and found.cursor == self.fake.break_watch_after:
                self.fake.break_watch_after = 0
                await refuse(context, Unavailable("the service is stopping", 0.1))
        if self.fake.hold_run is not None:
            await self.fake.hold_run.wait()

    async def CreateConversation(self, request, context):
        await self.fake.take("CreateConversation", request, context)
        return runtime_pb.Conversation(id=CONVERSATION_ID, definition_name=request.definition)

    async def SendMessage(self, request, context):
        await self.fake.take("SendMessage", request, context)
        if request.conversation_id != CONVERSATION_ID:
            await refuse(context, NotFound("conversation", request.conversation_id, remedy="create_stream makes one"))
        return a_run("QUEUED", conversation_id=request.conversation_id)

    async def GetConversation(self, request, context):
        await self.fake.take("GetConversation", request, context)
        said = [runtime_pb.ConversationMessage(role="user", text="hi", run_id=RUN_ID)]
        return runtime_pb.Conversation(id=request.id, definition_name="analyst", messages=said)


@dataclass
class Ledger(ledger_grpc.CostLedgerServicer):
    fake: FakeServices

    async def QuerySpend(self, request, context):
        await self.fake.take("QuerySpend", request, context)
        rows = [
            ledger_pb.SpendRow(group=["analyst"], cost_nano_usd=1_234_000, input_tokens=10, output_tokens=5, calls=1)
        ]
        return ledger_pb.QuerySpendResponse(rows=rows, total_nano_usd=1_234_000)

    async def SetBudget(self, request, context):
        await self.fake.take("SetBudget", request, context)
        return ledger_pb.Budget(
            budget_id=request.budget_id,
            limit_nano_usd=request.limit_nano_usd,
            hard=request.hard,
            window=request.window,
            available_nano_usd=request.limit_nano_usd,
        )

    async def SuspendBudget(self, request, context):
        await self.fake.take("SuspendBudget", request, context)
        return ledger_pb.Budget(budget_id=request.budget_id, window="day", suspended_for=request.reason)

    async def ResumeBudget(self, request, context):
        await self.fake.take("ResumeBudget", request, context)
        return ledger_pb.Budget(budget_id=request.budget_id, window="day")

    async def GetBudget(self, request, context):
        await self.fake.take("GetBudget", request, context)
        await refuse(context, NotFound("budget", request.budget_id))

    async def ListBudgets(self, request, context):
        await self.fake.take("ListBudgets", request, context)
        return ledger_pb.ListBudgetsResponse(budgets=[ledger_pb.Budget(budget_id="all", window="day")])


@dataclass
class Consensus(consensus_grpc.ConsensusServicer):
    fake: FakeServices

    def _proposal(self, id: str) -> consensus_pb.Proposal:
        return consensus_pb.Proposal(
            id=id,
            title="Take it",
            options=["approve", "reject"],
            rule=consensus_pb.Rule(kind=consensus_pb.RULE_KIND_MAJORITY),
            electorate=[consensus_pb.Voter(id="cost-voter", weight=1)],
            state=consensus_pb.PROPOSAL_STATE_DECIDED,
            outcome="approve",
            tally=[consensus_pb.Tally(option="approve", weight=1)],
            ballots=[consensus_pb.Ballot(voter_id="cost-voter", option="approve", reason="cheap", weight=1)],
        )

    async def ListProposals(self, request, context):
        await self.fake.take("ListProposals", request, context)
        return consensus_pb.ListProposalsResponse(proposals=[self._proposal("prp_1")])

    async def GetProposal(self, request, context):
        await self.fake.take("GetProposal", request, context)
        return self._proposal(request.id)

    async def Vote(self, request, context):
        await self.fake.take("Vote", request, context)
        return self._proposal(request.proposal_id)


@dataclass
class Models(llm_grpc.LlmGatewayServicer):
    fake: FakeServices

    async def ListModels(self, request, context):
        await self.fake.take("ListModels", request, context)
        return llm_pb.ListModelsResponse(
            models=[
                llm_pb.Model(
                    id="simulator/sim-1", provider="simulator", simulated=True, available=True, aliases=["small"]
                ),
                llm_pb.Model(id="openai/gpt-4o", provider="openai", unavailable_reason="set OPENAI_API_KEY"),
            ]
        )

    async def Generate(self, request, context):
        await self.fake.take("Generate", request, context)
        if self.fake.hold_stream:
            await self._held()
        self.fake.answer.request_id = request.request_id
        return self.fake.answer

    async def Stream(self, request, context) -> AsyncIterator[llm_pb.StreamEvent]:
        await self.fake.take("Stream", request, context)
        for sequence, event in enumerate(self.fake.model_events, start=1):
            event.sequence = sequence
            yield event
        if self.fake.break_stream is not None:
            await refuse(context, self.fake.break_stream)
        if self.fake.hold_stream:
            await self._held()

    async def _held(self) -> None:
        """Until the caller leaves."""
        try:
            await asyncio.Event().wait()
        finally:
            self.fake.stream_left.set()

    async def Embed(self, request, context):
        await self.fake.take("Embed", request, context)
        if self.fake.hold_stream:
            await self._held()
        vectors = [llm_pb.Embedding(values=[1.0, -0.5, float(index)]) for index, _ in enumerate(request.texts)]
        usage = llm_pb.Usage(input_tokens=5)
        return llm_pb.EmbedResponse(embeddings=vectors, model="simulator/sim-embed", usage=usage, simulated=True)

    async def CountTokens(self, request, context):
        await self.fake.take("CountTokens", request, context)
        return llm_pb.CountTokensResponse(input_tokens=42, method="upper_bound")


@dataclass
class Tools(tool_grpc.ToolExecutorServicer):
    fake: FakeServices

    async def ListTools(self, request, context):
        await self.fake.take("ListTools", request, context)
        return tool_pb.ListToolsResponse(tools=[tool_pb.Tool(name="calc", effect=tool_pb.EFFECT_CLASS_PURE)])


@asynccontextmanager
async def serve(fake: FakeServices, log: EventLog) -> AsyncIterator[str]:
    """All fakes on one port; gives its address."""
    server = grpc.aio.server()
    registry_grpc.add_AgentRegistryServicer_to_server(Registry(fake), server)
    runtime_grpc.add_AgentRuntimeServicer_to_server(Runtime(fake), server)
    ledger_grpc.add_CostLedgerServicer_to_server(Ledger(fake), server)
    consensus_grpc.add_ConsensusServicer_to_server(Consensus(fake), server)
    llm_grpc.add_LlmGatewayServicer_to_server(Models(fake), server)
    tool_grpc.add_ToolExecutorServicer_to_server(Tools(fake), server)
    add_EventLogServicer_to_server(EventLogServicer(log, []), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


def suspended_budget() -> ServiceError:
    return BudgetSuspended("bud_day", "the invoice is disputed")


def over_budget() -> ServiceError:
    return BudgetExhausted("bud_day", 5, 10)
