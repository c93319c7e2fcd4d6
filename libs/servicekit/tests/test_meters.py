"""Meters of our own against those of prometheus_client: whatever is counted, both show the same bytes."""

from collections.abc import Callable
from types import ModuleType

import prometheus_client
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as open_metrics
from prometheus_client.registry import DuplicateTimeseries
from servicekit import meters

BUCKETS = (0.0005, 0.01, 0.1, 1, 2.5, 10)
LABELS = st.sampled_from(["a", "b", 'quo"ted', "line\nend", "back\\slash", "é"])
AMOUNTS = st.one_of(st.sampled_from([*BUCKETS, 0, 1]), st.floats(0, 1e12), st.integers(0, 10**12))
STEPS = st.lists(st.tuples(st.integers(0, 7), LABELS, LABELS, AMOUNTS), max_size=40)


@pytest.fixture(autouse=True)
def the_time_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 1_770_000_000.25)


def counted(library: ModuleType, steps: list[tuple[int, str, str, float]]) -> CollectorRegistry:
    """What the steps leave behind when they are counted by either library."""
    registry = CollectorRegistry()
    calls = library.Counter("calls_total", "Calls\nanswered", ("method", "code"), registry=registry)
    lost = library.Counter("lost", "Calls lost", registry=registry)
    open_ = library.Gauge("open", "Open now", registry=registry)
    depth = library.Gauge("depth", "By queue", ("queue",), registry=registry)
    seconds = library.Histogram("took_seconds", "Time", ("method",), registry=registry, buckets=BUCKETS)
    likeness = library.Histogram("likeness", "Below zero too", registry=registry, buckets=(-1, 0, 1, float("inf")))
    doings: list[Callable[[str, str, float], object]] = [
        lambda one, two, amount: calls.labels(one, two).inc(amount),
        lambda one, two, amount: calls.labels(one, two).inc(),
        lambda one, two, amount: lost.inc(amount),
        lambda one, two, amount: (open_.inc(amount), open_.dec()),
        lambda one, two, amount: open_.set(amount),
        lambda one, two, amount: depth.labels(one).set(amount),
        lambda one, two, amount: seconds.labels(one).observe(amount),
        lambda one, two, amount: likeness.observe(-amount),
    ]
    for doing, one, two, amount in steps:
        doings[doing](one, two, amount)
    return registry


@given(steps=STEPS)
def test_a_scrape_is_the_same_to_the_byte(steps: list[tuple[int, str, str, float]]) -> None:
    ours, theirs = counted(meters, steps), counted(prometheus_client, steps)

    assert generate_latest(ours) == generate_latest(theirs)
    assert open_metrics(ours) == open_metrics(theirs)


def test_a_name_is_given_once_whoever_counts() -> None:
    registry = CollectorRegistry()
    meters.Counter("calls_total", "Calls", registry=registry)

    for again in (meters.Counter, prometheus_client.Counter):
        with pytest.raises(DuplicateTimeseries):
            again("calls_total", "Calls", registry=registry)


def test_labels_that_are_bound_once_stay_bound() -> None:
    registry = CollectorRegistry()
    calls = meters.Counter("calls_total", "Calls", ("method",), registry=registry)
    bound = calls.labels("get")
    bound.inc()
    calls.labels("get").inc(2)

    assert calls.labels("get") is bound
    assert registry.get_sample_value("calls_total", {"method": "get"}) == 3


@pytest.mark.parametrize("values", [(), ("a", "b")])
def test_labels_must_be_as_many_as_their_names(values: tuple[str, ...]) -> None:
    calls = meters.Counter("calls_total", "Calls", ("method",), registry=CollectorRegistry())

    with pytest.raises(ValueError, match="has the labels"):
        calls.labels(*values)


def test_a_counter_does_not_shrink() -> None:
    lost = meters.Counter("lost_total", "Calls lost", registry=CollectorRegistry())

    with pytest.raises(ValueError, match="only grows"):
        lost.inc(-1)


@pytest.mark.parametrize("buckets", [(), (float("inf"),), (2, 1)])
def test_buckets_are_some_and_rise(buckets: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="must be some, and rise"):
        meters.Histogram("took_seconds", "Time", registry=CollectorRegistry(), buckets=buckets)
