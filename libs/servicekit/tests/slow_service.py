"""A service whose one call answers when NATS tells it to; test_app.py runs it as a process."""

import asyncio
import sys
from typing import Any

import grpc
from google.protobuf.wrappers_pb2 import StringValue
from servicekit.app import run
from servicekit.host import Host
from servicekit.settings import ServiceSettings
from synod.common.ids import new_id


class Settings(ServiceSettings):
    service: str = "slow"


def add_slow(servicer: Any, server: Any) -> None:
    handler = grpc.unary_unary_rpc_method_handler(
        servicer.answer, StringValue.FromString, StringValue.SerializeToString
    )
    server.add_registered_method_handlers("test.Slow", {"Answer": handler})


class Slow:
    def __init__(self, host: Host[Settings]) -> None:
        self.host = host

    async def answer(self, request: StringValue, context: Any) -> StringValue:
        told = asyncio.Event()
        subject = f"test.go.{new_id('call')}"

        async def tell(_message: Any) -> None:
            told.set()

        await self.host.nats.subscribe(subject, cb=tell)
        # A round trip on the same connection, after which the server knows of the subscription.
        await self.host.nats.jetstream().account_info()
        self.host.log_.info("in_flight", subject=subject)
        await told.wait()
        return request


async def compose(host: Host[Settings]) -> None:
    host.add_rpc(add_slow, Slow(host), {"Answer": ""})


if __name__ == "__main__":
    sys.exit(run(Settings, compose))
