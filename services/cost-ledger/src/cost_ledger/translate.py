"""Between protobuf and the domain: the only file that knows both."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, get_args

from google.protobuf.timestamp_pb2 import Timestamp
from servicekit.errors import (
    Aborted,
    AlreadyExists,
    BudgetExhausted,
    BudgetSuspended,
    ErrorMap,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
    to_status,
)
from servicekit.paging import STRANGE_TOKEN, next_page_token, page_key
from servicekit.tags import tag_name, tags_of, values_of
from synod.common.values import Attribution, UsageLine
from synod.cost_ledger.events import Quantity, Unit, UnitRate, Window
from synod.cost_ledger.v1 import cost_ledger_pb2 as pb
from synod.llm_gateway.events import UsageSource

from cost_ledger import errors
from cost_ledger.application import NamedPrice, ReservationRequest, Settlement
from cost_ledger.book import Reservation, State
from cost_ledger.charges import Selection
from cost_ledger.checks import check_attribution
from cost_ledger.commands import InvoiceLine, SetBudget, SetPrice, SetPriceFactor
from cost_ledger.corrections import Invoice, Reconciled, RerateRequest, Rerating
from cost_ledger.forecast import METHOD
from cost_ledger.ports import BudgetStatus
from cost_ledger.projections import BIGINT_MAX, OWNERS
from cost_ledger.queries import BY_TAG, EARLIEST, GROUPS, GROUPS_MAX, SpendQuery, SpendRow
from cost_ledger.rates import rate_of
from cost_ledger.reports import BudgetForecast, ComparedModel, ListedCharge, PricedUsage
from cost_ledger.terms import Terms, terms_of

SERVICE: Final = "cost-ledger"


class QuotaExhausted(BudgetExhausted):
    """A quota, or one share's part of a budget, does not cover the request. Amounts are in `unit`."""

    def __init__(self, error: errors.BudgetExceeded) -> None:
        ResourceExhausted.__init__(
            self,
            f"{error}; raise the budget or wait for its next period",
            metadata={
                "budget_id": error.budget_id,
                "available": str(error.available),
                "required": str(error.required),
                "unit": error.unit,
                "share": error.share,
            },
        )


def _exhausted(error: errors.BudgetExceeded) -> BudgetExhausted:
    if error.unit == "nano_usd" and not error.share:
        return BudgetExhausted(error.budget_id, error.available, error.required)
    return QuotaExhausted(error)


_STATES: Final[dict[State, pb.ReservationState.ValueType]] = {
    "held": pb.RESERVATION_STATE_HELD,
    "settled": pb.RESERVATION_STATE_SETTLED,
    "released": pb.RESERVATION_STATE_RELEASED,
    "suspense": pb.RESERVATION_STATE_SUSPENSE,
}
_WINDOWS: Final[dict[str, Window]] = {name: name for name in get_args(Window)}
_UNITS: Final[dict[str, Unit]] = {name: name for name in get_args(Unit)}
_MODALITIES: Final[tuple[str, ...]] = get_args(UsageLine.model_fields["modality"].annotation)
_USAGE_SOURCES: Final[tuple[str, ...]] = get_args(UsageSource)

