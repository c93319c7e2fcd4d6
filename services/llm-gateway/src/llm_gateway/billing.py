"""What a call is billed by, in the ledger's words. Pure."""

from collections.abc import Mapping
from typing import Final

from synod.common.values import UsageLine

from llm_gateway import domain
from llm_gateway.domain import Audio, File, Image, ModelRequest, ModelResponse

_STANDARD_TIERS: Final = frozenset({"", "auto", "default", "standard", "standard_only", "on_demand"})
TOKENS: Final = "tokens"
"""The unit of lines that name none."""
_TOOL_UNITS: Final[Mapping[str, str]] = {"web_search": "web_searches", "web_fetch": "web_fetches"}
"""Uses of tools at a provider, as price books call them; others are called as the provider does."""


def usage_lines(usage: domain.Usage) -> tuple[UsageLine, ...]:
    """The lines as events have them: tokens, and what is billed beside them."""
    tokens = [
        UsageLine(
            direction=line.direction,
            modality=line.modality,
            cache=line.cache,
            reasoning=line.reasoning,
            quantity=line.quantity,
            ttl=line.ttl or "",
        )
        for line in usage.lines
    ]
    uses = [UsageLine(direction="output", quantity=used.quantity, unit=tool_unit(used)) for used in usage.tool_units]
    return (*tokens, *uses)


def tool_unit(used: domain.ToolUnits) -> str:
    """What uses of a tool at a provider are counted in."""
    return _TOOL_UNITS.get(used.name, used.name)


def price_terms(request: ModelRequest) -> dict[str, str]:
    """The terms asked for that the price depends on."""
    return {"service_tier": request.service_tier} if request.service_tier else {}


def served_tier(request: ModelRequest, response: ModelResponse) -> str:
    """The service tier to bill, where it is not the standard one that was asked for: a provider may serve another."""
    standard = (request.service_tier or "") in _STANDARD_TIERS and response.service_tier in _STANDARD_TIERS
    return "" if standard else response.service_tier


def modalities(request: ModelRequest) -> tuple[str, ...]:
    """What the input may be billed as besides text. The pages of a document are read as images."""
    found: set[str] = set()
    for message in request.messages:
        for part in message.parts:
            match part:
                case Image() | File():
                    found.add("image")
                case Audio():
                    found.add("audio")
    return tuple(sorted(found))
