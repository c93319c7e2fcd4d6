"""A model call in words that belong to no provider: what is asked, what is answered, what it used. No I/O.

The names follow the OpenTelemetry GenAI conventions where these have one. Every type is frozen; collections are tuples.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import orjson
from typing_extensions import TypeAliasType

from llm_gateway.errors import InvalidToolArguments, InvalidUsage

Json = TypeAliasType("Json", "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None")
JsonObject: TypeAlias = Mapping[str, Json]

Role = Literal["system", "developer", "user", "assistant", "tool"]
FinishReason = Literal[
    "stop", "length", "tool_calls", "content_filter", "refusal", "pause", "context_window", "cancelled", "error"
]
Direction = Literal["input", "output"]
Modality = Literal["text", "image", "audio", "video"]
Cache = Literal["none", "read", "write"]
CacheTtl = Literal["5m", "30m", "1h", "12h"]
ReasoningMode = Literal["adaptive", "between_tools"]
"""When a model thinks that is told no number: when and as much as it likes, or between calls of tools alone."""
ReasoningDisplay = Literal["summarized", "omitted"]
"""What of the reasoning is shown: a text of it, or nothing but what has to come back."""

USAGE_TOKENS_MAX = 1_000_000_000
"""More tokens than any one call can use; a larger count is a provider's mistake and is not believed."""


# --- messages -------------------------------------------------------------------------------------------------------


PromptCacheTtl = Literal["5m", "1h"]
"""A breakpoint of the prompt's cache: how long a provider that is told where (Anthropic) keeps the prompt up to here."""


@dataclass(frozen=True, slots=True)
class Text:
    text: str
    cache_ttl: PromptCacheTtl | None = None


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call the model asks for. `arguments` is JSON text as the model wrote it; `id` only links call and result."""

    id: str
    name: str
    arguments: str
    cache_ttl: PromptCacheTtl | None = None

    def parsed(self) -> JsonObject:
        """The arguments as an object; no text means none. Raises InvalidToolArguments."""
        try:
            value: Json = orjson.loads(self.arguments or "{}")
        except orjson.JSONDecodeError as error:
            raise InvalidToolArguments(f"the arguments of {self.name} are no JSON: {error}") from None
        if not isinstance(value, Mapping):
            raise InvalidToolArguments(f"the arguments of {self.name} are no JSON object")
        return value


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What a tool answered to the call `call_id`; with `is_error` the text says what went wrong."""

    call_id: str
    text: str
    is_error: bool = False
    cache_ttl: PromptCacheTtl | None = None


@dataclass(frozen=True, slots=True)
class Reasoning:
    """What the model thought. `text` is for people; `payload` goes back byte for byte, and only to `dialect`."""

    text: str
    dialect: str
    payload: bytes = b""


@dataclass(frozen=True, slots=True)
class Opaque:
    """A part that only its own dialect understands (as a provider's own search results), kept byte for byte."""

    dialect: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class Refusal:
    text: str


@dataclass(frozen=True, slots=True)
class Image:
    """An image as bytes or, when `url` is set, at an address the provider can reach."""

    media_type: str
    data: bytes = b""
    url: str = ""
    cache_ttl: PromptCacheTtl | None = None


@dataclass(frozen=True, slots=True)
class Audio:
    """Sound, as `audio/wav`."""

    media_type: str
    data: bytes


@dataclass(frozen=True, slots=True)
class File:
    media_type: str
    name: str
    data: bytes
    cache_ttl: PromptCacheTtl | None = None


@dataclass(frozen=True, slots=True)
class Vector:
    """What a text means to a model, as little-endian 32-bit floats; only in answers to what was to be embedded."""

    values: bytes


Part: TypeAlias = Text | ToolCall | ToolResult | Reasoning | Opaque | Refusal | Image | Audio | File | Vector


@dataclass(frozen=True, slots=True)
class Message:
    role: Role
    parts: tuple[Part, ...]

    @property
    def text(self) -> str:
        """The text parts joined; other parts are left out."""
        return "".join(part.text for part in self.parts if isinstance(part, Text))

    @property
    def said(self) -> tuple[Part, ...]:
        """The parts without empty texts, which providers refuse or take for messages of their own."""
        return tuple([part for part in self.parts if not is_empty(part)])

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        return tuple(part for part in self.parts if isinstance(part, ToolCall))


