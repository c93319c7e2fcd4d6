"""Gemini: POST /v1beta/models/<model>:generateContent and :streamGenerateContent. Pure.

Reference: https://ai.google.dev/api/generate-content. The wire has no text for a refusal but `finishMessage`, so that
is where the reason of one stands.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Literal

from pydantic import Field

from provider_simulator.conversation import (
    Answer,
    Ask,
    BadRequest,
    CallTools,
    Conversation,
    Finish,
    JsonObject,
    PastCall,
    Refusal,
    Reply,
    TokenUsage,
)
from provider_simulator.frames import SSE, data_frame, text_pieces
from provider_simulator.reply import FINGERPRINT
from provider_simulator.wire import WireModel, compact, joined, read

METHODS: Final[Mapping[str, bool]] = {"generateContent": False, "streamGenerateContent": True}
_FINISH_REASONS: Final[Mapping[Finish, str]] = {
    "stop": "STOP",
    "stop_sequence": "STOP",
    "length": "MAX_TOKENS",
    "tool_calls": "STOP",
    "refusal": "SAFETY",
}
_STATUSES: Final[Mapping[int, str]] = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


class _Call(WireModel):
    id: str = ""
    name: str
    args: JsonObject = Field(default_factory=dict)


class _Result(WireModel):
    id: str = ""
    name: str
    response: JsonObject = Field(default_factory=dict)


class _Part(WireModel):
    text: str = ""
    functionCall: _Call | None = None  # noqa: N815 - the wire's own spelling, here and below
    functionResponse: _Result | None = None  # noqa: N815


class _Content(WireModel):
    role: Literal["user", "model"] = "user"
    parts: list[_Part]

    def text(self) -> str:
        return joined([part.text for part in self.parts])


class _Function(WireModel):
    name: str
    description: str = ""


class _Tool(WireModel):
    functionDeclarations: list[_Function] = Field(default_factory=list)  # noqa: N815


class _Calling(WireModel):
    mode: Literal["AUTO", "ANY", "NONE", "VALIDATED"] = "AUTO"


class _ToolConfig(WireModel):
    functionCallingConfig: _Calling = _Calling()  # noqa: N815


class _Config(WireModel):
    maxOutputTokens: int | None = Field(None, ge=1)  # noqa: N815
    stopSequences: tuple[str, ...] = ()  # noqa: N815
    responseMimeType: str = "text/plain"  # noqa: N815


class _Request(WireModel):
    contents: list[_Content]
    systemInstruction: _Content | None = None  # noqa: N815
    tools: list[_Tool] = Field(default_factory=list)
    toolConfig: _ToolConfig = _ToolConfig()  # noqa: N815
    generationConfig: _Config = _Config()  # noqa: N815

    def functions(self) -> list[_Function]:
        return [function for tool in self.tools for function in tool.functionDeclarations]


class _Countable(WireModel):
    generateContentRequest: _Request  # noqa: N815


class GeminiGenerate:
    """One request's dialect: what other wire formats say in the body, this one says in the path."""

    name = "gemini-generate"
    id_prefix = "gem_"
    stream_type = SSE

    def __init__(self, model: str, *, stream: bool) -> None:
        self._model = model
        self._stream = stream

    def parse(self, body: bytes, headers: Mapping[str, str]) -> Ask:
        return self._ask(read(_Request, body))

    def parse_countable(self, body: bytes) -> Ask:
        """What countTokens is asked for. Raises BadRequest."""
        return self._ask(read(_Countable, body).generateContentRequest)

    def _ask(self, request: _Request) -> Ask:
        config, instructions = request.generationConfig, _instructions(request)
        forbidden = request.toolConfig.functionCallingConfig.mode == "NONE"
        offered = frozenset() if forbidden else frozenset(function.name for function in request.functions())
        return Ask(
            model=self._model,
            conversation=_conversation(request, offered),
            billable=(
                *([instructions] if instructions else []),
                *map(_billable, request.contents),
                *(compact(function.model_dump()) for function in request.functions()),
            ),
            stream=self._stream,
            json_wanted=config.responseMimeType == "application/json",
            output_tokens_max=config.maxOutputTokens,
            stop=config.stopSequences,
        )

    def unary(self, reply: Reply) -> JsonObject:
        return {**_envelope(reply), "candidates": [_candidate(list(_parts(reply)), reply)], **_usage(reply.usage)}

    def stream(self, reply: Reply, ask: Ask) -> list[bytes]:
        pieces: list[JsonObject] = [{"text": ""}, *_pieces(reply)]
        chunks = [{**_envelope(reply), "candidates": [_candidate([piece])]} for piece in pieces]
        last = {**_envelope(reply), "candidates": [_candidate([], reply)], **_usage(reply.usage)}
        return [data_frame(chunk) for chunk in (*chunks, last)]

    def error(self, status: int, message: str, code: str | None) -> JsonObject:
        return {"error": {"code": status, "message": message, "status": code or _STATUSES.get(status, "INTERNAL")}}

    def error_frame(self, message: str, code: str | None) -> bytes:
        return data_frame(self.error(500, message, code))


