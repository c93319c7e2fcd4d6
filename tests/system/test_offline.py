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
SPEAK = """
import asyncio, socket

def refused(speak):
    try:
        speak()
    except OSError as error:
        return "no network" in str(error)

async def open_connection():
    await asyncio.open_connection("prices.example.org", 443)

with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one, socket.socket() as other, socket.socket() as server:
    server.bind(("127.0.0.1", 0))
    server.listen()
    other.connect(server.getsockname())
    print(refused(lambda: socket.create_connection(("tokens.example.org", 443))))
    print(refused(lambda: one.connect(("192.0.2.1", 53))), refused(lambda: one.sendto(b"x", ("192.0.2.2", 53))))
    print(refused(lambda: asyncio.run(open_connection())))
"""


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


def test_who_speaks_to_another_machine_is_refused_and_written_down(tmp_path: Path) -> None:
    watch = Outbound(tmp_path / "outbound.jsonl", tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", SPEAK],
        env={**watch.environment()},
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert done.stdout.split() == ["True"] * 4
    assert [(line.event, line.host) for line in watch.attempts()] == [
        ("socket.getaddrinfo", "tokens.example.org"),
        ("socket.connect", "192.0.2.1"),
        ("socket.sendto", "192.0.2.2"),
        ("socket.getaddrinfo", "prices.example.org"),
    ]
