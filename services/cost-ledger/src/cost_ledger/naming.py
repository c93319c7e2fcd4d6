"""What a name of a model means: "provider/model", a snapshot of a model by its date, all models of a provider.

Names are compared without their case, as the price book does, so that a call in another spelling is not passed by. A name
that differs from a known one by a letter would never match what is billed, and one budget in two spellings is a slip: both
are refused, with the names that they may be meant for.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable
from functools import lru_cache
from typing import Final

from synod.common.values import Attribution

from cost_ledger.errors import RequestInvalid

ANY_MODEL: Final = "/*"
"""What a scope's model ends with that means all models of a provider."""
TOOL: Final = "tool"
"""The provider of what tools cost."""
OTHER_TOOL: Final = "other"
"""Stands for the name of a tool that has none, and for what is neither of a model nor of a tool."""
NEAR_MAX: Final = 3
_NEAR: Final = 0.8
"""How alike a provider's name is to a known one that is taken for a slip of it: from 0 to 1."""

_DATE: Final = r"[-@](?:\d{4}-\d{2}-\d{2}|\d{8}|\d{2}-\d{2}(?:-\d{4})?|\d{4}|latest)"
_SNAPSHOT: Final = re.compile(rf"(.+?){_DATE}")


@lru_cache(maxsize=4_096)
def scopes_of(model: str) -> tuple[str, ...]:
    """The scopes that hold "provider/model": itself, the model that it is a dated snapshot of, its provider's.

    >>> scopes_of("openai/gpt-5.5-2026-04-01")
    ('openai/gpt-5.5-2026-04-01', 'openai/gpt-5.5', 'openai/*')
    """
    if not model:
        return ()
    snapshot = _SNAPSHOT.fullmatch(model)
    return (model, *([snapshot[1]] if snapshot else ()), model.partition("/")[0] + ANY_MODEL)


def billed_as(model: str, attribution: Attribution) -> str:
    """The name that an invoice knows a cost by: "provider/model", or "tool/name" for what has no model.

    >>> billed_as("", Attribution(tenant_id="acme", tool="search"))
    'tool/search'
    """
    return model or attribution.model or f"{TOOL}/{attribution.tool or OTHER_TOOL}"


def family_of(model: str) -> str:
    """The model without the dates that its name ends with: what its snapshots and aliases have in common, in lower case.

    >>> family_of("openai/gpt-5.5-2026-04-01")
    'openai/gpt-5.5'
    """
    model = model.lower()
    while snapshot := _SNAPSHOT.fullmatch(model):
        model = snapshot[1]
    return model


def distance(name: str, model: str) -> int | None:
    """How far the name of what is billed is from the model that was called; None if they are not the same model.

    0 if they are equal, 1 if the model called is a snapshot of what is billed, 2 the other way round: it was called by a name
    for whatever its newest snapshot is.
    """
    name, model = name.lower(), model.lower()
    if name == model:
        return 0
    if name in compared_scopes_of(model):
        return 1
    return 2 if model in compared_scopes_of(name) else None


@lru_cache(maxsize=4_096)
def compared_scopes_of(model: str) -> tuple[str, ...]:
    """The scopes that hold the model, the most specific first, as they are compared: in lower case.

    >>> compared_scopes_of("openai/GPT-5.5-2026-04-01")
    ('openai/gpt-5.5-2026-04-01', 'openai/gpt-5.5', 'openai/*')
    """
    return scopes_of(model.lower())


def pattern_of(scope: str) -> str:
    """The scope as a regular expression of PostgreSQL for the models that it holds."""
    if scope.endswith(ANY_MODEL):
        return f"(?i)^{re.escape(scope[:-1])}"
    return f"(?i)^{re.escape(scope)}({_DATE})?$"


def check_scope_model(model: str, known: Collection[str]) -> None:
    """RequestInvalid if the scope of a budget can match none of the models that there are; `known` are those with prices."""
    provider, slash, name = model.partition("/")
    if not (provider and slash and name) or ("*" in model and (name != "*" or "*" in provider)):
        _refuse(
            "scope.model",
            model,
            "must be provider/model, or provider/* for all models of a provider",
            _like(model, known),
        )
    check_provider("scope.model", provider, providers_of(known), value=model)
    written = next((each for each in known if each.lower() == model.lower()), model)
    if model not in known and written != model:
        _refuse("scope.model", model, "is not written as it is billed", (written,))


def check_provider(field: str, provider: str, known: Collection[str], *, value: str = "") -> None:
    """RequestInvalid if it is a known provider with another spelling, or so near to one that it is likely a slip."""
    if provider in known:
        return
    if "/" in provider or "*" in provider:
        _refuse(field, value or provider, "must be a provider's name alone", (provider.partition("/")[0],))
    near = difflib.get_close_matches(provider.lower(), known, n=NEAR_MAX, cutoff=_NEAR)
    if near:
        _refuse(field, value or provider, "names a provider that nothing is billed by", near)


def check_biller(provider: str, known: Collection[str], *, own_provider: bool) -> None:
    """RequestInvalid if nothing in the ledger is of whom an invoice is from; `known` are those of which there is something.

    They are in lower case. Of one's `own_provider` nothing has to be known.
    """
    if "/" in provider or "*" in provider:
        bare = provider.partition("/")[0].rstrip("*")
        _refuse("provider", provider, "must be a provider's name alone", (bare,) if bare else ())
    if own_provider or provider.lower() in known:
        return
    problem = (
        "has neither a cost nor a price here; if that is right, since nothing that it bills was called through Synod, "
        "give own_provider (`synod spend reconcile --own-provider`)"
    )
    _refuse("provider", provider, problem, difflib.get_close_matches(provider.lower(), known, n=NEAR_MAX, cutoff=_NEAR))


def check_unprefixed(provider: str, model: str, known: Collection[str]) -> None:
    """RequestInvalid if the model's name has its provider in front, as if it were "provider/model"."""
    prefixed = model.lower().startswith(f"{provider}/".lower())
    if prefixed and f"{provider}/{model}".lower() not in (each.lower() for each in known):
        _refuse("model", model, f"must be the name without its provider {provider}", (model.partition("/")[2],))


def providers_of(models: Iterable[str]) -> frozenset[str]:
    return frozenset(model.partition("/")[0] for model in models)


def _like(model: str, known: Iterable[str]) -> list[str]:
    bare = model.rpartition("/")[2].lower()
    return sorted((each for each in known if each.rpartition("/")[2].lower() == bare), key=len)[:NEAR_MAX]


def _refuse(field: str, value: str, problem: str, near: Collection[str]) -> None:
    hint = f"; did you mean {', '.join(near)}?" if near else ""
    raise RequestInvalid(field, value, problem + hint)
