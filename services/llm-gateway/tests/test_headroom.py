"""What providers say about their limits, and what the gateway makes of it."""

from datetime import UTC, datetime

import pytest
from llm_gateway.headroom import Adjusted, Headroom
from llm_gateway.limits import Need
from llm_gateway.providers.quota import Quota, quotas
from multidict import CIMultiDict
from provider_simulator.quota import Quotas, QuotaTerms

NOW = datetime(2026, 11, 21, 20, 0, 0, tzinfo=UTC)
ONE = Need(10, 5)


def requests(remaining: int, limit: int = 60, reset_s: float = 0.0) -> Quota:
    return Quota("requests", limit, remaining, reset_s or (limit - remaining) * 60 / limit)


def test_the_headers_of_openai_are_read() -> None:
    headers = CIMultiDict(
        {
            "X-RateLimit-Limit-Requests": "500",
            "x-ratelimit-remaining-requests": "499",
            "x-ratelimit-reset-requests": "120ms",
            "x-ratelimit-limit-tokens": "30000",
            "x-ratelimit-remaining-tokens": "29000",
            "x-ratelimit-reset-tokens": "1m2s",
        }
    )
    assert quotas(headers, NOW) == (Quota("requests", 500, 499, 0.12), Quota("tokens", 30_000, 29_000, 62.0))


def test_the_headers_of_anthropic_are_read() -> None:
    headers = CIMultiDict(
        {
            "anthropic-ratelimit-requests-limit": "50",
            "anthropic-ratelimit-requests-remaining": "49",
            "anthropic-ratelimit-requests-reset": "2026-11-21T20:00:01Z",
            "anthropic-ratelimit-output-tokens-limit": "8000",
            "anthropic-ratelimit-output-tokens-remaining": "7000",
            "anthropic-ratelimit-output-tokens-reset": "2026-11-21T20:00:30+00:00",
        }
    )
    assert quotas(headers, NOW) == (Quota("requests", 50, 49, 1.0), Quota("output_tokens", 8000, 7000, 30.0))


@pytest.mark.parametrize("limit", ["", "0", "-5", "many", "1e9", "9" * 13, "½"])
def test_what_cannot_be_read_is_left_out(limit: str) -> None:
    headers = CIMultiDict({"x-ratelimit-limit-requests": limit, "x-ratelimit-remaining-requests": "1"})
    assert quotas(headers, NOW) == ()
    assert quotas(CIMultiDict(), NOW) == ()


def test_the_simulator_speaks_as_both_do() -> None:
    simulated = Quotas(QuotaTerms(requests_per_min=60, tokens_per_min=6000))
    now = NOW.timestamp()
    assert simulated.take("key", 600, now) is None
    told = quotas(CIMultiDict(simulated.headers("key", now)), NOW)
    assert told == (
        Quota("requests", 60, 59, 1.0),
        Quota("requests", 60, 59, 1.0),
        Quota("tokens", 6000, 5400, 6.0),
        Quota("tokens", 6000, 5400, 6.0),
    )
    assert simulated.take("key", 6000, now) == pytest.approx(6.0)
    assert simulated.take("other", 6000, now) is None


def test_calls_wait_when_what_remains_is_on_its_way_already() -> None:
    room = Headroom()
    room.observe("p/m", [requests(10)], 0.0)
    for _ in range(10):
        assert room.wait_s("p/m", ONE, 0.0) == 0
        room.take("p/m", ONE)
    assert room.wait_s("p/m", ONE, 0.0) == pytest.approx(1.0)
    assert room.wait_s("p/m", ONE, 1.0) == 0
    assert room.wait_s("p/other", ONE, 0.0) == 0


def test_near_its_end_a_limit_is_used_only_as_fast_as_it_is_filled_and_recovers() -> None:
    room = Headroom()
    assert room.observe("p/m", [requests(50)], 0.0) == ()
    narrowed = room.observe("p/m", [requests(5)], 0.0)
    assert narrowed == (Adjusted("p/m", "requests", 60, 60, 5),)
    assert room.wait_s("p/m", ONE, 0.0) == pytest.approx(1.0)
    assert room.observe("p/m", [requests(12)], 5.0) == ()
    assert room.wait_s("p/m", ONE, 5.0) == pytest.approx(1.0)
    assert len(room.observe("p/m", [requests(30)], 20.0)) == 1
    assert room.wait_s("p/m", ONE, 20.0) == 0


def test_a_slow_filling_is_the_rate_that_is_told() -> None:
    room = Headroom()
    (narrowed,) = room.observe("p/m", [requests(0, limit=100, reset_s=600)], 0.0)
    assert (narrowed.from_per_min, narrowed.to_per_min) == (100, 10)
    (recovered,) = room.observe("p/m", [requests(60, limit=100)], 60.0)
    assert (recovered.from_per_min, recovered.to_per_min) == (10, 100)


def test_another_limit_than_before_is_an_adjustment() -> None:
    room = Headroom()
    room.observe("p/m", [requests(60, limit=60)], 0.0)
    (lowered,) = room.observe("p/m", [requests(30, limit=30)], 1.0)
    assert (lowered.from_per_min, lowered.to_per_min) == (60, 30)
    assert room.observe("p/m", [requests(31, limit=31)], 2.0) == ()


def test_each_meter_is_measured_in_its_own_unit() -> None:
    room = Headroom()
    room.observe("p/m", [Quota("tokens", 1000, 500, 30.0), Quota("input_tokens", 1000, 990, 1.0)], 0.0)
    assert room.wait_s("p/m", Need(300, 200), 0.0) == 0
    assert room.wait_s("p/m", Need(300, 300), 0.0) == pytest.approx(6.0, abs=0.1)
    assert room.wait_s("p/m", Need(5000, 0), 0.0) == pytest.approx(30.0, abs=0.1)


def test_what_was_said_long_ago_is_forgotten() -> None:
    room = Headroom()
    room.observe("p/m", [requests(0, reset_s=3600)], 0.0)
    assert room.wait_s("p/m", ONE, 30.0) > 0
    assert room.wait_s("p/m", ONE, 121.0) == 0
