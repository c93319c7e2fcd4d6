"""What a program is told, and how it is asked whether it is ready."""

import asyncio
from pathlib import Path

from launcher.keys import ensure_keys
from launcher.layout import SERVICES, Layout
from launcher.programs import ask_ready, environment


def test_keys_of_providers_are_given_to_the_llm_gateway_alone(tmp_path: Path) -> None:
    keys = {f"{provider}_API_KEY": "sk-1" for provider in ("OPENAI", "ANTHROPIC", "GEMINI", "OLLAMA")}
    layout, credentials = Layout(tmp_path, environment=keys), ensure_keys(tmp_path, (each.name for each in SERVICES))
    told = {service.name: environment(layout, credentials, service).keys() & keys for service in SERVICES}
    assert {name: found for name, found in told.items() if found} == {"llm-gateway": set(keys)}


async def test_an_answer_that_comes_in_pieces_is_heard_to_its_end() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for piece in (b"HTTP/1.1 5", b"03 Service Unavailable\r\n\r\n", b"waiting for ", b"a peer"):
            writer.write(piece)
            for _ in range(100):  # until the other side has read it
                await asyncio.sleep(0)
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        answered = await ask_ready(server.sockets[0].getsockname()[1])
    assert (answered.is_ready, answered.said) == (False, "waiting for a peer")
