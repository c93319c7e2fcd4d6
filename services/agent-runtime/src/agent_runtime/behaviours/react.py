"""react: the model asks for tools and reads their results until it answers without asking.

Source: Yao et al., "ReAct: Synergizing Reasoning and Acting in Language Models", 2022.
"""

from __future__ import annotations

from synod.agent_runtime.events import Message, ToolCallIntended
from synod.common.values import Failure

from agent_runtime.behaviours.endings import cut_off, refused
from agent_runtime.behaviours.prompts import WORKSPACE_NOTE, call_model
from agent_runtime.directives import CallTools, Complete, Directive, Fail, ResolveTools
from agent_runtime.domain import RunState, canonical_arguments, effect_id, sha256_text, text_of, tool_calls_of


def next_directives(state: RunState) -> tuple[Directive, ...]:
    work = state.agent
    if work.tools is None and state.agent_spec.tools:
        return (ResolveTools(state.agent_spec.tools),)
    if work.tools_problem:
        return (Fail(Failure(reason="UNKNOWN_TOOL", message=work.tools_problem)),)
    if work.answer is None:
        return (_ask(state),)
    return (_act_on(state, work.answer),)


def _ask(state: RunState) -> Directive:
    if state.agent.turn >= state.agent_spec.max_turns:
        return _step_limit(state)
    return call_model(state, _system(state))


def _system(state: RunState) -> str:
    instructions = state.agent_spec.instructions
    # The note stands first: what an author wrote last, such as the form of the answer, must stay last.
    return f"{WORKSPACE_NOTE}\n\n{instructions}" if state.agent_spec.tools else instructions


def _act_on(state: RunState, answer: Message) -> Directive:
    if refusal := refused(answer, state.agent.finish_reason):
        return refusal
    if not tool_calls_of(answer):
        return cut_off(state) or Complete(text_of(answer))
    if state.agent.turn >= state.agent_spec.max_turns:
        return _step_limit(state)
    return _use_tools(state, answer)


def _use_tools(state: RunState, answer: Message) -> Directive:
    """All tools of the answer; after a crash those whose outcome is not known yet, under the same effect ids."""
    uses = state.agent.uses
    if unknown := next((use.intent for use in uses if use.unknown), None):
        return _outcome_unknown(unknown)
    open_ones = tuple(use.intent for use in uses if use.result is None)
    fresh = tuple(_intent(state, answer, index) for index in range(len(uses), len(tool_calls_of(answer))))
    return CallTools(open_ones + fresh)


def _intent(state: RunState, answer: Message, index: int) -> ToolCallIntended:
    call = tool_calls_of(answer)[index]
    arguments = canonical_arguments(call.arguments_json)
    sha256 = sha256_text(arguments)
    turn = state.agent.turn
    return ToolCallIntended(
        run_id=state.id,
        epoch=state.epoch,
        effect_id=effect_id(state.id, turn, index, call.name, sha256),
        turn=turn,
        index=index,
        tool=call.name,
        tool_call_id=call.id,
        arguments_json=arguments,
        arguments_sha256=sha256,
    )


def _step_limit(state: RunState) -> Fail:
    limit = state.agent_spec.max_turns
    message = (
        f"{state.started.definition_name} called its model {limit} times without coming to an answer; raise "
        "spec.max_turns, or give it a smaller task"
    )
    return Fail(Failure(reason="STEP_LIMIT", message=message))


def _outcome_unknown(intent: ToolCallIntended) -> Fail:
    message = (
        f"tool {intent.tool} may or may not have acted (call {intent.effect_id}); find out, then say so with "
        "ToolExecutor.ReconcileToolCall and start a new run"
    )
    return Fail(Failure(reason="TOOL_OUTCOME_UNKNOWN", message=message))
