"""What is held before a call: for what leaves our process or has a price, by the limits of its tool."""

from dataclasses import replace
from datetime import timedelta

import pytest
from synod.common.values import Attribution
from synod.tool_executor.events import ToolCallRequested
from tool_executor.errors import ToolUnknown
from tool_executor.manifests import Catalogue, Offer
from tool_executor.sandboxes.probe import Capabilities
from tool_executor.spending import Reservation, reservation_of
from tool_executor.tools.catalogue import catalogue

OWNER = Attribution(tenant_id="acme", agent="analyst", run_id="run_1", tool="any")


@pytest.fixture
def tools(capabilities: Capabilities) -> Catalogue:
    return Catalogue(catalogue(), capabilities, {"date": 7})


def requested(offer: Offer) -> ToolCallRequested:
    return ToolCallRequested(
        call_id="c1",
        tool=offer.tool.name,
        tool_version="1.0.0",
        tool_digest="",
        agent="analyst",
        workspace_id="run_1",
        arguments_json="{}",
        arguments_sha256="",
        effect="pure",
        grant_id="grt_1",
        attribution=OWNER,
        price_nano_usd=offer.price_nano_usd,
    )


def held(offer: Offer) -> Reservation | None:
    return reservation_of(requested(offer), offer)


def test_what_runs_apart_holds_its_time_and_that_of_the_processor(tools: Catalogue) -> None:
    offer = tools.find("sql_query")
    assert held(offer) == Reservation(
        call_id="c1",
        attribution=OWNER,
        nano_usd_max=0,
        tool_ms_max=30_200,
        cpu_ms_max=20_000,
        ttl=timedelta(seconds=90.2),
    )


def test_what_waits_for_another_machine_holds_time_and_no_processor(tools: Catalogue) -> None:
    reservation = held(tools.find("http_fetch"))
    assert reservation is not None
    assert (reservation.tool_ms_max, reservation.cpu_ms_max) == (30_200, 0)


def test_what_our_own_process_computes_holds_nothing_unless_it_has_a_price(tools: Catalogue) -> None:
    assert held(tools.find("calc")) is None
    priced = held(tools.find("date"))
    assert priced is not None
    assert priced.nano_usd_max == 7


def test_a_limit_above_what_the_operator_allows_holds_what_he_allows(tools: Catalogue) -> None:
    offer = tools.find("python_exec")
    greedy = replace(offer, tool=replace(offer.tool, limits=replace(offer.tool.limits, cpu_s=100_000)))
    reservation = held(greedy)
    assert reservation is not None
    assert reservation.cpu_ms_max == 120_000


def test_a_price_of_a_tool_that_there_is_not_is_refused(capabilities: Capabilities) -> None:
    with pytest.raises(ToolUnknown, match="did you mean calc"):
        Catalogue(catalogue(), capabilities, {"clac": 1})
