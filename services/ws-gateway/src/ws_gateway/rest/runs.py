"""Runs: started, watched, cancelled, replayed."""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import StreamingResponse

from ws_gateway.clients import CallerServices
from ws_gateway.resources import Item, Page, Replay, Run
from ws_gateway.rest.requests import (
    PAGE_DEFAULT,
    Back,
    Cursor,
    IdempotencyKey,
    Limit,
    NanoUsd,
    Reference,
    Services,
    request_id,
)
from ws_gateway.rest.sse import ServerEvent, last_event_id, stream

router = APIRouter(prefix="/runs", tags=["runs"])
LastEventId = Annotated[str, Header(alias="Last-Event-ID", description="go on after the event with this id")]


class StartRun(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    definition: str = Field(min_length=1, max_length=200, description="name, name@version or digest")
    input: str = Field(max_length=65_536)
    budget_nano_usd: NanoUsd = Field(default=0, description="hard budget of this run; 0 for none of its own")
    workspace_id: str = Field(default="", max_length=128)
    tags: dict[str, str] = Field(default={}, description="on all that the run costs, for reports: at most 8 words")


class CancelRun(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    reason: str = Field(default="", max_length=1_000)


@router.post("", status_code=201)
async def start_run(services: Services, body: StartRun, idempotency_key: IdempotencyKey = "") -> Item[Run]:
    """Starts a run of an agent or a team; it goes on by itself."""
    run = await services.start_run(
        request_id(idempotency_key), body.definition, body.input, body.budget_nano_usd, body.workspace_id, body.tags
    )
    return Item(data=run)


@router.get("")
async def list_runs(
    services: Services,
    cursor: Cursor = "",
    limit: Limit = PAGE_DEFAULT,
    roots_only: Annotated[bool, Query(description="leave out the runs of members of a team")] = True,
    state: Annotated[str, Query(description="queued, running, waiting, completed, failed or cancelled")] = "",
) -> Page[Run]:
    """Newest first."""
    return await services.runs(cursor, limit, roots_only, state)


@router.get("/{run_id}")
async def get_run(services: Services, run_id: Reference) -> Item[Run]:
    return Item(data=await services.run(run_id))


@router.post("/{run_id}/cancel")
async def cancel_run(services: Services, run_id: Reference, body: CancelRun | None = None) -> Item[Run]:
    """Cancels the run and every run below it."""
    return Item(data=await services.cancel_run(run_id, body.reason if body else ""))


@router.post("/{run_id}/replay")
async def replay_run(services: Services, run_id: Reference) -> Item[Replay]:
    """Folds the run again from its events, calls nobody, and compares the result."""
    return Item(data=await services.replay_run(run_id))


@router.get("/{run_id}/updates", response_class=StreamingResponse)
async def watch_run(
    request: Request,
    back: Back,
    services: Services,
    run_id: Reference,
    tokens: bool = True,
    last_id: LastEventId = "",
) -> StreamingResponse:
    """Server-sent events: update (with id), token, and at last end with the run."""
    after = last_event_id(last_id)
    await services.run(run_id)  # a run that cannot be read is refused as a problem, not in the stream
    return stream(request, back, services.caller, f"run:{run_id}", _updates(services, run_id, after, tokens))


async def _updates(services: CallerServices, run_id: str, after: int, tokens: bool) -> AsyncIterator[ServerEvent]:
    async for update in services.watch_run(run_id, after, tokens):
        if update.is_token:
            yield ServerEvent("token", update)
        else:
            yield ServerEvent("update", update, str(update.cursor))
    yield ServerEvent("end", await services.run(run_id))
