"""The ports over gRPC. What the other side answers as an error becomes CallFailed; what leaves the outcome open becomes
CallInterrupted, and is repeated under the same id by whoever called.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeVar

import grpc
from nats.aio.client import Client
from nats.errors import Error as NatsError
from servicekit.context import current_principal
from servicekit.errors import AlreadyExists, FailedPrecondition, NotFound, ServiceError, from_rpc_error
from servicekit.host import Host
from servicekit.settings import S
from synod.agent_registry.v1 import agent_registry_pb2 as registry_pb
from synod.agent_registry.v1.agent_registry_pb2_grpc import AgentRegistryStub
from synod.agent_runtime.events import Ballot, ToolSpec
from synod.common.ids import derived_id
from synod.common.subjects import token_subject
from synod.common.values import Failure
from synod.consensus.v1 import consensus_pb2 as consensus_pb
from synod.consensus.v1.consensus_pb2_grpc import ConsensusStub
from synod.cost_ledger.v1 import cost_ledger_pb2 as ledger_pb
from synod.cost_ledger.v1.cost_ledger_pb2_grpc import CostLedgerStub
from synod.llm_gateway.v1 import llm_gateway_pb2 as gateway_pb
from synod.llm_gateway.v1.llm_gateway_pb2_grpc import LlmGatewayStub
from synod.tool_executor.v1 import tool_executor_pb2 as tools_pb
from synod.tool_executor.v1.tool_executor_pb2_grpc import ToolExecutorStub

from agent_runtime import translate
from agent_runtime.errors import CallError, CallFailed, CallInterrupted, DefinitionNotFound, PeerFailed
from agent_runtime.ports import (
    Decision,
    ModelAnswer,
    ModelCall,
    Pinned,
    Ports,
    Proposal,
    TokenSink,
    ToolCall,
    ToolOutcome,
)
from agent_runtime.work.watch import Token

if TYPE_CHECKING:
    from synod.agent_registry.v1.agent_registry_pb2_grpc import AgentRegistryAsyncStub
    from synod.consensus.v1.consensus_pb2_grpc import ConsensusAsyncStub
    from synod.cost_ledger.v1.cost_ledger_pb2_grpc import CostLedgerAsyncStub
    from synod.llm_gateway.v1.llm_gateway_pb2_grpc import LlmGatewayAsyncStub
    from synod.tool_executor.v1.tool_executor_pb2_grpc import ToolExecutorAsyncStub

T = TypeVar("T")

ANSWERED: Final = frozenset({"PROVIDER_UNAVAILABLE", "RATE_LIMITED", "BUDGET_EXHAUSTED"})
"""Reasons that end a call although a later one may succeed: the answer is known, a new call id may be tried."""
TOOL_GRACE_S: Final = 15.0
"""Beyond a tool's own time limit: queueing, sandbox start and the append of its result."""
MODEL_CALL_MAX_S: Final = 900.0


def connect(host: Host[S]) -> Ports:
    """All ports over the channels of a host. Raises PeerUnknown for a service without an address."""
    return Ports(
        models=GrpcModels(LlmGatewayStub(host.channel("llm-gateway"))),
        tools=GrpcTools(ToolExecutorStub(host.channel("tool-executor"))),
        registry=GrpcRegistry(AgentRegistryStub(host.channel("agent-registry"))),
        ledger=GrpcLedger(CostLedgerStub(host.channel("cost-ledger"))),
        consensus=GrpcConsensus(ConsensusStub(host.channel("consensus"))),
        tokens=NatsTokens(host.nats),
    )


def call_error(error: ServiceError) -> CallError:
    """Whether a call ended or its outcome is open. An error without a domain comes from the transport."""
    known = error.reason in ANSWERED or (error.domain and not error.retryable)
    if not known:
        return PeerFailed(error) if error.domain else CallInterrupted(f"{error.reason}: {error.message}")
    retryable = error.retryable and error.reason != "BUDGET_EXHAUSTED"
    return CallFailed(Failure(reason=error.reason, message=error.message, retryable=retryable))


async def asked(call: Awaitable[T]) -> T:
    """The answer of a unary call. Raises CallError."""
    with answering():
        return await call


