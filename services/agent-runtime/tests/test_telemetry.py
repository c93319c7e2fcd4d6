"""What agent-runtime tells of open runs, as Prometheus reads it."""

from datetime import UTC, datetime, timedelta

import pytest
from agent_runtime.projections import OpenRuns
from agent_runtime.telemetry import Telemetry
from prometheus_client import CollectorRegistry

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


def test_open_runs_are_told_by_state_with_the_age_of_the_oldest(registry: CollectorRegistry) -> None:
    minute_ago = NOW - timedelta(minutes=1)
    runs = [OpenRuns("queued", 3, 1, minute_ago), OpenRuns("waiting", 2, 1, NOW)]
    Telemetry(registry).open_runs(runs, NOW)
    assert registry.get_sample_value("runs_open", {"state": "queued"}) == 3
    assert registry.get_sample_value("runs_open_oldest_seconds", {"state": "queued"}) == 60
    assert registry.get_sample_value("runs_open", {"state": "running"}) == 0
    assert registry.get_sample_value("runs_overdue") == 2


def test_a_state_that_has_emptied_is_told_too(registry: CollectorRegistry) -> None:
    telemetry = Telemetry(registry)
    telemetry.open_runs([OpenRuns("running", 3, 3, NOW - timedelta(hours=1))], NOW)
    telemetry.open_runs([], NOW)
    assert registry.get_sample_value("runs_open", {"state": "running"}) == 0
    assert registry.get_sample_value("runs_open_oldest_seconds", {"state": "running"}) == 0
    assert registry.get_sample_value("runs_overdue") == 0
