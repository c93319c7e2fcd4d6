"""POST /v1/messages and /v1/messages/count_tokens, as the SDK anthropic 2.12 speaks them: the requests. Pure."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, Literal

from pydantic import ConfigDict, Field, ValidationError
from servicekit.errors import ServiceError
from synod.llm_gateway.opaque import ANTHROPIC_BLOCKS
from synod.llm_gateway.v1 import llm_gateway_pb2 as pb

from httpedge.compatible import failures
from httpedge.compatible.anthropic_messages_answer import MessageWriter, message
from httpedge.compatible.anthropic_reasoning import from_block
from httpedge.compatible.caching import CacheAsked
from httpedge.compatible.dialect import Asked, CountAsked, Turn, Writer
from httpedge.compatible.prompt_cache import CacheControl, cache_ttl, up_to
from httpedge.compatible.wire import (
    MISSING,
    NOT_SUPPORTED,
    Count,
    Effort,
    Int32,
    JsonObject,
    ModelName,
    Name,
    OutputTokens,
    StrictModel,
    WireModel,
    decoded,
    read,
    refuse,
    refuse_other,
    required,
    text_of,
)
from httpedge.mistakes import mistake, wrong

_ROLES: Final[Mapping[str, "pb.Role.ValueType"]] = {
    "system": pb.ROLE_SYSTEM,
    "user": pb.ROLE_USER,
    "assistant": pb.ROLE_ASSISTANT,
}
_CHOICES: Final[Mapping[str, str]] = {"auto": "auto", "any": "required", "none": "none"}
_MODES: Final = ("adaptive", "between_tools")
"""Types of thinking that have no number."""
_SHOWN: Final = ("enabled", "adaptive")
"""Types of thinking that say what of it is shown."""
_NOT_COUNTED: Final = ("billing_policy", "compaction", "context_management", "mcp_servers")
_NOT_TAKEN: Final = (
    *_NOT_COUNTED,
    "container",
    "diagnostics",
    "fallback_credit_token",
    "fallbacks",
    "thread",
)


_BLOCKS: Final[Mapping[str, Sequence[str]]] = {
    "system": ("text",),
    "user": ("text", "image", "document", "tool_result"),
    "assistant": ("text", "tool_use", *ANTHROPIC_BLOCKS),
}
"""What each role can say."""


class _Source(WireModel):
    type: Literal["base64", "url", "text"]
    media_type: str | None = None
    data: str | None = None
    url: str | None = None


class _Said(WireModel):
    """A part of a system prompt or of a tool's result, which are text."""

    type: str
    text: str | None = None
    cache_control: CacheControl | None = None


class _Block(WireModel):
    """Any content block; those with a meaning for their own provider only are kept whole, as they came."""

    model_config = ConfigDict(frozen=True, extra="allow")

    type: str
    text: str | None = None
    source: _Source | None = None
    title: str | None = None
    id: str | None = None
    name: str | None = None
    input: JsonObject | None = None
    tool_use_id: str | None = None
    content: object = None
    is_error: bool | None = None
    cache_control: CacheControl | None = None
    citations: object = None
    context: object = None


class _Message(WireModel):
    role: Literal["system", "user", "assistant"]
    content: str | tuple[_Block, ...]


class _Tool(StrictModel):
    type: Literal["custom"] | None = None
    name: Name
    description: str | None = None
    input_schema: JsonObject
    strict: bool | None = None
    cache_control: CacheControl | None = None
    allowed_callers: tuple[Literal["direct"], ...] | None = None
    defer_loading: object = None
    input_examples: object = None
    eager_input_streaming: object = None


class _Choice(StrictModel):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class _Format(WireModel):
    type: Literal["json_schema"]
    schema_: JsonObject = Field(alias="schema")


class _OutputConfig(StrictModel):
    effort: Effort | None = None
    format: _Format | None = None
    task_budget: object = None


class _Thinking(StrictModel):
    type: Literal["enabled", "adaptive", "between_tools", "disabled"]
    budget_tokens: Count | None = None
    display: Literal["summarized", "omitted"] | None = None


class _Countable(StrictModel):
    model: ModelName
    messages: tuple[_Message, ...]
    system: str | tuple[_Said, ...] | None = None
    tools: tuple[_Tool, ...] | None = None
    tool_choice: _Choice | None = None
    output_config: _OutputConfig | None = None
    thinking: _Thinking | None = None
    cache_control: CacheControl | None = None
    speed: str | None = None
    billing_policy: object = None
    compaction: object = None
    context_management: object = None
    mcp_servers: object = None


class _Request(_Countable, CacheAsked):
    max_tokens: OutputTokens
    service_tier: str | None = None
    stop_sequences: tuple[str, ...] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Int32 | None = None
    stream: bool | None = None
    inference_geo: str | None = None
    container: object = None
    diagnostics: object = None
    fallback_credit_token: object = None
    fallbacks: object = None
    thread: object = None
    metadata: object = None


