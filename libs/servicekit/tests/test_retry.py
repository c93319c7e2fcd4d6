"""Delays grow, are capped, and are spread."""

from hypothesis import given
from hypothesis import strategies as st
from servicekit.retry import Backoff


@given(attempt=st.integers(0, 10_000))
def test_a_delay_lies_between_zero_and_the_ceiling(attempt: int) -> None:
    backoff = Backoff(initial_s=0.1, factor=2, max_s=10)
    assert 0 <= backoff.delay_s(attempt) <= backoff.ceiling_s(attempt) <= 10


def test_the_ceiling_doubles_up_to_the_maximum() -> None:
    backoff = Backoff(initial_s=1, factor=2, max_s=5)
    assert [backoff.ceiling_s(attempt) for attempt in range(4)] == [1, 2, 4, 5]


def test_full_jitter_draws_from_zero_and_half_jitter_from_half() -> None:
    assert Backoff(initial_s=1).delay_s(0, draw=0.0) == 0
    assert Backoff(initial_s=1, full_jitter=False).delay_s(0, draw=0.0) == 0.5
