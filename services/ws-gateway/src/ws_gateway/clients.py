"""The services behind the edge, as a caller sees them: plain values in, resources out, in the caller's name."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

import grpc
from eventlog.log import EventLog
from eventlog.records import Filter
from google.protobuf.message import Message
from httpedge.callers import Caller
from servicekit.errors import InvalidArgument, ServiceError, Unavailable, from_rpc_error
from servicekit.retry import Backoff
from synod.agent_registry.v1 import agent_registry_pb2 as registry_pb
from synod.agent_registry.v1.agent_registry_pb2_grpc import AgentRegistryStub
from synod.agent_runtime.v1 import agent_runtime_pb2 as runtime_pb
from synod.agent_runtime.v1.agent_runtime_pb2_grpc import AgentRuntimeStub
from synod.consensus.v1 import consensus_pb2 as consensus_pb
from synod.consensus.v1.consensus_pb2_grpc import ConsensusStub
from synod.cost_ledger.v1 import cost_ledger_pb2 as ledger_pb
from synod.cost_ledger.v1.cost_ledger_pb2_grpc import CostLedgerStub
from synod.eventlog.v1 import eventlog_pb2 as log_pb
from synod.eventlog.v1.eventlog_pb2_grpc import EventLogStub
from synod.llm_gateway.v1 import llm_gateway_pb2 as llm_pb
from synod.llm_gateway.v1.llm_gateway_pb2_grpc import LlmGatewayStub
from synod.tool_executor.v1 import tool_executor_pb2 as tool_pb
from synod.tool_executor.v1.tool_executor_pb2_grpc import ToolExecutorStub

from ws_gateway import translate
from ws_gateway.hub.channels import SERVICES
from ws_gateway.resources import (
    Agent,
    Budget,
    Conversation,
    Definition,
    EventPage,
    LoggedEvent,
    Model,
    Page,
    Proposal,
    Replay,
    Resource,
    Run,
    RunUpdate,
    Scope,
    Spend,
    Tool,
    View,
)

if TYPE_CHECKING:  # the generated stubs know this class in their types only
    from synod.eventlog.v1.eventlog_pb2_grpc import EventLogAsyncStub
    from synod.llm_gateway.v1.llm_gateway_pb2_grpc import LlmGatewayAsyncStub

R = TypeVar("R", bound=Resource)
T = TypeVar("T")
Metadata = tuple[tuple[str, str], ...]

OWN: Final = "ws-gateway"
PEERS: Final = tuple(name for name in SERVICES if name != OWN)
WATCH_ATTEMPTS_MAX: Final = 5
FLEET_MAX: Final = 1_000
_WATCH_RETRY: Final = Backoff(initial_s=0.2, max_s=2)


class Channels(Protocol):
    """Where the services are; servicekit's Host. Its channels add trace and deadline."""

    def channel(self, peer: str) -> grpc.aio.Channel: ...


class Services:
    """Stubs of every service, shared by all callers."""

    def __init__(self, channels: Channels, own_log: EventLog) -> None:
        self.registry = AgentRegistryStub(channels.channel("agent-registry"))
        self.runtime = AgentRuntimeStub(channels.channel("agent-runtime"))
        self.ledger = CostLedgerStub(channels.channel("cost-ledger"))
        self.consensus = ConsensusStub(channels.channel("consensus"))
        self.models = LlmGatewayStub(channels.channel("llm-gateway"))
        self.tools = ToolExecutorStub(channels.channel("tool-executor"))
        self.logs = {peer: EventLogStub(channels.channel(peer)) for peer in PEERS}
        self.own_log = own_log

    def in_name_of(self, caller: Caller) -> "CallerServices":
        return CallerServices(self, caller)


