"""Between protobuf and the domain: the only file that knows both."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final, Literal

from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp
from servicekit.errors import (
    AlreadyExists,
    ErrorMap,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ServiceError,
    Unavailable,
)
from servicekit.tags import tags_of, values_of
from synod.agent_registry.v1 import agent_registry_pb2 as registry_pb
from synod.agent_runtime.events import (
    Ballot,
    Message,
    OptionTally,
    Part,
    ReasoningPart,
    RefusalPart,
    TextPart,
    ToolCallPart,
    ToolResultPart,
    ToolSpec,
)
from synod.agent_runtime.v1 import agent_runtime_pb2 as pb
from synod.common.values import Failure
from synod.consensus.v1 import consensus_pb2 as consensus_pb
from synod.cost_ledger.v1 import cost_ledger_pb2 as ledger_pb
from synod.llm_gateway.v1 import llm_gateway_pb2 as gateway_pb
from synod.tool_executor.v1 import tool_executor_pb2 as tools_pb

from agent_runtime import errors
from agent_runtime.application import StartRun
from agent_runtime.conversations import ConversationState, Turn
from agent_runtime.domain import AgentWork, RunState, TeamWork, text_of
from agent_runtime.ports import Attribution, Decision, ModelAnswer, ModelCall, Pinned, Proposal, ToolOutcome
from agent_runtime.ports import ToolCall as ToolOrder
from agent_runtime.projections import RunRow
from agent_runtime.replay import Replayed
from agent_runtime.summaries import summary
from agent_runtime.work.watch import Seen, Token

ERRORS: Final = (
    ErrorMap()
    .add(errors.RunErased, lambda error: FailedPrecondition(str(error), reason="RUN_ERASED"))
    .add(errors.RunNotFound, lambda error: NotFound("run", error.run_id, remedy="see ListRuns"))
    .add(
        errors.ConversationNotFound,
        lambda error: NotFound("conversation", error.conversation_id, remedy="CreateConversation opens one"),
    )
    .add(
        errors.DefinitionNotFound,
        lambda error: NotFound("definition", error.reference, message=str(error), reason="DEFINITION_NOT_FOUND"),
    )
    .add(errors.InvalidRequest, lambda error: InvalidArgument(error.field, error.value, error.problem))
    .add(
        errors.RequestIdReused,
        lambda error: AlreadyExists("run of request", error.request_id, remedy=str(error), reason="REQUEST_ID_REUSED"),
    )
    .add(errors.TurnInProgress, lambda error: FailedPrecondition(str(error), reason="TURN_IN_PROGRESS"))
    .add(errors.CallFailed, lambda error: _refused(error.failure))
    .add(errors.PeerFailed, lambda error: error.answer)
    .add(errors.CallInterrupted, lambda error: Unavailable(str(error), 1.0, reason="PEER_UNREACHABLE"))
)

STATE_NAMES: Final[dict[pb.RunState.ValueType, str]] = {
    pb.RUN_STATE_UNSPECIFIED: "",
    pb.RUN_STATE_QUEUED: "queued",
    pb.RUN_STATE_RUNNING: "running",
    pb.RUN_STATE_WAITING: "waiting",
    pb.RUN_STATE_COMPLETED: "completed",
    pb.RUN_STATE_FAILED: "failed",
    pb.RUN_STATE_CANCELLED: "cancelled",
}
_STATES: Final = {name: value for value, name in STATE_NAMES.items() if name}


# --- runs ---------------------------------------------------------------------------------------------------------------


def to_start_run(request: pb.StartRunRequest) -> StartRun:
    return StartRun(
        request_id=request.request_id,
        definition=request.definition,
        input=request.input,
        budget_nano_usd=request.budget_nano_usd,
        workspace_id=request.workspace_id,
        tags=tags_of("tags", request.tags),
    )


def from_run(state: RunState) -> pb.Run:
    started, work = state.started, state.work
    return pb.Run(
        id=state.id,
        tenant_id=state.tenant,
        state=_STATES[_state_name(state)],
        definition_name=started.definition_name,
        definition_digest=started.definition_digest,
        input=started.input,
        output=state.output,
        failure=_failure(state.failure),
        result_sha256=state.result_sha256,
        parent_run_id=started.parent_run_id,
        root_run_id=started.root_run_id,
        step=started.step,
        epoch=state.epoch,
        model_calls=work.model_calls if isinstance(work, AgentWork) else 0,
        tool_calls=work.tool_calls if isinstance(work, AgentWork) else 0,
        child_run_ids=work.child_run_ids if isinstance(work, TeamWork) else (),
        conversation_id=started.conversation_id,
        started_at=_timestamp(state.started_at),
        ended_at=_timestamp(state.ended_at),
        proposal_ids=work.proposal_ids if isinstance(work, TeamWork) else (),
        tags=values_of(started.tags),
    )


def from_row(row: RunRow) -> pb.Run:
    return pb.Run(
        id=row.id,
        tenant_id=row.tenant,
        state=_STATES[row.state],
        definition_name=row.definition_name,
        definition_digest=row.definition_digest,
        input=row.input,
        output=row.output,
        failure=pb.RunFailure(reason=row.failure_reason, message=row.failure_message) if row.failure_reason else None,
        result_sha256=row.result_sha256,
        parent_run_id=row.parent_run_id,
        root_run_id=row.root_run_id,
        step=row.step,
        epoch=row.epoch,
        model_calls=row.model_calls,
        tool_calls=row.tool_calls,
        child_run_ids=row.child_run_ids,
        conversation_id=row.conversation_id,
        started_at=_timestamp(row.started_at),
        ended_at=_timestamp(row.ended_at),
        proposal_ids=row.proposal_ids,
        tags=row.tags,
    )


def from_replayed(replayed: Replayed) -> pb.ReplayRunResponse:
    return pb.ReplayRunResponse(
        equal=replayed.equal,
        runs=replayed.runs,
        events=replayed.events,
        recorded_sha256=replayed.recorded_sha256,
        replayed_sha256=replayed.replayed_sha256,
        first_difference=replayed.first_difference,
        outside_calls=replayed.outside_calls,
    )


def from_seen(seen: Seen | Token) -> pb.RunUpdate:
    if isinstance(seen, Token):
        data = ParseDict({"text": seen.text}, Struct())
        return pb.RunUpdate(
            run_id=seen.run_id,
            agent=seen.agent,
            type="Token",
            data=data,
            summary=seen.text,
            token_sequence=seen.sequence,
        )
    stored = seen.stored
    return pb.RunUpdate(
        cursor=stored.position,
        run_id=stored.stream.id,
        agent=seen.agent,
        type=stored.type,
        data=ParseDict(json.loads(stored.data), Struct()),
        summary=summary(seen.event, seen.agent),
        at=_timestamp(stored.occurred_at),
    )


def _state_name(state: RunState) -> str:
    waits = isinstance(state.work, TeamWork) and any(
        step.status in ("running", "voting") for step in state.work.steps.values()
    )
    return "waiting" if state.status == "running" and waits else state.status


def _failure(failure: Failure | None) -> pb.RunFailure | None:
    return pb.RunFailure(reason=failure.reason, message=failure.message) if failure else None


def _refused(failure: Failure) -> ServiceError:
    return FailedPrecondition(failure.message, reason=failure.reason)


# --- conversations ------------------------------------------------------------------------------------------------------


def from_conversation(state: ConversationState) -> pb.Conversation:
    return pb.Conversation(
        id=state.started.conversation_id,
        definition_name=state.started.definition_name,
        definition_digest=state.started.definition_digest,
        messages=[message for turn in state.turns for message in _messages(turn)],
        created_at=_timestamp(state.started_at),
        active_run_id=state.active_run_id,
    )


def _messages(turn: Turn) -> list[pb.ConversationMessage]:
    asked = pb.ConversationMessage(role="user", text=turn.text, run_id=turn.run_id, at=_timestamp(turn.asked_at))
    answers = [
        pb.ConversationMessage(
            role=message.role, text=text_of(message), run_id=turn.run_id, at=_timestamp(turn.ended_at)
        )
        for message in turn.messages
        if text_of(message)
    ]
    return [asked, *answers]


# --- models -------------------------------------------------------------------------------------------------------------

_ROLES: Final[dict[str, gateway_pb.Role.ValueType]] = {
    "system": gateway_pb.ROLE_SYSTEM,
    "user": gateway_pb.ROLE_USER,
    "assistant": gateway_pb.ROLE_ASSISTANT,
    "tool": gateway_pb.ROLE_TOOL,
}


def to_generate(call: ModelCall) -> gateway_pb.GenerateRequest:
    request = gateway_pb.GenerateRequest(
        request_id=call.call_id,
        model=call.model.name,
        messages=[_message(message) for message in call.messages],
        tools=[
            gateway_pb.Tool(name=tool.name, description=tool.description, parameters_json=tool.parameters_json)
            for tool in call.tools
        ],
        max_output_tokens=call.model.max_output_tokens,
        attribution=_attribution(call.attribution),
        fallback_models=call.model.fallback,
    )
    if call.model.temperature is not None:
        request.temperature = call.model.temperature
    return request


def from_generated(answer: gateway_pb.GenerateResponse) -> ModelAnswer:
    parts = tuple(part for part in map(_part, answer.message.parts) if part is not None)
    return ModelAnswer(
        message=Message(role="assistant", parts=parts),
        finish_reason=answer.finish_reason,
        model=answer.model,
        input_tokens=answer.usage.input_tokens,
        output_tokens=answer.usage.output_tokens,
        simulated=answer.simulated,
    )


def _message(message: Message) -> gateway_pb.Message:
    return gateway_pb.Message(role=_ROLES[message.role], parts=[_to_part(part) for part in message.parts])


def _to_part(part: Part) -> gateway_pb.Part:
    match part:
        case TextPart():
            return gateway_pb.Part(text=part.text)
        case ToolCallPart():
            call = gateway_pb.ToolCall(id=part.id, name=part.name, arguments_json=part.arguments_json)
            return gateway_pb.Part(tool_call=call)
        case ToolResultPart():
            result = gateway_pb.ToolResult(
                tool_call_id=part.tool_call_id, name=part.name, content=part.content, is_error=part.is_error
            )
            return gateway_pb.Part(tool_result=result)
        case ReasoningPart():
            reasoning = gateway_pb.Reasoning(text=part.text, signature=part.signature, provider=part.provider)
            return gateway_pb.Part(reasoning=reasoning)
        case RefusalPart():
            return gateway_pb.Part(refusal=part.text)


def _part(part: gateway_pb.Part) -> Part | None:
    match part.WhichOneof("part"):
        case "text":
            return TextPart(text=part.text)
        case "tool_call":
            call = part.tool_call
            return ToolCallPart(id=call.id, name=call.name, arguments_json=call.arguments_json)
        case "tool_result":
            result = part.tool_result
            return ToolResultPart(
                tool_call_id=result.tool_call_id, name=result.name, content=result.content, is_error=result.is_error
            )
        case "reasoning":
            reasoning = part.reasoning
            return ReasoningPart(text=reasoning.text, signature=reasoning.signature, provider=reasoning.provider)
        case "refusal":
            return RefusalPart(text=part.refusal)
        case _:
            return None


def _attribution(attribution: Attribution, *, model: str = "", tool: str = "") -> ledger_pb.Attribution:
    return ledger_pb.Attribution(
        tenant_id=attribution.tenant,
        agent=attribution.agent,
        conversation_id=attribution.conversation_id,
        run_id=attribution.run_id,
        root_run_id=attribution.root_run_id,
        model=model,
        tool=tool,
        tags=values_of(attribution.tags),
    )


# --- tools --------------------------------------------------------------------------------------------------------------

_EFFECTS: Final[dict[int, Literal["pure", "idempotent", "at_most_once"]]] = {
    tools_pb.EFFECT_CLASS_PURE: "pure",
    tools_pb.EFFECT_CLASS_IDEMPOTENT: "idempotent",
    tools_pb.EFFECT_CLASS_AT_MOST_ONCE: "at_most_once",
}
_OUTCOMES: Final[dict[int, Literal["succeeded", "unknown"]]] = {
    tools_pb.TOOL_CALL_STATE_SUCCEEDED: "succeeded",
    tools_pb.TOOL_CALL_STATE_OUTCOME_UNKNOWN: "unknown",
}


def from_tool(tool: tools_pb.Tool) -> ToolSpec:
    return ToolSpec(
        name=tool.name,
        version=tool.version,
        digest=tool.digest,
        description=tool.description,
        parameters_json=tool.parameters_json,
        # What is not said is taken for the dangerous kind.
        effect=_EFFECTS.get(tool.effect, "at_most_once"),
        timeout_s=tool.timeout.ToMilliseconds() / 1000 or 60.0,
    )


def to_execute(order: ToolOrder) -> tools_pb.ExecuteRequest:
    return tools_pb.ExecuteRequest(
        call_id=order.call_id,
        tool=order.tool,
        arguments_json=order.arguments_json,
        agent=order.agent,
        workspace_id=order.workspace_id,
        attribution=_attribution(order.attribution, tool=order.tool.partition("@")[0]),
    )


def from_tool_call(call: tools_pb.ToolCall) -> ToolOutcome:
    state = _OUTCOMES.get(call.state)
    took_ms = call.took.ToMilliseconds()
    if state is not None:
        return ToolOutcome(state, call.result_json, None, call.isolation, took_ms)
    name = tools_pb.ToolCallState.Name(call.state).removeprefix("TOOL_CALL_STATE_")
    failure = Failure(
        reason=call.failure.kind or name,
        message=call.failure.message or f"tool {call.tool} ended as {name}",
        retryable=call.failure.retryable,
    )
    return ToolOutcome("failed", "", failure, call.isolation, took_ms)


# --- definitions and proposals --------------------------------------------------------------------------------------------


def from_definition(definition: registry_pb.Definition) -> Pinned:
    kind: Literal["Agent", "Team"] = "Team" if definition.kind == "Team" else "Agent"
    return Pinned(definition.name, kind, definition.version, definition.digest, definition.spec_json)


_RULES: Final[dict[str, consensus_pb.RuleKind.ValueType]] = {
    "majority": consensus_pb.RULE_KIND_MAJORITY,
    "two_thirds": consensus_pb.RULE_KIND_TWO_THIRDS,
    "unanimous": consensus_pb.RULE_KIND_UNANIMOUS,
    "threshold": consensus_pb.RULE_KIND_THRESHOLD,
    "veto": consensus_pb.RULE_KIND_VETO,
}


def to_votes(proposal_id: str, ballots: Sequence[Ballot]) -> consensus_pb.CastVotesRequest:
    votes = [consensus_pb.VoteRequest(voter_id=one.voter, option=one.option, reason=one.reason) for one in ballots]
    return consensus_pb.CastVotesRequest(proposal_id=proposal_id, votes=votes)


def to_propose(proposal: Proposal) -> consensus_pb.ProposeRequest:
    return consensus_pb.ProposeRequest(
        request_id=proposal.request_id,
        title=proposal.title,
        body=proposal.body,
        options=proposal.options,
        electorate=[consensus_pb.Voter(id=voter, veto=voter in proposal.veto) for voter in proposal.voters],
        rule=consensus_pb.Rule(kind=_RULES[proposal.rule], threshold=proposal.threshold),
        deadline=_timestamp(proposal.deadline),
        run_id=proposal.run_id,
    )


def from_proposal(proposal: consensus_pb.Proposal) -> Decision | None:
    if proposal.state == consensus_pb.PROPOSAL_STATE_OPEN:
        return None
    tally = tuple(OptionTally(option=entry.option, weight=entry.weight) for entry in proposal.tally)
    return Decision(proposal.outcome, tally, proposal.explanation)


def _timestamp(moment: datetime | None) -> Timestamp | None:
    if moment is None:
        return None
    timestamp = Timestamp()
    timestamp.FromDatetime(moment.astimezone(UTC))
    return timestamp