class AnthropicMessages:
    """Implements Dialect."""

    def parse(self, body: bytes, request_id: str, created: int) -> Asked:
        request = read(_Request, body)
        _check(request)
        turns = list(_turns(request))
        places = [turn.places for turn in turns]
        return Asked(_generate(request, request_id, turns), bool(request.stream), True, created, places)

    def whole(self, answer: pb.GenerateResponse, asked: Asked) -> Mapping[str, object]:
        return message(answer)

    def writer(self, asked: Asked) -> Writer:
        return MessageWriter(asked)

    def failure(self, error: ServiceError) -> tuple[int, Mapping[str, object]]:
        return failures.anthropic(error)


def parse_countable(body: bytes) -> CountAsked:
    """Raises InvalidArgument."""
    request = read(_Countable, body)
    refuse(request, _NOT_COUNTED)
    turns = list(_turns(request))
    messages = [turn.message for turn in turns]
    counted = pb.CountTokensRequest(model=request.model, messages=messages, tools=_tools(request), exact=True)
    return CountAsked(counted, [turn.places for turn in turns])


def _check(request: _Request) -> None:
    """Refuses what would be left out silently, and changes the answer or its price."""
    refuse(request, _NOT_TAKEN)
    if not request.messages:
        raise wrong("messages", [], "is empty; give a message")
    refuse_other("speed", request.speed, "standard")
    refuse_other("inference_geo", request.inference_geo, "global")
    if config := request.output_config:
        refuse(config, ("task_budget",), within="output_config")
    if (choice := request.tool_choice) and choice.type == "tool" and not choice.name:
        raise wrong("tool_choice.name", "", "is missing; give the name of a tool")


def _generate(request: _Request, request_id: str, turns: Sequence[Turn]) -> pb.GenerateRequest:
    choice, config, thinking = request.tool_choice, request.output_config or _OutputConfig(), request.thinking
    return pb.GenerateRequest(
        request_id=request_id,
        model=request.model,
        messages=[turn.message for turn in turns],
        tools=_tools(request),
        tool_choice=_choice(choice),
        output_format=_format(config.format),
        max_output_tokens=request.max_tokens,
        stop=request.stop_sequences or (),
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k,
        reasoning_effort=config.effort or "",
        reasoning_tokens_max=_budget(request),
        reasoning_mode=thinking.type if thinking and thinking.type in _MODES else "",
        reasoning_display=(thinking.display if thinking else None) or "",
        service_tier="" if request.service_tier == "auto" else request.service_tier or "",
        parallel_tool_calls=False if choice and choice.disable_parallel_tool_use else None,
        cache=request.cache_policy(),
        prompt_cache_ttl=cache_ttl(request.cache_control),
    )


def _budget(request: _Request) -> int | None:
    """How many tokens to think with; None where no number is told. Raises InvalidArgument for what its type has not."""
    thinking = request.thinking
    if thinking is None:
        return None
    if thinking.type not in _SHOWN:
        refuse(thinking, ("display",), f"is not there with the type {thinking.type}; leave it out", within="thinking")
    if thinking.type != "enabled":
        problem = "belongs to the type enabled; leave it out"
        refuse(thinking, ("budget_tokens",), problem, within="thinking")
        return 0 if thinking.type == "disabled" else None
    if thinking.budget_tokens is None or thinking.budget_tokens >= request.max_tokens:
        raise wrong("thinking.budget_tokens", thinking.budget_tokens, "must be given, less than max_tokens")
    return thinking.budget_tokens


def _turns(request: _Countable) -> Iterator[Turn]:
    if system := [("system", part) for part in _system(request.system)]:
        yield Turn.of(pb.ROLE_SYSTEM, system)
    for index, said in enumerate(request.messages):
        yield from _spoken(f"messages.{index}.content", said)


def _system(system: str | tuple[_Said, ...] | None) -> Iterator[pb.Part]:
    """One part, or one up to each breakpoint of the cache; together they are the same text."""
    text = _text("system", system)
    told = [said for said in system if said.text] if isinstance(system, tuple) else [_Said(type="text", text=text)]
    piece = ""
    for number, said in enumerate(told, start=1):
        is_last = number == len(told)
        piece += said.text or "" if is_last else f"{said.text}\n"
        if piece and (is_last or said.cache_control):
            yield up_to(pb.Part(text=piece), said.cache_control)
            piece = ""


