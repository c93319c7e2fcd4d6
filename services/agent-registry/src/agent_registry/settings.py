"""The environment, read once."""

from pathlib import Path

from pydantic import Field
from servicekit.settings import ServiceSettings


class Settings(ServiceSettings):
    service: str = "agent-registry"
    grpc_port: int = 7101
    http_port: int = 7201

    signing_key_file: Path
    """PEM of the Ed25519 private key that signs tokens; every service has its public half in auth_public_key_file."""
    token_ttl_s: int = Field(default=900, ge=10, le=86_400)
    """Life of a token. A revoked key goes on working for at most this long."""

    tenant: str = Field(default="local", pattern=r"^[a-z][a-z0-9-]{0,62}$")
    """The tenant that is created at the first start."""
    dev_key_file: Path | None = None
    """File with the owner's API key, "syn_<key id>_<secret>"; only its hash is stored."""
    service_keys_file: Path | None = None
    """JSON: service name to SHA-256 (hexadecimal) of its key "syn_svc-<service>_<secret>"."""

    heartbeat_interval_ms: int = Field(default=5_000, ge=10, le=600_000)
    suspect_after_intervals: int = Field(default=3, ge=1, le=1_000)
    offline_after_intervals: int = Field(default=6, ge=2, le=10_000)

    restarts_max: int = Field(default=10, ge=0, le=100)
    """Failed runs of an agent that are borne within restarts_within_s; one more fails the agent."""
    restarts_within_s: int = Field(default=60, ge=1, le=86_400)
