"""Errors keep their class and data across the wire."""

from collections.abc import Callable

import grpc
import pytest
from google.rpc import error_details_pb2
from servicekit.errors import (
    METADATA_CHARS_MAX,
    Aborted,
    AlreadyExists,
    BudgetExhausted,
    DeadlineExceeded,
    ErrorMap,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    ServiceError,
    Unauthenticated,
    Unavailable,
    from_rpc_error,
    from_status,
    to_status,
    trailers,
)

ERRORS = [
    InvalidArgument("budget.limit", -5, "must be positive"),
    NotFound("agent", "agt_1", remedy="list the agents first"),
    AlreadyExists("agent", "agt_1"),
    FailedPrecondition("the run has ended", reason="RUN_ENDED", metadata={"run": "run_1"}),
    PermissionDenied("runs.create", "usr_1"),
    Unauthenticated("no token", reason="TOKEN_MISSING"),
    ResourceExhausted("too many runs", 2.5),
    BudgetExhausted("bdg_1", 100, 250),
    Unavailable("the provider does not answer", 0.25),
    DeadlineExceeded("too late"),
    Aborted("changed meanwhile"),
    Internal("err_1", "cost-ledger"),
]


def over_the_wire(error: ServiceError) -> ServiceError:
    pairs = grpc.aio.Metadata(*trailers(error, "cost-ledger"))
    return from_rpc_error(grpc.aio.AioRpcError(error.code, grpc.aio.Metadata(), pairs, details=error.message))


def in_a_batch(error: ServiceError) -> ServiceError:
    return from_status(to_status(error, "cost-ledger").SerializeToString())


@pytest.mark.parametrize("sent", [over_the_wire, in_a_batch])
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_comes_back_as_what_was_raised(
    error: ServiceError, sent: Callable[[ServiceError], ServiceError]
) -> None:
    received = sent(error)
    assert type(received) is type(error)
    assert (received.message, received.reason, received.metadata) == (error.message, error.reason, error.metadata)
    assert (received.retry_after_s, received.domain) == (error.retry_after_s, "synod.cost-ledger")


def test_a_budget_error_gives_its_numbers_back() -> None:
    received = over_the_wire(BudgetExhausted("bdg_1", 100, 250))
    assert isinstance(received, BudgetExhausted)
    assert (received.budget_id, received.available, received.required) == ("bdg_1", 100, 250)


def test_an_invalid_argument_names_field_value_and_problem() -> None:
    error = InvalidArgument("limit", -5, "must be positive")
    assert error.message == "limit = -5: must be positive"
    assert (error.field, error.problem) == ("limit", "must be positive")


def test_an_invalid_argument_carries_a_bad_request_detail() -> None:
    status = to_status(InvalidArgument("limit", -5, "must be positive"), "cost-ledger")
    bad = error_details_pb2.BadRequest()
    assert status.details[1].Unpack(bad)
    assert bad.field_violations[0].field == "limit"


def test_the_domain_of_a_peers_error_is_kept_when_it_is_passed_on() -> None:
    received = over_the_wire(BudgetExhausted("bdg_1", 1, 2))
    info = error_details_pb2.ErrorInfo()
    assert to_status(received, "llm-gateway").details[0].Unpack(info)
    assert info.domain == "synod.cost-ledger"


def test_a_status_without_details_becomes_the_class_of_its_code() -> None:
    bare = grpc.aio.AioRpcError(
        grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), details="refused"
    )
    received = from_rpc_error(bare)
    assert isinstance(received, Unavailable)
    assert received.message == "refused"


def test_unreadable_details_do_not_hide_the_status() -> None:
    pairs = grpc.aio.Metadata(("grpc-status-details-bin", b"\xff\xff"))
    received = from_rpc_error(
        grpc.aio.AioRpcError(grpc.StatusCode.NOT_FOUND, grpc.aio.Metadata(), pairs, details="gone")
    )
    assert isinstance(received, NotFound)
    assert received.message == "gone"


def test_a_huge_error_fits_into_the_trailers() -> None:
    error = FailedPrecondition("x" * 100_000, metadata={"long": "y" * 100_000})
    (_, value), *_ = trailers(error, "cost-ledger")
    assert len(value) < 4096
    assert len(over_the_wire(error).metadata["long"]) == METADATA_CHARS_MAX


def test_the_nearest_known_base_class_decides() -> None:
    class Base(Exception):
        """Of a domain."""

    class Derived(Base):
        """Of a domain."""

    errors = ErrorMap().add(Base, lambda error: NotFound("thing", "base")).add(LookupError, lambda _: Aborted("other"))
    translated = errors.translate(Derived())
    assert isinstance(translated, NotFound)


def test_what_no_map_knows_is_a_defect() -> None:
    assert ErrorMap().translate(ValueError("?")) is None
