"""What was spent, and what may be. Amounts are nano-USD."""

from datetime import UTC, datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query
from httpedge.tags import to_tags
from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from ws_gateway.resources import Budget, Item, Page, Scope, Spend
from ws_gateway.rest.requests import PAGE_DEFAULT, Cursor, Limit, NanoUsd, Reference, Services

router = APIRouter(tags=["money"])


class BudgetScope(Scope):
    """A misspelt field would limit everything instead of what was meant."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class SetBudget(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    scope: BudgetScope = BudgetScope()
    limit_nano_usd: NanoUsd
    hard: bool = Field(default=True, description="refuse what does not fit; a soft budget only warns")
    window: Literal["lifetime", "day", "month"] = "lifetime"


class SuspendBudget(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    reason: str = Field(min_length=1, description="why; whoever is refused reads it")


class Interval(BaseModel):
    """From (inclusive) and until (exclusive), UTC or with an offset."""

    since: datetime | None
    until: datetime | None


def _in_utc(moment: datetime) -> datetime:
    """The first and the last hours of all time have no moment in UTC."""
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise PydanticCustomError("no_moment", "has no moment in UTC") from None


Moment = Annotated[AwareDatetime, AfterValidator(_in_utc)]


async def interval(
    since: Annotated[Moment | None, Query(alias="from")] = None, until: Annotated[Moment | None, Query()] = None
) -> Interval:
    return Interval(since=since, until=until)


async def scope(
    project_id: str = "",
    agent: str = "",
    conversation_id: str = "",
    run_id: str = "",
    root_run_id: str = "",
    user_id: str = "",
    model: str = "",
    tool: str = "",
) -> Scope:
    return Scope(
        project_id=project_id,
        agent=agent,
        conversation_id=conversation_id,
        run_id=run_id,
        root_run_id=root_run_id,
        user_id=user_id,
        model=model,
        tool=tool,
    )


@router.get("/spend")
async def query_spend(
    services: Services,
    when: Annotated[Interval, Depends(interval)],
    which: Annotated[Scope, Depends(scope)],
    group_by: Annotated[
        list[str] | None,
        Query(
            description="agent, run_id, root_run_id, model, tool, user_id, conversation_id, project_id, tag:<name>,"
            " hour, day, week or month; repeatable"
        ),
    ] = None,
    tag: Annotated[list[str] | None, Query(description="only costs tagged so, name=value; repeatable")] = None,
) -> Item[Spend]:
    """What was spent, grouped by any attribution or tag."""
    tags = to_tags("query.tag", tag or ())
    return Item(data=await services.spend(group_by or ("agent",), which, tags, when.since, when.until))


@router.get("/budgets")
async def list_budgets(services: Services, cursor: Cursor = "", limit: Limit = PAGE_DEFAULT) -> Page[Budget]:
    return await services.budgets(cursor, limit)


@router.get("/budgets/{budget_id}")
async def get_budget(services: Services, budget_id: Reference) -> Item[Budget]:
    return Item(data=await services.budget(budget_id))


@router.put("/budgets/{budget_id}")
async def set_budget(services: Services, budget_id: Reference, body: SetBudget) -> Item[Budget]:
    """Creates the budget or changes its limit."""
    return Item(data=await services.set_budget(budget_id, body.scope, body.limit_nano_usd, body.hard, body.window))


@router.post("/budgets/{budget_id}/suspend")
async def suspend_budget(services: Services, budget_id: Reference, body: SuspendBudget) -> Item[Budget]:
    """Refuses every new call that counts against the budget; those under way end as ever."""
    return Item(data=await services.suspend_budget(budget_id, body.reason))


@router.post("/budgets/{budget_id}/resume")
async def resume_budget(services: Services, budget_id: Reference) -> Item[Budget]:
    """Lets the budget decide by its limit again."""
    return Item(data=await services.resume_budget(budget_id))
