"""The logs of the services, and the views built from them."""

from typing import Annotated

from fastapi import APIRouter, Query
from servicekit.errors import InvalidArgument

from ws_gateway.clients import PEERS
from ws_gateway.hub.channels import SERVICES
from ws_gateway.resources import EventPage, Page, View
from ws_gateway.rest.requests import PAGE_DEFAULT, Limit, Reference, Services

router = APIRouter(tags=["events"])


@router.get("/events/{service}")
async def read_events(
    services: Services,
    service: Reference,
    cursor: Annotated[str, Query(pattern=r"^[0-9]{0,18}$", description="position; events after it are returned")] = "",
    limit: Limit = PAGE_DEFAULT,
    type: Annotated[list[str] | None, Query(description="only these types; may be repeated")] = None,
    run: Annotated[str, Query(description="only events of this run at the root")] = "",
) -> EventPage:
    """Events by position, oldest first. Goes on with next_cursor, or with head_position when there is none."""
    if service not in SERVICES:
        raise InvalidArgument("service", service, f"must be one of {', '.join(SERVICES)}")
    return await services.events(service, int(cursor or 0), limit, type or (), run)


@router.get("/views")
async def list_views(
    services: Services, service: Annotated[str, Query(description="only views of this service")] = ""
) -> Page[View]:
    """Every view with its position and how far it is behind."""
    asked = (service,) if service else PEERS
    found = [view for name in asked for view in await services.views(name)]
    return Page(data=tuple(found))
