"""The ports over gRPC: what is sent, what comes back, and which errors leave an outcome open."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import grpc
import pytest
from agent_runtime.clients import GrpcConsensus, GrpcLedger, GrpcModels, GrpcRegistry, GrpcTools, call_error
from agent_runtime.errors import CallFailed, CallInterrupted, DefinitionNotFound, PeerFailed
from agent_runtime.ports import Attribution, ModelAnswer, ModelCall, Pinned, Proposal, ToolCall
from agent_runtime.translate import ERRORS
from servicekit.errors import (
    BudgetExhausted,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    NotFound,
    ServiceError,
    Unavailable,
    trailers,
)
from synod.agent_registry.v1 import agent_registry_pb2 as registry_pb
from synod.agent_registry.v1 import agent_registry_pb2_grpc as registry_grpc
from synod.agent_runtime.events import Ballot, Message, TextPart, ToolCallPart, ToolResultPart, ToolSpec
from synod.common.definitions import ModelPolicy
from synod.common.values import Failure, Tag
from synod.consensus.v1 import consensus_pb2 as consensus_pb
from synod.consensus.v1 import consensus_pb2_grpc as consensus_grpc
from synod.cost_ledger.v1 import cost_ledger_pb2 as ledger_pb
from synod.cost_ledger.v1 import cost_ledger_pb2_grpc as ledger_grpc
from synod.llm_gateway.v1 import llm_gateway_pb2 as gateway_pb
from synod.llm_gateway.v1 import llm_gateway_pb2_grpc as gateway_grpc
from synod.tool_executor.v1 import tool_executor_pb2 as tools_pb
from synod.tool_executor.v1 import tool_executor_pb2_grpc as tools_grpc

WHO = Attribution("local", "ann", "run_1", "run_0", "conv_1", (Tag(name="team", value="search"),))


async def refuse(context: Any, error: ServiceError) -> None:
    await context.abort(error.code, error.message, trailers(error, "peer"))


class Peer(
    gateway_grpc.LlmGatewayServicer,
    tools_grpc.ToolExecutorServicer,
    registry_grpc.AgentRegistryServicer,
    ledger_grpc.CostLedgerServicer,
    consensus_grpc.ConsensusServicer,
):
    """All five services in one; it keeps what it was asked and raises what it is told to."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.refusal: ServiceError | None = None
        self.stream: list[gateway_pb.StreamEvent] = []
        self.tool_call = tools_pb.ToolCall(state=tools_pb.TOOL_CALL_STATE_SUCCEEDED, result_json="3")
        self.proposal = consensus_pb.Proposal(id="prop_1", state=consensus_pb.PROPOSAL_STATE_OPEN)

    async def _answer(self, request: Any, context: Any) -> None:
        self.asked.append(request)
        if self.refusal is not None:
            await refuse(context, self.refusal)

    async def Stream(self, request: Any, context: Any) -> AsyncIterator[gateway_pb.StreamEvent]:
        await self._answer(request, context)
        for event in self.stream:
            yield event

    async def Execute(self, request: Any, context: Any) -> tools_pb.ToolCall:
        await self._answer(request, context)
        return self.tool_call

    async def CancelToolCall(self, request: Any, context: Any) -> tools_pb.ToolCall:
        await self._answer(request, context)
        return self.tool_call

    async def GetDefinition(self, request: Any, context: Any) -> registry_pb.Definition:
        await self._answer(request, context)
        return registry_pb.Definition(name="ann", kind="Agent", version=2, digest="d", spec_json="{}")

    async def GetAgent(self, request: Any, context: Any) -> registry_pb.Agent:
        self.asked.append(request)
        await refuse(context, NotFound("agent", request.agent))
        return registry_pb.Agent()

    async def CreateAgent(self, request: Any, context: Any) -> registry_pb.Agent:
        await self._answer(request, context)
        return registry_pb.Agent(id="agt_1")

    async def SetBudget(self, request: Any, context: Any) -> ledger_pb.Budget:
        await self._answer(request, context)
        return ledger_pb.Budget()

    async def Propose(self, request: Any, context: Any) -> consensus_pb.Proposal:
        await self._answer(request, context)
        return self.proposal

    async def CastVotes(self, request: Any, context: Any) -> consensus_pb.Proposal:
        await self._answer(request, context)
        return self.proposal

    async def GetProposal(self, request: Any, context: Any) -> consensus_pb.Proposal:
        await self._answer(request, context)
        return self.proposal