ERRORS: Final = (
    ErrorMap()
    .add(errors.BudgetExceeded, lambda error: _exhausted(error))
    .add(errors.BudgetSuspended, lambda error: BudgetSuspended(error.budget_id, error.reason))
    .add(
        errors.NothingToSpare,
        lambda error: FailedPrecondition(
            str(error),
            reason="NOTHING_TO_SPARE",
            metadata={
                "budget_id": error.budget_id,
                "available": str(error.available),
                "required": str(error.required),
                "unit": error.unit,
                "share": error.share,
            },
        ),
    )
    .add(
        errors.ModelUnpriced,
        lambda error: FailedPrecondition(
            str(error), reason="UNPRICED_MODEL", metadata={"model": error.model, "budget_id": error.budget_id}
        ),
    )
    .add(
        errors.ReservationConflict,
        lambda error: AlreadyExists("reservation", error.reservation_id, remedy="with other content; use another id"),
    )
    .add(
        errors.ReservationNotFound,
        lambda error: NotFound("reservation", error.reservation_id, remedy="reserve first, in the same tenant"),
    )
    .add(
        errors.ReservationSettled,
        lambda error: FailedPrecondition(
            str(error), reason="RESERVATION_SETTLED", metadata={"reservation_id": error.reservation_id}
        ),
    )
    .add(
        errors.ReservationClosed,
        lambda error: FailedPrecondition(
            str(error), reason="RESERVATION_CLOSED", metadata={"reservation_id": error.reservation_id}
        ),
    )
    .add(errors.SettlementNotPriced, lambda error: InvalidArgument("usage", error.reservation_id, str(error)))
    .add(
        errors.BudgetNotFound,
        lambda error: NotFound("budget", error.budget_id, remedy=_similar(error.near) or "create it with SetBudget"),
    )
    .add(
        errors.BudgetFixed,
        lambda error: FailedPrecondition(
            str(error), reason="BUDGET_FIXED", metadata={"budget_id": error.budget_id, "field": error.field}
        ),
    )
    .add(
        errors.InvoiceConflict,
        lambda error: AlreadyExists("invoice", error.invoice_id, remedy="with other content; use another id"),
    )
    .add(
        errors.InvoiceOverlaps,
        lambda error: FailedPrecondition(
            str(error), reason="INVOICE_OVERLAP", metadata={"invoice_id": error.invoice_id, "other": error.other_id}
        ),
    )
    .add(
        errors.TooMuchAtOnce,
        lambda error: FailedPrecondition(
            str(error), reason="TOO_MUCH_AT_ONCE", metadata={"maximum": str(error.maximum)}
        ),
    )
    .add(errors.ViewIncomplete, lambda error: Unavailable(str(error), 1.0, reason="VIEW_INCOMPLETE"))
    .add(errors.RequestInvalid, lambda error: InvalidArgument(error.field, error.value, error.problem))
    .add(errors.InvoiceOvertaken, lambda error: Aborted(f"{error}; repeat the call", reason="INVOICE_OVERTAKEN"))
    .add(errors.BookContended, lambda error: Aborted(f"{error}; repeat the call", reason="BOOK_CONTENDED"))
    .add(errors.BookBusy, lambda error: ResourceExhausted(f"{error}; repeat the call", 0.5, reason="BOOK_BUSY"))
)


_Timed = pb.ExportSpendRequest | pb.PriceUsageAtRequest | pb.RerateChargesRequest | pb.CompareModelsRequest


# --- in ---


def to_reservation_request(request: pb.ReserveRequest, tenant: str) -> ReservationRequest:
    return ReservationRequest(
        reservation_id=request.reservation_id,
        attribution=to_attribution("attribution", request.attribution, tenant),
        model=request.model,
        input_tokens_max=request.input_tokens_max,
        output_tokens_max=request.output_tokens_max,
        upper_bound=request.upper_bound_nano_usd,
        ttl=to_ttl(request),
        terms=terms_of(request.price_context),
        quantities=_quantities(request.quantities),
        modalities=_modalities(request.modalities),
        holder=request.holder,
    )


