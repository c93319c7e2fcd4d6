"""Agents and their definitions."""

from typing import Annotated

from fastapi import APIRouter, Body, Query
from servicekit.errors import InvalidArgument

from ws_gateway.resources import Agent, Definition, Item, Page
from ws_gateway.rest.requests import PAGE_DEFAULT, Cursor, Limit, Reference, Services

YAML_BYTES_MAX = 256 * 1024

router = APIRouter(tags=["agents"])
Yaml = Annotated[bytes, Body(media_type="application/yaml", description="one or more YAML documents")]


@router.get("/agents")
async def list_agents(services: Services, cursor: Cursor = "", limit: Limit = PAGE_DEFAULT) -> Page[Agent]:
    """Agents that are not terminated."""
    return await services.agents(cursor, limit)


@router.post("/agents", status_code=201)
async def define(
    services: Services, yaml: Yaml, validate_only: Annotated[bool, Query(description="register nothing")] = False
) -> Page[Definition]:
    """Registers agents and teams from YAML; the same content is no new version."""
    return Page[Definition](data=await services.define(_text(yaml), validate_only))


@router.get("/agents/{agent}")
async def get_agent(services: Services, agent: Reference) -> Item[Agent]:
    """By id or name."""
    return Item(data=await services.agent(agent))


@router.get("/definitions")
async def list_definitions(
    services: Services, cursor: Cursor = "", limit: Limit = PAGE_DEFAULT, all_versions: bool = False
) -> Page[Definition]:
    return await services.definitions(cursor, limit, all_versions)


@router.get("/definitions/{reference}")
async def get_definition(services: Services, reference: Reference) -> Item[Definition]:
    """By name (the newest version), name@version or digest."""
    return Item(data=await services.definition(reference))


def _text(yaml: bytes) -> str:
    if len(yaml) > YAML_BYTES_MAX:
        raise InvalidArgument("body", len(yaml), f"is too large: at most {YAML_BYTES_MAX} bytes")
    try:
        return yaml.decode()
    except UnicodeDecodeError as error:
        raise InvalidArgument("body", error.start, "is not UTF-8 at this byte") from None
