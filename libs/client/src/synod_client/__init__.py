"""The Python SDK of Synod and, in synod_client.cli, the synod command."""

from synod_client.agent import Agent
from synod_client.client import Synod
from synod_client.connection import Limits
from synod_client.endpoints import Endpoints
from synod_client.errors import (
    Broken,
    BudgetExhausted,
    BudgetSuspended,
    InvalidInput,
    NotAllowed,
    NotFound,
    Refused,
    Replaced,
    SynodError,
    TaskFailed,
    TryAgain,
)
from synod_client.following import Recorded
from synod_client.tasks import Task

__all__ = [
    "Agent",
    "Broken",
    "BudgetExhausted",
    "BudgetSuspended",
    "Endpoints",
    "InvalidInput",
    "Limits",
    "NotAllowed",
    "NotFound",
    "Recorded",
    "Refused",
    "Replaced",
    "Synod",
    "SynodError",
    "Task",
    "TaskFailed",
    "TryAgain",
]
