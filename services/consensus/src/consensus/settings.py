"""Settings of consensus, read once from the environment."""

from servicekit.settings import ServiceSettings


class Settings(ServiceSettings):
    service: str = "consensus"
    grpc_port: int = 7106
    http_port: int = 7206
