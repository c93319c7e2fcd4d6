"""Which models can be asked for, by which name, at which provider, and why one cannot be called. Pure but for the data.

Names and context sizes of hosted models come from genai-prices, whose data lies in its wheel; nothing is fetched. A
server that runs whatever its owner loaded (Ollama, vLLM) takes any name.
"""

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import date
from fnmatch import fnmatchcase
from typing import Final, Literal

from genai_prices.data import providers as price_book

from llm_gateway.domain import Abort
from llm_gateway.errors import ModelUnavailable, UnknownModel
from llm_gateway.hedging import Hedge
from llm_gateway.prices import Price, book_price
from llm_gateway.providers.profile import CapabilityProfile, profile_of
from llm_gateway.providers.provider import Embedder, Provider

NEAR_MAX: Final = 3
FOUND_MAX: Final = 1000
"""Models that are not looked up again at each call."""
ANY_MODEL: Final = re.compile(r"[^\s\x00-\x1f\x7f]{1,128}")
"""A server that runs whatever its owner loaded takes any name."""
ANY_MODEL_IN_A_PATH: Final = re.compile(r"(?!.*(?:\.\.|//))[A-Za-z0-9][\w.:@/+~-]{0,127}", re.ASCII)
"""Where the name stands in the path of an address, it has to stand for itself there: one that led to another model would be
priced as what it begins with.
"""
EMBEDDINGS: Final = "embeddings"
"""The capability of models that turn texts into vectors; they have no other."""
_VECTORS: Final = re.compile(r"^(text-embedding|gemini-embedding)-[\w.-]+$")
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


Stage = Literal["active", "deprecated", "retired"]


@dataclass(frozen=True, slots=True)
class Lifecycle:
    """Where a model stands. A deprecated one answers with a warning until the day on which it is retired."""

    deprecated: bool = False
    retires_on: date | None = None
    replacement: str = ""

    def stage(self, today: date) -> Stage:
        if self.retires_on is not None and self.retires_on <= today:
            return "retired"
        return "deprecated" if self.deprecated or self.retires_on is not None else "active"

    def advice(self) -> str:
        """What to do instead, and by when."""
        day = f" on {self.retires_on}" if self.retires_on else ""
        return day + (f"; use {self.replacement}" if self.replacement else "")


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A model of a provider by its bare name; 0 tokens when unknown. `price` is to choose by."""

    name: str
    context_tokens: int = 0
    output_tokens_max: int = 0
    lifecycle: Lifecycle = Lifecycle()
    price: Price | None = None
    hedge: Hedge | None = None


@dataclass(frozen=True, slots=True)
class Deployment:
    """Where models of a provider are served, under one key: an endpoint of its own. `models` are patterns of bare names.

    `key_id` tells its key from others without showing it. The empty name is the one of the provider's own settings.
    """

    name: str
    provider: Provider
    region: str = ""
    weight: int = 1
    models: tuple[str, ...] = ("*",)
    key_id: str = ""

    def serves(self, model: str) -> bool:
        return any(fnmatchcase(model, pattern) for pattern in self.models)


@dataclass(frozen=True, slots=True)
class ProviderEntry:
    """A provider and its models. `provider` is None when it is not configured, and `remedy` says what to set.

    `accepts` matches further names that are called though not listed. `further` are deployments beside the one that its
    own settings make, `profiles` those of families and models that differ, by how their names begin.
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
    further: tuple[Deployment, ...] = ()
    profiles: Mapping[str, CapabilityProfile] = field(default_factory=dict)

    embedder: Embedder | None = None
    embeds: tuple[KnownModel, ...] = ()

    @property
    def deployments(self) -> tuple[Deployment, ...]:
        """All that are configured."""
        return (*((Deployment("", self.provider),) if self.provider else ()), *self.further)

    def known(self, model: str) -> KnownModel | None:
        """What is known of a listed model, or of one that another one is a snapshot of."""
        names = (model, _SNAPSHOT.sub("", model))
        return next((known for name in names for known in self.models if known.name == name), None)

    def capabilities(self, model: str) -> frozenset[str]:
        profile = profile_of(self.profiles, self.profile, model)
        media = (name for name in ("images", "audio", "files") if getattr(profile, name))
        formats = profile.output_formats - {"text"}
        return frozenset({"streaming", "tools", *media, *formats, *profile.parameters})

    def knows(self, model: str) -> bool:
        return self._is_listed(self.models, model)

    def knows_vectors_of(self, model: str) -> bool:
        return self._is_listed(self.embeds, model)

    def _is_listed(self, models: tuple[KnownModel, ...], model: str) -> bool:
        names = {known.name for known in models}
        return (
            model in names or _SNAPSHOT.sub("", model) in names or bool(self.accepts and self.accepts.fullmatch(model))
        )