@pytest.fixture
def peer() -> Peer:
    return Peer()


@pytest.fixture
async def channel(peer: Peer) -> AsyncIterator[grpc.aio.Channel]:
    server = grpc.aio.server()
    for add in (
        gateway_grpc.add_LlmGatewayServicer_to_server,
        tools_grpc.add_ToolExecutorServicer_to_server,
        registry_grpc.add_AgentRegistryServicer_to_server,
        ledger_grpc.add_CostLedgerServicer_to_server,
        consensus_grpc.add_ConsensusServicer_to_server,
    ):
        add(peer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as opened:
        yield opened
    await server.stop(0)


def a_model_call() -> ModelCall:
    messages = (
        Message(role="system", parts=(TextPart(text="be brief"),)),
        Message(role="assistant", parts=(ToolCallPart(id="m1", name="add", arguments_json="{}"),)),
        Message(role="tool", parts=(ToolResultPart(tool_call_id="m1", name="add", content="3", is_error=True),)),
    )
    tool = ToolSpec(name="add", version="1", digest="x", description="adds", parameters_json='{"type":"object"}')
    policy = ModelPolicy(name="simulator/sim-1", fallback=("a/b",), max_output_tokens=9, temperature=0.5)
    return ModelCall("call_1", policy, messages, (tool,), WHO)


async def streamed(channel: grpc.aio.Channel) -> list[str | ModelAnswer]:
    return [piece async for piece in GrpcModels(gateway_grpc.LlmGatewayStub(channel)).stream(a_model_call())]


async def test_a_model_call_sends_the_whole_prompt_under_its_id(peer: Peer, channel: grpc.aio.Channel) -> None:
    answer = gateway_pb.GenerateResponse(
        message=gateway_pb.Message(role=gateway_pb.ROLE_ASSISTANT, parts=[gateway_pb.Part(text="hi")]),
        finish_reason="stop",
        model="simulator/sim-1",
        usage=gateway_pb.Usage(input_tokens=5, output_tokens=1),
        simulated=True,
    )
    peer.stream = [
        gateway_pb.StreamEvent(started=gateway_pb.StreamStarted()),
        gateway_pb.StreamEvent(text_delta="hi"),
        gateway_pb.StreamEvent(completed=answer),
    ]
    pieces = await streamed(channel)
    message = Message(role="assistant", parts=(TextPart(text="hi"),))
    assert pieces == ["hi", ModelAnswer(message, "stop", "simulator/sim-1", 5, 1, True)]
    request = peer.asked[0].request
    assert (request.request_id, request.model, list(request.fallback_models)) == ("call_1", "simulator/sim-1", ["a/b"])
    assert [message.role for message in request.messages] == [
        gateway_pb.ROLE_SYSTEM,
        gateway_pb.ROLE_ASSISTANT,
        gateway_pb.ROLE_TOOL,
    ]
    assert request.messages[2].parts[0].tool_result.is_error
    assert (request.tools[0].name, request.max_output_tokens, request.temperature) == ("add", 9, 0.5)
    assert (request.attribution.agent, request.attribution.root_run_id) == ("ann", "run_0")
    assert dict(request.attribution.tags) == {"team": "search"}


async def test_an_error_in_the_stream_is_a_failure_with_its_reason(peer: Peer, channel: grpc.aio.Channel) -> None:
    error = gateway_pb.StreamError(reason="PROVIDER_UNAVAILABLE", message="gone", retryable=True)
    peer.stream = [gateway_pb.StreamEvent(error=error)]
    with pytest.raises(CallFailed) as caught:
        await streamed(channel)
    assert caught.value.failure == Failure(reason="PROVIDER_UNAVAILABLE", message="gone", retryable=True)


async def test_a_refused_budget_keeps_the_ledgers_words(peer: Peer, channel: grpc.aio.Channel) -> None:
    peer.refusal = BudgetExhausted("run_0", 5, 9)
    with pytest.raises(CallFailed) as caught:
        await streamed(channel)
    assert (caught.value.failure.reason, caught.value.failure.retryable) == ("BUDGET_EXHAUSTED", False)
    assert "run_0 has 5" in caught.value.failure.message


async def test_nobody_at_the_address_leaves_the_outcome_open() -> None:
    async with grpc.aio.insecure_channel("127.0.0.1:1") as channel:
        with pytest.raises(CallInterrupted):
            await streamed(channel)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (Unavailable("stopping", reason="STOPPING"), PeerFailed),
        (DeadlineExceeded("too late"), PeerFailed),
        (Internal("err_1", "llm-gateway"), PeerFailed),
        (Unavailable("down", reason="PROVIDER_UNAVAILABLE"), CallFailed),
        (FailedPrecondition("no", reason="PROVIDER_REFUSED"), CallFailed),
        (NotFound("model", "sim-2", reason="UNKNOWN_MODEL"), CallFailed),
    ],
)
def test_the_kind_of_an_error_says_whether_the_outcome_is_known(error: ServiceError, kind: type[Exception]) -> None:
    error.domain = "synod.llm-gateway"
    assert type(call_error(error)) is kind


