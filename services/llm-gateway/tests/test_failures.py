from collections.abc import Mapping
from datetime import UTC, datetime

import pytest
from llm_gateway import errors
from llm_gateway.providers.failures import WAIT_S_MAX, failure, failure_inside_answer, retry_after_s

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "3600"}, 3600.0),
        ({"retry-after": "Thu, 01 Jan 2026 00:01:00 GMT"}, 60.0),
        ({"retry-after": "Wed, 31 Dec 2025 00:00:00 GMT"}, None),
        ({"retry-after": "Thursday, 01-Jan-26 00:01:00 GMT"}, 60.0),
        ({"retry-after": "Thu Jan  1 00:01:00 2026"}, 60.0),
        ({"retry-after": "Wed Dec 31 00:00:00 2025"}, None),
        ({"retry-after": "Sun, 99 Nov 1994 08:49:37 GMT"}, None),
        ({"retry-after": f"Sun, 06 Nov {'9' * 20} 08:49:37 GMT"}, None),
        ({"retry-after": "Fri, 31 Dec 9999 23:59:59 GMT"}, WAIT_S_MAX),
        ({"retry-after": "1e308"}, WAIT_S_MAX),
        ({"retry-after-ms": "1e308"}, WAIT_S_MAX),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after-ms": "x", "retry-after": "9"}, 9.0),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "1m2.5s"}, 62.5),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "120ms"}, 0.12),
        ({"x-ratelimit-remaining-requests": "3", "x-ratelimit-reset-requests": "6m0s"}, None),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "soon"}, None),
        (
            {
                "anthropic-ratelimit-input-tokens-remaining": "0",
                "anthropic-ratelimit-input-tokens-reset": "2026-01-01T00:00:30Z",
            },
            30.0,
        ),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "9" * 400 + "s"}, WAIT_S_MAX),
        ({"retry-after": "7", "x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "1m"}, 7.0),
    ],
)
def test_group_09_the_wait_is_read_in_all_its_forms(headers: Mapping[str, str], seconds: float | None) -> None:
    assert retry_after_s(headers, NOW) == seconds


@pytest.mark.parametrize(
    ("kind", "code", "error"),
    [
        ("overloaded_error", None, errors.ProviderOverloaded),
        ("rate_limit_error", None, errors.ProviderRateLimited),
        ("requests", "rate_limit_exceeded", errors.ProviderRateLimited),
        ("insufficient_quota", "insufficient_quota", errors.PaymentRequired),
        ("invalid_request_error", None, errors.RequestRejected),
        ("invalid_request_error", "model_not_found", errors.ModelNotFound),
        ("api_error", None, errors.ProviderFailed),
        ("", None, errors.ProviderFailed),
    ],
)
def test_an_error_inside_an_answer_has_the_class_of_its_type(
    kind: str, code: str | None, error: type[errors.ProviderError]
) -> None:
    told = failure_inside_answer(kind, code, "no")
    assert type(told) is error
    assert told.inside_answer


@pytest.mark.parametrize(
    ("status", "error"), [(301, errors.RequestRejected), (418, errors.RequestRejected), (599, errors.ProviderFailed)]
)
def test_a_status_nobody_knows_has_the_class_of_its_hundred(status: int, error: type[errors.ProviderError]) -> None:
    assert type(failure(status, "odd")) is error


def test_an_error_says_provider_status_code_and_message() -> None:
    error = failure(429, "slow down", code="rate_limit_exceeded", retry_after_s=2.0)
    error.provider = "openai"

    assert str(error) == "openai: status 429: rate_limit_exceeded: slow down"
    assert (error.retryable, error.retry_after_s) == (True, 2.0)


def test_a_long_message_is_cut() -> None:
    assert len(failure(500, "x" * 5000).message) == 1000


def test_the_tree_drawn_in_the_module_is_the_tree() -> None:
    drawn = [line.split("──")[1].split()[0] for line in (errors.__doc__ or "").splitlines() if "──" in line]

    defined = {
        name for name, value in vars(errors).items() if isinstance(value, type) and value.__module__ == errors.__name__
    }
    assert {"GatewayError", *drawn} == defined
