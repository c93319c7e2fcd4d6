"""What a request says and what is answered, in words that belong to no wire format. Pure data.

Each dialect turns its own request into an `Ask`; `script.decide` turns the `Conversation` in it into a `Turn`;
`reply.compose` makes of both a `Reply`, which the dialect writes out again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from typing_extensions import TypeAliasType

Json = TypeAliasType("Json", "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None")
JsonObject: TypeAlias = Mapping[str, Json]

Finish = Literal["stop", "stop_sequence", "length", "tool_calls", "refusal"]


@dataclass(frozen=True, slots=True)
class PastCall:
    """A tool call the model made earlier in this turn of the conversation, with the result it was given."""

    id: str
    name: str
    result: str
    failed: bool = False


@dataclass(frozen=True, slots=True)
class Conversation:
    """What the model has before it. `calls` are those made since the last user message, in order."""

    instructions: str
    input: str
    calls: tuple[PastCall, ...] = ()
    tools: frozenset[str] = frozenset()
    parallel_calls: bool = True
    messages: int = 0


@dataclass(frozen=True, slots=True)
class Prefix:
    """What stands before a breakpoint of the prompt's cache, to be kept for "5m" or "1h"."""

    sha256: str
    tokens: int
    ttl: Literal["5m", "1h"]


@dataclass(frozen=True, slots=True)
class Ask:
    """One request. `billable` holds every text the token rule counts, one entry per message and tool; `prefixes` grow."""

    model: str
    conversation: Conversation
    billable: tuple[str, ...]
    stream: bool = False
    include_usage: bool = True
    json_wanted: bool = False
    output_tokens_max: int | None = None
    stop: tuple[str, ...] = ()
    prefixes: tuple[Prefix, ...] = ()


@dataclass(frozen=True, slots=True)
class ToolCall:
    id: str
    name: str
    arguments: JsonObject


@dataclass(frozen=True, slots=True)
class CallTools:
    calls: tuple[ToolCall, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    text: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """The script cannot be carried out as written; `text` names what is wrong."""

    text: str


Turn = CallTools | Answer | Refusal


@dataclass(frozen=True, slots=True)
class TokenUsage:
    """Inclusive totals: `cached_input` and what was written to the cache are parts of `input`, `reasoning` of `output`."""

    input: int
    output: int
    cached_input: int = 0
    reasoning: int = 0
    written_5m: int = 0
    written_1h: int = 0


@dataclass(frozen=True, slots=True)
class Reply:
    """A finished answer. `usage` is None where a fault asked to leave it out; `created` is in Unix seconds."""

    id: str
    model: str
    created: int
    turn: Turn
    finish: Finish
    usage: TokenUsage | None
    matched_stop: str | None = None


class BadRequest(Exception):
    """The request is refused with status 400; the message names the field."""