def test_a_defect_of_another_service_is_told_as_its_own_and_not_as_a_way_that_is_cut() -> None:
    defect = Internal("err_1", "agent-registry")
    defect.domain = "synod.agent-registry"
    assert ERRORS.translate(call_error(defect)) is defect
    assert issubclass(PeerFailed, CallInterrupted)  # repeated under the same id all the same
    cut = ERRORS.translate(call_error(Unavailable("connection refused")))
    assert cut is not None
    assert cut.reason == "PEER_UNREACHABLE"


async def test_a_tool_is_called_under_its_effect_id(peer: Peer, channel: grpc.aio.Channel) -> None:
    tools = GrpcTools(tools_grpc.ToolExecutorStub(channel))
    outcome = await tools.execute(ToolCall("eff_1", "add@1", "{}", "ann", "ws_1", 5, WHO))
    assert (outcome.state, outcome.result_json) == ("succeeded", "3")
    sent = peer.asked[0]
    assert (sent.call_id, sent.tool, sent.agent, sent.workspace_id) == ("eff_1", "add@1", "ann", "ws_1")
    assert (sent.attribution.tool, sent.attribution.run_id) == ("add", "run_1")
    assert dict(sent.attribution.tags) == {"team": "search"}


async def test_a_tool_call_is_cancelled_by_its_effect_id(peer: Peer, channel: grpc.aio.Channel) -> None:
    await GrpcTools(tools_grpc.ToolExecutorStub(channel)).cancel("eff_1")
    assert peer.asked == [tools_pb.CancelToolCallRequest(call_id="eff_1")]


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (tools_pb.TOOL_CALL_STATE_OUTCOME_UNKNOWN, ("unknown", None)),
        (tools_pb.TOOL_CALL_STATE_TIMED_OUT, ("failed", "TIMED_OUT")),
        (tools_pb.TOOL_CALL_STATE_CANCELLED, ("failed", "CANCELLED")),
    ],
)
async def test_every_end_of_a_tool_has_its_outcome(
    peer: Peer, channel: grpc.aio.Channel, state: Any, expected: tuple[str, str | None]
) -> None:
    peer.tool_call = tools_pb.ToolCall(state=state)
    tools = GrpcTools(tools_grpc.ToolExecutorStub(channel))
    outcome = await tools.execute(ToolCall("eff_1", "add", "{}", "ann", "ws_1", 5, WHO))
    assert (outcome.state, outcome.failure.reason if outcome.failure else None) == expected


