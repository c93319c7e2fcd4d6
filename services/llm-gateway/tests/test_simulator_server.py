"""The simulator's own administration, and the simulator as a program."""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable

import aiohttp
import pytest
from launcher.processes import free_port
from provider_simulator.testing import RunningSimulator

DEADLINE_S = 20.0


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def wait_until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 - the other side offers no event to wait on
            await asyncio.sleep(0.001)


def chat(model: str = "sim-1") -> dict[str, object]:
    return {"model": model, "messages": [{"role": "user", "content": "hello"}]}


async def test_every_request_and_its_usage_is_counted(simulator: RunningSimulator, http: aiohttp.ClientSession) -> None:
    for model in ("sim-1", "sim-1", "sim-429"):
        async with http.post(f"{simulator.openai_base_url}/chat/completions", json=chat(model)) as response:
            await response.read()
    async with http.get(f"{simulator.origin}/simulator/usage") as response:
        usage = await response.json()

    assert usage["models"]["sim-1"]["answered"] == 2
    assert usage["models"]["sim-1"]["input_tokens"] == 2 * (2 + 3)
    assert (usage["total"]["requests"], usage["total"]["failed"]) == (3, 1)
    assert [record["status"] for record in usage["records"]] == [200, 200, 429]


async def test_a_record_says_which_answer_it_was_and_to_what(
    simulator: RunningSimulator, http: aiohttp.ClientSession
) -> None:
    answers = []
    for text in ("first", "second " + "x" * 100):
        body = {"model": "sim-1", "messages": [{"role": "user", "content": text}]}
        async with http.post(f"{simulator.openai_base_url}/chat/completions", json=body) as response:
            answers.append(await response.json())
    async with http.get(f"{simulator.origin}/simulator/usage") as response:
        records = (await response.json())["records"]

    assert [record["response_id"] for record in records] == [answer["id"] for answer in answers]
    assert [record["asked"] for record in records] == ["first", ("second " + "x" * 100)[:64]]
    assert [record["output_tokens"] for record in records] == [a["usage"]["completion_tokens"] for a in answers]


async def test_usage_can_be_cleared(simulator: RunningSimulator, http: aiohttp.ClientSession) -> None:
    async with http.post(f"{simulator.openai_base_url}/chat/completions", json=chat()) as response:
        assert response.status == 200
    async with http.delete(f"{simulator.origin}/simulator/usage") as response:
        assert response.status == 204

    assert simulator.usage.total().requests == 0


async def test_faults_are_planned_listed_and_cleared(simulator: RunningSimulator, http: aiohttp.ClientSession) -> None:
    url = f"{simulator.origin}/simulator/faults"
    async with http.post(url, json={"fault": {"status": 503}, "requests": 2}) as response:
        assert response.status == 201
    async with http.post(f"{simulator.openai_base_url}/chat/completions", json=chat()) as response:
        assert response.status == 503
    async with http.get(url) as response:
        assert (await response.json())["planned"] == [{"fault": {"status": 503}}]
    async with http.delete(url) as response:
        assert response.status == 204
    async with http.post(f"{simulator.openai_base_url}/chat/completions", json=chat()) as response:
        assert response.status == 200


async def test_a_wrong_fault_is_refused_by_field(simulator: RunningSimulator, http: aiohttp.ClientSession) -> None:
    async with http.post(f"{simulator.origin}/simulator/faults", json={"fault": {"status": 700}}) as response:
        assert response.status == 400
        assert "fault.status" in (await response.json())["error"]


async def test_a_malformed_body_is_refused_by_field(simulator: RunningSimulator, http: aiohttp.ClientSession) -> None:
    async with http.post(f"{simulator.openai_base_url}/chat/completions", json={"model": "sim-1"}) as response:
        assert response.status == 400
        assert "messages: Field required" in (await response.json())["error"]["message"]


async def test_a_client_that_leaves_in_mid_stream_is_recorded(
    simulator: RunningSimulator, http: aiohttp.ClientSession
) -> None:
    body = {**chat(), "stream": True}
    headers = {"x-simulator-fault": "frame_delay_s=0.01"}
    async with http.post(f"{simulator.openai_base_url}/chat/completions", json=body, headers=headers) as response:
        await response.content.readany()
        response.close()

    await wait_until(lambda: simulator.usage.total().disconnected == 1)
    assert simulator.usage.total().answered == 0


async def test_a_cut_body_is_an_incomplete_payload(simulator: RunningSimulator, http: aiohttp.ClientSession) -> None:
    with pytest.raises(aiohttp.ClientPayloadError):
        async with http.post(f"{simulator.openai_base_url}/chat/completions", json=chat("sim-cut")) as response:
            await response.read()


async def test_the_program_serves_until_it_is_terminated(http: aiohttp.ClientSession) -> None:
    port = free_port()
    program = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "provider_simulator", "--port", str(port), stdout=asyncio.subprocess.PIPE
    )
    assert program.stdout is not None
    try:
        async with asyncio.timeout(DEADLINE_S):
            line = await program.stdout.readline()
        async with http.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=chat()) as response:
            answer = await response.json()
    finally:
        program.terminate()
        async with asyncio.timeout(DEADLINE_S):
            code = await program.wait()

    assert f"http://127.0.0.1:{port}/v1" in line.decode()
    assert answer["system_fingerprint"] == "synod-simulator"
    assert code == 0