def to_settlement(request: pb.SettleRequest) -> Settlement:
    """With the usage lines, or with none and the amount instead."""
    if not (request.usage or request.amount_nano_usd or request.free_of_charge):
        problem = "give usage, an amount or free_of_charge; if nobody knows, do not settle: the hold moves to suspense"
        raise InvalidArgument("usage", "", problem)
    if request.free_of_charge and (request.usage or request.amount_nano_usd):
        raise InvalidArgument("free_of_charge", "true", "is instead of usage and of an amount")
    if request.usage and request.amount_nano_usd:
        raise InvalidArgument("amount_nano_usd", request.amount_nano_usd, "give either usage or an amount, not both")
    if request.usage_source not in _USAGE_SOURCES:
        raise InvalidArgument("usage_source", request.usage_source, f"must be one of {', '.join(_USAGE_SOURCES)}")
    lines = tuple(_usage_line(line) for line in request.usage)
    return Settlement(
        reservation_id=request.reservation_id,
        usage=lines,
        amount=None if lines else request.amount_nano_usd,
        usage_source=request.usage_source,
        quantities=_quantities(request.quantities),
        terms=terms_of(request.price_context) if request.price_context else None,
    )


def to_set_budget(request: pb.SetBudgetRequest, tenant: str, now: datetime) -> SetBudget:
    if (window := _WINDOWS.get(request.window)) is None:
        raise InvalidArgument("window", request.window, f"must be one of {', '.join(_WINDOWS)}")
    if request.scope.tags:
        problem = "a budget cannot be limited to tags, which every caller chooses; they are for reports"
        raise InvalidArgument("scope.tags", ", ".join(request.scope.tags), problem)
    unit = _unit("unit", request.unit or "nano_usd")
    return SetBudget(
        budget_id=request.budget_id,
        scope=to_attribution("scope", request.scope, tenant),
        limit=_limit(request, unit),
        hard=request.hard,
        window=window,
        at=now,
        time_zone=request.time_zone or "UTC",
        rolling_s=request.rolling.seconds,
        per=request.per,
        unit=unit,
    )


def _limit(request: pb.SetBudgetRequest, unit: Unit) -> int:
    """The limit from the field that belongs to the unit; the other one must be empty."""
    money = unit == "nano_usd"
    strange, value = ("limit_quantity", request.limit_quantity) if money else ("limit_nano_usd", request.limit_nano_usd)
    if value:
        raise InvalidArgument(strange, value, f"is not the limit of a budget in {unit}; leave it empty")
    return request.limit_nano_usd if money else request.limit_quantity


def to_set_price(request: pb.SetPriceRequest) -> SetPrice:
    has = request.HasField
    return SetPrice(
        provider=request.provider,
        model=request.model,
        input_pico=request.input_pico_usd,
        output_pico=request.output_pico_usd,
        cache_read_pico=request.cache_read_pico_usd if has("cache_read_pico_usd") else request.input_pico_usd,
        cache_write_pico=request.cache_write_pico_usd if has("cache_write_pico_usd") else request.input_pico_usd,
        more=tuple(_unit_rate(rate) for rate in request.rates),
    )


def to_set_price_factor(request: pb.SetPriceFactorRequest) -> SetPriceFactor:
    return SetPriceFactor(request.provider, request.model, request.factor_ppm)


def from_price_factor(request: pb.SetPriceFactorRequest) -> pb.PriceFactor:
    return pb.PriceFactor(provider=request.provider, model=request.model, factor_ppm=request.factor_ppm)


def _unit_rate(rate: pb.UnitRate) -> UnitRate:
    return UnitRate(
        unit=rate.unit,
        pico_usd=rate.pico_usd,
        above_input_tokens=rate.above_input_tokens,
        per=rate.per or 1,
    )


def to_spend_query(request: pb.QuerySpendRequest, tenant: str) -> SpendQuery:
    wanted = to_attribution("filter", request.filter, tenant)
    return SpendQuery(
        group_by=_groups(request.group_by),
        where=_where(wanted),
        # "from" is a word of Python, so the field has no attribute that could be written down.
        since=_moment("from", getattr(request, "from")) if request.HasField("from") else None,
        until=_moment("until", request.until) if request.HasField("until") else None,
        tags=values_of(wanted.tags),
    )


def _where(wanted: Attribution) -> dict[str, str]:
    check_attribution("filter", wanted)
    return {name: value for name in OWNERS if (value := getattr(wanted, name))}


