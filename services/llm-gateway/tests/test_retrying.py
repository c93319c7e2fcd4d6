import pytest
from hypothesis import given
from hypothesis import strategies as st
from llm_gateway import errors
from llm_gateway.retrying import Next, RetryBudget, RetryTerms, Tried, billed, costs, failure_of, next_attempt

TERMS = RetryTerms(attempts_max=3, initial_s=1.0, factor=2.0, max_s=8.0)
PLENTY = Tried(target=0, targets=2, tries=1, left_s=600.0)


def limited(after_s: float | None = None) -> errors.ProviderError:
    return errors.ProviderRateLimited("slow down", status=429, retry_after_s=after_s)


def test_the_wait_is_drawn_below_a_ceiling_that_grows() -> None:
    waits = [next_attempt(limited(), Tried(0, 2, tries, 600.0), TERMS, 0.5) for tries in (1, 2)]
    assert waits == [Next(0, 0.5), Next(0, 1.0)]


def test_the_wait_is_never_shorter_than_the_provider_asks() -> None:
    assert next_attempt(limited(7.0), PLENTY, TERMS, 0.5) == Next(0, 7.0)


def test_a_wait_beyond_the_deadline_goes_to_the_next_model() -> None:
    assert next_attempt(limited(3600.0), PLENTY, TERMS, 0.5) == Next(1, 0.0)
    assert next_attempt(limited(3600.0), Tried(1, 2, 1, 600.0), TERMS, 0.5) is None


def test_a_model_that_is_served_elsewhere_too_is_asked_there_at_once() -> None:
    elsewhere = Tried(target=0, targets=2, tries=1, left_s=600.0, sibling=True)
    assert next_attempt(limited(7.0), elsewhere, TERMS, 0.5) == Next(1, 0.0)
    assert next_attempt(errors.RequestRejected("no", status=400), elsewhere, TERMS, 0.5) is None


def test_a_model_that_cannot_be_asked_so_is_passed_over_for_the_next() -> None:
    assert next_attempt(errors.UnsupportedParameter("stop"), PLENTY, TERMS, 0.5) == Next(1, 0.0)
    assert next_attempt(errors.UnsupportedParameter("stop"), Tried(1, 2, 1, 600.0), TERMS, 0.5) is None


def test_after_content_there_is_no_next_attempt() -> None:
    error = limited()
    error.content_delivered = True
    assert next_attempt(error, PLENTY, TERMS, 0.5) is None


def test_without_time_left_there_is_no_next_attempt() -> None:
    assert next_attempt(limited(), Tried(0, 2, 1, 0.0), TERMS, 0.0) is None


@given(st.floats(0, 1, exclude_max=True), st.integers(1, 100), st.floats(0, 100))
def test_no_wait_is_longer_than_the_time_left(draw: float, tries: int, left_s: float) -> None:
    following = next_attempt(limited(), Tried(0, 1, tries, left_s), RetryTerms(attempts_max=1000), draw)
    assert following is None or following.delay_s < left_s


def test_an_attempt_that_was_never_sent_is_not_billed() -> None:
    error = errors.ProviderUnreachable("refused")
    assert billed(error) == "unknown"
    error.dispatched = False
    assert billed(error) == "no"


def test_content_makes_every_outcome_unknown() -> None:
    error = limited()
    error.content_delivered = True
    assert billed(error) == "unknown"


@pytest.mark.parametrize("error", [limited(), errors.ProviderOverloaded("busy", status=529)])
def test_an_error_that_an_answer_breaks_off_with_is_no_proof(error: errors.ProviderError) -> None:
    assert billed(error) == "no"
    error.inside_answer = True
    assert billed(error) == "unknown"
    assert next_attempt(error, PLENTY, TERMS, 0.5) == Next(0, 0.5)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (limited(), "RATE_LIMITED"),
        (errors.ProviderFailed("x"), "PROVIDER_UNAVAILABLE"),
        (errors.DeadlineExceeded("x"), "PROVIDER_UNAVAILABLE"),
        (errors.RequestRejected("x"), "PROVIDER_REFUSED"),
        (errors.ModelNotFound("x"), "PROVIDER_REFUSED"),
        (errors.AuthenticationRejected("x"), "PROVIDER_ACCOUNT_REFUSED"),
        (errors.PaymentRequired("x"), "PROVIDER_ACCOUNT_REFUSED"),
        (errors.PermissionRejected("x"), "PROVIDER_ACCOUNT_REFUSED"),
    ],
)
def test_failures_have_stable_reasons(error: errors.ProviderError, reason: str) -> None:
    assert failure_of(error).reason == reason


@pytest.mark.parametrize(
    ("error", "free"),
    [
        (errors.AuthenticationRejected("401"), True),
        (errors.PaymentRequired("402"), True),
        (errors.PermissionRejected("403"), True),
        (errors.ModelNotFound("404"), True),
        (errors.UnsupportedParameter("stop"), True),
        (limited(), True),
        (errors.ProviderSuspended("open", retry_after_s=1), True),
        (errors.ProviderOverloaded("503"), False),
        (errors.ProviderTimedOut("silence"), False),
    ],
)
def test_going_on_costs_nothing_where_the_provider_said_not_here(error: errors.ProviderError, free: bool) -> None:
    assert costs(error, 0, 1) is not free
    assert costs(error, 0, 0)


def test_the_retry_budget_is_a_share_of_the_traffic() -> None:
    budget = RetryBudget(share=0.1, reserve=2.0)
    assert [budget.spend() for _ in range(3)] == [True, True, False]
    for _ in range(11):
        budget.earn()
    assert [budget.spend() for _ in range(2)] == [True, False]
