"""What mutual TLS costs: a guarded unary call between two services of this process, in the clear and by TLS, and a handshake.

The handler reads no database, so that TLS is compared with gRPC and the guard only: a real call does more.
"""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf.wrappers_pb2 import StringValue
from harness import Load, Report, Row, Size, closed_loop
from launcher import certificates
from servicekit.auth import Authenticator, Principal, StaticToken, issue, service_principal
from servicekit.clock import SystemClock
from servicekit.errors import ErrorMap
from servicekit.limits import Limits
from servicekit.peers import CallTerms, PeerChannel, open_channel
from servicekit.retry import Backoff
from servicekit.rpc import Guard, RpcServer
from servicekit.telemetry import Logger, Metrics, Tracing
from servicekit.tls import Tls

SERVER, CALLER = "cost-ledger", "agent-runtime"
SECONDS = {"tiny": 0.2, "small": 5, "full": 20}
HANDSHAKES = {"tiny": 10, "small": 300, "full": 1000}
CALLERS = 16
ASKED = StringValue(value="x" * 1000)


class Echo:
    async def Unary(self, request: StringValue, _context: object) -> StringValue:
        return request


async def measure(size: Size) -> Report:
    rows: list[Row] = []
    with TemporaryDirectory() as folder:
        certificates.ensure(Path(folder), datetime.now(UTC))
        server, caller = (Tls(certificates.files_of(Path(folder), name), SystemClock()) for name in (SERVER, CALLER))
        for case, pair in (("in the clear", (None, None)), ("by mutual TLS", (server, caller))):
            async with served(*pair) as (_, channel):
                load, cpu_us = await calls(channel, SECONDS[size])
            named = f"unary call of 1 kB there and back, {CALLERS} callers, {case}"
            rows.append(Row(named, "CPU of both sides", "us", cpu_us))
            rows.append(Row(named, "latency p50", "ms", load.percentile_ms(50)))
        async with served(server, caller) as (address, _):
            named = "connection and first call by mutual TLS, both sides"
            rows.append(Row(named, "CPU", "us", await handshakes(address, caller, HANDSHAKES[size])))
        async with served(None, None) as (address, _):
            named = "connection and first call in the clear, both sides"
            rows.append(Row(named, "CPU", "us", await handshakes(address, None, HANDSHAKES[size])))
    return Report("tls", "nothing is stored", tuple(rows))


@asynccontextmanager
async def served(server: Tls | None, caller: Tls | None) -> AsyncIterator[tuple[str, PeerChannel]]:
    key, clock = Ed25519PrivateKey.generate(), SystemClock()
    authenticator = Authenticator(key.public_key(), clock)
    tracing, metrics, log = Tracing(SERVER), Metrics(), Logger(SERVER)
    rpc = RpcServer(Guard(SERVER, authenticator, ErrorMap(), Limits(), clock, tracing, metrics, log, server))
    rpc.add(add_echo, Echo(), {"Unary": "echo.read"}, ErrorMap())
    address = f"127.0.0.1:{await rpc.start('127.0.0.1', 0)}"
    await rpc.set_serving(True)
    principal = Principal(service_principal(CALLER), "*", "service", ("*",))
    token = StaticToken(issue(key, principal, timedelta(hours=1), now=clock.now()))
    terms = CallTerms(token, clock, Limits(), Backoff())
    channel = PeerChannel(address, terms, open_channel(address, SERVER, Limits(), caller))
    try:
        yield address, channel
    finally:
        await channel.close()
        await rpc.stop(0)


def add_echo(servicer: Any, server: Any) -> None:
    unary = grpc.unary_unary_rpc_method_handler(servicer.Unary, StringValue.FromString, StringValue.SerializeToString)
    server.add_registered_method_handlers("bench.Echo", {"Unary": unary})


async def calls(channel: PeerChannel, seconds: float) -> tuple[Load, float]:
    """The calls, and microseconds of CPU for one."""
    unary = channel.unary_unary("/bench.Echo/Unary", StringValue.SerializeToString, StringValue.FromString)
    await unary(ASKED)
    before = time.process_time()
    load = await closed_loop(CALLERS, seconds, lambda _: unary(ASKED))
    return load, 1e6 * (time.process_time() - before) / len(load.latencies_s)


async def handshakes(address: str, caller: Tls | None, number: int) -> float:
    """Microseconds of CPU for a new connection, with a call that needs no token."""
    before = time.process_time()
    for _ in range(number):
        async with open_channel(address, SERVER, Limits(), caller) as channel:
            await channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=10)
    return 1e6 * (time.process_time() - before) / number
