"""The providers we know, each an endpoint, a dialect and a profile.

`openai` and `anthropic` are the hosted ones; `ollama`, `vllm` and every other server of the openai-chat dialect
come from `openai_compatible`. The simulator is reached as `openai` or `anthropic` with its base URL.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final, Literal

from llm_gateway.providers.anthropic_messages import AnthropicMessagesDialect
from llm_gateway.providers.dialect import Dialect
from llm_gateway.providers.embeddings import HttpEmbedder
from llm_gateway.providers.gemini_embeddings import GeminiEmbeddings
from llm_gateway.providers.gemini_generate import GeminiGenerateDialect
from llm_gateway.providers.http import Endpoint, HttpProvider
from llm_gateway.providers.openai_chat import OpenAiChatDialect
from llm_gateway.providers.openai_chat_request import ChatWire
from llm_gateway.providers.openai_embeddings import OpenAiEmbeddings
from llm_gateway.providers.openai_responses import OpenAiResponsesDialect
from llm_gateway.providers.profile import CapabilityProfile
from llm_gateway.providers.transport import Transport

OPENAI_BASE_URL = "https://api.openai.com/v1"
ANTHROPIC_BASE_URL = "https://api.anthropic.com"
GOOGLE_BASE_URL = "https://generativelanguage.googleapis.com"
OLLAMA_BASE_URL = "http://127.0.0.1:11434/v1"

OPENAI = CapabilityProfile(
    parameters=frozenset(
        {"temperature", "top_p", "seed", "stop", "reasoning_effort", "service_tier", "parallel_tool_calls"}
    )
)
OPENAI_REASONING = CapabilityProfile(
    parameters=frozenset({"seed", "reasoning_effort", "service_tier", "parallel_tool_calls"}), reasons=True
)
ANTHROPIC = CapabilityProfile(
    parameters=frozenset(
        {
            "stop",
            "reasoning_effort",
            "reasoning_tokens_max",
            "reasoning_display",
            "service_tier",
            "parallel_tool_calls",
        }
    ),
    reasoning_modes=frozenset({"adaptive", "between_tools"}),
    output_formats=frozenset({"text", "json_schema"}),
    output_tokens_default=4096,
    audio=False,
    reasons=True,
    system_turns=False,
)
OPENAI_COMPATIBLE = CapabilityProfile(
    parameters=frozenset({"temperature", "top_p", "seed", "stop", "reasoning_effort"}), files=False
)
VLLM = CapabilityProfile(
    parameters=frozenset({"temperature", "top_p", "top_k", "seed", "stop", "reasoning_effort", "parallel_tool_calls"}),
    files=False,
)

OPENAI_RESPONSES = CapabilityProfile(
    parameters=frozenset({"temperature", "top_p", "reasoning_effort", "service_tier", "parallel_tool_calls"})
)
OPENAI_RESPONSES_REASONING = CapabilityProfile(
    parameters=frozenset({"reasoning_effort", "reasoning_display", "service_tier", "parallel_tool_calls"}), reasons=True
)
GEMINI = CapabilityProfile(
    parameters=frozenset(
        {
            "temperature",
            "top_p",
            "top_k",
            "seed",
            "stop",
            "reasoning_effort",
            "reasoning_tokens_max",
            "reasoning_display",
        }
    ),
    reasons=True,
    system_turns=False,
)

OPENAI_FAMILIES = dict.fromkeys(("o1", "o3", "o4", "gpt-5", "gpt-6"), OPENAI_REASONING)
"""Models that reason refuse to be told how to sample."""
ANTHROPIC_CLOUD_FAMILIES = dict.fromkeys(
    ("claude-2", "claude-3", "claude-opus-4", "claude-sonnet-4", "claude-haiku-4"), replace(ANTHROPIC, reasons=False)
)
"""Claude thought only when asked to; from Opus 5 on it does by itself (Anthropic's pages "What's new")."""
ANTHROPIC_FAMILIES = {
    **ANTHROPIC_CLOUD_FAMILIES,
    "claude-opus-4-8": replace(ANTHROPIC, reasons=False, system_turns=True),
    **dict.fromkeys(("claude-opus-5", "claude-fable-5", "claude-mythos-5"), replace(ANTHROPIC, system_turns=True)),
}
"""These take system messages in the midst of a conversation, at Anthropic's own address; others, and the same on Bedrock and
Vertex, may refuse them (its page on mid-conversation system messages).
"""
GEMINI_FAMILIES = dict.fromkeys(("gemini-1", "gemini-2.0", "gemini-2.5-flash-lite"), replace(GEMINI, reasons=False))
"""The others think unless told not to (Google's page on thinking)."""

Now = Callable[[], datetime]
DialectName = Literal[
    "openai-chat", "openai-responses", "anthropic-messages", "gemini-generate", "openai-compatible", "vllm"
]


@dataclass(frozen=True, slots=True)
class Kind:
    """What servers of a wire format have in common. `base_url` is the hosted one's; empty where there is none."""

    dialect: Callable[[], Dialect]
    profile: CapabilityProfile
    families: Mapping[str, CapabilityProfile] = field(default_factory=dict)
    base_url: str = ""


def openai(transport: Transport, now: Now, api_key: str, base_url: str = OPENAI_BASE_URL) -> HttpProvider:
    endpoint = Endpoint("openai", base_url, api_key, OPENAI, OPENAI_FAMILIES)
    return HttpProvider(endpoint, OpenAiChatDialect(), transport, now)


def openai_responses(transport: Transport, now: Now, api_key: str, base_url: str = OPENAI_BASE_URL) -> HttpProvider:
    families = dict.fromkeys(OPENAI_FAMILIES, OPENAI_RESPONSES_REASONING)
    endpoint = Endpoint("openai", base_url, api_key, OPENAI_RESPONSES, families)
    return HttpProvider(endpoint, OpenAiResponsesDialect(), transport, now)


def google(transport: Transport, now: Now, api_key: str, base_url: str = GOOGLE_BASE_URL) -> HttpProvider:
    endpoint = Endpoint("google", base_url, api_key, GEMINI, GEMINI_FAMILIES)
    return HttpProvider(endpoint, GeminiGenerateDialect(), transport, now)


def anthropic(transport: Transport, now: Now, api_key: str, base_url: str = ANTHROPIC_BASE_URL) -> HttpProvider:
    endpoint = Endpoint("anthropic", base_url, api_key, ANTHROPIC, ANTHROPIC_FAMILIES)
    return HttpProvider(endpoint, AnthropicMessagesDialect(), transport, now)


def openai_compatible(
    transport: Transport,
    now: Now,
    *,
    name: str,
    base_url: str,
    api_key: str = "",
    profile: CapabilityProfile = OPENAI_COMPATIBLE,
) -> HttpProvider:
    """Any server of the openai-chat dialect; local ones take `max_tokens` and know no developer role."""
    wire = ChatWire(limit_field="max_tokens", developer_role=False)
    return HttpProvider(Endpoint(name, base_url, api_key, profile), OpenAiChatDialect(wire), transport, now)


def ollama(transport: Transport, now: Now, base_url: str = OLLAMA_BASE_URL) -> HttpProvider:
    return openai_compatible(transport, now, name="ollama", base_url=base_url)


def vllm(transport: Transport, now: Now, base_url: str, api_key: str = "") -> HttpProvider:
    return openai_compatible(transport, now, name="vllm", base_url=base_url, api_key=api_key, profile=VLLM)


def openai_embedder(transport: Transport, now: Now, *, name: str, base_url: str, api_key: str = "") -> HttpEmbedder:
    """OpenAI, Ollama, vLLM and every other server of POST /embeddings."""
    return HttpEmbedder(Endpoint(name, base_url, api_key, OPENAI_COMPATIBLE), OpenAiEmbeddings(), transport, now)


def google_embedder(transport: Transport, now: Now, api_key: str, base_url: str = GOOGLE_BASE_URL) -> HttpEmbedder:
    return HttpEmbedder(Endpoint("google", base_url, api_key, GEMINI), GeminiEmbeddings(), transport, now)


def _local_wire() -> OpenAiChatDialect:
    return OpenAiChatDialect(ChatWire(limit_field="max_tokens", developer_role=False))


KINDS: Final[Mapping[DialectName, Kind]] = {
    "openai-chat": Kind(OpenAiChatDialect, OPENAI, OPENAI_FAMILIES, OPENAI_BASE_URL),
    "openai-responses": Kind(
        OpenAiResponsesDialect,
        OPENAI_RESPONSES,
        dict.fromkeys(OPENAI_FAMILIES, OPENAI_RESPONSES_REASONING),
        OPENAI_BASE_URL,
    ),
    "anthropic-messages": Kind(AnthropicMessagesDialect, ANTHROPIC, ANTHROPIC_FAMILIES, ANTHROPIC_BASE_URL),
    "gemini-generate": Kind(GeminiGenerateDialect, GEMINI, GEMINI_FAMILIES, GOOGLE_BASE_URL),
    "openai-compatible": Kind(_local_wire, OPENAI_COMPATIBLE),
    "vllm": Kind(_local_wire, VLLM),
}


def deployed(
    transport: Transport,
    now: Now,
    kind: Kind,
    *,
    name: str,
    base_url: str = "",
    api_key: str = "",
    profiles: Mapping[str, CapabilityProfile] | None = None,
) -> HttpProvider:
    """A provider of that kind at an address of its own; `profiles` goes before those of the kind's families."""
    families = {**kind.families, **(profiles or {})}
    endpoint = Endpoint(name, base_url or kind.base_url, api_key, kind.profile, families)
    return HttpProvider(endpoint, kind.dialect(), transport, now)