def to_selection(request: pb.ExportSpendRequest | pb.PriceUsageAtRequest, tenant: str) -> Selection:
    wanted = to_attribution("filter", request.filter, tenant)
    return Selection(_where(wanted), *to_period(request), tags=values_of(wanted.tags))


def to_period(request: _Timed) -> tuple[datetime | None, datetime | None]:
    """Since and until, None where the request has none."""
    return (
        _moment("since", request.since) if request.HasField("since") else None,
        _moment("until", request.until) if request.HasField("until") else None,
    )


def to_terms(request: pb.PriceUsageAtRequest) -> Terms:
    return terms_of(request.price_context)


def to_rerating(request: pb.RerateChargesRequest) -> RerateRequest:
    since, until = to_period(request)
    return RerateRequest(request.model, since, until, request.unpriced_only, request.dry_run, request.reason)


def to_invoice(request: pb.ImportInvoiceRequest) -> Invoice:
    lines = tuple(_invoice_line(number, line) for number, line in enumerate(request.lines))
    return Invoice(
        invoice_id=request.invoice_id,
        provider=request.provider,
        lines=lines,
        clear_suspense=request.clear_suspense,
        replaces=request.replaces,
        own_provider=request.own_provider,
    )


def _invoice_line(number: int, line: pb.InvoiceLine) -> InvoiceLine:
    for name in ("since", "until"):
        if not line.HasField(name):
            raise InvalidArgument(f"lines[{number}].{name}", "", "must be given: an invoice is for a time")
    since, until = _moment(f"lines[{number}].since", line.since), _moment(f"lines[{number}].until", line.until)
    return InvoiceLine(line.model, since, until, line.amount_nano_usd, 0)


def to_attribution(field: str, message: pb.Attribution, tenant: str) -> Attribution:
    """Always of the caller's tenant."""
    if message.tenant_id not in ("", tenant):
        raise InvalidArgument(f"{field}.tenant_id", message.tenant_id, f"must be empty or the caller's, {tenant}")
    return Attribution(
        tenant_id=tenant,
        project_id=message.project_id,
        agent=message.agent,
        conversation_id=message.conversation_id,
        run_id=message.run_id,
        root_run_id=message.root_run_id,
        user_id=message.user_id,
        model=message.model,
        tool=message.tool,
        tags=tags_of(f"{field}.tags", message.tags),
    )


def _usage_line(line: pb.UsageLine) -> UsageLine:
    fields = {
        "direction": line.direction,
        "modality": line.modality or "text",
        "cache": line.cache or "none",
    }
    for name, value in fields.items():
        allowed = get_args(UsageLine.model_fields[name].annotation)
        if value not in allowed:
            raise InvalidArgument(f"usage.{name}", value, f"must be one of {', '.join(allowed)}")
    more = {"reasoning": line.reasoning, "quantity": line.quantity, "ttl": line.ttl, "unit": line.unit or "tokens"}
    return UsageLine.model_validate({**fields, **more})


def to_ttl(request: pb.ReserveRequest | pb.RenewReservationRequest) -> timedelta | None:
    if not request.HasField("ttl"):
        return None
    try:
        return request.ttl.ToTimedelta()
    except (OverflowError, ValueError):
        raise InvalidArgument("ttl", f"{request.ttl.seconds} s", "must be above 0 and at most 24 hours") from None


def _quantities(quantities: Iterable[pb.Quantity]) -> tuple[Quantity, ...]:
    return tuple(Quantity(unit=_unit("quantities.unit", each.unit), quantity=each.quantity) for each in quantities)


def _unit(field: str, name: str) -> Unit:
    if (unit := _UNITS.get(name)) is None:
        near = _similar(tuple(difflib.get_close_matches(name, _UNITS, n=3)))
        raise InvalidArgument(field, name, f"must be one of {', '.join(_UNITS)}" + (f"; {near}" if near else ""))
    return unit


