"""Settings of tool-executor, read once from the environment."""

from pathlib import Path

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
    warm: bool = True
    """Start the sandbox processes with the service rather than with the first call that needs them."""
