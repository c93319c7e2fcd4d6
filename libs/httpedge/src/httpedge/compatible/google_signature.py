"""The signature that Gemini puts on a call of a tool and wants back with it, where Google's own endpoint of OpenAI's format
has it: `tool_calls[].extra_content.google.thought_signature` (https://ai.google.dev/gemini-api/docs/thought-signatures,
"OpenAI compatibility"). To the gateway it is reasoning that stands before the call. Pure.
"""

from collections.abc import Iterator, Mapping
from typing import Final

import orjson
from synod.llm_gateway.v1 import llm_gateway_pb2 as pb

from httpedge.compatible.wire import WireModel

_DIALECT: Final = "gemini-generate"
_NAME: Final = "thoughtSignature"


class Google(WireModel):
    thought_signature: str | None = None


class ExtraContent(WireModel):
    google: Google | None = None


def from_extra(extra: ExtraContent | None) -> pb.Part | None:
    """What stands before the call at the gateway."""
    signature = extra.google.thought_signature if extra and extra.google else None
    if not signature:
        return None
    return pb.Part(reasoning=pb.Reasoning(signature=orjson.dumps({_NAME: signature}), provider=_DIALECT))


def signed_calls(message: pb.Message) -> Iterator[tuple[pb.ToolCall, Mapping[str, object]]]:
    """Each call, and the field that holds its signature if it has one."""
    before: pb.Part | None = None
    for part in message.parts:
        if part.HasField("tool_call"):
            signature = _signature(before) if before else None
            yield part.tool_call, _extra(signature) if signature else {}
        before = part


def _extra(signature: str) -> Mapping[str, object]:
    return {"extra_content": {"google": {"thought_signature": signature}}}


def _signature(part: pb.Part) -> str | None:
    """Of a part that is nothing else; one with a text signs that."""
    if part.reasoning.provider != _DIALECT or part.reasoning.text:
        return None
    payload: Mapping[str, object] = orjson.loads(part.reasoning.signature)
    signature = payload[_NAME] if payload.keys() == {_NAME} else None
    return signature if isinstance(signature, str) else None
