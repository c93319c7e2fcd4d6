"""Values that the events of several services carry."""

from typing import Literal

from synod.common.event import Value


class Attribution(Value):
    """Who and what a cost belongs to. Empty fields do not apply."""

    tenant_id: str = ""
    project_id: str = ""
    agent: str = ""
    conversation_id: str = ""
    run_id: str = ""
    root_run_id: str = ""
    user_id: str = ""
    model: str = ""
    tool: str = ""


class UsageLine(Value):
    """Tokens of one kind. The lines of a usage are disjoint."""

    direction: Literal["input", "output"]
    modality: Literal["text", "image", "audio"] = "text"
    cache: Literal["none", "read", "write"] = "none"
    reasoning: bool = False
    quantity: int


class Failure(Value):
    """Why something did not succeed: a stable reason for programs, a message for people."""

    reason: str
    message: str
    retryable: bool = False
