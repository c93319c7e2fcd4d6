"""Settings of cost-ledger, read once from the environment."""

from pydantic import Field, NonNegativeInt
from servicekit.settings import ServiceSettings


class Settings(ServiceSettings):
    service: str = "cost-ledger"
    grpc_port: int = 7105
    http_port: int = 7205
    first_prices: dict[str, tuple[NonNegativeInt, NonNegativeInt]] = Field(default_factory=dict)
    """Prices that no price book has, for the tenant below until it sets its own: "provider/model" to pico-USD per input and
    per output token, for example SYNOD_FIRST_PRICES='{"simulator/sim-1": [100000, 400000]}'."""
    first_prices_tenant: str = "local"
