"""Errors and delays on demand: by header, by model name, or planned for the next requests. No I/O.

The header `x-simulator-fault` holds a Fault as JSON, or short as `status=429,retry_after=2`. Model names do the
same without a header: `sim-429` (any status from 400 to 599), `sim-slow`, `sim-cut`, `sim-error-event`,
`sim-no-usage`, `sim-no-end`, `sim-html`. A planned fault (POST /simulator/faults) applies to the next N requests
that carry no fault of their own; of one model, if it names one.
"""

import re
from collections import deque
from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from provider_simulator.conversation import BadRequest

DELAY_S_MAX = 600.0

Delay = Annotated[float, Field(ge=0, le=DELAY_S_MAX)]
Count = Annotated[int, Field(ge=0, le=10_000_000)]


class Fault(BaseModel):
    """What to do to one request; the default does nothing. Frames are server-sent events, counted from the start."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    status: Annotated[int, Field(ge=400, le=599)] | None = None
    code: str | None = None
    message: str | None = None
    retry_after: str | None = None
    headers: Mapping[str, str] = Field(default_factory=dict)
    raw_body: str | None = None
    first_byte_delay_s: Delay = 0.0
    frame_delay_s: Delay = 0.0
    cut_after_frames: Count | None = None
    error_after_frames: Count | None = None
    omit_terminal: bool = False
    omit_usage: bool = False
    cached_input_tokens: Count = 0
    reasoning_tokens: Count = 0


class PlannedFault(BaseModel):
    """Body of POST /simulator/faults: the fault, and how many requests it shall meet; those of `model` if it is given."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fault: Fault
    requests: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    model: str | None = None


NO_FAULT = Fault()

FAULT_MODELS: Mapping[str, Fault] = {
    "sim-slow": Fault(first_byte_delay_s=2.0, frame_delay_s=0.05),
    "sim-cut": Fault(cut_after_frames=4),
    "sim-error-event": Fault(error_after_frames=0),
    "sim-no-usage": Fault(omit_usage=True),
    "sim-no-end": Fault(omit_terminal=True),
    "sim-html": Fault(status=502, raw_body="<html><body><h1>502 Bad Gateway</h1></body></html>"),
}
_STATUS_MODEL = re.compile(r"sim-([45]\d\d)")


class FaultPlan:
    """Planned faults in order of arrival; each is used up by the requests it meets."""

    def __init__(self) -> None:
        self._planned: deque[PlannedFault] = deque()

    def plan(self, fault: Fault, requests: int = 1, model: str | None = None) -> None:
        self._planned.append(PlannedFault(fault=fault, requests=requests, model=model))

    def clear(self) -> None:
        self._planned.clear()

    def pending(self) -> tuple[PlannedFault, ...]:
        return tuple(self._planned)

    def take(self, header: str | None, model: str) -> Fault:
        """The fault for one request. Raises BadRequest for a header that cannot be read."""
        if header:
            return parse_fault(header)
        return fault_of_model(model) or self._next(model) or NO_FAULT

    def _next(self, model: str) -> Fault | None:
        for index, planned in enumerate(self._planned):
            if planned.model in (None, model):
                self._use(index, planned)
                return planned.fault
        return None

    def _use(self, index: int, planned: PlannedFault) -> None:
        if planned.requests > 1:
            self._planned[index] = planned.model_copy(update={"requests": planned.requests - 1})
        else:
            del self._planned[index]


def fault_of_model(model: str) -> Fault | None:
    """The fault that a model's name stands for; None for a name without one."""
    status = _STATUS_MODEL.fullmatch(model)
    if status:
        return Fault(status=int(status[1]), retry_after="1" if status[1] in {"429", "503", "529"} else None)
    return FAULT_MODELS.get(model)


def parse_fault(header: str) -> Fault:
    """A Fault from the text of the header, JSON or `name=value` pairs. Raises BadRequest."""
    try:
        if header.lstrip().startswith("{"):
            return Fault.model_validate_json(header)
        pairs = (item.partition("=") for item in header.split(","))
        return Fault.model_validate({name.strip(): value.strip() or "true" for name, _, value in pairs})
    except ValidationError as error:
        first = error.errors()[0]
        raise BadRequest(f"x-simulator-fault: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
