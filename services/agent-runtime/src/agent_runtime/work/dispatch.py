"""Which events give whom something to do. Pure; the queue that carries the items is subscriptions.py."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import BaseModel, ConfigDict
from synod.agent_runtime.events import RunCancelled, RunCancelRequested, RunCompleted, RunFailed, RunStarted
from synod.common.event import Event
from synod.consensus.events import ProposalDecided, ProposalUndecided

VERB: Final = "run"
"""Work items go to synod.<tenant>.cmd.agent-runtime.run."""
DISPATCHED: Final = frozenset(
    cls.type_name() for cls in (RunStarted, RunCancelRequested, RunCompleted, RunFailed, RunCancelled)
)
DECISIONS: Final = frozenset(cls.type_name() for cls in (ProposalDecided, ProposalUndecided))

Reason = Literal["started", "cancel_requested", "member_ended", "vote_decided", "overdue"]


class WorkItem(BaseModel):
    """Something may be done in a run. An item too many does no harm: the worker looks and finds nothing."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    run_id: str
    tenant: str
    reason: Reason


def work_item(event: Event, tenant: str) -> WorkItem | None:
    """The item that an event leads to: for its own run, or for the run above one that ended."""
    match event:
        case RunStarted(run_id=run_id):
            return WorkItem(run_id=run_id, tenant=tenant, reason="started")
        case RunCancelRequested(run_id=run_id):
            return WorkItem(run_id=run_id, tenant=tenant, reason="cancel_requested")
        case RunCompleted() | RunFailed() | RunCancelled() if event.parent_run_id:
            return WorkItem(run_id=event.parent_run_id, tenant=tenant, reason="member_ended")
        case ProposalDecided() | ProposalUndecided() if event.run_id:
            return WorkItem(run_id=event.run_id, tenant=tenant, reason="vote_decided")
        case _:
            return None