@contextmanager
def answering() -> Iterator[None]:
    """Translate the errors of a call inside the block."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise call_error(from_rpc_error(error)) from error
    except ServiceError as error:
        raise call_error(error) from error


@dataclass(frozen=True, slots=True)
class GrpcModels:
    stub: LlmGatewayAsyncStub

    async def stream(self, call: ModelCall) -> AsyncIterator[str | ModelAnswer]:
        request = gateway_pb.StreamRequest(request=translate.to_generate(call))
        with answering():
            async for event in self.stub.Stream(request, timeout=MODEL_CALL_MAX_S):
                match event.WhichOneof("event"):
                    case "text_delta":
                        yield event.text_delta
                    case "completed":
                        yield translate.from_generated(event.completed)
                        return
                    case "error":
                        raise CallFailed(
                            Failure(
                                reason=event.error.reason, message=event.error.message, retryable=event.error.retryable
                            )
                        )


@dataclass(frozen=True, slots=True)
class GrpcTools:
    stub: ToolExecutorAsyncStub

    async def list_tools(self) -> tuple[ToolSpec, ...]:
        answer = await asked(self.stub.ListTools(tools_pb.ListToolsRequest()))
        return tuple(translate.from_tool(tool) for tool in answer.tools)

    async def execute(self, call: ToolCall) -> ToolOutcome:
        request = translate.to_execute(call)
        answer = await asked(self.stub.Execute(request, timeout=call.timeout_s + TOOL_GRACE_S))
        return translate.from_tool_call(answer)

    async def cancel(self, call_id: str) -> None:
        await asked(self.stub.CancelToolCall(tools_pb.CancelToolCallRequest(call_id=call_id)))


@dataclass(frozen=True, slots=True)
class GrpcRegistry:
    stub: AgentRegistryAsyncStub
    _agents: dict[tuple[str, str], str] = field(default_factory=dict)
    """Agent ids by tenant and name; an agent keeps its id for life."""

    async def definition(self, reference: str) -> Pinned:
        try:
            answer = await self.stub.GetDefinition(registry_pb.GetDefinitionRequest(reference=reference))
        except grpc.aio.AioRpcError as error:
            refusal = from_rpc_error(error)
            if isinstance(refusal, NotFound):
                raise DefinitionNotFound(reference, refusal.message) from error
            raise call_error(refusal) from error
        return translate.from_definition(answer)

    async def ensure_agent(self, pinned: Pinned) -> str:
        key = (current_principal().tenant, pinned.name)
        if key not in self._agents:
            self._agents[key] = await self._found(pinned.name) or await self._created(pinned)
        return self._agents[key]

    async def _found(self, name: str) -> str:
        try:
            return (await self.stub.GetAgent(registry_pb.GetAgentRequest(agent=name))).id
        except grpc.aio.AioRpcError as error:
            refusal = from_rpc_error(error)
            if isinstance(refusal, NotFound):
                return ""
            raise call_error(refusal) from error

    async def _created(self, pinned: Pinned) -> str:
        request = registry_pb.CreateAgentRequest(
            definition=pinned.digest, name=pinned.name, request_id=derived_id("req", "agent", pinned.digest)
        )
        try:
            return (await self.stub.CreateAgent(request)).id
        except grpc.aio.AioRpcError as error:
            refusal = from_rpc_error(error)
            if isinstance(refusal, AlreadyExists):
                return await self._found(pinned.name)
            raise call_error(refusal) from error


@dataclass(frozen=True, slots=True)
class GrpcLedger:
    stub: CostLedgerAsyncStub

    async def set_budget(self, budget_id: str, limit_nano_usd: int, *, run_id: str = "", root_run_id: str = "") -> None:
        scope = ledger_pb.Attribution(tenant_id=current_principal().tenant, run_id=run_id, root_run_id=root_run_id)
        request = ledger_pb.SetBudgetRequest(
            budget_id=budget_id, scope=scope, limit_nano_usd=limit_nano_usd, hard=True, window="lifetime"
        )
        await asked(self.stub.SetBudget(request))


@dataclass(frozen=True, slots=True)
class GrpcConsensus:
    stub: ConsensusAsyncStub

    async def propose(self, proposal: Proposal) -> str:
        return (await asked(self.stub.Propose(translate.to_propose(proposal)))).id

    async def vote(self, proposal_id: str, ballots: Sequence[Ballot]) -> None:
        try:
            await self.stub.CastVotes(translate.to_votes(proposal_id, ballots))
        except grpc.aio.AioRpcError as error:
            refusal = from_rpc_error(error)
            if not isinstance(refusal, FailedPrecondition) or refusal.reason != "ALREADY_VOTED":
                raise call_error(refusal) from error

    async def decision(self, proposal_id: str) -> Decision | None:
        answer = await asked(self.stub.GetProposal(consensus_pb.GetProposalRequest(id=proposal_id)))
        return translate.from_proposal(answer)


@dataclass(frozen=True, slots=True)
class NatsTokens(TokenSink):
    """Tokens on core NATS, on the subject of the run and on that of the run at the root."""

    nats: Client

    async def publish(self, tenant: str, run_id: str, root_run_id: str, agent: str, sequence: int, text: str) -> None:
        token = Token(run_id=run_id, root_run_id=root_run_id, agent=agent, sequence=sequence, text=text)
        payload = token.model_dump_json().encode()
        try:
            for subject_of in dict.fromkeys((run_id, root_run_id)):
                await self.nats.publish(token_subject(tenant, subject_of), payload)
        except NatsError:
            # Tokens are a courtesy: without NATS the run goes on, its answer is in the log.
            return