def _modalities(names: Sequence[str]) -> frozenset[str]:
    for name in names:
        if name not in _MODALITIES:
            raise InvalidArgument("modalities", name, f"must be of {', '.join(_MODALITIES)}")
    return frozenset(names)


def _groups(names: Sequence[str]) -> tuple[str, ...]:
    for name in names:
        if name.startswith(BY_TAG):
            tag_name("group_by", name.removeprefix(BY_TAG))
        elif name not in GROUPS:
            near = _similar(tuple(difflib.get_close_matches(name, GROUPS, n=3)))
            known = f"must be of {', '.join(GROUPS)}, or {BY_TAG}<name>"
            raise InvalidArgument("group_by", name, known + (f"; {near}" if near else ""))
    if len(set(names)) < len(names):
        raise InvalidArgument("group_by", list(names), "names each attribution at most once")
    return tuple(names)


def _similar(near: tuple[str, ...]) -> str:
    return f"similar: {', '.join(near)}" if near else ""


def _moment(field: str, stamp: Timestamp) -> datetime:
    try:
        return stamp.ToDatetime(tzinfo=UTC)
    except (OverflowError, ValueError):
        problem = "is no time; give seconds since 1970 in UTC (not milliseconds), of the years 1 to 9999"
        raise InvalidArgument(field, f"{stamp.seconds} s", problem) from None


# --- out ---


def from_reservation(reservation: Reservation) -> pb.Reservation:
    return pb.Reservation(
        reservation_id=reservation.reservation_id,
        state=_STATES[reservation.state],
        reserved_nano_usd=reservation.reserved,
        settled_nano_usd=reservation.settled,
        overrun_nano_usd=reservation.overrun,
        budget_ids=[hold.budget_id for hold in reservation.holds],
        attribution=from_attribution(reservation.attribution),
        model=reservation.model,
        price_version=reservation.price_version,
        reserved_at=_stamp(reservation.reserved_at),
        expires_at=_stamp(reservation.expires_at),
        price_source=reservation.price_source,
        quantities=[pb.Quantity(unit=each.unit, quantity=each.quantity) for each in reservation.quantities],
        price_context=reservation.price_context,
    )


def to_place(page_token: str) -> tuple[datetime, str]:
    """Up to which reservation, by its time and id, the pages before went. Raises InvalidArgument for a strange token."""
    if not page_token:
        return EARLIEST, ""
    since, _, reservation_id = page_key(page_token).partition(" ")
    try:
        return datetime.fromisoformat(since), reservation_id
    except ValueError:
        raise InvalidArgument("page_token", page_token, STRANGE_TOKEN) from None


def from_suspense(found: Sequence[Reservation], size: int) -> pb.ListSuspenseResponse:
    token = next_page_token([f"{each.reserved_at.isoformat()} {each.reservation_id}" for each in found], size)
    return pb.ListSuspenseResponse(reservations=[from_reservation(each) for each in found], next_page_token=token)


def from_outcomes(outcomes: Iterable[Reservation | Exception]) -> pb.ReserveManyResponse:
    """Raises what none of the ERRORS is."""
    return pb.ReserveManyResponse(outcomes=[_outcome(outcome) for outcome in outcomes])


def _outcome(outcome: Reservation | Exception) -> pb.ReserveManyResponse.Outcome:
    if isinstance(outcome, Reservation):
        return pb.ReserveManyResponse.Outcome(
            state=_STATES[outcome.state], reserved_nano_usd=outcome.reserved, holder=outcome.holder
        )
    if (refusal := ERRORS.translate(outcome)) is None:
        raise outcome
    return pb.ReserveManyResponse.Outcome(refusal=to_status(refusal, SERVICE).SerializeToString())


