"""Nothing is fetched: whole services start and serve on a machine that reaches nobody, with a home that holds nothing."""

import subprocess
import sys
from pathlib import Path

import pytest
from openai import AsyncOpenAI
from synod_client import Synod

from .conftest import RunningSystem
from .outbound import Outbound

pytestmark = pytest.mark.system
REFUSED = """
import asyncio, socket, sys, uvloop

def refused(speak):
    try:
        speak()
    except OSError as error:
        return "no network" in str(error)
"""
BY_SOCKETS = """
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one, socket.socket() as other, socket.socket() as server:
    server.bind(("127.0.0.1", 0))
    server.listen()
    other.connect(server.getsockname())
    print(refused(lambda: socket.create_connection(("tokens.example.org", 443))))
    print(refused(lambda: one.connect(("192.0.2.1", 53))), refused(lambda: one.sendto(b"x", ("192.0.2.2", 53))))
"""
BY_A_LOOP = """
def loop():
    return asyncio.get_running_loop()

async def by_socket(speak):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.setblocking(False)
        await speak(one)

SPOKEN = [
    lambda: asyncio.open_connection("prices.example.org", 443),
    lambda: asyncio.open_connection("192.0.2.3", 443),
    lambda: loop().getaddrinfo("127.1", 443),
    lambda: loop().getnameinfo(("192.0.2.4", 443)),
    lambda: loop().create_datagram_endpoint(asyncio.DatagramProtocol, remote_addr=("192.0.2.5", 53)),
    lambda: by_socket(lambda one: loop().sock_connect(one, ("192.0.2.6", 53))),
    lambda: by_socket(lambda one: loop().sock_sendto(one, b"x", ("192.0.2.7", 53))),
]

async def at_home():
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    async with server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.sockets[0].getsockname()[1])
        print(await reader.read() == b"")
        writer.close()

def run(speak):
    async def spoken():
        await speak()
    with asyncio.Runner(loop_factory=getattr(sys.modules[sys.argv[1]], "new_event_loop")) as runner:
        runner.run(spoken())

run(at_home)
for speak in SPOKEN:
    print(refused(lambda: run(speak)))
"""
HOSTS = ["prices.example.org", "192.0.2.3", "127.1", "192.0.2.4", "192.0.2.5", "192.0.2.6", "192.0.2.7"]


async def test_group_22_whole_services_start_and_serve_a_call_without_a_network(
    running: RunningSystem, synod: Synod, outbound: Outbound
) -> None:
    ends = running.endpoints
    async with AsyncOpenAI(api_key=ends.api_key, base_url=f"{ends.edge}/v1") as client:
        said = [{"role": "system", "content": "answer: {{input}}!"}, {"role": "user", "content": "Anybody there?"}]
        answer = await client.chat.completions.create(model="simulator/sim-1", messages=said)  # type: ignore[arg-type]
        counted = await client.responses.input_tokens.count(model="simulator/sim-1", input="How many?")
    prices = [price async for price in synod.prices("anthropic")]

    assert answer.choices[0].message.content == "Anybody there?!"
    assert counted.input_tokens > 0
    assert len(prices) > 5
    assert outbound.watched() >= {service.module for service in running.system.layout.services}
    assert outbound.attempts() == []


def spoken(watch: Outbound, program: str, *arguments: str) -> list[str]:
    """What a watched process of that program printed, in words."""
    done = subprocess.run(
        [sys.executable, "-c", REFUSED + program, *arguments],
        env={**watch.environment()},
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    return done.stdout.split()


def test_who_speaks_to_another_machine_is_refused_and_written_down(tmp_path: Path) -> None:
    watch = Outbound(tmp_path / "outbound.jsonl", tmp_path)
    assert spoken(watch, BY_SOCKETS) == ["True"] * 3
    assert [(line.event, line.host) for line in watch.attempts()] == [
        ("socket.getaddrinfo", "tokens.example.org"),
        ("socket.connect", "192.0.2.1"),
        ("socket.sendto", "192.0.2.2"),
    ]


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_who_speaks_by_an_event_loop_is_refused_whichever_loop_it_is(tmp_path: Path, loop: str) -> None:
    watch = Outbound(tmp_path / "outbound.jsonl", tmp_path)
    assert spoken(watch, BY_A_LOOP, loop) == ["True"] * (1 + len(HOSTS))
    assert [line.host for line in watch.attempts()] == HOSTS


def test_a_datagram_socket_without_a_peer_is_refused_since_nobody_sees_whom_it_speaks_to(tmp_path: Path) -> None:
    watch = Outbound(tmp_path / "outbound.jsonl", tmp_path)
    endpoint = "lambda: loop().create_datagram_endpoint(asyncio.DatagramProtocol, local_addr=('127.0.0.1', 0))"
    spoken(watch, BY_A_LOOP.replace("SPOKEN = [", f"SPOKEN = [{endpoint},"), "uvloop")
    assert watch.attempts()[0].host == "anybody"
