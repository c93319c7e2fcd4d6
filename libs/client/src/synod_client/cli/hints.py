"""What is told on stderr beside an answer: that a name is nobody's, which may be meant or a slip."""

import re
from collections.abc import Awaitable
from difflib import get_close_matches
from typing import Final

from synod_client.cli.output import errors
from synod_client.client import Synod
from synod_client.errors import NotFound, SynodError

_SNAPSHOT: Final = re.compile(r"[-@]?\d{4}-?\d{2}-?\d{2}")
"""What a provider adds to a model's name for a version of it, whose price is the model's."""


async def tell_of_nobody(synod: Synod, agent: str, what: str) -> None:
    """Says that `what` is of use only later, if no agent and no definition is called so. An agent may be registered later."""
    if await _is_missing(synod.agent(agent)) and await _is_missing(synod.definition(agent)):
        hint = f"no agent and no definition is called {agent!r}; {what} is of use once there is one"
        errors.print(hint, style="yellow", markup=False, highlight=False, soft_wrap=True)


async def tell_of_no_model(synod: Synod, model: str, what: str) -> None:
    """The same, if no price is known of a model: of a slip in its name `what` would be of no use, and nobody would see it."""
    provider, _, name = model.partition("/")
    if name == "*":
        return
    try:
        known = [price.model async for price in synod.prices(provider)]
    except SynodError:
        return
    if not any(name == one or (name.startswith(one) and _SNAPSHOT.fullmatch(name[len(one) :])) for one in known):
        near = ", ".join(f"{provider}/{one}" for one in get_close_matches(name, known))
        hint = f"no price of {model!r} is known{f'; near it are {near}' if near else ''}; {what} is of use once it is called"
        errors.print(hint, style="yellow", markup=False, highlight=False, soft_wrap=True)


async def _is_missing(found: Awaitable[object]) -> bool:
    """False also when it cannot be known, by who may not ask or because nobody answers."""
    try:
        await found
    except NotFound:
        return True
    except SynodError:
        return False
    return False