@dataclass(frozen=True, slots=True)
class ModelsOverGrpc:
    """See httpedge.model_calls.ModelCalls."""

    stub: "LlmGatewayAsyncStub"

    async def generate(
        self, request: llm_pb.GenerateRequest, caller: Caller, timeout_s: float
    ) -> llm_pb.GenerateResponse:
        return await _told(self.stub.Generate(request, metadata=metadata_of(caller), timeout=timeout_s))

    async def stream(
        self, request: llm_pb.GenerateRequest, caller: Caller, timeout_s: float
    ) -> AsyncGenerator[llm_pb.StreamEvent, None]:
        call = self.stub.Stream(llm_pb.StreamRequest(request=request), metadata=metadata_of(caller), timeout=timeout_s)
        try:
            async for event in call:
                yield event
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        finally:
            call.cancel()

    async def embed(self, request: llm_pb.EmbedRequest, caller: Caller, timeout_s: float) -> llm_pb.EmbedResponse:
        return await _told(self.stub.Embed(request, metadata=metadata_of(caller), timeout=timeout_s))

    async def count_tokens(self, request: llm_pb.CountTokensRequest, caller: Caller) -> llm_pb.CountTokensResponse:
        return await _told(self.stub.CountTokens(request, metadata=metadata_of(caller)))

    async def models(self, caller: Caller) -> Sequence[llm_pb.Model]:
        found = await _told(self.stub.ListModels(llm_pb.ListModelsRequest(), metadata=metadata_of(caller)))
        return found.models