def from_budget(status: BudgetStatus) -> pb.Budget:
    budget = status.budget
    posted, pending, available = _int64(status.posted), _int64(status.pending), _int64(status.available)
    found = pb.Budget(
        budget_id=budget.budget_id,
        scope=from_attribution(budget.scope),
        hard=budget.hard,
        window=budget.window,
        window_start=status.window_start,
        time_zone=budget.time_zone,
        per=budget.per,
        share=status.share,
        unit=budget.unit,
        limit=budget.limit,
        posted=posted,
        pending=pending,
        available=available,
        suspended_for=budget.suspended_for,
        suspense=_int64(status.suspense),
    )
    if budget.rolling_s:
        found.rolling.FromSeconds(budget.rolling_s)
    if budget.unit == "nano_usd":
        found.limit_nano_usd, found.posted_nano_usd = budget.limit, posted
        found.pending_nano_usd, found.available_nano_usd = pending, available
    return found


def from_budgets(found: Sequence[BudgetStatus], size: int) -> pb.ListBudgetsResponse:
    token = next_page_token([status.budget.budget_id for status in found], size)
    return pb.ListBudgetsResponse(budgets=[from_budget(status) for status in found], next_page_token=token)


def from_spend(rows: Sequence[SpendRow]) -> pb.QuerySpendResponse:
    if len(rows) > GROUPS_MAX:
        raise InvalidArgument("group_by", len(rows), f"makes more than {GROUPS_MAX} groups; filter, or group by less")
    found = [
        pb.SpendRow(
            group=row.group,
            cost_nano_usd=row.cost,
            pending_nano_usd=row.pending,
            input_tokens=row.input_tokens,
            output_tokens=row.output_tokens,
            calls=row.calls,
        )
        for row in rows
    ]
    return pb.QuerySpendResponse(rows=found, total_nano_usd=_int64(sum(row.cost for row in rows)))


def from_price(named: NamedPrice) -> pb.Price:
    """The rates below the first context tier."""
    provider, _, model = named.name.partition("/")
    card = named.price.rates
    return pb.Price(
        provider=provider,
        model=model,
        input_pico_usd=rate_of(card, ("input",), 0),
        output_pico_usd=rate_of(card, ("output",), 0),
        cache_read_pico_usd=rate_of(card, ("cache_read", "input"), 0),
        cache_write_pico_usd=rate_of(card, ("cache_write", "input"), 0),
        source=named.price.source,
        price_version=named.price.version,
    )


def from_prices(found: Sequence[NamedPrice], size: int, version: str) -> pb.ListPricesResponse:
    token = next_page_token([named.name for named in found], size)
    return pb.ListPricesResponse(
        prices=[from_price(named) for named in found], next_page_token=token, price_version=version
    )


def from_attribution(attribution: Attribution) -> pb.Attribution:
    return pb.Attribution(**attribution.model_dump(exclude={"tags"}), tags=values_of(attribution.tags))


def _int64(amount: int) -> int:
    """What a message can say of a sum that has no bound: the end of what it can, rather than nothing at all."""
    return max(-BIGINT_MAX, min(amount, BIGINT_MAX))


