"""What the roster adds to the providers that the environment configures: deployments, models, and what these take."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import date
from typing import Final

from llm_gateway.catalogue import (
    ANY_MODEL,
    ANY_MODEL_IN_A_PATH,
    Deployment,
    KnownModel,
    Lifecycle,
    ProviderEntry,
    circuit_of,
)
from llm_gateway.errors import RosterInvalid
from llm_gateway.keys import key_id
from llm_gateway.prices import book_price
from llm_gateway.providers.catalog import KINDS, Now, deployed
from llm_gateway.providers.http import HttpProvider
from llm_gateway.providers.profile import CapabilityProfile, profile_of
from llm_gateway.providers.provider import Provider
from llm_gateway.providers.quota import Quota
from llm_gateway.providers.transport import Transport
from llm_gateway.roster import DeploymentSpec, LoadedRoster, ModelSpec

REMEDY: Final = "give it a deployment in the file SYNOD_ROSTER_FILE"


def observed(
    entries: Sequence[ProviderEntry], observe: Callable[[str, tuple[Quota, ...]], None]
) -> tuple[ProviderEntry, ...]:
    """The entries, whose deployments tell by circuit what their answers say about limits."""

    def watching(name: str, deployment: Deployment) -> Provider:
        provider = deployment.provider
        if not isinstance(provider, HttpProvider):
            return provider
        return provider.observed_by(lambda model, told: observe(circuit_of(f"{name}/{model}", deployment), told))

    return tuple(
        replace(
            entry,
            provider=watching(entry.name, Deployment("", entry.provider)) if entry.provider else None,
            further=tuple(replace(one, provider=watching(entry.name, one)) for one in entry.further),
        )
        for entry in entries
    )


def with_roster(
    entries: Sequence[ProviderEntry], loaded: LoadedRoster, transport: Transport, now: Now
) -> tuple[ProviderEntry, ...]:
    """The entries with what the roster says. Raises RosterInvalid for a deployment that has no address."""
    known = {entry.name: entry for entry in entries}
    for spec in loaded.roster.deployments:
        known.setdefault(spec.provider, _new_entry(spec))
    today = now().date()
    return tuple(_with_specs(entry, loaded, transport, now, today) for entry in known.values())


def _new_entry(spec: DeploymentSpec) -> ProviderEntry:
    """A provider that is known by its deployments alone runs whatever its owner loaded."""
    kind = KINDS[spec.dialect]
    accepts = ANY_MODEL_IN_A_PATH if spec.dialect == "gemini-generate" else ANY_MODEL
    return ProviderEntry(
        spec.provider, spec.dialect, kind.profile, None, REMEDY, accepts=accepts, profiles=kind.families
    )


def _with_specs(
    entry: ProviderEntry, loaded: LoadedRoster, transport: Transport, now: Now, today: date
) -> ProviderEntry:
    models = [spec for spec in loaded.roster.models if spec.provider == entry.name]
    profiles = {**entry.profiles, **_profiles(models, entry)}
    further = [
        _deployment(spec, loaded.keys.get(spec.name, ""), models, transport, now)
        for spec in loaded.roster.deployments
        if spec.provider == entry.name
    ]
    own = entry.provider
    if isinstance(own, HttpProvider) and models:
        own = own.with_profiles(profiles)
    return replace(entry, provider=own, further=tuple(further), models=_merged(entry, models, today), profiles=profiles)


def _deployment(
    spec: DeploymentSpec, key: str, models: Sequence[ModelSpec], transport: Transport, now: Now
) -> Deployment:
    kind = KINDS[spec.dialect]
    if not spec.base_url and not kind.base_url:
        raise RosterInvalid(spec.name, f"give base_url: {spec.dialect} has no address of its own")
    profiles = {one.name: _profile(one, profile_of(kind.families, kind.profile, one.name)) for one in models}
    provider = deployed(
        transport, now, kind, name=spec.provider, base_url=spec.base_url, api_key=key, profiles=profiles
    )
    return Deployment(spec.name, provider, spec.region, spec.weight, spec.models, key_id(key))


def _profiles(models: Sequence[ModelSpec], entry: ProviderEntry) -> Mapping[str, CapabilityProfile]:
    return {one.name: _profile(one, profile_of(entry.profiles, entry.profile, one.name)) for one in models}


def _profile(spec: ModelSpec, profile: CapabilityProfile) -> CapabilityProfile:
    kept = profile.parameters - frozenset(spec.lacks)
    reasons = profile.reasons if spec.reasons is None else spec.reasons
    return replace(profile, parameters=kept, unsupported=spec.unsupported or profile.unsupported, reasons=reasons)


def _merged(entry: ProviderEntry, specs: Sequence[ModelSpec], today: date) -> tuple[KnownModel, ...]:
    known = {model.name: model for model in entry.models}
    for spec in specs:
        before = known.get(spec.name, KnownModel(spec.name, price=book_price(entry.name, spec.name, today)))
        known[spec.name] = _model(spec, before)
    return tuple(known.values())


def _model(spec: ModelSpec, known: KnownModel) -> KnownModel:
    lifecycle = Lifecycle(
        deprecated=known.lifecycle.deprecated if spec.deprecated is None else spec.deprecated,
        retires_on=spec.retires_on or known.lifecycle.retires_on,
        replacement=spec.replacement or known.lifecycle.replacement,
    )
    return replace(
        known,
        context_tokens=spec.context_tokens or known.context_tokens,
        output_tokens_max=spec.output_tokens_max or known.output_tokens_max,
        lifecycle=lifecycle,
        price=spec.price or known.price,
        hedge=spec.hedge or known.hedge,
    )
