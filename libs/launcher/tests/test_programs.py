"""What a program is told, and how it is asked whether it is ready."""

import asyncio
from pathlib import Path

from launcher.keys import ensure_keys
from launcher.layout import AUTHORITY, EDGE, MODELS, SERVICES, Layout
from launcher.programs import ask_ready, environment, needed


def test_keys_of_providers_are_given_to_the_llm_gateway_alone(tmp_path: Path) -> None:
    keys = {f"{provider}_API_KEY": "sk-1" for provider in ("OPENAI", "ANTHROPIC", "GEMINI", "OLLAMA")}
    layout, credentials = Layout(tmp_path, environment=keys), ensure_keys(tmp_path, (each.name for each in SERVICES))
    told = {service.name: environment(layout, credentials, service).keys() & keys for service in SERVICES}
    assert {name: found for name, found in told.items() if found} == {"llm-gateway": set(keys)}


def test_the_edges_listen_at_ports_of_their_own_on_loopback(tmp_path: Path) -> None:
    layout, credentials = (
        Layout(tmp_path, 9000, environment={}),
        ensure_keys(tmp_path, (each.name for each in SERVICES)),
    )
    told = {service.name: environment(layout, credentials, service) for service in SERVICES}
    edges = {
        name: (each["SYNOD_EDGE_HOST"], each["SYNOD_EDGE_PORT"])
        for name, each in told.items()
        if "SYNOD_EDGE_PORT" in each
    }
    assert edges == {EDGE: ("127.0.0.1", "9980"), MODELS: ("127.0.0.1", "9981")}


def test_the_edges_are_among_the_ports_and_the_addresses_of_a_system_that_has_them() -> None:
    whole, others = (
        Layout(Path(), 9000),
        Layout(Path(), 9000, tuple(e for e in SERVICES if e.name not in (EDGE, MODELS))),
    )
    assert (whole.ports()["ws-gateway edge"], whole.ports()["llm-gateway edge"]) == (9980, 9981)
    assert (whole.endpoints()["http"], whole.endpoints()["models"]) == (
        "http://127.0.0.1:9980",
        "http://127.0.0.1:9981",
    )
    assert len(set(whole.ports().values())) == len(whole.ports())
    assert not {"http", "models"} & others.endpoints().keys()
    assert not [name for name in others.ports() if name.endswith(" edge")]


def test_llm_gateway_starts_after_who_knows_its_callers() -> None:
    """It asks agent-registry whose a key is, from the first request on."""
    models = next(service for service in SERVICES if service.name == MODELS)
    assert AUTHORITY in {service.name for service in needed(Layout(Path()), models)}


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
