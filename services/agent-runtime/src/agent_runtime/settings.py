"""Settings of agent-runtime, read once from the environment."""

from pydantic import Field
from servicekit.settings import ServiceSettings


class Settings(ServiceSettings):
    service: str = "agent-runtime"
    grpc_port: int = 7102
    http_port: int = 7202
    runs_concurrent_max: int = Field(default=64, ge=1, le=1024)
    """Runs that one process works on at once; a team that waits for its members is not among them."""
    sweep_s: float = Field(default=5.0, gt=0)
    """How often runs past their deadline are looked for."""
