"""Which models can be asked for, by which name, at which provider, and why one cannot be called. Pure but for the data.

Names and context sizes of hosted models come from genai-prices, whose data lies in its wheel; nothing is fetched. A
server that runs whatever its owner loaded (Ollama, vLLM) takes any name.
"""

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from genai_prices.data import providers as price_book

from llm_gateway.domain import Abort
from llm_gateway.errors import ModelUnavailable, UnknownModel
from llm_gateway.providers.profile import CapabilityProfile
from llm_gateway.providers.provider import Provider

NEAR_MAX: Final = 3
_SNAPSHOT: Final = re.compile(r"-(\d{8}|\d{4}-\d{2}-\d{2})$")
_CHAT: Final[Mapping[str, re.Pattern[str]]] = {
    "openai": re.compile(r"gpt-|chatgpt-|o\d"),
    "anthropic": re.compile(r"claude-"),
    "google": re.compile(r"gemini-"),
}
# These speak other wire formats than chat, or other media than text.
_NOT_CHAT: Final = re.compile(
    r"audio|codex|cyber|deep-research|embedding|image|instruct|live|-pro\b|realtime|rosalind|search|transcribe|tts"
    r"|vision|:|\.ft-"
)


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A model of a provider by its bare name; 0 tokens of context when unknown."""

    name: str
    context_tokens: int = 0


@dataclass(frozen=True, slots=True)
class ProviderEntry:
    """A provider and its models. `provider` is None when it is not configured, and `remedy` says what to set.

    `accepts` matches further names that are called though not listed.
    """

    name: str
    dialect: str
    profile: CapabilityProfile
    provider: Provider | None
    remedy: str = ""
    models: tuple[KnownModel, ...] = ()
    accepts: re.Pattern[str] | None = None
    simulated: bool = False
    abort: Abort = "drain"

    def knows(self, model: str) -> bool:
        names = {known.name for known in self.models}
        return (
            model in names or _SNAPSHOT.sub("", model) in names or bool(self.accepts and self.accepts.fullmatch(model))
        )


@dataclass(frozen=True, slots=True)
class Target:
    """A model that can be called. `id` is "provider/model", `model` the provider's own name for it."""

    id: str
    model: str
    provider: Provider
    simulated: bool = False
    abort: Abort = "drain"


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What ListModels tells of a model; `remedy` is empty when it can be called."""

    id: str
    provider: str
    dialect: str
    context_tokens: int
    capabilities: tuple[str, ...]
    remedy: str
    simulated: bool
    aliases: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Catalogue:
    """All providers known here, and the names people gave to models."""

    entries: tuple[ProviderEntry, ...]
    aliases: Mapping[str, str] = field(default_factory=dict)

    def target(self, model: str) -> Target:
        """Raises UnknownModel with near names, ModelUnavailable with what to set."""
        id = self.aliases.get(model, model)
        provider, _, name = id.partition("/")
        entry = next((entry for entry in self.entries if entry.name == provider), None)
        if entry is None or not name or not entry.knows(name):
            raise UnknownModel(model, self.near(model))
        if entry.provider is None:
            raise ModelUnavailable(model, entry.remedy)
        return Target(id, name, entry.provider, entry.simulated, entry.abort)

    def cards(self, provider: str = "") -> tuple[ModelCard, ...]:
        """The listed models, in the order of the providers, then by name."""
        wanted = (entry for entry in self.entries if provider in ("", entry.name))
        return tuple(card for entry in wanted for card in self._cards(entry))

    def near(self, model: str) -> tuple[str, ...]:
        """Names a caller may have meant, models that can be called first."""
        names = (*self.aliases, *(card.id for card in sorted(self.cards(), key=lambda card: bool(card.remedy))))
        bare = [name for name in names if name.rpartition("/")[2] == model.rpartition("/")[2]]
        close = difflib.get_close_matches(model, names, n=NEAR_MAX)
        return tuple(dict.fromkeys((*bare, *close)))[:NEAR_MAX]

    def _cards(self, entry: ProviderEntry) -> Iterator[ModelCard]:
        for known in entry.models:
            id = f"{entry.name}/{known.name}"
            aliases = tuple(sorted(alias for alias, model in self.aliases.items() if model == id))
            yield ModelCard(
                id=id,
                provider=entry.name,
                dialect=entry.dialect,
                context_tokens=known.context_tokens,
                capabilities=_capabilities(entry.profile),
                remedy=entry.remedy if entry.provider is None else "",
                simulated=entry.simulated,
                aliases=aliases,
            )


def hosted_models(provider: str) -> tuple[KnownModel, ...]:
    """The chat models of a hosted provider that the price book knows, by name."""
    found = next(entry for entry in price_book if entry.id == provider)
    names = _CHAT[provider]
    known = (
        KnownModel(model.id, model.context_window or 0)
        for model in found.models
        if names.match(model.id) and not _NOT_CHAT.search(model.id) and model.context_window
    )
    return tuple(sorted(known, key=lambda model: model.name))


def _capabilities(profile: CapabilityProfile) -> tuple[str, ...]:
    formats = profile.output_formats - {"text"}
    return tuple(sorted({"streaming", "tools", *formats, *profile.parameters}))
