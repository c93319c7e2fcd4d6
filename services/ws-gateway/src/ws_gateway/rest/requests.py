"""What every route needs: the caller's services, pages, idempotency keys."""

from typing import Annotated, Final

from fastapi import Depends, Header, Path, Query, Request, params
from fastapi.dependencies.utils import get_flat_params
from fastapi.security import APIKeyHeader, HTTPBearer
from httpedge.callers import require_credential
from pydantic import Field
from servicekit.errors import InvalidArgument
from synod.common.ids import new_id

from ws_gateway.clients import CallerServices
from ws_gateway.dialogue import Backstage

PAGE_DEFAULT: Final = 100
PAGE_MAX: Final = 1000

# These only describe in OpenAPI how to authenticate; require_credential reads the headers.
BEARER: Final = HTTPBearer(auto_error=False, description="An API key or a token.")
KEY: Final = APIKeyHeader(name="X-API-Key", auto_error=False, description="An API key.")


async def backstage(request: Request) -> Backstage:
    found = request.app.state.backstage
    assert isinstance(found, Backstage)
    return found


async def services(request: Request, back: Annotated[Backstage, Depends(backstage)]) -> CallerServices:
    """The services in the caller's name. Raises Unauthenticated."""
    return back.services.in_name_of(await back.callers.identify(require_credential(request.headers)))


Back = Annotated[Backstage, Depends(backstage)]
Services = Annotated[CallerServices, Depends(services)]
Cursor = Annotated[str, Query(max_length=2_000, description="next_cursor of the page before")]
Limit = Annotated[int, Query(ge=1, le=PAGE_MAX, description="entries of a page")]
Reference = Annotated[str, Path(min_length=1, max_length=200)]
IdempotencyKey = Annotated[
    str,
    Header(
        alias="Idempotency-Key",
        max_length=128,
        description="the same key and content have the effect of one request; without it each request is a new one",
    ),
]


NanoUsd = Annotated[int, Field(strict=True, ge=0, lt=2**63)]
"""An amount: a whole number, as the services carry it; neither `true` nor 1e9 is one."""


async def known_query(request: Request) -> None:
    """Raises InvalidArgument for a query parameter that the route does not read: a misspelt filter filters nothing."""
    route = request.scope["route"]
    known = {field.alias for field in get_flat_params(route.dependant) if isinstance(field.field_info, params.Query)}
    for name, value in request.query_params.items():
        if name not in known:
            there_are = f"this path has {', '.join(sorted(known))}" if known else "this path has none"
            raise InvalidArgument(f"query.{name}", value, f"is no parameter here; {there_are}")


def request_id(idempotency_key: str) -> str:
    return idempotency_key or new_id("req")
