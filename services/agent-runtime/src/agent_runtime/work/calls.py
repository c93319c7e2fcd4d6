"""Calls to models and tools, and the events that say how they ended."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Final, TypeVar

from servicekit.retry import Backoff
from synod.agent_runtime.events import (
    ConversationTurnLoaded,
    Message,
    ModelCallFailed,
    ModelCallSucceeded,
    TextPart,
    ToolCallFailed,
    ToolCallIntended,
    ToolCallOutcomeUnknown,
    ToolCallSucceeded,
    ToolSpec,
    ToolsResolved,
)
from synod.common.event import Event
from synod.common.values import Failure

from agent_runtime.conversations import Told, told
from agent_runtime.directives import CallModel
from agent_runtime.domain import History, RunState
from agent_runtime.errors import CallError, CallFailed, CallInterrupted, ConversationNotFound, HistoryInvalid
from agent_runtime.ports import Attribution, ModelAnswer, ModelCall, Ports, ToolCall, ToolOutcome
from agent_runtime.work.store import Conversations

T = TypeVar("T")

REPEATS_MAX: Final = 9
"""Repeats of a call whose outcome is unknown, under the same id, before the run gives up: about a minute."""
REPEAT: Final = Backoff(initial_s=0.2, factor=2, max_s=15, full_jitter=False)
RETRY: Final = Backoff(initial_s=0.5, factor=2, max_s=15, full_jitter=False)
"""Pause before a new attempt at a model call that failed and may pass."""


@dataclass(frozen=True, slots=True)
class Calls:
    """Makes the calls of an agent's run. What the other side answers becomes an event, failures too."""

    ports: Ports
    conversations: Conversations
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep

    async def patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        """Repeat a call whose outcome is unknown, under the same id. Raises CallInterrupted when it stays unknown."""
        for repeat in range(REPEATS_MAX):
            try:
                return await call()
            except CallInterrupted:
                await self.sleep(REPEAT.delay_s(repeat))
        return await call()

    async def model_outcome(self, state: RunState, directive: CallModel) -> Event:
        if directive.attempt > 1:
            await self.sleep(RETRY.delay_s(directive.attempt - 2))
        call = await self._model_call(state, directive)
        try:
            answer, tokens = await self.patiently(lambda: self._streamed(state, call))
        except CallFailed as error:
            return _model_failed(state, directive, error.failure)
        except CallInterrupted as error:
            return _model_failed(state, directive, Failure(reason="MODEL_UNREACHABLE", message=str(error)))
        return _model_succeeded(state, directive, answer, tokens)

    async def tool_outcome(self, state: RunState, intent: ToolCallIntended) -> Event:
        call = _tool_call(state, intent)
        try:
            outcome = await self.patiently(lambda: self.ports.tools.execute(call))
        except CallFailed as error:
            outcome = ToolOutcome("failed", failure=error.failure)
        except CallInterrupted as error:
            outcome = _unreached(state, intent, str(error))
        return _tool_ended(state, intent, outcome)

    async def cancel_tools(self, state: RunState) -> None:
        """Tell tool-executor that nobody waits for the open calls of this turn any more."""
        for use in state.agent.uses:
            if use.result is None:
                # One that cannot be told ends at the tool's own time limit.
                with suppress(CallError):
                    await self.ports.tools.cancel(use.intent.effect_id)

    async def resolve_tools(self, state: RunState, names: tuple[str, ...]) -> ToolsResolved:
        catalogue = await self.patiently(self.ports.tools.list_tools)
        found, problem = choose_tools(catalogue, names)
        return ToolsResolved(run_id=state.id, epoch=state.epoch, tools=found, problem=problem)

    async def load_conversation(self, state: RunState, conversation_id: str) -> ConversationTurnLoaded:
        loaded = await self._told(conversation_id, None)
        return ConversationTurnLoaded(
            run_id=state.id,
            conversation_id=conversation_id,
            until_version=loaded.until_version,
            messages_sha256=loaded.sha256,
        )

    async def _model_call(self, state: RunState, directive: CallModel) -> ModelCall:
        prompt = directive.prompt
        system = Message(role="system", parts=(TextPart(text=prompt.system),))
        earlier = await self._history(prompt.history) if prompt.history else ()
        messages = (system, *earlier, *prompt.messages)
        return ModelCall(directive.call_id, directive.model, messages, prompt.tools, attribution(state))

    async def _history(self, history: History) -> tuple[Message, ...]:
        loaded = await self._told(history.conversation_id, history.until_version)
        if loaded.sha256 != history.sha256:
            raise HistoryInvalid(history.conversation_id, f"its turns up to version {history.until_version} changed")
        return loaded.messages

    async def _streamed(self, state: RunState, call: ModelCall) -> tuple[ModelAnswer, int]:
        """The answer and how many token messages went out. A repeat of the call numbers them as before."""
        started, first = state.started, state.agent.token_messages
        sent = 0
        async for piece in self.ports.models.stream(call):
            if isinstance(piece, ModelAnswer):
                return piece, sent
            sent += 1
            await self.ports.tokens.publish(
                state.tenant, state.id, started.root_run_id, started.definition_name, first + sent, piece
            )
        raise CallInterrupted(f"the stream of model call {call.call_id} ended without an answer")

    async def _told(self, conversation_id: str, until_version: int | None) -> Told:
        conversation = await self.conversations.load(conversation_id)
        if conversation is None:
            raise ConversationNotFound(conversation_id)
        return told(conversation, until_version)