def is_empty(part: Part) -> bool:
    return isinstance(part, Text | Refusal) and not part.text


# --- request --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """A tool on offer; `parameters` is the JSON Schema of its arguments."""

    name: str
    description: str
    parameters: JsonObject
    strict: bool = False
    cache_ttl: PromptCacheTtl | None = None

    @property
    def schema(self) -> JsonObject:
        """`parameters`; where there are none, the schema of an object without fields, which providers want to be given."""
        closed: JsonObject = {"additionalProperties": False} if self.strict else {}
        return self.parameters or {"type": "object", "properties": {}, **closed}


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """`tool` forces the tool called `name`; `required` forces any."""

    mode: Literal["auto", "none", "required", "tool"] = "auto"
    name: str = ""


@dataclass(frozen=True, slots=True)
class OutputFormat:
    """The form of the answer; `schema` is a JSON Schema and belongs to `json_schema`."""

    kind: Literal["text", "json_object", "json_schema"] = "text"
    name: str = "answer"
    schema: JsonObject = field(default_factory=dict)
    strict: bool = True


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """One call of one model. None leaves a parameter to the provider; `provider_options` goes into the wire request.

    `reasoning_tokens_max` 0 asks for an answer without reasoning; `cache_ttl` is a breakpoint where the provider likes it.
    """

    model: str
    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...] = ()
    tool_choice: ToolChoice = ToolChoice()
    parallel_tool_calls: bool | None = None
    output_format: OutputFormat = OutputFormat()
    max_output_tokens: int | None = None
    stop: tuple[str, ...] = ()
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    reasoning_effort: str | None = None
    reasoning_tokens_max: int | None = None
    service_tier: str | None = None
    provider_options: JsonObject = field(default_factory=dict)
    cache_ttl: PromptCacheTtl | None = None
    reasoning_mode: ReasoningMode | None = None
    reasoning_display: ReasoningDisplay | None = None

    def aimed_at(self, model: str, max_output_tokens: int) -> "ModelRequest":
        """The same, of this model and with this limit. By hand, because `dataclasses.replace` costs more than the rest."""
        return ModelRequest(
            model,
            self.messages,
            self.tools,
            self.tool_choice,
            self.parallel_tool_calls,
            self.output_format,
            max_output_tokens,
            self.stop,
            self.temperature,
            self.top_p,
            self.top_k,
            self.seed,
            self.reasoning_effort,
            self.reasoning_tokens_max,
            self.service_tier,
            self.provider_options,
            self.cache_ttl,
            self.reasoning_mode,
            self.reasoning_display,
        )


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    """Texts to turn into vectors, one each; `dimensions` None for as many as the model has of its own."""

    model: str
    texts: tuple[str, ...]
    dimensions: int | None = None


# --- usage ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class UsageLine:
    """A count of tokens that shares nothing with any other line, so that each can have its own price."""

    direction: Direction
    quantity: int
    modality: Modality = "text"
    cache: Cache = "none"
    ttl: CacheTtl | None = None
    reasoning: bool = False


@dataclass(frozen=True, slots=True)
class ToolUnits:
    """Uses of a tool that runs at the provider, as `web_search`."""

    name: str
    quantity: int


@dataclass(frozen=True, slots=True)
class Usage:
    """Inclusive totals (cached input is input, reasoning is output) and the disjoint lines that make them up, in
    tokens.

    Raises InvalidUsage when a count is negative or absurd, or the lines do not add up.
    """

    input_tokens: int
    output_tokens: int
    lines: tuple[UsageLine, ...]
    tool_units: tuple[ToolUnits, ...] = ()

    def __post_init__(self) -> None:
        added = {"input": 0, "output": 0}
        for line in self.lines:
            _check_count(line.quantity)
            added[line.direction] += line.quantity
        for direction, total in (("input", self.input_tokens), ("output", self.output_tokens)):
            _check_count(total)
            if added[direction] != total:
                raise InvalidUsage(f"the {direction} lines add up to {added[direction]} tokens, the total says {total}")
        for units in self.tool_units:
            _check_count(units.quantity)

    @classmethod
    def of(cls, lines: Iterable[UsageLine], tool_units: tuple[ToolUnits, ...] = ()) -> "Usage":
        """Usage from its lines; empty lines are left out and the totals added up."""
        kept = tuple([line for line in lines if line.quantity])
        totals = {"input": 0, "output": 0}
        for line in kept:
            totals[line.direction] += line.quantity
        return cls(totals["input"], totals["output"], kept, tool_units)


