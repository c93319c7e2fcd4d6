"""How the end of a run ends the turn of its conversation."""

from __future__ import annotations

from eventlog.clock import Clock
from eventlog.codec import Codec
from eventlog.records import ANY, Append
from synod.agent_runtime.events import TurnEnded
from synod.common.event import Event

from agent_runtime.directives import Cancel, Complete, Fail
from agent_runtime.domain import RunState
from agent_runtime.work.session import context_of
from agent_runtime.work.store import conversation_stream


def turn_ended(
    state: RunState, directive: Complete | Fail | Cancel, codec: Codec[Event], clock: Clock
) -> tuple[Append, ...]:
    """What to append to the conversation beside the run's last event; empty for a run without one."""
    conversation_id = state.started.conversation_id
    if not conversation_id:
        return ()
    now = clock.now()
    outcome = {Complete: "completed", Fail: "failed", Cancel: "cancelled"}[type(directive)]
    event = TurnEnded(
        conversation_id=conversation_id,
        run_id=state.id,
        outcome=outcome,
        messages=state.agent.transcript[1:] if isinstance(directive, Complete) else (),
        ended_at=now,
    )
    return (Append(conversation_stream(conversation_id), ANY, (codec.encode(event, at=now),), context_of(state)),)
