"""What agents may use: models and tools."""

from typing import Annotated

from fastapi import APIRouter, Query

from ws_gateway.resources import Model, Page, Tool
from ws_gateway.rest.requests import Services

router = APIRouter(tags=["catalogue"])


@router.get("/models")
async def list_models(
    services: Services, provider: Annotated[str, Query(description="only models of this provider")] = ""
) -> Page[Model]:
    return await services.models(provider)


@router.get("/tools")
async def list_tools(services: Services) -> Page[Tool]:
    return await services.tools()
