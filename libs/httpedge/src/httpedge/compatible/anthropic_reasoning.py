"""Reasoning between content blocks and the gateway's opaque parts. Pure.

A block of Anthropic's own goes through as it is, with its signature. What another provider thought is shown as a
thinking block whose signature holds that provider's bytes, so that it comes back to it whole.
"""

import base64
from collections.abc import Mapping
from typing import Final

from servicekit import numbers
from synod.llm_gateway.v1 import llm_gateway_pb2 as pb

from httpedge.mistakes import wrong

OWN: Final = "anthropic-messages"
_FOREIGN: Final = "synod:"


def to_block(reasoning: pb.Reasoning) -> dict[str, object]:
    if reasoning.provider == OWN and reasoning.signature:
        block: dict[str, object] = numbers.loads(reasoning.signature)
        return block
    payload = base64.b64encode(reasoning.signature).decode()
    return {"type": "thinking", "thinking": reasoning.text, "signature": f"{_FOREIGN}{reasoning.provider}:{payload}"}


def from_block(field: str, block: Mapping[str, object]) -> pb.Reasoning:
    """Raises InvalidArgument for a signature of ours that was changed."""
    text, signature = str(block.get("thinking") or ""), str(block.get("signature") or "")
    if not signature.startswith(_FOREIGN):
        return pb.Reasoning(text=text, signature=numbers.dumps(block), provider=OWN)
    provider, _, payload = signature[len(_FOREIGN) :].partition(":")
    try:
        return pb.Reasoning(text=text, signature=base64.b64decode(payload, validate=True), provider=provider)
    except ValueError:
        raise wrong(f"{field}.signature", signature, "must come back as it was given") from None
