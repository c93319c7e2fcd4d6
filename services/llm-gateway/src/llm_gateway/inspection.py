"""What can be seen of the deployments while they are in use: their circuits and loads, and whether their keys work."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from llm_gateway.balancing import Load, Loads
from llm_gateway.catalogue import Catalogue, Deployment, ProviderEntry, circuit_of, model_of
from llm_gateway.circuits import Circuits, Phase
from llm_gateway.errors import AuthenticationRejected, PaymentRequired, PermissionRejected, ProviderError
from llm_gateway.providers.provider import Provider

CHECK_S: Final = 5.0
KeyState = Literal["unasked", "works", "refused", "unknown"]
_REFUSED: Final = (AuthenticationRejected, PaymentRequired, PermissionRejected)


@dataclass(frozen=True, slots=True)
class CalledModel:
    """A model at a deployment, as its calls showed it. `closed_s` is how long it is left alone."""

    model: str
    phase: Phase
    closed_s: float
    load: Load


@dataclass(frozen=True, slots=True)
class DeploymentState:
    provider: str
    deployment: Deployment
    key_state: KeyState
    problem: str
    called: tuple[CalledModel, ...]


@dataclass(frozen=True, slots=True)
class Inspector:
    circuits: Circuits
    loads: Loads

    async def look(self, catalogue: Catalogue, provider: str, *, check: bool) -> tuple[DeploymentState, ...]:
        """Every deployment of the provider, or of all; asked at the same time whether their keys work, if so wanted."""
        wanted = [
            (entry, deployment)
            for entry in catalogue.entries
            if provider in ("", entry.name)
            for deployment in entry.deployments
        ]
        answers: list[tuple[KeyState, str]] = [("unasked", "")] * len(wanted)
        if check:
            answers = list(await asyncio.gather(*(key_state(deployment.provider) for _, deployment in wanted)))
        return tuple(
            DeploymentState(entry.name, deployment, state, problem, tuple(self._called(entry, deployment)))
            for (entry, deployment), (state, problem) in zip(wanted, answers, strict=True)
        )

    def _called(self, entry: ProviderEntry, deployment: Deployment) -> Iterator[CalledModel]:
        now = asyncio.get_running_loop().time()
        for circuit in self.circuits.known():
            model, _, _ = model_of(circuit)
            if model.partition("/")[0] == entry.name and circuit == circuit_of(model, deployment):
                closed_s = max(self.circuits.suspended_s(circuit, now), self.circuits.limited_s(circuit, now))
                yield CalledModel(model, self.circuits.phase(circuit, now), closed_s, self.loads.of(circuit))


async def key_state(provider: Provider) -> tuple[KeyState, str]:
    """Whether the provider takes the key, and what it says if not."""
    try:
        await provider.check(asyncio.get_running_loop().time() + CHECK_S)
    except _REFUSED as error:
        return "refused", str(error)
    except ProviderError as error:
        return "unknown", str(error)
    return "works", ""
