"""Server-sent events and the pieces in which a stream delivers text. Pure."""

import re
from collections.abc import Iterator

import orjson

from provider_simulator.conversation import JsonObject

ARGUMENT_PIECE_CHARACTERS = 16
DONE = b"data: [DONE]\n\n"
SSE = "text/event-stream"

_WORD_WITH_SPACE = re.compile(r"\s*\S+\s*|\s+")


def data_frame(payload: JsonObject) -> bytes:
    """An event without a name, as the chat completions API sends them."""
    return b"data: " + orjson.dumps(payload) + b"\n\n"


def named_frame(name: str, payload: JsonObject) -> bytes:
    """An event whose name repeats the payload's type, as the responses and messages APIs send them."""
    return b"event: " + name.encode() + b"\ndata: " + orjson.dumps(payload) + b"\n\n"


def text_pieces(text: str) -> Iterator[str]:
    """A text word by word; joined, the pieces are the text."""
    return (match[0] for match in _WORD_WITH_SPACE.finditer(text))


def argument_pieces(text: str) -> Iterator[str]:
    """JSON arguments cut without regard to their structure, as providers do."""
    return (text[start : start + ARGUMENT_PIECE_CHARACTERS] for start in range(0, len(text), ARGUMENT_PIECE_CHARACTERS))
