"""Settings of tool-executor, read once from the environment."""

from pathlib import Path
from typing import Annotated

from pydantic import Field
from servicekit.settings import ServiceSettings


class Settings(ServiceSettings):
    service: str = "tool-executor"
    grpc_port: int = 7104
    http_port: int = 7204

    state_dir: Path
    """Where the workspaces of runs are kept: <state_dir>/workspaces/<tenant>/<workspace id>."""
    calls_max: int = Field(default=32, ge=1, le=1_000)
    """Calls that run at once in this process; further ones are refused with RESOURCE_EXHAUSTED."""
    calls_per_agent_max: int = Field(default=8, ge=1, le=1_000)
    tool_prices: dict[str, Annotated[int, Field(ge=0)]] = Field(default_factory=dict)
    """What a call costs that comes to a result, in nano-USD by the tool's name: {"http_fetch": 2000000}. The rest is free."""
    ledger_timeout_s: float = Field(default=5, gt=0)
    warm: bool = True
    """Start the sandbox processes with the service rather than with the first call that needs them."""