@dataclass(frozen=True, slots=True)
class Target:
    """A model that can be called. `id` is "provider/model", `model` the provider's own name for it.

    `warnings` go with each of its answers; `output_tokens_max` is 0 when unknown; `reasons` as in CapabilityProfile.
    """

    id: str
    model: str
    provider: Provider
    simulated: bool = False
    abort: Abort = "drain"
    deployment: str = ""
    region: str = ""
    weight: int = 1
    key_id: str = ""
    warnings: tuple[str, ...] = ()
    hedge: Hedge | None = None
    output_tokens_max: int = 0
    reasons: bool = False
    circuit: str = field(init=False)
    """What fails and is limited by itself: a model at a deployment under a key."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "circuit", _circuit(self.id, self.deployment, self.key_id))


@dataclass(frozen=True, slots=True)
class EmbeddingTarget:
    """A model that can be asked for vectors; as Target."""

    id: str
    model: str
    embedder: Embedder
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
    output_tokens_max: int = 0
    price: Price | None = None
    stage: Stage = "active"
    retires_on: date | None = None
    replacement: str = ""

    @property
    def generates(self) -> bool:
        """Whether it answers in words, and not only in vectors."""
        return EMBEDDINGS not in self.capabilities


@dataclass(frozen=True, slots=True)
class Catalogue:
    """All providers known here, and the names people gave to models."""

    entries: tuple[ProviderEntry, ...]
    aliases: Mapping[str, str] = field(default_factory=dict)
    today: Callable[[], date] = date.today
    _found: dict[tuple[str, date], tuple[Target, ...]] = field(default_factory=dict, compare=False, repr=False)

    def target(self, model: str) -> Target:
        """The first of `targets`."""
        return self.targets(model)[0]

    def targets(self, model: str) -> tuple[Target, ...]:
        """The model at each of its deployments, at least one.

        Raises UnknownModel with near names, ModelUnavailable with what to set or to use instead.
        """
        asked = (model, self.today())
        found = self._found.get(asked)
        if found is None:
            if len(self._found) >= FOUND_MAX:
                self._found.clear()
            found = self._found[asked] = self._looked_up(model)
        return found

    def _looked_up(self, model: str) -> tuple[Target, ...]:
        id, name, entry = self._entry(model)
        if entry is None or not name or not entry.knows(name):
            raise UnknownModel(model, self.near(model))
        serving = [deployment for deployment in entry.deployments if deployment.serves(name)]
        if not serving:
            raise ModelUnavailable(model, entry.remedy)
        known = entry.known(name) or KnownModel(name)
        warnings = self._warnings(model, known)
        return tuple(
            replace(
                _target(id, name, entry, deployment),
                warnings=warnings,
                hedge=known.hedge,
                output_tokens_max=known.output_tokens_max,
                reasons=profile_of(entry.profiles, entry.profile, name).reasons,
            )
            for deployment in serving
        )

    def capabilities(self, id: str) -> frozenset[str]:
        """Of a target's id."""
        provider, _, name = id.partition("/")
        return next((entry.capabilities(name) for entry in self.entries if entry.name == provider), frozenset())

    def price(self, id: str) -> Price | None:
        """Of a target's id, to choose by."""
        provider, _, name = id.partition("/")
        entry = next((entry for entry in self.entries if entry.name == provider), None)
        known = entry.known(name) if entry else None
        return known.price if known else None

    def callable_models(self) -> tuple[str, ...]:
        """The listed models that can answer a call now and are not about to be retired."""
        return tuple(card.id for card in self.cards() if card.generates and not card.remedy and card.stage == "active")

    def _warnings(self, model: str, known: KnownModel) -> tuple[str, ...]:
        lifecycle = known.lifecycle
        match lifecycle.stage(self.today()):
            case "active":
                return ()
            case "deprecated":
                return (f"{model} is deprecated and will be retired{lifecycle.advice()}",)
            case "retired":
                raise ModelUnavailable(model, f"it was retired{lifecycle.advice()}")

    def embedder(self, model: str) -> EmbeddingTarget:
        """Raises UnknownModel with the names of models that have vectors, ModelUnavailable with what to set."""
        id, name, entry = self._entry(model)
        if entry is None or not name or not entry.knows_vectors_of(name):
            names = [f"{entry.name}/{each.name}" for entry in self.entries for each in entry.embeds]
            raise UnknownModel(model, tuple(difflib.get_close_matches(model, names, n=NEAR_MAX, cutoff=0)))
        if entry.embedder is None:
            raise ModelUnavailable(model, entry.remedy)
        return EmbeddingTarget(id, name, entry.embedder, entry.simulated, entry.abort)

    def cards(self, provider: str = "") -> tuple[ModelCard, ...]:
        """The listed models, in the order of the providers, then by name."""
        wanted = (entry for entry in self.entries if provider in ("", entry.name))
        return tuple(card for entry in wanted for card in self._cards(entry))

    def near(self, model: str) -> tuple[str, ...]:
        """Names a caller may have meant, models that can be called first."""
        chats = (card for card in self.cards() if card.generates)
        names = (*self.aliases, *(card.id for card in sorted(chats, key=lambda card: bool(card.remedy))))
        bare = [name for name in names if name.rpartition("/")[2] == model.rpartition("/")[2]]
        close = difflib.get_close_matches(model, names, n=NEAR_MAX)
        return tuple(dict.fromkeys((*bare, *close)))[:NEAR_MAX]

    def _entry(self, model: str) -> tuple[str, str, ProviderEntry | None]:
        """The resolved id, the provider's own name of the model, and the provider."""
        id = self.aliases.get(model, model)
        provider, _, name = id.partition("/")
        return id, name, next((entry for entry in self.entries if entry.name == provider), None)

    def _cards(self, entry: ProviderEntry) -> Iterator[ModelCard]:
        for known in entry.models:
            yield self._card(entry, known)
        for known in entry.embeds:
            yield self._vectors_card(entry, known)

    def _card(self, entry: ProviderEntry, known: KnownModel) -> ModelCard:
        id = f"{entry.name}/{known.name}"
        return ModelCard(
            id=id,
            provider=entry.name,
            dialect=entry.dialect,
            context_tokens=known.context_tokens,
            capabilities=tuple(sorted(entry.capabilities(known.name))),
            remedy=entry.remedy if not any(one.serves(known.name) for one in entry.deployments) else "",
            simulated=entry.simulated,
            aliases=self._aliases_of(id),
            output_tokens_max=known.output_tokens_max,
            price=known.price,
            stage=known.lifecycle.stage(self.today()),
            retires_on=known.lifecycle.retires_on,
            replacement=known.lifecycle.replacement,
        )

    def _vectors_card(self, entry: ProviderEntry, known: KnownModel) -> ModelCard:
        id = f"{entry.name}/{known.name}"
        return ModelCard(
            id=id,
            provider=entry.name,
            dialect=entry.dialect,
            context_tokens=known.context_tokens,
            capabilities=(EMBEDDINGS,),
            remedy=entry.remedy if entry.embedder is None else "",
            simulated=entry.simulated,
            aliases=self._aliases_of(id),
        )

    def _aliases_of(self, id: str) -> tuple[str, ...]:
        return tuple(sorted(alias for alias, model in self.aliases.items() if model == id))


