"""POST /v1/responses, as the SDK openai 3.54 speaks it: the request. Pure.

Nothing is stored between two requests: whoever goes on with a conversation sends all of it, reasoning included.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, Literal, TypeAlias

from pydantic import ConfigDict, Field
from servicekit.errors import ServiceError
from synod.llm_gateway.v1 import llm_gateway_pb2 as pb

from httpedge.compatible import failures, openai_reasoning
from httpedge.compatible.caching import CacheAsked
from httpedge.compatible.dialect import Asked, CountAsked, Turn, Writer
from httpedge.compatible.openai_chat import image
from httpedge.compatible.openai_responses_answer import ResponseWriter, response
from httpedge.compatible.wire import (
    Effort,
    JsonObject,
    ModelName,
    Name,
    OutputTokens,
    StrictModel,
    WireModel,
    data_url,
    decoded,
    read,
    refuse,
    refuse_other,
    refuse_unless,
    required,
    text_of,
)
from httpedge.mistakes import wrong

_STORED: Final = ("previous_response_id", "conversation", "prompt")
_NOT_TAKEN: Final = (
    "access_programs",
    "background",
    "background_options",
    "context_management",
    "image",
    "max_tool_calls",
    "moderation",
    "personality",
    "top_logprobs",
)
_ROLES: Final[Mapping[str, "pb.Role.ValueType"]] = {
    "system": pb.ROLE_SYSTEM,
    "developer": pb.ROLE_DEVELOPER,
    "user": pb.ROLE_USER,
    "assistant": pb.ROLE_ASSISTANT,
}
_SPOKEN: Final = frozenset({"text", "refusal"})
_BY_USERS: Final = ("input_image", "input_audio", "input_file")

Included: TypeAlias = Literal[
    "reasoning.encrypted_content",
    "message.input_image.image_url",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
]
"""What an answer holds anyway, or would hold of tools that are refused."""


class _Sound(WireModel):
    data: str
    format: str


class _Content(WireModel):
    type: Literal["input_text", "output_text", "text", "refusal", "input_image", "input_audio", "input_file"]
    text: str | None = None
    refusal: str | None = None
    image_url: str | None = None
    input_audio: _Sound | None = None
    filename: str | None = None
    file_data: str | None = None


class _Thought(WireModel):
    """A part of a reasoning item, kept whole."""

    model_config = ConfigDict(frozen=True, extra="allow")

    type: Literal["reasoning_text"]


class _Item(WireModel):
    """Any input item; those of reasoning are kept whole, as they came but for what is null."""

    model_config = ConfigDict(frozen=True, extra="allow")

    type: str | None = None
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: str | tuple[_Content, ...] | tuple[_Thought, ...] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | tuple[_Content, ...] | None = None
    phase: object = None


class _Tool(WireModel):
    type: str
    name: str | None = None
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None


class _Chosen(WireModel):
    type: Literal["function"]
    name: Name


class _Format(WireModel):
    type: Literal["text", "json_object", "json_schema"] | None = None
    name: str | None = None
    schema_: JsonObject | None = Field(default=None, alias="schema")
    strict: bool | None = None


class _Text(StrictModel):
    format: _Format | None = None
    verbosity: str | None = None


class _Reasoning(StrictModel):
    effort: Effort | None = None
    context: str | None = None
    mode: str | None = None
    summary: object = None
    generate_summary: object = None


class _Request(CacheAsked):
    model: ModelName
    input: str | tuple[_Item, ...]
    instructions: str | None = None
    tools: tuple[_Tool, ...] | None = None
    tool_choice: Literal["none", "auto", "required"] | _Chosen | None = None
    parallel_tool_calls: bool | None = None
    text: _Text | None = None
    reasoning: _Reasoning | None = None
    max_output_tokens: OutputTokens | None = None
    temperature: float | None = None
    top_p: float | None = None
    service_tier: str | None = None
    truncation: str | None = None
    stream: bool | None = None
    previous_response_id: object = None
    conversation: object = None
    prompt: object = None
    background: object = None
    max_tool_calls: object = None
    top_logprobs: object = None
    moderation: object = None
    context_management: object = None
    access_programs: object = None
    background_options: object = None
    image: object = None
    personality: object = None
    store: object = None
    include: tuple[Included, ...] | None = None
    metadata: object = None
    stream_options: object = None
    user: object = None
    safety_identifier: object = None
    prompt_cache_key: object = None
    prompt_cache_options: object = None
    prompt_cache_retention: object = None


class OpenAiResponses:
    """Implements Dialect."""

    def parse(self, body: bytes, request_id: str, created: int) -> Asked:
        request = read(_Request, body)
        _check(request)
        turns = _turns(request)
        places = [turn.places for turn in turns]
        return Asked(_generate(request, request_id, turns), bool(request.stream), True, created, places)

    def whole(self, answer: pb.GenerateResponse, asked: Asked) -> Mapping[str, object]:
        return response(answer, asked)

    def writer(self, asked: Asked) -> Writer:
        return ResponseWriter(asked)

    def failure(self, error: ServiceError) -> tuple[int, Mapping[str, object]]:
        return failures.openai(error)


def parse_countable(body: bytes) -> CountAsked:
    """POST /v1/responses/input_tokens. Raises InvalidArgument."""
    request = read(_Request, body)
    _check(request)
    turns = _turns(request)
    asked = _generate(request, "", turns)
    counted = pb.CountTokensRequest(model=asked.model, messages=asked.messages, tools=asked.tools, exact=True)
    return CountAsked(counted, [turn.places for turn in turns])


def _check(request: _Request) -> None:
    """Refuses what would be left out silently."""
    refuse(request, _STORED, "nothing is stored here; send the whole input")
    refuse(request, ("store",), "nothing is stored here; leave it out")
    refuse(request, _NOT_TAKEN)
    refuse_other("text.verbosity", request.text.verbosity if request.text else None, "medium")
    if reasoning := request.reasoning:
        refuse_other("reasoning.mode", reasoning.mode, "standard")
        refuse_other("reasoning.context", reasoning.context, "auto")
    if not request.input and not isinstance(request.input, str):
        raise wrong("input", [], "is empty; give a message")
    if request.truncation not in (None, "disabled"):
        raise wrong("truncation", request.truncation, "input is never cut here; leave it out")


def _generate(request: _Request, request_id: str, turns: Sequence[Turn]) -> pb.GenerateRequest:
    return pb.GenerateRequest(
        request_id=request_id,
        model=request.model,
        messages=[turn.message for turn in turns],
        tools=[_tool(f"tools.{index}", tool) for index, tool in enumerate(request.tools or ())],
        tool_choice=request.tool_choice.name if isinstance(request.tool_choice, _Chosen) else request.tool_choice or "",
        output_format=_format(request.text.format if request.text else None),
        max_output_tokens=request.max_output_tokens or 0,
        temperature=request.temperature,
        top_p=request.top_p,
        reasoning_effort=(request.reasoning.effort if request.reasoning else None) or "",
        service_tier="" if request.service_tier == "auto" else request.service_tier or "",
        parallel_tool_calls=request.parallel_tool_calls,
        cache=request.cache_policy(),
    )


def _turns(request: _Request) -> list[Turn]:
    told = [_said("instructions", pb.ROLE_SYSTEM, request.instructions)] if request.instructions else []
    if isinstance(request.input, str):
        return [*told, _said("input", pb.ROLE_USER, request.input)]
    return [*told, *_joined(_turn(f"input.{index}", item) for index, item in enumerate(request.input))]


def _said(field: str, role: "pb.Role.ValueType", text: str) -> Turn:
    return Turn.of_one(role, field, pb.Part(text=text))


def _joined(turns: Iterable[Turn]) -> Iterator[Turn]:
    """What an assistant said, thought and called in one go is one message elsewhere, and so are results of tools."""
    last: Turn | None = None
    for turn in turns:
        if last is not None and _goes_on(last.message, turn.message):
            last.extend(turn)
            continue
        if last is not None:
            yield last
        last = turn
    if last is not None:
        yield last


def _goes_on(last: pb.Message, more: pb.Message) -> bool:
    """An assistant who speaks again begins another message, unless there is a call whose result is still to come."""
    if last.role != more.role or more.role not in (pb.ROLE_ASSISTANT, pb.ROLE_TOOL):
        return False
    before = {part.WhichOneof("part") for part in last.parts}
    speaks = any(part.WhichOneof("part") in _SPOKEN for part in more.parts)
    return not speaks or before.isdisjoint(_SPOKEN) or "tool_call" in before


def _turn(field: str, item: _Item) -> Turn:
    match item.type or "message":
        case "message" if item.role is not None:
            refuse(item, ("phase",), within=field)
            return Turn.of(_ROLES[item.role], _parts(f"{field}.content", item.role, item.content))
        case "message":
            raise wrong(f"{field}.role", None, "must be given")
        case "function_call":
            arguments = "{}" if item.arguments is None else item.arguments
            call = pb.ToolCall(id=item.call_id or "", name=item.name or "", arguments_json=arguments)
            return Turn.of_one(pb.ROLE_ASSISTANT, field, pb.Part(tool_call=call))
        case "function_call_output":
            if not item.call_id:
                raise wrong(f"{field}.call_id", "", "is missing; give the id of the call that this answers")
            result = pb.ToolResult(tool_call_id=item.call_id, content=_text(f"{field}.output", item.output))
            return Turn.of_one(pb.ROLE_TOOL, field, pb.Part(tool_result=result))
        case "reasoning":
            thought = openai_reasoning.from_item(field, item.model_dump(exclude_unset=True, exclude_none=True))
            return Turn.of_one(pb.ROLE_ASSISTANT, field, pb.Part(reasoning=thought))
        case _:
            known = "message, function_call, function_call_output or reasoning"
            raise wrong(f"{field}.type", item.type, f"must be {known}")


def _parts(
    field: str, role: str, content: str | tuple[_Content, ...] | tuple[_Thought, ...] | None
) -> Iterator[tuple[str, pb.Part]]:
    """With the place of each."""
    if isinstance(content, tuple):
        parts: Sequence[_Content | _Thought] = content
        for index, one in enumerate(parts):
            refuse_unless(role == "user" or one.type not in _BY_USERS, f"{field}.{index}.type", one.type, "user")
            yield f"{field}.{index}", _part(f"{field}.{index}", one)
    elif content is not None:
        yield field, pb.Part(text=content)
    if not content and not isinstance(content, str) and role == "user":
        raise wrong(field, content, "is empty; give text or parts")


def _part(field: str, content: _Content | _Thought) -> pb.Part:
    match content:
        case _Thought():
            raise wrong(f"{field}.type", content.type, "is said in an item of the type reasoning only")
        case _Content(type="input_text" | "output_text" | "text"):
            return pb.Part(text=content.text or "")
        case _Content(type="refusal"):
            return pb.Part(refusal=content.refusal or "")
        case _Content(type="input_image", image_url=str(url)):
            return pb.Part(image=image(f"{field}.image_url", url))
        case _Content(type="input_audio", input_audio=_Sound() as sound):
            data = decoded(f"{field}.input_audio.data", required(f"{field}.input_audio.data", sound.data))
            return pb.Part(audio=pb.Audio(media_type=f"audio/{sound.format}", data=data))
        case _Content(type="input_file", file_data=str(url)):
            media_type, data = data_url(f"{field}.file_data", url)
            return pb.Part(file=pb.File(media_type=media_type, name=content.filename or "file", data=data))
        case _:
            raise wrong(field, content.type, "send the data itself; no files are kept here")


def _text(field: str, output: str | tuple[_Content, ...] | None) -> str:
    """What a tool answered; only text, as everywhere."""
    if not isinstance(output, tuple):
        return output or ""
    for index, one in enumerate(output):
        if one.type not in ("input_text", "output_text", "text"):
            raise wrong(f"{field}.{index}.type", one.type, "a tool's result is text")
    return "\n".join(one.text or "" for one in output)


def _tool(field: str, tool: _Tool) -> pb.Tool:
    if tool.type != "function":
        raise wrong(f"{field}.type", tool.type, "must be function; tools of one provider are not called here")
    return pb.Tool(
        name=tool.name or "",
        description=tool.description or "",
        parameters_json=text_of(tool.parameters or {}),
        strict=bool(tool.strict),
    )


def _format(wanted: _Format | None) -> pb.OutputFormat:
    if wanted is None or wanted.type != "json_schema":
        return pb.OutputFormat(kind=wanted.type or "text" if wanted else "")
    if wanted.schema_ is None:
        raise wrong("text.format.schema", None, "is missing; give it")
    schema = text_of(wanted.schema_)
    return pb.OutputFormat(kind="json_schema", json_schema=schema, name=wanted.name or "", strict=bool(wanted.strict))
