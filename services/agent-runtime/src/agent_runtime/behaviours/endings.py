"""What the end of a model's answer means for the run; the same for every behaviour."""

from __future__ import annotations

from synod.agent_runtime.events import Message, RefusalPart
from synod.common.values import Failure

from agent_runtime.directives import Fail
from agent_runtime.domain import RunState, text_of


def refused(answer: Message, finish_reason: str) -> Fail | None:
    """The failure of a run whose model refused, or whose provider filtered the answer."""
    refusals = [part.text for part in answer.parts if isinstance(part, RefusalPart)]
    if not refusals and finish_reason not in ("content_filter", "refusal"):
        return None
    said = " ".join(refusals) or text_of(answer) or finish_reason
    return Fail(Failure(reason="MODEL_REFUSED", message=f"the model refused: {said}"))


def cut_off(state: RunState) -> Fail | None:
    """The failure of a run whose last answer hit the output limit: half an answer is no answer."""
    if state.agent.finish_reason != "length":
        return None
    limit = state.agent_spec.model.max_output_tokens
    message = (
        f"the model's answer was cut off at {limit} output tokens; raise spec.model.max_output_tokens of "
        f"{state.started.definition_name}"
    )
    return Fail(Failure(reason="OUTPUT_TRUNCATED", message=message))
