"""The Python SDK of Synod and, in synod_client.cli, the synod command."""

from synod_client.client import Synod
from synod_client.connection import Limits
from synod_client.endpoints import Endpoints
from synod_client.errors import (
    Broken,
    BudgetExhausted,
    InvalidInput,
    NotAllowed,
    NotFound,
    Refused,
    SynodError,
    TryAgain,
)

__all__ = [
    "Broken",
    "BudgetExhausted",
    "Endpoints",
    "InvalidInput",
    "Limits",
    "NotAllowed",
    "NotFound",
    "Refused",
    "Synod",
    "SynodError",
    "TryAgain",
]
