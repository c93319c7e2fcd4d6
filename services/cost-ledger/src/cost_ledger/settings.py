"""Settings of cost-ledger, read once from the environment."""

from servicekit.settings import ServiceSettings


class Settings(ServiceSettings):
    service: str = "cost-ledger"
    grpc_port: int = 7105
    http_port: int = 7205
