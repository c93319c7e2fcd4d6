"""The soak, for seconds: that it loads, counts and judges. Whether memory is flat, `make soak` tells after minutes."""

import json

import pytest

from .conftest import RunningSystem
from .soak import Soaked, as_json, growth, report, soak


@pytest.mark.system
async def test_group_19_a_steady_load_through_all_ways_is_answered_and_each_service_sampled(
    running: RunningSystem,
) -> None:
    found = await soak(running.system, seconds=4, rate=9, fill=50)
    assert not found.failures
    ways = [f"{way}_{form}" for way in ("edge", "through", "grpc") for form in ("unary", "stream")]
    assert dict(found.calls) == dict.fromkeys(ways, 6)
    assert set(found.samples) == {service.name for service in running.system.layout.services}
    assert all(each.early_mib > 10 for each in found.growths())


def test_group_19_a_process_is_flat_that_grows_in_its_warm_up_only() -> None:
    found = growth("ledger", [50.0] * 25 + [100.0] * 50 + [104.9] * 25)
    assert (found.early_mib, found.late_mib, found.is_flat) == (100.0, 104.9, True)


def test_group_19_a_process_that_grows_to_the_end_is_told() -> None:
    found = Soaked(seconds=10, rate=1, samples={"ledger": [float(each) for each in range(100, 200)]})
    assert not found.holds
    assert "GROWS" in report(found)
    assert '"holds": false' in json.dumps(as_json(found))


def test_group_19_calls_that_fail_are_told_with_their_reason() -> None:
    found = Soaked(seconds=10, rate=1, samples={"ledger": [100.0] * 8})
    assert found.holds
    found.failures["edge_unary: 503"] += 2
    assert not found.holds
    assert "2 times edge_unary: 503" in report(found)
