"""Record the simulator's streams, byte for byte, into the files beside this one."""

import asyncio
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import aiohttp
from provider_simulator.testing import RunningSimulator, running_simulator

HERE = Path(__file__).parent

TOOL_SCRIPT = """1. call lookup with {"city": "Zürich", "days": [1, 2, 3]} and call lookup with {"city": "Łódź"}
answer: {{1.degrees}}"""
TEXT_SCRIPT = 'answer: Grüezi, it is 12 °C — "warm" for März. 🌤'
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}

SCRIPTS: Mapping[str, str] = {"sim-text": TEXT_SCRIPT, "sim-tools": TOOL_SCRIPT, "sim-refusal": "answer: {{nothing}}"}


def openai_request(script: str) -> dict[str, object]:
    return {
        "model": "sim-1",
        "messages": [{"role": "system", "content": script}, {"role": "user", "content": "How warm is it?"}],
        "tools": [{"type": "function", "function": {"name": "lookup", "parameters": SCHEMA}}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def anthropic_request(script: str) -> dict[str, object]:
    return {
        "model": "sim-1",
        "max_tokens": 1000,
        "system": script,
        "messages": [{"role": "user", "content": "How warm is it?"}],
        "tools": [{"name": "lookup", "input_schema": SCHEMA}],
        "stream": True,
    }


def responses_request(script: str) -> dict[str, object]:
    return {
        "model": "sim-1",
        "instructions": script,
        "input": "How warm is it?",
        "tools": [{"type": "function", "name": "lookup", "parameters": SCHEMA, "strict": False}],
        "stream": True,
    }


def gemini_request(script: str) -> dict[str, object]:
    return {
        "systemInstruction": {"parts": [{"text": script}]},
        "contents": [{"role": "user", "parts": [{"text": "How warm is it?"}]}],
        "tools": [{"functionDeclarations": [{"name": "lookup", "parametersJsonSchema": SCHEMA}]}],
    }


REQUESTS: Mapping[str, tuple[str, Callable[[str], dict[str, object]]]] = {
    "openai-chat": ("/v1/chat/completions", openai_request),
    "openai-responses": ("/v1/responses", responses_request),
    "anthropic-messages": ("/v1/messages", anthropic_request),
    "gemini-generate": ("/v1beta/models/sim-1:streamGenerateContent?alt=sse", gemini_request),
}


async def record() -> Mapping[str, bytes]:
    """Relative path to bytes. A fresh simulator each time, so that the ids are always the same."""
    recorded: dict[str, bytes] = {}
    for name, script in SCRIPTS.items():
        for dialect, (path, request) in REQUESTS.items():
            async with running_simulator() as simulator:
                recorded[f"{dialect}/{name}.sse"] = await _post(simulator, path, request(script))
    return recorded


async def _post(simulator: RunningSimulator, path: str, body: dict[str, object]) -> bytes:
    headers = {"content-type": "application/json", "anthropic-version": "2026-10-21"}
    async with (
        aiohttp.ClientSession() as session,
        session.post(simulator.origin + path, data=json.dumps(body), headers=headers) as response,
    ):
        return await response.read()


def main() -> None:
    for path, content in asyncio.run(record()).items():
        (HERE / path).write_bytes(content)


if __name__ == "__main__":
    main()
