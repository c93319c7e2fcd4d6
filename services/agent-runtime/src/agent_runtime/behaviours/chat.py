"""chat: one model call over the conversation, its text is the answer."""

from __future__ import annotations

from agent_runtime.behaviours.endings import refused
from agent_runtime.behaviours.prompts import call_model
from agent_runtime.directives import Complete, Directive
from agent_runtime.domain import RunState, text_of


def next_directives(state: RunState) -> tuple[Directive, ...]:
    answer = state.agent.answer
    if answer is None:
        return (call_model(state, state.agent_spec.instructions),)
    return (refused(answer, state.agent.finish_reason) or Complete(text_of(answer)),)