def attribution(state: RunState) -> Attribution:
    started = state.started
    return Attribution(
        tenant=state.tenant,
        agent=started.definition_name,
        run_id=state.id,
        root_run_id=started.root_run_id,
        conversation_id=started.conversation_id,
        tags=started.tags,
    )


def choose_tools(catalogue: tuple[ToolSpec, ...], names: tuple[str, ...]) -> tuple[tuple[ToolSpec, ...], str]:
    """The named tools ("name" or "name@version") in the order named, and what is wrong with the names, if anything."""
    by_name = {tool.name: tool for tool in catalogue} | {f"{tool.name}@{tool.version}": tool for tool in catalogue}
    unknown = [name for name in names if name not in by_name]
    problem = "; ".join(_unknown_tool(name, by_name) for name in unknown)
    return tuple(by_name[name] for name in names if name in by_name), problem


def _unknown_tool(name: str, by_name: dict[str, ToolSpec]) -> str:
    near = get_close_matches(name, by_name, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(sorted(by_name))}"
    return f"there is no tool '{name}', {hint}"


def _model_failed(state: RunState, directive: CallModel, failure: Failure) -> ModelCallFailed:
    return ModelCallFailed(
        run_id=state.id, epoch=state.epoch, call_id=directive.call_id, turn=directive.turn, failure=failure
    )


def _model_succeeded(state: RunState, directive: CallModel, answer: ModelAnswer, tokens: int) -> ModelCallSucceeded:
    return ModelCallSucceeded(
        run_id=state.id,
        epoch=state.epoch,
        call_id=directive.call_id,
        turn=directive.turn,
        model=answer.model,
        message=answer.message,
        finish_reason=answer.finish_reason,
        input_tokens=answer.input_tokens,
        output_tokens=answer.output_tokens,
        simulated=answer.simulated,
        token_messages=tokens,
    )


def _tool_call(state: RunState, intent: ToolCallIntended) -> ToolCall:
    spec = _tool_spec(state, intent.tool)
    return ToolCall(
        call_id=intent.effect_id,
        tool=f"{spec.name}@{spec.version}" if spec else intent.tool,
        arguments_json=intent.arguments_json,
        agent=state.started.definition_name,
        workspace_id=state.started.workspace_id,
        timeout_s=spec.timeout_s if spec else 60.0,
        attribution=attribution(state),
    )


def _tool_spec(state: RunState, name: str) -> ToolSpec | None:
    return next((tool for tool in state.agent.tools or () if tool.name == name), None)


def _unreached(state: RunState, intent: ToolCallIntended, problem: str) -> ToolOutcome:
    spec = _tool_spec(state, intent.tool)
    if spec is not None and spec.effect == "at_most_once":
        return ToolOutcome("unknown")
    return ToolOutcome("failed", failure=Failure(reason="TOOL_UNREACHABLE", message=problem, retryable=True))


def _tool_ended(state: RunState, intent: ToolCallIntended, outcome: ToolOutcome) -> Event:
    which = {
        "run_id": state.id,
        "epoch": state.epoch,
        "effect_id": intent.effect_id,
        "turn": intent.turn,
        "index": intent.index,
        "tool": intent.tool,
    }
    match outcome.state:
        case "succeeded":
            return ToolCallSucceeded(
                **which, result_json=outcome.result_json, isolation=outcome.isolation, took_ms=outcome.took_ms
            )
        case "failed":
            unnamed = Failure(reason="TOOL_FAILED", message=f"tool {intent.tool} failed without saying why")
            return ToolCallFailed(**which, failure=outcome.failure or unnamed)
        case "unknown":
            return ToolCallOutcomeUnknown(**which)
