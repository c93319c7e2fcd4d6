"""Proposals and votes."""

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from ws_gateway.resources import Item, Page, Proposal
from ws_gateway.rest.requests import PAGE_DEFAULT, Cursor, Limit, Reference, Services

router = APIRouter(prefix="/proposals", tags=["proposals"])


class Vote(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    option: str = Field(min_length=1, max_length=200)
    reason: str = Field(default="", max_length=8_000)
    voter_id: str = Field(default="", max_length=128, description="default: the caller")


@router.get("")
async def list_proposals(
    services: Services,
    cursor: Cursor = "",
    limit: Limit = PAGE_DEFAULT,
    state: Annotated[str, Query(description="open, decided or undecided")] = "",
    run: Annotated[str, Query(description="only proposals of this run")] = "",
) -> Page[Proposal]:
    """Newest first."""
    return await services.proposals(cursor, limit, state, run)


@router.get("/{proposal_id}")
async def get_proposal(services: Services, proposal_id: Reference) -> Item[Proposal]:
    return Item(data=await services.proposal(proposal_id))


@router.post("/{proposal_id}/votes")
async def vote(services: Services, proposal_id: Reference, body: Vote) -> Item[Proposal]:
    """One vote a voter; it is kept with its reason."""
    return Item(data=await services.vote(proposal_id, body.voter_id, body.option, body.reason))
