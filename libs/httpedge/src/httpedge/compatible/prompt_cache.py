"""Breakpoints of a provider's own prompt cache, as Anthropic's API has them, and routers of the OpenAI format too. Pure."""

from typing import Final, Literal

from synod.llm_gateway.v1 import llm_gateway_pb2 as pb

from httpedge.compatible.wire import WireModel

_USUAL_TTL: Final = "5m"


class CacheControl(WireModel):
    """The prompt is to be cached up to the end of what holds this."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


def cache_ttl(control: CacheControl | None) -> str:
    """As the gateway has it; empty for no breakpoint."""
    return control.ttl or _USUAL_TTL if control else ""


def up_to(part: pb.Part, control: CacheControl | None) -> pb.Part:
    """The part, with the breakpoint after it if there is one."""
    if control:
        part.prompt_cache_ttl = cache_ttl(control)
    return part
