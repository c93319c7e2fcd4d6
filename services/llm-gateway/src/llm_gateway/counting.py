"""An upper bound of the tokens of a text, counted here: no vocabulary, no network. Pure.

Every token of a byte-level vocabulary (GPT, Claude, Llama, Qwen and their kin) stands for at least one byte, so a text
has at most as many tokens as bytes in UTF-8. Providers add tokens around messages and tools; the allowances below are
generous. The bound serves for reservations, which must never be too small; what was used is known afterwards.
"""

from collections.abc import Iterable, Sequence
from typing import Final

from servicekit import numbers

from llm_gateway.documents import pages_bound
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
IMAGE_TOKENS: Final = 16_384
"""The most that a model with patches takes for one image: Qwen-VL up to 12.8 million pixels in patches of 28 x 28; GPT-5.4
10,000 patches, Claude 4,784 tokens, Gemini 3 2,240 (each vendor's page on vision).
"""
TILED_IMAGE_TOKENS: Final = 2_833 + 8 * 5_667
"""The most that gpt-4o-mini bills for one (OpenAI's page on images): 2,833 tokens and 5,667 for each tile of 512 x 512 that
is left of it in a square of 2,048 with its shorter side at 768, which are at most 4 x 2. Whichever size it has: an image
that is sent by its address is not seen here, and what is asked for is the detail that the model thinks fit.
"""
PAGE_TEXT_TOKENS: Final = 3_000
"""Of a page of a PDF, "1,500 to 3,000" (Anthropic's page on PDF support); the page is billed as an image besides."""
AUDIO_TOKENS: Final = 64
AUDIO_BYTES_PER_TOKEN: Final = 8
"""The densest speech codecs need some 20 bytes for what a provider counts as one token."""


def input_bound(
    messages: Sequence[Message],
    tools: Sequence[ToolSpec] = (),
    format: OutputFormat | None = None,
    image_tokens: int = TILED_IMAGE_TOKENS,
) -> int:
    """At least as many tokens as any provider counts for this input; `image_tokens` is the most for one image."""
    parts = sum([PART_TOKENS + _part(part, image_tokens) for message in messages for part in message.parts])
    schema = len(numbers.dumps(format.schema)) if format else 0
    return REQUEST_TOKENS + MESSAGE_TOKENS * len(messages) + parts + _tools(tools) + schema


def request_bound(request: ModelRequest, image_tokens: int = TILED_IMAGE_TOKENS) -> int:
    return input_bound(request.messages, request.tools, request.output_format, image_tokens)


def image_tokens_max(model: str) -> int:
    """The most that this model takes for one image. The tiles of one family are dearer than all else."""
    return TILED_IMAGE_TOKENS if "4o-mini" in model else IMAGE_TOKENS


def output_bound(message: Message) -> int:
    """At least as many tokens as the visible answer has; reasoning that is not shown is not in it."""
    return sum([PART_TOKENS + _part(part, IMAGE_TOKENS) for part in message.parts])


def delivered_bound(parts: Iterable[StreamPart]) -> int:
    """At least as many tokens as these deltas have."""
    return sum(_delta(part) for part in parts)


def hidden_bound(request: ModelRequest, visible: int, output_tokens_max: int, *, reasons: bool) -> int:
    """How many tokens of reasoning an answer may have besides the `visible` ones: as many as were allowed for it, else as
    the limit of the output leaves, which every provider counts reasoning in. None where none was asked for, unless the
    model `reasons` by itself and was not told to leave it. Any mode of reasoning asks for some.
    """
    allowed = request.reasoning_tokens_max
    if allowed is None:
        asked = request.reasoning_effort != "none" if request.reasoning_effort else reasons
        wanted = asked or request.reasoning_mode is not None
        allowed = output_tokens_max if wanted else 0
    return max(0, min(allowed, output_tokens_max - visible))


def plain_usage(input_tokens: int, output_tokens: int) -> Usage:
    """Usage of which no more is known than two totals."""
    return Usage.of((UsageLine("input", input_tokens), UsageLine("output", output_tokens)))


def _tools(tools: Sequence[ToolSpec]) -> int:
    if not tools:
        return 0
    texts = (len(_bytes(tool.name, tool.description)) + len(numbers.dumps(tool.schema)) for tool in tools)
    return TOOLS_TOKENS + sum(TOOL_TOKENS + size for size in texts)


def _part(part: Part, image_tokens: int) -> int:
    match part:
        case Text() | Refusal():
            return len(part.text.encode())
        case ToolCall():
            return len(_bytes(part.id, part.name, part.arguments))
        case ToolResult():
            return len(_bytes(part.call_id, part.text))
        case Reasoning():
            return len(_bytes(part.text)) + _opaque(part.payload, image_tokens)
        case Opaque():
            return _opaque(part.payload, image_tokens)
        case Image():
            return image_tokens
        case Audio():
            return AUDIO_TOKENS + len(part.data) // AUDIO_BYTES_PER_TOKEN
        case File():
            return len(part.data) + _pages(part) * (PAGE_TEXT_TOKENS + image_tokens)
        case Vector():
            return 0


def _opaque(payload: bytes, image_tokens: int) -> int:
    """An image that a Gemini model made is read as one again."""
    return len(payload) + (image_tokens if b"inlineData" in payload else 0)


def _pages(file: File) -> int:
    """Of a PDF, which providers read as text and as images; other files they read as text."""
    is_pdf = file.media_type == "application/pdf" or file.data.startswith(b"%PDF")
    return pages_bound(file.data) if is_pdf else 0


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
