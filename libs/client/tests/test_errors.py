"""What a service answers over the wire is what the client raises."""

from collections.abc import Callable
from typing import Any

import grpc
import pytest
from google.protobuf.empty_pb2 import Empty
from servicekit import errors as served
from servicekit.errors import ServiceError, trailers
from synod_client import errors
from synod_client.errors import SynodError, from_rpc

ErrorOf = Callable[[ServiceError], Any]
METHOD = "/test.Service/Fail"


async def received(error: ServiceError, *, with_details: bool = True) -> SynodError:
    """The error as a client gets it from a real server."""

    async def fail(request: Empty, context: grpc.aio.ServicerContext[Empty, Empty]) -> Empty:
        trailing = trailers(error, "cost-ledger") if with_details else ()
        await context.abort(error.code, error.message, trailing)
        return Empty()

    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(fail, Empty.FromString, Empty.SerializeToString)  # type: ignore[arg-type]
    server.add_registered_method_handlers("test.Service", {"Fail": handler})
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await channel.unary_unary(METHOD, Empty.SerializeToString, Empty.FromString)(Empty())
    finally:
        await server.stop(None)
    return from_rpc(raised.value)


@pytest.mark.parametrize(
    ("error", "kind", "reason"),
    [
        (served.InvalidArgument("limit", -1, "must be positive"), errors.InvalidInput, "INVALID_ARGUMENT"),
        (served.NotFound("run", "run_1"), errors.NotFound, "NOT_FOUND"),
        (served.Unauthenticated("no token", reason="KEY_EXPIRED"), errors.NotAllowed, "KEY_EXPIRED"),
        (served.PermissionDenied("runs.start"), errors.NotAllowed, "PERMISSION_DENIED"),
        (served.AlreadyExists("agent", "helper"), errors.Refused, "ALREADY_EXISTS"),
        (served.FailedPrecondition("ended", reason="RUN_ENDED"), errors.Refused, "RUN_ENDED"),
        (served.BudgetExhausted("daily", 5, 7), errors.BudgetExhausted, "BUDGET_EXHAUSTED"),
        (served.BudgetSuspended("daily", "a leaked key"), errors.BudgetSuspended, "BUDGET_SUSPENDED"),
        (served.ResourceExhausted("full", 2.0), errors.TryAgain, "RESOURCE_EXHAUSTED"),
        (served.Unavailable("starting", 1.5), errors.TryAgain, "UNAVAILABLE"),
        (served.Aborted("changed meanwhile"), errors.TryAgain, "ABORTED"),
        (served.Internal("err_1", "cost-ledger"), errors.Broken, "INTERNAL"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, ServiceError) else "",
)
async def test_each_refusal_arrives_as_its_kind(error: ServiceError, kind: type[SynodError], reason: str) -> None:
    raised = await received(error)
    assert type(raised) is kind
    assert (raised.message, raised.reason, raised.code) == (error.message, reason, error.code)
    assert str(raised) == error.message


async def test_data_for_programs_arrives_whole() -> None:
    refused = await received(served.BudgetExhausted("daily", 5, 7))
    assert refused.details == {"budget_id": "daily", "available": "5", "required": "7"}


async def test_fields_of_a_bad_request_map_to_their_problems() -> None:
    refused = await received(served.InvalidArgument("limit", -1, "must be positive"))
    assert refused.details["limit"] == "limit = -1: must be positive"


async def test_when_to_try_again_arrives_in_seconds() -> None:
    assert (await received(served.Unavailable("starting", 1.5))).retry_after_s == 1.5
    assert (await received(served.Unavailable("starting"))).retry_after_s is None


async def test_an_error_without_details_is_read_by_its_status() -> None:
    bare = await received(served.NotFound("run", "run_1"), with_details=False)
    assert type(bare) is errors.NotFound
    assert (bare.reason, bare.details) == ("", {})
