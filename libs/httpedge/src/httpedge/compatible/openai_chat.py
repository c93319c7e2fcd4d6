"""POST /v1/chat/completions, as the SDK openai 3.54 speaks it: the request. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Literal

from pydantic import Field
from servicekit.errors import ServiceError
from synod.llm_gateway.v1 import llm_gateway_pb2 as pb

from httpedge.compatible import failures
from httpedge.compatible.caching import CacheAsked
from httpedge.compatible.dialect import Asked, Turn, Writer
from httpedge.compatible.google_signature import ExtraContent, from_extra
from httpedge.compatible.openai_chat_answer import ChatWriter, completion
from httpedge.compatible.prompt_cache import CacheControl, cache_ttl, up_to
from httpedge.compatible.wire import (
    Effort,
    Int64,
    Integer,
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

# Asked for, these change the answer in a way that no model behind the gateway is told about.
_NOT_TAKEN: Final = (
    "audio",
    "functions",
    "function_call",
    "logprobs",
    "moderation",
    "prediction",
    "web_search_options",
)
_BY_USERS: Final = ("image_url", "input_audio", "file")
_NEUTRAL: Final = ("frequency_penalty", "presence_penalty", "logit_bias", "top_logprobs")

ROLES: Final[Mapping[str, "pb.Role.ValueType"]] = {
    "system": pb.ROLE_SYSTEM,
    "developer": pb.ROLE_DEVELOPER,
    "user": pb.ROLE_USER,
    "assistant": pb.ROLE_ASSISTANT,
    "tool": pb.ROLE_TOOL,
}


class _Address(WireModel):
    url: str


class _Sound(WireModel):
    data: str
    format: str


class _File(WireModel):
    filename: str | None = None
    file_data: str


class _Content(WireModel):
    type: Literal["text", "refusal", "image_url", "input_audio", "file"]
    text: str | None = None
    refusal: str | None = None
    image_url: _Address | None = None
    input_audio: _Sound | None = None
    file: _File | None = None
    cache_control: CacheControl | None = None


class _Function(WireModel):
    name: str
    arguments: str | None = None


class _Call(WireModel):
    id: str
    type: Literal["function"] | None = None
    function: _Function
    extra_content: ExtraContent | None = None


class _Message(WireModel):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | tuple[_Content, ...] | None = None
    refusal: str | None = None
    tool_calls: tuple[_Call, ...] | None = None
    tool_call_id: str | None = None
    function_call: object = None
    audio: object = None


class _ToolFunction(WireModel):
    name: Name
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None


class _Tool(WireModel):
    type: Literal["function"]
    function: _ToolFunction
    cache_control: CacheControl | None = None


class _ChosenName(WireModel):
    name: Name


class _Chosen(WireModel):
    type: Literal["function"]
    function: _ChosenName


class _Schema(WireModel):
    name: str | None = None
    schema_: JsonObject | None = Field(default=None, alias="schema")
    strict: bool | None = None


class _Format(WireModel):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: _Schema | None = None


class _StreamOptions(StrictModel):
    include_usage: bool | None = None
    include_obfuscation: object = None


class _Request(CacheAsked):
    model: ModelName
    messages: tuple[_Message, ...]
    tools: tuple[_Tool, ...] | None = None
    tool_choice: Literal["none", "auto", "required"] | _Chosen | None = None
    parallel_tool_calls: bool | None = None
    response_format: _Format | None = None
    max_completion_tokens: OutputTokens | None = None
    max_tokens: OutputTokens | None = None
    stop: str | tuple[str, ...] | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: Int64 | None = None
    reasoning_effort: Effort | None = None
    service_tier: str | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    n: Integer | None = None
    modalities: tuple[str, ...] | None = None
    audio: object = None
    functions: object = None
    function_call: object = None
    logprobs: object = None
    moderation: object = None
    verbosity: str | None = None
    prediction: object = None
    web_search_options: object = None
    frequency_penalty: object = None
    presence_penalty: object = None
    logit_bias: object = None
    top_logprobs: object = None
    store: object = None
    metadata: object = None
    user: object = None
    safety_identifier: object = None
    prompt_cache_key: object = None
    prompt_cache_options: object = None
    prompt_cache_retention: object = None


class OpenAiChat:
    """Implements Dialect."""

    def parse(self, body: bytes, request_id: str, created: int) -> Asked:
        request = read(_Request, body)
        _check(request)
        options = request.stream_options
        include_usage = bool(options and options.include_usage)
        turns = [_turn(f"messages.{index}", message) for index, message in enumerate(request.messages)]
        places = [turn.places for turn in turns]
        return Asked(_generate(request, request_id, turns), bool(request.stream), include_usage, created, places)

    def whole(self, answer: pb.GenerateResponse, asked: Asked) -> Mapping[str, object]:
        return completion(answer, asked.created)

    def writer(self, asked: Asked) -> Writer:
        return ChatWriter(asked)

    def failure(self, error: ServiceError) -> tuple[int, Mapping[str, object]]:
        return failures.openai(error)


def _check(request: _Request) -> None:
    """Refuses what would be left out silently."""
    refuse(request, (*_NOT_TAKEN, *_NEUTRAL))
    refuse(request, ("store",), "nothing is stored here; leave it out")
    refuse_other("verbosity", request.verbosity, "medium")
    if not request.messages:
        raise wrong("messages", [], "is empty; give a message")
    if request.max_tokens not in (None, request.max_completion_tokens or request.max_tokens):
        problem = f"max_completion_tokens says {request.max_completion_tokens}; give one of the two"
        raise wrong("max_tokens", request.max_tokens, problem)
    if request.n not in (None, 1):
        raise wrong("n", request.n, "one answer is given to each request; ask several times")
    if request.modalities and request.modalities != ("text",):
        raise wrong("modalities", list(request.modalities), "answers are text; leave it out")


def _generate(request: _Request, request_id: str, turns: Sequence[Turn]) -> pb.GenerateRequest:
    stop = (request.stop,) if isinstance(request.stop, str) else request.stop
    return pb.GenerateRequest(
        request_id=request_id,
        model=request.model,
        messages=[turn.message for turn in turns],
        tools=[_tool(tool) for tool in request.tools or ()],
        tool_choice=_choice(request.tool_choice),
        output_format=_format(request.response_format),
        max_output_tokens=request.max_completion_tokens or request.max_tokens or 0,
        stop=stop or (),
        temperature=request.temperature,
        top_p=request.top_p,
        seed=request.seed,
        reasoning_effort=request.reasoning_effort or "",
        # "auto" is what a provider does without being told.
        service_tier="" if request.service_tier == "auto" else request.service_tier or "",
        parallel_tool_calls=request.parallel_tool_calls,
        cache=request.cache_policy(),
    )


def _turn(field: str, message: _Message) -> Turn:
    content = f"{field}.content"
    refuse(message, ("function_call", "audio"), within=field)
    if message.tool_calls:
        calls = [call.model_dump(exclude_unset=True) for call in message.tool_calls]
        refuse_unless(message.role == "assistant", f"{field}.tool_calls", calls, "assistant")
    if message.role == "tool":
        if not message.tool_call_id:
            raise wrong(f"{field}.tool_call_id", "", "is missing; give the id of the call that this answers")
        result = pb.ToolResult(tool_call_id=message.tool_call_id, content=_text(content, message.content))
        return Turn.of_one(pb.ROLE_TOOL, content, up_to(pb.Part(tool_result=result), _last(message.content)))
    if message.content is None and message.role != "assistant":
        raise wrong(content, None, "is missing; give text or parts")
    if message.content == () and message.role == "user":
        raise wrong(content, [], "is empty; give text or parts")
    return Turn.of(ROLES[message.role], _parts(field, message))


def _parts(field: str, message: _Message) -> Iterator[tuple[str, pb.Part]]:
    """With the place of each."""
    if isinstance(message.content, str):
        yield f"{field}.content", pb.Part(text=message.content)
    elif message.content:
        for index, content in enumerate(message.content):
            where = f"{field}.content.{index}"
            allowed = message.role == "user" or content.type not in _BY_USERS
            refuse_unless(allowed, f"{where}.type", content.type, "user")
            yield where, up_to(_part(where, content), content.cache_control)
    if message.refusal:
        yield f"{field}.refusal", pb.Part(refusal=message.refusal)
    for index, call in enumerate(message.tool_calls or ()):
        function = call.function
        arguments = "{}" if function.arguments is None else function.arguments
        where = f"{field}.tool_calls.{index}"
        if signature := from_extra(call.extra_content):
            yield f"{where}.extra_content", signature
        called = pb.ToolCall(id=call.id, name=function.name, arguments_json=arguments)
        yield where, pb.Part(tool_call=called)


def _part(field: str, content: _Content) -> pb.Part:
    match content:
        case _Content(type="refusal"):
            return pb.Part(refusal=content.refusal or "")
        case _Content(type="image_url", image_url=_Address(url=url)):
            return pb.Part(image=image(f"{field}.image_url.url", url))
        case _Content(type="input_audio", input_audio=_Sound() as sound):
            data = decoded(f"{field}.input_audio.data", required(f"{field}.input_audio.data", sound.data))
            return pb.Part(audio=pb.Audio(media_type=f"audio/{sound.format}", data=data))
        case _Content(type="file", file=_File() as file):
            media_type, data = data_url(f"{field}.file.file_data", file.file_data)
            return pb.Part(file=pb.File(media_type=media_type, name=file.filename or "file", data=data))
        case _Content(type="text"):
            return pb.Part(text=content.text or "")
        case _:
            raise wrong(f"{field}.{content.type}", None, "must be given")


def image(field: str, url: str) -> pb.Image:
    """An image by its address, or the one that a data URL holds. Raises InvalidArgument."""
    if not url.startswith("data:"):
        return pb.Image(url=required(field, url))
    media_type, data = data_url(field, url)
    return pb.Image(media_type=media_type, data=data)


def _text(field: str, content: str | tuple[_Content, ...] | None) -> str:
    """What a tool answered; only text, as everywhere."""
    if not isinstance(content, tuple):
        return content or ""
    for index, part in enumerate(content):
        if part.type != "text":
            raise wrong(f"{field}.{index}.type", part.type, "a tool's result is text; leave it out")
    return "\n".join(part.text or "" for part in content)


def _last(content: str | tuple[_Content, ...] | None) -> CacheControl | None:
    """The breakpoint after the last of what is one text to the gateway."""
    return content[-1].cache_control if isinstance(content, tuple) and content else None


def _tool(tool: _Tool) -> pb.Tool:
    function = tool.function
    return pb.Tool(
        name=function.name,
        description=function.description or "",
        parameters_json=text_of(function.parameters or {}),
        strict=bool(function.strict),
        prompt_cache_ttl=cache_ttl(tool.cache_control),
    )


def _choice(choice: str | _Chosen | None) -> str:
    return choice.function.name if isinstance(choice, _Chosen) else choice or ""


def _format(wanted: _Format | None) -> pb.OutputFormat:
    if wanted is None or wanted.type != "json_schema":
        return pb.OutputFormat(kind=wanted.type if wanted else "")
    if wanted.json_schema is None:
        raise wrong("response_format.json_schema", None, "is missing; give it")
    schema = wanted.json_schema
    if schema.schema_ is None:
        raise wrong("response_format.json_schema.schema", None, "is missing; give it")
    name = schema.name or "answer"
    return pb.OutputFormat(kind=wanted.type, json_schema=text_of(schema.schema_), name=name, strict=bool(schema.strict))
