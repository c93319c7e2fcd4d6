"""Reasoning between items of the responses API and the gateway's opaque parts. Pure.

What a model thought is shown as an item whose encrypted content holds its provider's bytes, so that it comes back to
that provider whole. An item that a client has from OpenAI itself goes there as it is.
"""

import base64
from collections.abc import Mapping
from typing import Final

from servicekit import numbers
from synod.llm_gateway.v1 import llm_gateway_pb2 as pb

from httpedge.mistakes import wrong

OWN: Final = "openai-responses"
_OURS: Final = "synod:"


def to_item(reasoning: pb.Reasoning, id: str) -> Mapping[str, object]:
    payload = base64.b64encode(reasoning.signature).decode()
    summary = [{"type": "summary_text", "text": reasoning.text}] if reasoning.text else []
    return {
        "id": id,
        "type": "reasoning",
        "summary": summary,
        "encrypted_content": f"{_OURS}{reasoning.provider}:{payload}",
        "status": "completed",
    }


def from_item(field: str, item: Mapping[str, object]) -> pb.Reasoning:
    """Raises InvalidArgument for an encrypted content of ours that was changed."""
    content = str(item.get("encrypted_content") or "")
    if not content.startswith(_OURS):
        return pb.Reasoning(signature=numbers.dumps(item), provider=OWN)
    provider, _, payload = content[len(_OURS) :].partition(":")
    try:
        signature = base64.b64decode(payload, validate=True)
    except ValueError:
        raise wrong(f"{field}.encrypted_content", content, "must come back as it was given") from None
    return pb.Reasoning(text=_summary(item.get("summary")), signature=signature, provider=provider)


def _summary(summary: object) -> str:
    said = summary if isinstance(summary, list) else []
    return "".join(str(one.get("text") or "") for one in said if isinstance(one, dict))