def _check_count(quantity: int) -> None:
    if type(quantity) is not int:  # a provider may write anything where a number belongs
        raise InvalidUsage(f"a count of tokens is no whole number but {type(quantity).__name__}")
    if not 0 <= quantity <= USAGE_TOKENS_MAX:
        raise InvalidUsage(f"a count of {quantity} tokens is outside 0 to {USAGE_TOKENS_MAX}")


# --- response -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ModelResponse:
    """A finished answer. `usage` is None when the provider gave none that can be believed: absent is not zero.

    `model` is what the provider says it ran; `warnings` name parameters left out and counts not believed; `simulated`
    is set when the answer says that it comes from the provider simulator; `service_tier` is what it was served at, empty
    when the provider does not say.
    """

    message: Message
    finish_reason: FinishReason
    raw_finish_reason: str
    usage: Usage | None
    provider_response_id: str
    model: str
    warnings: tuple[str, ...] = ()
    simulated: bool = False
    service_tier: str = ""


@dataclass(frozen=True, slots=True)
class Embeddings:
    """One vector for each text, in their order. `usage` and `simulated` as in ModelResponse."""

    vectors: tuple[Vector, ...]
    usage: Usage | None
    model: str
    simulated: bool = False


# --- answer ---------------------------------------------------------------------------------------------------------

UsageSource = Literal["provider_final", "provider_partial", "gateway_counted", "reserved_upper_bound", "gateway_cache"]
CacheUse = Literal["", "hit", "miss"]
"""Whether the answer was kept from another call; empty when that was not asked for."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the gateway answers to one call: the response, settled and named in the caller's terms.

    `model` is "provider/model" of the attempt that answered; `replayed` marks an answer kept from an earlier call.
    """

    request_id: str
    message: Message
    finish_reason: FinishReason
    usage: Usage
    usage_source: UsageSource
    model: str
    provider_response_id: str
    reservation_id: str
    warnings: tuple[str, ...] = ()
    simulated: bool = False
    replayed: bool = False
    cache: CacheUse = ""
    raw_finish_reason: str = ""


Abort = Literal["drain", "estimate", "free"]
"""What a provider bills for an answer that nobody waits for any more, and so what is done with it: all of it (read on),
what it has written so far (cancel, and charge an estimate), or nothing (cancel)."""


# --- stream ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Started:
    """The provider has accepted the call; no content yet."""

    provider_response_id: str
    model: str


@dataclass(frozen=True, slots=True)
class Warned:
    """What was left out of the request, as the response names it too: callers of a stream learn it before the answer."""

    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TextDelta:
    text: str


@dataclass(frozen=True, slots=True)
class RefusalDelta:
    text: str


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    text: str


@dataclass(frozen=True, slots=True)
class ReasoningDone:
    """A part as the answer holds it, where it stands there; its text, if it has any, came in deltas.

    No content: many such parts show nothing, and one that stands alone is no reason not to try again.
    """

    part: Reasoning | Opaque


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A piece of the `index`-th tool call (from 0). `id` and `name` come with its first piece and are empty later."""

    index: int
    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class UsageUpdated:
    """Usage so far, cumulative: a later one replaces an earlier one."""

    usage: Usage


@dataclass(frozen=True, slots=True)
class Completed:
    """The terminal part of a stream that went well; the response holds everything the deltas said."""

    response: ModelResponse


Delta: TypeAlias = TextDelta | RefusalDelta | ReasoningDelta | ReasoningDone | ToolCallDelta
"""What callers are shown of an answer, piece by piece."""
StreamPart: TypeAlias = Started | Warned | Delta | UsageUpdated | Completed


def is_content(part: StreamPart) -> bool:
    """Whether the part shows the caller something of this attempt's answer, after which no silent retry is allowed."""
    return isinstance(part, TextDelta | RefusalDelta | ReasoningDelta | ToolCallDelta)