def _instructions(request: _Request) -> str:
    return request.systemInstruction.text() if request.systemInstruction else ""


def _conversation(request: _Request, offered: frozenset[str]) -> Conversation:
    contents = request.contents
    spoken = [at for at, content in enumerate(contents) if content.role == "user" and _is_spoken(content)]
    last_user = max(spoken, default=-1)
    return Conversation(
        instructions=_instructions(request),
        input=contents[last_user].text() if spoken else "",
        calls=tuple(_past_calls(contents, last_user)),
        tools=offered,
        messages=len(contents),
    )


def _is_spoken(content: _Content) -> bool:
    """A turn of the user that holds only results goes on with what went before."""
    return any(part.functionResponse is None for part in content.parts)


def _past_calls(contents: Sequence[_Content], last_user: int) -> Iterator[PastCall]:
    parts = [(at, part) for at, content in enumerate(contents) for part in content.parts]
    results = {part.functionResponse.id: part.functionResponse for _, part in parts if part.functionResponse}
    for at, part in parts:
        call = part.functionCall
        if call is None:
            continue
        if call.id not in results:
            raise BadRequest(f"contents.{at}: no functionResponse answers the functionCall {call.id!r}")
        if at > last_user:
            yield PastCall(call.id, call.name, compact(results[call.id].response))


def _billable(content: _Content) -> str:
    return joined([_part_text(part) for part in content.parts])


def _part_text(part: _Part) -> str:
    if part.functionCall:
        return part.functionCall.name + compact(part.functionCall.args)
    return compact(part.functionResponse.response) if part.functionResponse else part.text


def _envelope(reply: Reply) -> JsonObject:
    return {"responseId": reply.id, "modelVersion": reply.model, "system_fingerprint": FINGERPRINT}


def _candidate(parts: Sequence[JsonObject], reply: Reply | None = None) -> JsonObject:
    """With the reply it is the last one."""
    content: JsonObject = {"index": 0, "content": {"role": "model", "parts": parts}}
    if reply is None:
        return content
    said = {"finishMessage": reply.turn.text} if isinstance(reply.turn, Refusal) else {}
    return {**content, "finishReason": _FINISH_REASONS[reply.finish], **said}


def _parts(reply: Reply) -> Iterator[JsonObject]:
    match reply.turn:
        case CallTools(calls):
            for call in calls:
                yield {"functionCall": {"id": call.id, "name": call.name, "args": call.arguments}}
        case Answer(text):
            yield {"text": text}
        case Refusal():
            return  # the reason stands in finishMessage


def _pieces(reply: Reply) -> Iterator[JsonObject]:
    if isinstance(reply.turn, Answer):
        yield from ({"text": piece} for piece in text_pieces(reply.turn.text))
    else:
        yield from _parts(reply)


def _usage(usage: TokenUsage | None) -> JsonObject:
    """Thoughts are no share of the candidates on this wire."""
    if usage is None:
        return {}
    counts = {
        "promptTokenCount": usage.input,
        "cachedContentTokenCount": usage.cached_input,
        "candidatesTokenCount": usage.output - usage.reasoning,
        "thoughtsTokenCount": usage.reasoning,
        "totalTokenCount": usage.input + usage.output,
    }
    return {"usageMetadata": {name: count for name, count in counts.items() if count}}
