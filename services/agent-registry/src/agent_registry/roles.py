"""What each role may do, as patterns of permissions. Deny by default: what no pattern names is refused."""

from collections.abc import Callable, Iterable
from types import MappingProxyType
from typing import Final, Literal

from agent_registry.errors import RoleNotGrantable, RoleUnknown

Role = Literal["owner", "operator", "viewer", "agent", "service"]

PERMISSIONS: Final = MappingProxyType[str, tuple[str, ...]](
    {
        "owner": ("*",),
        "operator": (
            "agents.*",
            "budgets.*",
            "conversations.*",
            "definitions.*",
            "events.*",
            "ledger.read",
            "models.*",
            "prices.read",
            "principals.read",
            "proposals.*",
            "runs.*",
            "sessions.*",
            "spend.*",
            "tools.*",
            "variables.*",
            "views.*",
        ),
        "viewer": ("*.read",),
        "agent": (
            "agents.heartbeat",
            "agents.read",
            "agents.register",
            "conversations.read",
            "definitions.read",
            "events.read",
            "models.generate",
            "models.read",
            "proposals.read",
            "proposals.vote",
            "runs.read",
            "tools.execute",
            "tools.read",
            "variables.read",
        ),
        "service": ("*",),
    }
)

GRANTABLE: Final = ("owner", "operator", "viewer", "agent")
"""Roles that a request may give. `service` reaches into every tenant, so only the file of service keys gives it."""


def permissions(roles: Iterable[str]) -> tuple[str, ...]:
    """The patterns of all these roles, sorted, each once."""
    return tuple(sorted({pattern for role in roles for pattern in PERMISSIONS[role]}))


def check_grantable(roles: Iterable[str], may: Callable[[str], bool]) -> None:
    """Raises RoleUnknown, or RoleNotGrantable for a role that allows more than the giver may do."""
    for role in roles:
        if role not in GRANTABLE:
            raise RoleUnknown(role, GRANTABLE)
        for pattern in PERMISSIONS[role]:
            if not may(pattern):
                raise RoleNotGrantable(role, pattern)
