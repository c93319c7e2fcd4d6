"""The tools of this executor as others see them: a manifest with a digest each, found by name or name@version."""

import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from pydantic import JsonValue
from synod.tool_executor.events import ToolRegistered

from tool_executor.errors import ToolUnknown
from tool_executor.sandboxes.probe import Capabilities
from tool_executor.sandboxes.sandbox import Level
from tool_executor.tools.runner import CEILING, choose_level
from tool_executor.tools.tool import Tool

NEAR_MAX: Final = 3


@dataclass(frozen=True, slots=True)
class Offer:
    """A tool, its manifest, the schema of its arguments, and what a call costs that comes to a result."""

    tool: Tool
    manifest: ToolRegistered
    parameters: dict[str, JsonValue]
    price_nano_usd: int = 0


class Catalogue:
    """The tools that run here, and how well this machine isolates them. `prices` are nano-USD by the tool's name.

    Raises ToolUnknown for a price of no tool.
    """

    def __init__(
        self, tools: Sequence[Tool], capabilities: Capabilities, prices: Mapping[str, int] = MappingProxyType({})
    ) -> None:
        self.capabilities = capabilities
        self._offers = {
            tool.name: Offer(tool, manifest(tool), tool.parameters_schema(), prices.get(tool.name, 0)) for tool in tools
        }
        for priced in prices:
            self.find(priced)

    @property
    def manifests(self) -> tuple[ToolRegistered, ...]:
        """In order of name."""
        return tuple(self._offers[name].manifest for name in sorted(self._offers))

    def find(self, reference: str) -> Offer:
        """The tool of a "name" or "name@version". Raises ToolUnknown with near names."""
        name, _, version = reference.partition("@")
        offer = self._offers.get(name)
        if offer is None:
            raise ToolUnknown(reference, tuple(difflib.get_close_matches(name, self._offers, n=NEAR_MAX)))
        if version not in ("", offer.tool.version):
            raise ToolUnknown(reference, (f"{name}@{offer.tool.version}",))
        return offer

    def level(self, tool: Tool) -> Level:
        """The isolation that a call gets here. Raises SandboxUnavailable if that is weaker than the tool asks for."""
        return choose_level(tool, self.capabilities)

    @property
    def level_reason(self) -> str:
        """Why the best level is not a better one; empty if nothing is missing."""
        return "; ".join(f"{each.primitive}: {each.reason}" for each in self.capabilities.missing)


def manifest(tool: Tool) -> ToolRegistered:
    """All that a caller may rely on. The digest changes with any of it, and with what the tool may touch."""
    parameters, result = _canonical(tool.parameters_schema()), _canonical(tool.result_schema())
    timeout_ms = round(min(tool.limits.wall_s, CEILING.wall_s) * 1000)
    covered: list[JsonValue] = [tool.name, tool.version, tool.description, parameters, result, tool.effect.value]
    covered += [tool.min_level.name, timeout_ms, tool.access.value, *tool.hosts]
    return ToolRegistered(
        name=tool.name,
        tool_version=tool.version,
        digest=hashlib.sha256(_canonical(covered).encode()).hexdigest(),
        description=tool.description,
        parameters_json=parameters,
        result_json=result,
        effect=tool.effect.value,
        min_level=tool.min_level.name,
        timeout_ms=timeout_ms,
    )


def _canonical(value: JsonValue) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