async def test_a_definition_that_is_not_there_is_told_apart(peer: Peer, channel: grpc.aio.Channel) -> None:
    registry = GrpcRegistry(registry_grpc.AgentRegistryStub(channel))
    assert (await registry.definition("ann")).version == 2
    peer.refusal = NotFound("definition", "anne", remedy="did you mean 'ann'?")
    with pytest.raises(DefinitionNotFound, match="did you mean 'ann'"):
        await registry.definition("anne")


async def test_an_agent_is_created_once_and_remembered(peer: Peer, channel: grpc.aio.Channel) -> None:
    registry = GrpcRegistry(registry_grpc.AgentRegistryStub(channel))
    pinned = Pinned("ann", "Agent", 1, "digest", "{}")
    assert [await registry.ensure_agent(pinned) for _ in range(2)] == ["agt_1", "agt_1"]
    assert [type(request).__name__ for request in peer.asked] == ["GetAgentRequest", "CreateAgentRequest"]
    assert (peer.asked[1].definition, peer.asked[1].name) == ("digest", "ann")


async def test_a_budget_is_hard_and_for_life(peer: Peer, channel: grpc.aio.Channel) -> None:
    await GrpcLedger(ledger_grpc.CostLedgerStub(channel)).set_budget("run_0", 7, root_run_id="run_0")
    sent = peer.asked[0]
    assert (sent.budget_id, sent.limit_nano_usd, sent.hard, sent.window) == ("run_0", 7, True, "lifetime")
    assert (sent.scope.root_run_id, sent.scope.run_id) == ("run_0", "")


async def test_a_proposal_carries_its_rule_and_its_decision_comes_back(peer: Peer, channel: grpc.aio.Channel) -> None:
    consensus = GrpcConsensus(consensus_grpc.ConsensusStub(channel))
    deadline = datetime(2026, 1, 1, tzinfo=UTC)
    proposal = Proposal("req", "run_0", "t", "b", ("yes", "no"), ("ann", "bob"), ("bob",), "veto", 0, deadline)
    assert await consensus.propose(proposal) == "prop_1"
    sent = peer.asked[0]
    assert [(voter.id, voter.veto) for voter in sent.electorate] == [("ann", False), ("bob", True)]
    assert (sent.rule.kind, sent.run_id, sent.deadline.ToDatetime(tzinfo=UTC)) == (
        consensus_pb.RULE_KIND_VETO,
        "run_0",
        deadline,
    )
    assert await consensus.decision("prop_1") is None
    peer.proposal = consensus_pb.Proposal(
        state=consensus_pb.PROPOSAL_STATE_DECIDED, outcome="yes", tally=[consensus_pb.Tally(option="yes", weight=2)]
    )
    decision = await consensus.decision("prop_1")
    assert decision is not None
    assert (decision.outcome, decision.tally[0].weight) == ("yes", 2)


async def test_a_vote_that_was_cast_already_is_accepted(peer: Peer, channel: grpc.aio.Channel) -> None:
    consensus = GrpcConsensus(consensus_grpc.ConsensusStub(channel))
    peer.refusal = FailedPrecondition("voted", reason="ALREADY_VOTED")
    await consensus.vote("prop_1", [Ballot(voter="ann", run_id="run_1", option="yes", reason="because")])
    peer.refusal = FailedPrecondition("who?", reason="NOT_A_VOTER")
    with pytest.raises(CallFailed, match="NOT_A_VOTER"):
        await consensus.vote("prop_1", [Ballot(voter="eve", run_id="run_2", option="yes", reason="because")])
    assert [request.votes[0].voter_id for request in peer.asked] == ["ann", "eve"]