@dataclass(frozen=True, slots=True)
class CallerServices:
    """The services with one caller's token. Every method raises ServiceError as the service answered it."""

    services: Services
    caller: Caller

    @property
    def metadata(self) -> Metadata:
        return metadata_of(self.caller)

    # Agents and definitions

    async def define(self, yaml: str, validate_only: bool) -> tuple[Definition, ...]:
        request = registry_pb.DefineRequest(yaml=yaml, validate_only=validate_only)
        answer = await self.services.registry.Define(request, metadata=self.metadata)
        return _all(Definition, answer.definitions)

    async def definition(self, reference: str) -> Definition:
        request = registry_pb.GetDefinitionRequest(reference=reference)
        return _one(Definition, await self.services.registry.GetDefinition(request, metadata=self.metadata))

    async def definitions(self, cursor: str, limit: int, all_versions: bool) -> Page[Definition]:
        request = registry_pb.ListDefinitionsRequest(page_size=limit, page_token=cursor, all_versions=all_versions)
        answer = await self.services.registry.ListDefinitions(request, metadata=self.metadata)
        return _page(Definition, answer.definitions, answer.next_page_token)

    async def agents(self, cursor: str = "", limit: int = FLEET_MAX) -> Page[Agent]:
        request = registry_pb.ListAgentsRequest(page_size=limit, page_token=cursor)
        answer = await self.services.registry.ListAgents(request, metadata=self.metadata)
        return _page(Agent, answer.agents, answer.next_page_token)

    async def agent(self, agent: str) -> Agent:
        request = registry_pb.GetAgentRequest(agent=agent)
        return _one(Agent, await self.services.registry.GetAgent(request, metadata=self.metadata))

    # Runs and conversations

    async def start_run(
        self,
        request_id: str,
        definition: str,
        text: str,
        budget_nano_usd: int,
        workspace_id: str,
        tags: Mapping[str, str],
    ) -> Run:
        request = runtime_pb.StartRunRequest(
            request_id=request_id,
            definition=definition,
            input=text,
            budget_nano_usd=budget_nano_usd,
            workspace_id=workspace_id,
            tags=tags,
        )
        return _one(Run, await self.services.runtime.StartRun(request, metadata=self.metadata))

    async def run(self, run_id: str) -> Run:
        request = runtime_pb.GetRunRequest(id=run_id)
        return _one(Run, await self.services.runtime.GetRun(request, metadata=self.metadata))

    async def runs(self, cursor: str, limit: int, roots_only: bool, state: str) -> Page[Run]:
        wanted = translate.to_state("state", state, translate.RUN_STATES)
        request = runtime_pb.ListRunsRequest(page_size=limit, page_token=cursor, roots_only=roots_only, state=wanted)
        answer = await self.services.runtime.ListRuns(request, metadata=self.metadata)
        return _page(Run, answer.runs, answer.next_page_token)

    async def cancel_run(self, run_id: str, reason: str) -> Run:
        request = runtime_pb.CancelRunRequest(id=run_id, reason=reason)
        return _one(Run, await self.services.runtime.CancelRun(request, metadata=self.metadata))

    async def replay_run(self, run_id: str) -> Replay:
        request = runtime_pb.ReplayRunRequest(id=run_id)
        return _one(Replay, await self.services.runtime.ReplayRun(request, metadata=self.metadata))

    async def watch_run(self, run_id: str, after: int = 0, tokens: bool = True) -> AsyncIterator[RunUpdate]:
        """What happens in a run until it has ended. A connection that breaks is taken up again at the last cursor."""
        failures = 0
        while True:
            try:
                async for update in self._watch_once(run_id, after, tokens):
                    after, failures = max(after, update.cursor), 0
                    yield update
                return
            except Unavailable:
                failures += 1
                if failures >= WATCH_ATTEMPTS_MAX:
                    raise
            await asyncio.sleep(_WATCH_RETRY.delay_s(failures))

    async def create_conversation(self, request_id: str, definition: str) -> Conversation:
        request = runtime_pb.CreateConversationRequest(request_id=request_id, definition=definition)
        return _one(Conversation, await self.services.runtime.CreateConversation(request, metadata=self.metadata))

    async def conversation(self, conversation_id: str) -> Conversation:
        request = runtime_pb.GetConversationRequest(id=conversation_id)
        return _one(Conversation, await self.services.runtime.GetConversation(request, metadata=self.metadata))

    async def send_message(self, request_id: str, conversation_id: str, text: str) -> Run:
        request = runtime_pb.SendMessageRequest(request_id=request_id, conversation_id=conversation_id, text=text)
        return _one(Run, await self.services.runtime.SendMessage(request, metadata=self.metadata))

    # Money

    async def spend(
        self,
        group_by: Sequence[str],
        scope: Scope,
        tags: Mapping[str, str],
        since: datetime | None,
        until: datetime | None,
    ) -> Spend:
        request = ledger_pb.QuerySpendRequest(
            group_by=group_by, filter=translate.to_attribution(scope, tags), until=translate.to_timestamp(until)
        )
        if (start := translate.to_timestamp(since)) is not None:
            getattr(request, "from").CopyFrom(start)  # the field is named as a Python keyword
        answer = await self.services.ledger.QuerySpend(request, metadata=self.metadata)
        return _one(Spend, answer, group_by=tuple(group_by))

    async def budgets(self, cursor: str, limit: int) -> Page[Budget]:
        request = ledger_pb.ListBudgetsRequest(page_size=limit, page_token=cursor)
        answer = await self.services.ledger.ListBudgets(request, metadata=self.metadata)
        return _page(Budget, answer.budgets, answer.next_page_token)

    async def budget(self, budget_id: str) -> Budget:
        request = ledger_pb.GetBudgetRequest(budget_id=budget_id)
        return _one(Budget, await self.services.ledger.GetBudget(request, metadata=self.metadata))

    async def set_budget(self, budget_id: str, scope: Scope, limit_nano_usd: int, hard: bool, window: str) -> Budget:
        request = ledger_pb.SetBudgetRequest(
            budget_id=budget_id,
            scope=translate.to_attribution(scope),
            limit_nano_usd=limit_nano_usd,
            hard=hard,
            window=window,
        )
        return _one(Budget, await self.services.ledger.SetBudget(request, metadata=self.metadata))

    async def suspend_budget(self, budget_id: str, reason: str) -> Budget:
        request = ledger_pb.SuspendBudgetRequest(budget_id=budget_id, reason=reason)
        return _one(Budget, await self.services.ledger.SuspendBudget(request, metadata=self.metadata))

    async def resume_budget(self, budget_id: str) -> Budget:
        request = ledger_pb.ResumeBudgetRequest(budget_id=budget_id)
        return _one(Budget, await self.services.ledger.ResumeBudget(request, metadata=self.metadata))

    # Models, tools, proposals

    async def models(self, provider: str) -> Page[Model]:
        request = llm_pb.ListModelsRequest(provider=provider)
        answer = await self.services.models.ListModels(request, metadata=self.metadata)
        return _page(Model, answer.models)

    async def tools(self) -> Page[Tool]:
        answer = await self.services.tools.ListTools(tool_pb.ListToolsRequest(), metadata=self.metadata)
        return _page(Tool, answer.tools)

    async def proposals(self, cursor: str, limit: int, state: str, run_id: str) -> Page[Proposal]:
        wanted = translate.to_state("state", state, translate.PROPOSAL_STATES)
        request = consensus_pb.ListProposalsRequest(page_size=limit, page_token=cursor, run_id=run_id, state=wanted)
        answer = await self.services.consensus.ListProposals(request, metadata=self.metadata)
        return _page(Proposal, answer.proposals, answer.next_page_token)

    async def proposal(self, proposal_id: str) -> Proposal:
        request = consensus_pb.GetProposalRequest(id=proposal_id)
        return _one(Proposal, await self.services.consensus.GetProposal(request, metadata=self.metadata))

    async def vote(self, proposal_id: str, voter_id: str, option: str, reason: str) -> Proposal:
        voter = voter_id or self.caller.principal.id
        request = consensus_pb.VoteRequest(proposal_id=proposal_id, voter_id=voter, option=option, reason=reason)
        return _one(Proposal, await self.services.consensus.Vote(request, metadata=self.metadata))

    # Logs

    async def events(self, service: str, after: int, limit: int, types: Sequence[str], run_id: str) -> EventPage:
        """Events of a service's log by position, of the caller's tenant. ``run_id`` is the run at the root."""
        if service == OWN:
            return await self._own_events(after, limit, types, run_id)
        where = log_pb.EventFilter(types=types, correlation_id=run_id)
        request = log_pb.ReadRequest(after_position=after, page_size=limit, filter=where)
        answer = await self._log(service).Read(request, metadata=self.metadata)
        events = tuple(translate.from_logged(event) for event in answer.events)
        return _event_page(events, answer.next_after_position, answer.head_position)

    async def views(self, service: str) -> tuple[View, ...]:
        answer = await self._log(service).ListViews(log_pb.ListViewsRequest(), metadata=self.metadata)
        return tuple(_one(View, view, service=service) for view in answer.views)

    async def _own_events(self, after: int, limit: int, types: Sequence[str], run_id: str) -> EventPage:
        self.caller.require("events.read")
        where = Filter(frozenset(types) or None, self.caller.principal.tenant, correlation=run_id or None)
        head = await self.services.own_log.head()
        found = await self.services.own_log.read(after, limit=limit, where=where)
        events = tuple(translate.from_stored(event) for event in found)
        return _event_page(events, events[-1].position if len(events) == limit else max(head, after), head)

    async def _watch_once(self, run_id: str, after: int, tokens: bool) -> AsyncIterator[RunUpdate]:
        request = runtime_pb.WatchRunRequest(id=run_id, after_cursor=after, tokens=tokens)
        try:
            async for update in self.services.runtime.WatchRun(request, metadata=self.metadata):
                yield translate.to_resource(RunUpdate, update)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error

    def _log(self, service: str) -> "EventLogAsyncStub":
        if service not in self.services.logs:
            raise InvalidArgument("service", service, f"must be one of {', '.join(SERVICES)}")
        return self.services.logs[service]


def metadata_of(caller: Caller) -> Metadata:
    return (("authorization", f"Bearer {caller.token}"),)


async def _told(call: Awaitable[T]) -> T:
    """The answer. Raises what a service refused as ServiceError."""
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from error


def refusal(error: Exception) -> ServiceError | None:
    """What a service refused, whichever form it has; None for anything else."""
    return translate.ERRORS.translate(error)


def _one(kind: type[R], message: Message, **more: object) -> R:
    return translate.to_resource(kind, message, **more)


def _all(kind: type[R], messages: Sequence[Message]) -> tuple[R, ...]:
    return tuple(translate.to_resource(kind, message) for message in messages)


def _page(kind: type[R], messages: Sequence[Message], cursor: str = "") -> Page[R]:
    return Page[kind](data=_all(kind, messages), next_cursor=cursor or None)  # type: ignore[valid-type]


def _event_page(events: tuple[LoggedEvent, ...], considered: int, head: int) -> EventPage:
    return EventPage(data=events, next_cursor=str(considered) if considered < head else None, head_position=head)
