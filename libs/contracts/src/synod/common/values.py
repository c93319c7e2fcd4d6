"""Values that the events of several services carry."""

from typing import Literal

from synod.common.event import Value


class Tag(Value):
    """A free word on a cost, for reports."""

    name: str
    value: str


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
    # By name, each once.
    tags: tuple[Tag, ...] = ()

    def of_model(self, model: str) -> "Attribution":
        """The same for what is spent on this model."""
        return Attribution(**{**self.__dict__, "model": model})  # half the work of `model_copy`


class UsageLine(Value):
    """Tokens of one kind, or as many of another unit. The lines of a usage are disjoint."""

    direction: Literal["input", "output"]
    modality: Literal["text", "image", "audio", "video"] = "text"
    cache: Literal["none", "read", "write"] = "none"
    reasoning: bool = False
    quantity: int
    # How long a cache write is kept, such as "5m" or "1h"; empty where nobody said.
    ttl: str = ""
    # What is counted: "tokens", or what some models bill beside or instead of them, such as "web_searches",
    # "audio_seconds", "characters" or "document_pages".
    unit: str = "tokens"


class Failure(Value):
    """Why something did not succeed: a stable reason for programs, a message for people."""

    reason: str
    message: str
    retryable: bool = False
