"""Which answers may be given again to a request that equals an earlier one. Pure.

Only to a caller who opts in, or whose request asks for the same answer each time (temperature 0 and a seed). Results of
tools are news and reasoning belongs to the model that thought it, so requests and answers with either are left out
unless the policy names them. An answer is kept only when the model ended it by itself, as the provider counted it.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final, Literal

from llm_gateway.domain import (
    Answer,
    Delta,
    Message,
    ModelRequest,
    Opaque,
    Reasoning,
    ReasoningDelta,
    ReasoningDone,
    Refusal,
    RefusalDelta,
    Text,
    TextDelta,
    ToolCall,
    ToolCallDelta,
    ToolResult,
)

CacheMode = Literal["deterministic", "on", "off"]
EXACT_OF_10000: Final = 10_000
"""The likeness of a request to itself."""


@dataclass(frozen=True, slots=True)
class CachePolicy:
    """What a caller allows. `ttl_s` 0 takes the service's default; `similar` also takes answers to similar requests."""

    mode: CacheMode = "deterministic"
    ttl_s: int = 0
    tool_calls: bool = False
    reasoning: bool = False
    similar: bool = False


@dataclass(frozen=True, slots=True)
class Cacheable:
    """A request that may be answered from the cache. `content_sha256` is of all that the answer depends on, but for
    the model."""

    policy: CachePolicy
    content_sha256: str
    said: str = ""
    """The last thing the user said, if the answer to something similar will do."""
    scope_sha256: str = ""
    """Of the content without what was said."""


def may_serve(policy: CachePolicy, request: ModelRequest) -> bool:
    """Whether an earlier answer may be given to this request, and its own be kept."""
    asked = policy.mode == "on" or (policy.mode == "deterministic" and is_deterministic(request))
    return asked and not any(_is_left_out(policy, message) for message in request.messages)


def is_deterministic(request: ModelRequest) -> bool:
    """Whether the caller asks for the same answer each time. Temperature 0 alone asks for the likeliest one."""
    return request.temperature == 0 and request.seed is not None


def may_keep(policy: CachePolicy, answer: Answer) -> bool:
    """Refusals, answers cut short and counts of our own making are not given to others."""
    ended = answer.finish_reason == "stop" or (policy.tool_calls and answer.finish_reason == "tool_calls")
    return ended and answer.usage_source == "provider_final" and not _is_left_out(policy, answer.message)


def cache_key(tenant: str, model: str, cacheable: Cacheable) -> str:
    """Of the tenant, the resolved model, the policy and the canonical request. Fields are parted by what none holds."""
    policy = cacheable.policy
    parts = (tenant, model, policy.ttl_s, policy.tool_calls, policy.reasoning, policy.similar)
    return hashlib.sha256("\0".join(map(str, (*parts, cacheable.content_sha256))).encode()).hexdigest()


def as_hit(source: Answer, request_id: str) -> Answer:
    """The answer to another call as that to this one: its usage is what the other used, and nothing was reserved."""
    return replace(source, request_id=request_id, usage_source="gateway_cache", reservation_id="", cache="hit")


def scope_key(tenant: str, model: str, cacheable: Cacheable) -> str:
    """Of all that must be equal where only what was said may be similar."""
    return cache_key(tenant, model, replace(cacheable, content_sha256=f"scope {cacheable.scope_sha256}"))


def deltas_of(message: Message) -> Iterator[Delta]:
    """The message as a stream shows it."""
    calls = 0
    for part in message.parts:
        match part:
            case Text():
                yield TextDelta(part.text)
            case Refusal():
                yield RefusalDelta(part.text)
            case Reasoning() | Opaque():
                if isinstance(part, Reasoning) and part.text:
                    yield ReasoningDelta(part.text)
                yield ReasoningDone(part)
            case ToolCall():
                yield ToolCallDelta(calls, part.id, part.name, part.arguments)
                calls += 1
            case _:
                continue


def _is_left_out(policy: CachePolicy, message: Message) -> bool:
    tools = not policy.tool_calls and any(isinstance(part, ToolCall | ToolResult) for part in message.parts)
    thoughts = not policy.reasoning and any(isinstance(part, Reasoning | Opaque) for part in message.parts)
    return tools or thoughts
