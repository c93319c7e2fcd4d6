"""Starting runs: what a definition is pinned by, what it may spend, and the event that begins it."""

from __future__ import annotations

from eventlog.clock import Clock
from eventlog.codec import Codec
from eventlog.records import NO_STREAM, Append, Context
from synod.agent_runtime.events import RunStarted
from synod.common.event import Event
from synod.common.money import parse_usd

from agent_runtime.directives import ChildStart, StartChildren
from agent_runtime.domain import RunState, parse_definition
from agent_runtime.ports import Ports
from agent_runtime.work.store import run_stream


def budget_of(spec_json: str) -> int:
    """What a definition allows one run to spend, nano-USD; 0 when it sets no limit."""
    budget = parse_definition(spec_json).spec.budget
    return parse_usd(budget) if budget else 0


async def child_started(ports: Ports, parent: RunState, directive: StartChildren, child: ChildStart) -> RunStarted:
    """The first event of a run below `parent`. The definition is the newest now, and pinned from here on."""
    pinned = await ports.registry.definition(child.member)
    budget = budget_of(pinned.spec_json)
    agent_id = ""
    if pinned.kind == "Agent":
        agent_id = await ports.registry.ensure_agent(pinned)
        if budget:
            await ports.ledger.set_budget(child.run_id, budget, run_id=child.run_id)
    return RunStarted(
        run_id=child.run_id,
        root_run_id=parent.started.root_run_id,
        parent_run_id=parent.id,
        step=directive.step,
        definition_name=pinned.name,
        definition_digest=pinned.digest,
        definition_kind=pinned.kind,
        spec_json=pinned.spec_json,
        agent_id=agent_id,
        input=directive.input,
        workspace_id=parent.started.workspace_id,
        budget_nano_usd=budget,
        depth=parent.started.depth + 1,
        tags=parent.started.tags,
    )


def child_append(codec: Codec[Event], clock: Clock, context: Context, event: RunStarted) -> Append:
    """The append that begins a run and fails if it has begun."""
    return Append(run_stream(event.run_id), NO_STREAM, (codec.encode(event, at=clock.now()),), context)