def hosted_models(provider: str, today: date | None = None) -> tuple[KnownModel, ...]:
    """The chat models of a hosted provider that the price book knows, by name; with the prices of a day."""
    found = next(entry for entry in price_book if entry.id == provider)
    names = _CHAT[provider]
    known = (
        KnownModel(
            model.id,
            model.context_window or 0,
            lifecycle=Lifecycle(deprecated=bool(model.deprecated)),
            price=book_price(provider, model.id, today) if today else None,
        )
        for model in found.models
        if names.match(model.id) and not _NOT_CHAT.search(model.id) and model.context_window
    )
    return tuple(sorted(known, key=lambda model: model.name))


def hosted_embeddings(provider: str) -> tuple[KnownModel, ...]:
    """The models of a hosted provider that have vectors of texts, by name."""
    found = next(entry for entry in price_book if entry.id == provider)
    known = (KnownModel(model.id, model.context_window or 0) for model in found.models if _VECTORS.search(model.id))
    return tuple(sorted(known, key=lambda model: model.name))


def circuit_of(model: str, deployment: Deployment) -> str:
    """As Target.circuit."""
    return _circuit(model, deployment.name, deployment.key_id)


def _circuit(model: str, deployment: str, key_id: str) -> str:
    # No name has a blank in it.
    return f"{model} {deployment} {key_id}" if deployment else model


def model_of(circuit: str) -> tuple[str, str, str]:
    """Model, deployment and key id of a circuit."""
    model, _, rest = circuit.partition(" ")
    deployment, _, key_id = rest.partition(" ")
    return model, deployment, key_id


def _target(id: str, name: str, entry: ProviderEntry, deployment: Deployment) -> Target:
    return Target(
        id,
        name,
        deployment.provider,
        entry.simulated,
        entry.abort,
        deployment.name,
        deployment.region,
        deployment.weight,
        deployment.key_id,
    )
