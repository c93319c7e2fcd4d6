"""From what a caller asks for to the targets of its call, by what is known at this moment."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from llm_gateway import routing
from llm_gateway.balancing import Loads, Strategy
from llm_gateway.catalogue import Catalogue, Target
from llm_gateway.circuits import Circuits
from llm_gateway.routing import AUTO, Choice, Offer, Policy


@dataclass(slots=True)
class Router:
    """`catalogue` may be replaced at any time; calls that have their targets keep them."""

    catalogue: Catalogue
    circuits: Circuits
    loads: Loads = field(default_factory=Loads)
    balancing: Strategy = "affinity"
    draw: Callable[[], float] = random.random

    def choose(
        self,
        models: Sequence[str],
        policy: Policy,
        affinity: Callable[[], bytes],
        bounds: Callable[[], tuple[int, int]],
        now: float,
    ) -> Choice:
        """Targets for the models in the caller's order. `bounds` gives the most input and output tokens of a call, and is
        asked for only if costs matter, as `affinity` is if there is a choice.

        Raises UnknownModel, ModelUnavailable, NoEligibleModel.
        """
        targets = [target for model in models for target in self._targets(model)]
        if policy == routing.ANY and len(targets) == len(models):
            return Choice(tuple(targets), ())
        tokens = bounds() if policy.needs_costs else (0, 0)
        offers = [self._offer(target, policy, tokens, now) for target in targets]
        return routing.choose(offers, policy, self.balancing, affinity(), self.draw)

    def _targets(self, model: str) -> tuple[Target, ...]:
        if model != AUTO:
            return self.catalogue.targets(model)
        return tuple(target for name in self.catalogue.callable_models() for target in self.catalogue.targets(name))

    def _offer(self, target: Target, policy: Policy, tokens: tuple[int, int], now: float) -> Offer:
        key = target.circuit
        price = self.catalogue.price(target.id) if policy.needs_costs else None
        return Offer(
            target,
            self.catalogue.capabilities(target.id) if policy.required_capabilities else frozenset(),
            price.cost_nano(*tokens) if price else None,
            self.loads.of(key),
            bool(self.circuits.suspended_s(key, now) or self.circuits.limited_s(key, now)),
        )
