"""What a voter's answer says: JSON {"vote": option, "reason": text}, or an abstention and why."""

from __future__ import annotations

import json
from typing import Final

from synod.agent_runtime.events import Ballot

from agent_runtime.domain import MemberOutcome

REASON_CHARS_MAX: Final = 2000
"""Of any script: consensus keeps 8 KiB of UTF-8."""


def ballot(voter: str, run_id: str, options: tuple[str, ...], outcome: MemberOutcome) -> Ballot:
    """The ballot of one voter. Who failed or named no option abstains: nobody guesses what was meant."""
    if outcome.outcome != "completed":
        cause = outcome.failure.message if outcome.failure else outcome.outcome
        return _abstention(voter, run_id, f"the voter gave no answer: {cause}")
    answer = _answer(outcome.output)
    if answer is None:
        return _abstention(voter, run_id, f'the answer is not JSON {{"vote": ..., "reason": ...}}: {outcome.output}')
    said, reason = answer
    option = next((one for one in options if one.casefold() == said.casefold()), None)
    if option is None:
        return _abstention(voter, run_id, f"'{said}' is not one of {', '.join(options)}: {reason}")
    return Ballot(voter=voter, run_id=run_id, option=option, reason=reason[:REASON_CHARS_MAX])


def _abstention(voter: str, run_id: str, reason: str) -> Ballot:
    return Ballot(voter=voter, run_id=run_id, reason=reason[:REASON_CHARS_MAX])


def _answer(output: str) -> tuple[str, str] | None:
    """The vote and its reason from the text's JSON object, which models like to wrap in a fence or a sentence."""
    start, end = output.find("{"), output.rfind("}")
    if start < 0 or end < start:
        return None
    try:
        parsed = json.loads(output[start : end + 1])
    except ValueError:
        return None
    if not isinstance(parsed, dict) or not isinstance(parsed.get("vote"), str):
        return None
    return parsed["vote"].strip(), str(parsed.get("reason", ""))
