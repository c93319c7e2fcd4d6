"""What a model reads, as a function of the run; and its hash."""

from __future__ import annotations

import json
from typing import Final

from agent_runtime.directives import CallModel, Prompt
from agent_runtime.domain import RunState, model_call_id, sha256_text

WORKSPACE_NOTE: Final = (
    "Files are kept in a working folder that all members of this run share; name them by relative paths."
)


def call_model(state: RunState, system: str) -> CallModel:
    """The next call of the run; the same one as long as it has no outcome."""
    work, policy = state.agent, state.agent_spec.model
    turn = work.turn + 1
    call_id = model_call_id(state.id, turn, work.attempt)
    return CallModel(call_id, turn, work.attempt, policy, _prompt(state, system))


def _prompt(state: RunState, system: str) -> Prompt:
    work = state.agent
    tools = work.tools or ()
    return Prompt(system, work.history, work.transcript, tools, prompt_sha256(state, system))


def prompt_sha256(state: RunState, system: str) -> str:
    """SHA-256 over the canonical JSON of everything the call says, long parts standing in by their own hashes."""
    work, spec = state.agent, state.agent_spec
    said = {
        "model": spec.model.model_dump(mode="json"),
        "system": system,
        "history_sha256": work.history.sha256 if work.history else "",
        "transcript_sha256": work.transcript_sha256,
        "tools": [[tool.name, tool.version, tool.digest] for tool in work.tools or ()],
    }
    return sha256_text(json.dumps(said, sort_keys=True, separators=(",", ":"), ensure_ascii=False))
