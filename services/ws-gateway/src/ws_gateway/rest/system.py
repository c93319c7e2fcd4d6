"""How the system does."""

from fastapi import APIRouter

from ws_gateway.resources import Item, SystemHealth, SystemMetrics
from ws_gateway.rest.requests import Back, Services

router = APIRouter(prefix="/system", tags=["system"])


@router.get("/health")
async def health(back: Back, services: Services) -> Item[SystemHealth]:
    """Each service behind the edge, asked now."""
    return Item(data=await back.monitoring.health_of(services))


@router.get("/metrics")
async def metrics(back: Back, services: Services) -> Item[SystemMetrics]:
    return Item(data=await back.monitoring.system(services))