def _stamp(moment: datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(moment)
    return stamp


def from_forecast(made: BudgetForecast) -> pb.BudgetForecast:
    found = made.forecast
    answer = pb.BudgetForecast(
        budget=from_budget(made.status),
        made_at=_stamp(made.made_at),
        burn_per_hour=found.burn_per_hour,
        posted_at_end_p50=found.posted_at_end_p50,
        posted_at_end_p90=found.posted_at_end_p90,
        history_hours=found.history_hours,
        trend_percent=found.trend_percent,
        method=METHOD,
    )
    moments = (
        (answer.window_end, made.window.end),
        (answer.exhausted_p50, found.exhausted_p50),
        (answer.exhausted_p10, found.exhausted_p10),
    )
    for stamp, moment in moments:
        if moment is not None:
            stamp.FromDatetime(moment)
    return answer


def from_comparison(found: Iterable[ComparedModel]) -> pb.CompareModelsResponse:
    return pb.CompareModelsResponse(models=[_compared(each) for each in found])


def _compared(each: ComparedModel) -> pb.ModelComparison:
    figures = each.figures
    attempts = figures.completed + figures.failed + figures.cancelled
    return pb.ModelComparison(
        model=figures.model,
        calls=attempts,
        failed=figures.failed,
        cancelled=figures.cancelled,
        cost_nano_usd=each.cost,
        input_tokens=figures.input_tokens,
        output_tokens=figures.output_tokens,
        cached_tokens=figures.cached_tokens,
        latency_p50_ms=figures.latency_p50_ms,
        latency_p95_ms=figures.latency_p95_ms,
        first_content_p50_ms=figures.first_content_p50_ms,
        cost_per_call_nano_usd=_share(each.cost, figures.completed, 1),
        errors_of_10000=_share(figures.failed, attempts, 10_000),
        cached_of_10000=_share(figures.cached_tokens, figures.input_tokens, 10_000),
        served_from_cache=figures.served,
        saved_nano_usd=figures.saved_cost,
    )


def _share(part: int, whole: int, of: int) -> int:
    return part * of // whole if whole else 0


def from_priced_usage(model: str, found: PricedUsage) -> pb.PriceUsageAtResponse:
    return pb.PriceUsageAtResponse(
        model=model,
        price_source=found.price.source,
        price_version=found.price.version,
        calls=found.calls,
        actual_nano_usd=found.actual,
        other_nano_usd=found.other,
    )


def from_rerating(found: Rerating, *, dry_run: bool) -> pb.RerateChargesResponse:
    rows = [
        pb.RerateChargesResponse.Row(
            model=model, charges=each.charges, before_nano_usd=each.before, after_nano_usd=each.after
        )
        for model, each in sorted(found.models.items())
    ]
    return pb.RerateChargesResponse(
        rows=rows,
        charges=found.looked_at,
        changed=sum(row.charges for row in rows),
        difference_nano_usd=sum(row.after_nano_usd - row.before_nano_usd for row in rows),
        dry_run=dry_run,
    )


def from_reconciliation(invoice: Invoice, reconciled: Reconciled) -> pb.Reconciliation:
    lines, cleared = reconciled.lines, reconciled.cleared
    return pb.Reconciliation(
        invoice_id=invoice.invoice_id,
        provider=invoice.provider,
        lines=[_reconciled(line) for line in lines],
        invoiced_nano_usd=sum(line.invoiced for line in lines),
        ledger_nano_usd=sum(line.ledger for line in lines),
        difference_nano_usd=sum(line.difference for line in lines),
        settled_from_suspense_nano_usd=sum(each.amount for each in cleared),
        settled_from_suspense=sum(each.amount > 0 for each in cleared),
        released_from_suspense=sum(each.amount == 0 for each in cleared),
        was_imported=reconciled.was_imported,
        in_suspense=reconciled.in_suspense,
    )


def _reconciled(line: InvoiceLine) -> pb.Reconciliation.Line:
    invoiced = pb.InvoiceLine(
        model=line.model, since=_stamp(line.since), until=_stamp(line.until), amount_nano_usd=line.invoiced
    )
    return pb.Reconciliation.Line(
        invoiced=invoiced,
        ledger_nano_usd=line.ledger,
        difference_nano_usd=line.difference,
        adjusted_nano_usd=line.adjusted,
    )


def from_charge(listed: ListedCharge) -> pb.ExportedCharge:
    charge = listed.charge
    return pb.ExportedCharge(
        id=charge.id,
        kind=charge.kind,
        attribution=from_attribution(charge.attribution),
        incurred_at=_stamp(charge.incurred_at),
        cost_nano_usd=charge.cost,
        input_tokens=charge.input_tokens,
        output_tokens=charge.output_tokens,
        price_source=charge.price_source,
        price_version=charge.price_version,
        price_context=charge.price_context,
        usage_source=charge.usage_source,
        revision=charge.revision,
        list_cost_nano_usd=listed.list_cost,
    )
