"""An upper bound of the tokens of a text, counted here: no vocabulary, no network. Pure.

Every token of a byte-level vocabulary (GPT, Claude, Llama, Qwen and their kin) stands for at least one byte, so a text
has at most as many tokens as bytes in UTF-8. Providers add tokens around messages and tools; the allowances below are
generous. The bound serves for reservations, which must never be too small; what was used is known afterwards.
"""

from collections.abc import Iterable, Sequence
from typing import Final

import orjson

from llm_gateway.domain import (
    Audio,
    File,
    Image,
    Message,
    ModelRequest,
    Opaque,
    OutputFormat,
    Part,
    Reasoning,
    ReasoningDelta,
    Refusal,
    RefusalDelta,
    StreamPart,
    Text,
    TextDelta,
    ToolCall,
    ToolCallDelta,
    ToolResult,
    ToolSpec,
    Usage,
    UsageLine,
    Vector,
)

REQUEST_TOKENS: Final = 32
MESSAGE_TOKENS: Final = 16
PART_TOKENS: Final = 16
TOOLS_TOKENS: Final = 1024
"""Providers add a page of instructions once a request has tools."""
TOOL_TOKENS: Final = 32
IMAGE_TOKENS: Final = 8192
AUDIO_TOKENS: Final = 64
AUDIO_BYTES_PER_TOKEN: Final = 8
"""The densest speech codecs need some 20 bytes for what a provider counts as one token."""


def input_bound(messages: Sequence[Message], tools: Sequence[ToolSpec] = (), format: OutputFormat | None = None) -> int:
    """At least as many tokens as any provider counts for this input."""
    parts = sum([PART_TOKENS + _part(part) for message in messages for part in message.parts])
    schema = len(orjson.dumps(format.schema)) if format else 0
    return REQUEST_TOKENS + MESSAGE_TOKENS * len(messages) + parts + _tools(tools) + schema


def request_bound(request: ModelRequest) -> int:
    return input_bound(request.messages, request.tools, request.output_format)


def output_bound(message: Message) -> int:
    """At least as many tokens as the visible answer has; reasoning that is not shown is not in it."""
    return sum([PART_TOKENS + _part(part) for part in message.parts])


def delivered_bound(parts: Iterable[StreamPart]) -> int:
    """At least as many tokens as these deltas have."""
    return sum(_delta(part) for part in parts)


def plain_usage(input_tokens: int, output_tokens: int) -> Usage:
    """Usage of which no more is known than two totals."""
    return Usage.of((UsageLine("input", input_tokens), UsageLine("output", output_tokens)))


def _tools(tools: Sequence[ToolSpec]) -> int:
    if not tools:
        return 0
    texts = (len(_bytes(tool.name, tool.description)) + len(orjson.dumps(tool.parameters)) for tool in tools)
    return TOOLS_TOKENS + sum(TOOL_TOKENS + size for size in texts)


def _part(part: Part) -> int:
    match part:
        case Text() | Refusal():
            return len(part.text.encode())
        case ToolCall():
            return len(_bytes(part.id, part.name, part.arguments))
        case ToolResult():
            return len(_bytes(part.call_id, part.text))
        case Reasoning():
            return len(_bytes(part.text)) + len(part.payload)
        case Opaque():
            return len(part.payload)
        case Image():
            return IMAGE_TOKENS
        case Audio():
            return AUDIO_TOKENS + len(part.data) // AUDIO_BYTES_PER_TOKEN
        case File():
            return len(part.data)
        case Vector():
            return 0


def _delta(part: StreamPart) -> int:
    match part:
        case TextDelta() | RefusalDelta() | ReasoningDelta():
            return len(_bytes(part.text))
        case ToolCallDelta():
            return len(_bytes(part.id, part.name, part.arguments))
        case _:
            return 0


def _bytes(*texts: str) -> bytes:
    return "".join(texts).encode()
