"""What follows a failed attempt: the same model again, the next one, or the end. Pure.

A model that is served elsewhere too is asked there at once: what one key or one endpoint refuses, another may take.
Only what a provider says it has not done, or did not finish before any content, is tried again. The wait is drawn with
full jitter and is never shorter than what the provider asked for last. What may load a provider in trouble costs of the
budget of repeats; to go on to the next one, because this one says "not here", costs nothing.
"""

from dataclasses import dataclass
from typing import Final

from synod.common.values import Failure

from llm_gateway.calls import Billed
from llm_gateway.errors import (
    AuthenticationRejected,
    DeadlineExceeded,
    ModelNotFound,
    PaymentRequired,
    PermissionRejected,
    ProviderError,
    ProviderRateLimited,
    ProviderSuspended,
    UnsupportedParameter,
)

RATE_LIMITED: Final = "RATE_LIMITED"
PROVIDER_UNAVAILABLE: Final = "PROVIDER_UNAVAILABLE"
PROVIDER_REFUSED: Final = "PROVIDER_REFUSED"
PROVIDER_ACCOUNT_REFUSED: Final = "PROVIDER_ACCOUNT_REFUSED"

_REFUSED_WITHOUT_WORK: Final = frozenset({503, 529})
_NOT_THE_CALLERS: Final = (AuthenticationRejected, PaymentRequired, PermissionRejected)
_ACCOUNT_ERRORS: Final = (*_NOT_THE_CALLERS, ModelNotFound)
_ELSEWHERE: Final = (*_ACCOUNT_ERRORS, UnsupportedParameter)
"""What says nothing of other models."""
_NOT_HERE: Final = (*_ELSEWHERE, ProviderRateLimited, ProviderSuspended)


@dataclass(frozen=True, slots=True)
class RetryTerms:
    """`attempts_max` counts the attempts at one model."""

    attempts_max: int = 3
    initial_s: float = 0.5
    factor: float = 2.0
    max_s: float = 8.0

    def ceiling_s(self, tries: int) -> float:
        """The longest wait after so many attempts at one model."""
        return min(self.max_s, self.initial_s * self.factor ** (tries - 1))


@dataclass(frozen=True, slots=True)
class Next:
    """The next attempt: which target of the request's list, after how many seconds."""

    target: int
    delay_s: float


@dataclass(frozen=True, slots=True)
class Tried:
    """Where a call stands: `target` was tried `tries` times; `left_s` is the time its callers have left. `sibling` says
    that the next target is the same model at another deployment, and takes calls now.
    """

    target: int
    targets: int
    tries: int
    left_s: float
    sibling: bool = False


class RetryBudget:
    """Repeats are a tenth of the traffic at most, so that a provider in trouble is not buried. `reserve` is a start."""

    def __init__(self, share: float = 0.1, reserve: float = 10.0) -> None:
        self._share = share
        self._max = reserve
        self._left = reserve

    def earn(self) -> None:
        """A call was made."""
        self._left = min(self._max, self._left + self._share)

    def spend(self) -> bool:
        """Whether one more repeat is allowed."""
        if self._left < 1:
            return False
        self._left -= 1
        return True


def next_attempt(error: ProviderError, tried: Tried, terms: RetryTerms, draw: float) -> Next | None:
    """None ends the call. `draw` in [0, 1) is the random number of the jitter."""
    if error.content_delivered:
        return None
    if error.retryable and tried.sibling:
        return next_target(tried)
    delay_s = max(terms.ceiling_s(tried.tries) * draw, error.retry_after_s or 0.0)
    again = error.retryable and not isinstance(error, ProviderSuspended)
    if again and tried.tries < terms.attempts_max and delay_s < tried.left_s:
        return Next(tried.target, delay_s)
    elsewhere = error.retryable or isinstance(error, _ELSEWHERE)
    return next_target(tried) if elsewhere else None


def next_target(tried: Tried) -> Next | None:
    """The next model of the list, at once; None after the last one."""
    if tried.target + 1 < tried.targets and tried.left_s > 0:
        return Next(tried.target + 1, 0.0)
    return None


def costs(error: ProviderError, tried: int, following: int) -> bool:
    """Whether to ask the target `following` after `tried` failed is a repeat, of which only so many are allowed."""
    return following == tried or not isinstance(error, _NOT_HERE)


def billed(error: ProviderError) -> Billed:
    """ "no" only on proof: nothing was sent, or the provider refused by the status of its answer.

    What an answer of status 200 breaks off with is none, whatever it is called: the provider had begun to work.
    """
    if error.content_delivered or error.inside_answer:
        return "unknown"
    status = error.status or 0
    refused = 400 <= status < 500 or status in _REFUSED_WITHOUT_WORK
    return "no" if refused or not error.dispatched else "unknown"


def failure_of(error: ProviderError) -> Failure:
    """The error as the log and the caller know it."""
    return Failure(reason=_reason(error), message=str(error), retryable=error.retryable)


def _reason(error: ProviderError) -> str:
    if isinstance(error, ProviderRateLimited):
        return RATE_LIMITED
    if isinstance(error, _NOT_THE_CALLERS):
        return PROVIDER_ACCOUNT_REFUSED
    return PROVIDER_UNAVAILABLE if error.retryable or isinstance(error, DeadlineExceeded) else PROVIDER_REFUSED
