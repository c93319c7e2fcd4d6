"""Which model answers a call, and where: what is not eligible is left out with its reason, the rest is ordered. Pure.

      asked model, fallbacks ──▶ offers: every deployment of each ──▶ eligible? ──▶ in order ──▶ targets
                                                                         │
                                                                         └──▶ why not: capability, price, region, latency

The models keep the caller's order, unless the cheapest is wanted; among the deployments of a model the balancing decides.
Deployments that are left alone at the moment come last: somebody has to be asked when all are.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Final

from llm_gateway.balancing import Load, Place, Strategy, order
from llm_gateway.catalogue import Target
from llm_gateway.domain import ModelRequest
from llm_gateway.errors import NoEligibleModel

AUTO: Final = "auto"
"""As a model: any that the catalogue lists and that can be called."""
PREFIX_CHARACTERS: Final = 4096
"""So much of the first message tells what a provider may have in its cache."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What a caller wants of the model that answers. 0 and empty want nothing.

    `max_cost_nano` bounds what one attempt may cost at most; `max_first_content_s` what the first content took lately.
    `balancing` is None for the gateway's own.
    """

    required_capabilities: tuple[str, ...] = ()
    max_cost_nano: int = 0
    max_first_content_s: float = 0.0
    regions: tuple[str, ...] = ()
    cheapest: bool = False
    balancing: Strategy | None = None

    @property
    def needs_costs(self) -> bool:
        return self.cheapest or self.max_cost_nano > 0


ANY: Final = Policy()


@dataclass(frozen=True, slots=True)
class Offer:
    """A target and what is known of it now. `cost_nano` is the most that the call may cost there, None without a price;
    `closed` says that it has failed too often or that its provider wants a pause.
    """

    target: Target
    capabilities: frozenset[str] = frozenset()
    cost_nano: int | None = None
    load: Load = field(default_factory=Load)
    closed: bool = False


@dataclass(frozen=True, slots=True)
class Considered:
    """One offer and what became of it: "eligible", or why it was left out."""

    model: str
    deployment: str
    verdict: str


@dataclass(frozen=True, slots=True)
class Choice:
    """The targets in the order in which they are to be asked, and what was considered."""

    targets: tuple[Target, ...]
    considered: tuple[Considered, ...]


def choose(
    offers: Sequence[Offer], policy: Policy, balancing: Strategy, affinity: bytes, draw: Callable[[], float]
) -> Choice:
    """Orders the offers, which stand by model in the caller's order. Raises NoEligibleModel."""
    verdicts = [(offer, _verdict(offer, policy)) for offer in offers]
    considered = tuple(Considered(offer.target.id, offer.target.deployment, why) for offer, why in verdicts)
    eligible = [offer for offer, why in verdicts if why == ELIGIBLE]
    if not eligible:
        raise NoEligibleModel(tuple(f"{one.model}: {one.verdict}" for one in considered))
    if policy.cheapest:
        eligible.sort(key=lambda offer: (offer.cost_nano is None, offer.cost_nano or 0, offer.target.id))
    groups = [list(group) for _, group in groupby(eligible, key=lambda offer: offer.target.id)]
    strategy = policy.balancing or balancing
    ordered = [offer for group in groups for offer in _ordered(group, strategy, affinity, draw)]
    return Choice(tuple(offer.target for offer in ordered), considered)


ELIGIBLE: Final = "eligible"


def _verdict(offer: Offer, policy: Policy) -> str:
    missing = [name for name in policy.required_capabilities if name not in offer.capabilities]
    if missing:
        return f"has no {', '.join(missing)}"
    if policy.regions and offer.target.region not in policy.regions:
        return f"is in region {offer.target.region or 'unknown'}"
    if policy.needs_costs and offer.cost_nano is None:
        return "has no price"
    if policy.max_cost_nano and (offer.cost_nano or 0) > policy.max_cost_nano:
        return f"may cost {offer.cost_nano} nano-USD"
    if policy.max_first_content_s and offer.load.first_content_s > policy.max_first_content_s:
        return f"took {offer.load.first_content_s:.2f} s to its first content"
    return ELIGIBLE


def _ordered(group: Sequence[Offer], strategy: Strategy, affinity: bytes, draw: Callable[[], float]) -> list[Offer]:
    places = [Place(offer.target.circuit, offer.target.weight, offer.load) for offer in group]
    chosen = [group[index] for index in order(places, strategy, affinity, draw)]
    return sorted(chosen, key=lambda offer: offer.closed)


def affinity_of(tenant: str, conversation: str, request: ModelRequest) -> bytes:
    """Names the prompt that a provider may have in a cache: by conversation, else by how it begins. Never across tenants."""
    if conversation:
        return f"{tenant}\n{conversation}".encode()
    start = request.messages[0].text[:PREFIX_CHARACTERS] if request.messages else ""
    return tenant.encode() + hashlib.sha256(start.encode()).digest()
