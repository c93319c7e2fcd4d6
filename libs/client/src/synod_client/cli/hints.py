"""What is told on stderr beside an answer: that a name is nobody's, which may be meant or a slip."""

from collections.abc import Awaitable

from synod_client.cli.output import errors
from synod_client.client import Synod
from synod_client.errors import NotFound, SynodError


async def tell_of_nobody(synod: Synod, agent: str, what: str) -> None:
    """Says that `what` is of use only later, if no agent and no definition is called so. An agent may be registered later."""
    if await _is_missing(synod.agent(agent)) and await _is_missing(synod.definition(agent)):
        hint = f"no agent and no definition is called {agent!r}; {what} is of use once there is one"
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