def _spoken(field: str, message: _Message) -> Iterator[Turn]:
    """One message, or two: results of tools stand in a user's message here and in one of their own there."""
    if isinstance(message.content, str):
        yield Turn.of_one(_ROLES[message.role], field, pb.Part(text=message.content))
        return
    if not message.content and message.role == "user":
        raise wrong(field, [], "is empty; give text or blocks")
    blocks = [(f"{field}.{index}", block) for index, block in enumerate(message.content)]
    _check_blocks(_BLOCKS[message.role], blocks)
    results = [
        (where, up_to(_result(where, block), block.cache_control))
        for where, block in blocks
        if block.type == "tool_result"
    ]
    if results:
        yield Turn.of(pb.ROLE_TOOL, results)
    parts = [
        (where, up_to(_part(where, block), block.cache_control))
        for where, block in blocks
        if block.type != "tool_result"
    ]
    if parts or not results:
        yield Turn.of(_ROLES[message.role], parts)


def _check_blocks(allowed: Sequence[str], blocks: Iterable[tuple[str, _Block]]) -> None:
    """Raises InvalidArgument by the caller's name of the field: the gateway counts other messages and other parts."""
    for where, block in blocks:
        if block.type not in allowed:
            raise wrong(f"{where}.type", block.type, f"must be one of {', '.join(allowed)}")


def _result(field: str, block: _Block) -> pb.Part:
    if not block.tool_use_id:
        raise wrong(f"{field}.tool_use_id", "", "is missing; give the id of the call that this answers")
    content = _text(f"{field}.content", _pieces(f"{field}.content", block.content))
    return pb.Part(
        tool_result=pb.ToolResult(tool_call_id=block.tool_use_id, content=content, is_error=bool(block.is_error))
    )


def _part(field: str, block: _Block) -> pb.Part:
    match block.type:
        case "text":
            return pb.Part(text=block.text or "")
        case "tool_use":
            call = pb.ToolCall(id=block.id or "", name=block.name or "", arguments_json=text_of(block.input or {}))
            return pb.Part(tool_call=call)
        case "image" | "document":
            return _medium(field, block)
        case _:
            return pb.Part(reasoning=from_block(field, block.model_dump(exclude_unset=True)))


def _medium(field: str, block: _Block) -> pb.Part:
    source = block.source
    if source is None:
        raise wrong(f"{field}.source", None, MISSING)
    if source.type == "url" and block.type == "image":
        return pb.Part(image=pb.Image(url=required(f"{field}.source.url", source.url)))
    if source.type == "url":
        raise wrong(f"{field}.source.type", "url", "send the document itself, as base64 or text")
    if block.citations not in (None, {"enabled": False}):
        raise wrong(f"{field}.citations", block.citations, NOT_SUPPORTED)
    refuse(block, ("context",), within=field)
    said = required(f"{field}.source.data", source.data)
    media_type = required(f"{field}.source.media_type", source.media_type)
    data = said.encode() if source.type == "text" else decoded(f"{field}.source.data", said)
    if block.type == "image":
        return pb.Part(image=pb.Image(media_type=media_type, data=data))
    return pb.Part(file=pb.File(media_type=media_type, name=block.title or "document", data=data))


def _pieces(field: str, content: object) -> str | tuple[_Said, ...] | None:
    """What a tool answered, which is read here because the content of other blocks may be anything."""
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise wrong(field, content, "must be text, or a list of blocks of text")
    return tuple([_piece(f"{field}.{index}", block) for index, block in enumerate(content)])


def _piece(field: str, block: object) -> _Said:
    if not isinstance(block, dict):
        raise wrong(field, block, "must be a block of text")
    try:
        return _Said.model_validate(block)
    except ValidationError as error:
        raise mistake(error.errors(include_url=False), block, within=field) from None


def _text(field: str, content: str | tuple[_Said, ...] | None) -> str:
    """Raises InvalidArgument for anything else than text: the model would not see it."""
    if not isinstance(content, tuple):
        return content or ""
    for index, said in enumerate(content):
        if said.type != "text":
            raise wrong(f"{field}.{index}.type", said.type, "only text is supported here; leave it out")
    return "\n".join(said.text for said in content if said.text)


def _tools(request: _Countable) -> list[pb.Tool]:
    for index, tool in enumerate(request.tools or ()):
        refuse(tool, ("defer_loading", "input_examples"), within=f"tools.{index}")
    return [
        pb.Tool(
            name=tool.name,
            description=tool.description or "",
            parameters_json=text_of(tool.input_schema),
            strict=bool(tool.strict),
            prompt_cache_ttl=cache_ttl(tool.cache_control),
        )
        for tool in request.tools or ()
    ]


def _choice(choice: _Choice | None) -> str:
    if choice is None:
        return ""
    return choice.name or "" if choice.type == "tool" else _CHOICES[choice.type]


def _format(wanted: _Format | None) -> pb.OutputFormat:
    if wanted is None:
        return pb.OutputFormat()
    return pb.OutputFormat(kind="json_schema", json_schema=text_of(wanted.schema_), strict=True)
