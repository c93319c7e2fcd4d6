"""The edge under /v1, before a faked llm-gateway, and both SDKs where their own behaviour matters."""

import asyncio
import base64
import json
import struct
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import Any

import anthropic
import edge_fakes as fakes
import openai
import pytest
from anthropic import AsyncAnthropic
from edge_world import WAIT_S, System
from httpedge.compatible.endpoints import INLINE_BYTES_MAX
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionMessage
from servicekit.errors import AlreadyExists, FailedPrecondition, InvalidArgument, ResourceExhausted, Unavailable
from synod.cost_ledger.v1 import cost_ledger_pb2 as ledger_pb
from synod.llm_gateway.v1 import llm_gateway_pb2 as pb
from ws_gateway.settings import EdgeLimits

pytestmark = pytest.mark.asyncio(loop_scope="module")
MODEL = "simulator/sim-1"
USER = [{"role": "user", "content": "Hi"}]
CHAT = {"model": MODEL, "messages": USER}
MESSAGE = CHAT | {"max_tokens": 10}
PNG = b"\x89PNG"
PNG_URL = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
OWN = "anthropic-messages"
SIGNED = b'{"type":"thinking","thinking":"hm","signature":"EqQB/+=="}'


def usage(read: int = 0) -> pb.Usage:
    lines = [
        ledger_pb.UsageLine(direction="input", quantity=7 - read),
        ledger_pb.UsageLine(direction="input", cache="read", quantity=read),
        ledger_pb.UsageLine(direction="output", quantity=2),
        ledger_pb.UsageLine(direction="output", reasoning=True, quantity=1),
    ]
    return pb.Usage(input_tokens=7, output_tokens=3, lines=lines, source="provider_final")


def answer(*parts: pb.Part, finish: str = "stop", read: int = 0) -> pb.GenerateResponse:
    message = pb.Message(role=pb.ROLE_ASSISTANT, parts=parts)
    return pb.GenerateResponse(message=message, finish_reason=finish, model=MODEL, usage=usage(read))


HELLO = answer(pb.Part(text="Hello"))
STARTED = pb.StreamEvent(started=pb.StreamStarted(model=MODEL, attempt=1))
THOUGHT = pb.Part(reasoning=pb.Reasoning(text="hm", signature=SIGNED, provider="anthropic-messages"))
CALL = pb.Part(tool_call=pb.ToolCall(id="call_1", name="lookup", arguments_json='{"a":1}'))


def asked(system: System, method: str = "Generate") -> pb.GenerateRequest:
    (found,) = system.fake.requests(method)
    request = found.request
    return request.request if method == "Stream" else request  # type: ignore[attr-defined,no-any-return]


async def posted(system: System, path: str, body: object, **headers: str) -> tuple[int, dict[str, object]]:
    async with system.http.post(path, json=body, headers=headers) as response:
        return response.status, await response.json()


async def raw_headers(system: System, **names: bytes) -> tuple[int, dict[str, object]]:
    """The answer to a chat with `synod-` headers of these very bytes."""
    body = json.dumps(CHAT).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: edge\r\nConnection: close\r\n"
    head += b"Authorization: Bearer %b\r\nContent-Length: %d\r\n" % (fakes.API_KEY.encode(), len(body))
    head += b"".join([b"synod-%b: %b\r\n" % (name.encode(), value) for name, value in names.items()])
    reader, writer = await asyncio.open_connection("127.0.0.1", system.served.host.settings.edge_port)
    writer.write(head + b"\r\n" + body)
    async with asyncio.timeout(WAIT_S):
        told, _, answered = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    return int(told.split()[1]), json.loads(answered)


async def frames(system: System, path: str, body: dict[str, object]) -> list[str]:
    """The data of the events of a stream."""
    async with system.http.post(path, json=body | {"stream": True}) as response:
        assert response.status == 200
        text = await response.text()
    return [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]


def openai_sdk(system: System, **options: object) -> AsyncOpenAI:
    return AsyncOpenAI(api_key=fakes.API_KEY, base_url=f"{system.url}/v1", **options)  # type: ignore[arg-type]


def anthropic_sdk(system: System, **options: object) -> AsyncAnthropic:
    return AsyncAnthropic(api_key=fakes.API_KEY, base_url=system.url, **options)  # type: ignore[arg-type]


# --- who asks, and what reaches the gateway ---


async def test_a_call_is_made_with_the_callers_token_and_counted_as_theirs(system: System) -> None:
    system.fake.answer = HELLO
    status, body = await posted(
        system, "/v1/chat/completions", CHAT, **{"synod-project": "p1", "idempotency-key": "k1"}
    )

    assert (status, body["choices"][0]["message"]["content"]) == (200, "Hello")  # type: ignore[index]
    request = asked(system)
    assert (request.request_id, request.attribution.project_id, request.attribution.user_id) == ("k1", "p1", "usr_key")
    (found,) = system.fake.requests("Generate")
    assert found.authorization.startswith("Bearer ey")


async def test_tags_in_a_header_are_told_to_the_gateway(system: System) -> None:
    system.fake.answer = HELLO
    await posted(system, "/v1/chat/completions", CHAT, **{"synod-tags": "team=search, feature = a=b ,"})
    assert dict(asked(system).attribution.tags) == {"team": "search", "feature": "a=b"}


async def test_a_tag_without_a_value_is_refused_by_its_name(system: System) -> None:
    status, body = await posted(system, "/v1/chat/completions", CHAT, **{"synod-tags": "team"})
    assert status == 400
    assert '"team": is written name=value' in body["error"]["message"]  # type: ignore[index]
    assert not system.fake.requests("Generate")


@pytest.mark.parametrize(
    ("sent", "name"),
    [
        ("Überblick".encode(), "Überblick"),
        ("Straße".encode(), "Straße"),
        ("日本".encode(), "日本"),
        ("Überblick".encode("latin-1"), "Überblick"),
        (b"search", "search"),
    ],
)
async def test_names_in_headers_are_utf_8_and_else_latin_1(system: System, sent: bytes, name: str) -> None:
    system.fake.answer = HELLO
    status, _ = await raw_headers(
        system, agent=sent, project=sent, conversation=sent, tags=b"team=" + sent + b",\t" + sent + b"=1"
    )

    found = asked(system).attribution
    assert (status, found.agent, found.project_id, found.conversation_id) == (200, name, name, name)
    assert dict(found.tags) == {"team": name, name: "1"}


@pytest.mark.parametrize("header", ["agent", "project", "conversation", "tags"])
@pytest.mark.parametrize(
    ("sent", "found"), [(b"team=a\tb", "0009"), (b"team=a\x9cb", "009C"), ("team=a\x85".encode(), "0085")]
)
async def test_a_control_character_in_a_header_is_refused_by_the_headers_name(
    system: System, header: str, sent: bytes, found: str
) -> None:
    status, body = await raw_headers(system, **{header: sent})

    assert (status, body["error"]["param"]) == (400, f"synod-{header}")  # type: ignore[index]
    assert f"has the control character U+{found}" in body["error"]["message"]  # type: ignore[index]
    assert system.fake.requests("Generate") == []


async def test_the_key_may_stand_where_anthropic_puts_it(system: System) -> None:
    system.fake.answer = HELLO
    async with anthropic_sdk(system) as client:
        message = await client.messages.create(model=MODEL, max_tokens=5, messages=USER)
    assert message.content[0].text == "Hello"
    assert message.id == f"msg_{asked(system).request_id}" == f"msg_{message._request_id}"


async def test_without_a_key_both_dialects_say_so_in_their_own_form(system: System) -> None:
    key = {"Authorization": "", "X-API-Key": ""}
    status, body = await posted(system, "/v1/chat/completions", CHAT, **key)
    assert (status, body["error"]["type"]) == (401, "invalid_request_error")  # type: ignore[index]
    status, body = await posted(system, "/v1/messages", MESSAGE, **key)
    assert (status, body["error"]["type"]) == (401, "authentication_error")  # type: ignore[index]


async def test_every_kind_of_content_reaches_the_gateway(system: System) -> None:
    system.fake.answer = HELLO
    data = base64.b64encode(b"bytes").decode()
    content = [
        {"type": "text", "text": "look"},
        {"type": "image_url", "image_url": {"url": PNG_URL}},
        {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}},
        {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}},
        {"type": "file", "file": {"filename": "a.pdf", "file_data": f"data:application/pdf;base64,{data}"}},
    ]
    await posted(system, "/v1/chat/completions", CHAT | {"messages": [{"role": "user", "content": content}]})

    assert list(asked(system).messages[0].parts) == [
        pb.Part(text="look"),
        pb.Part(image=pb.Image(media_type="image/png", data=PNG)),
        pb.Part(image=pb.Image(url="https://example.org/a.png")),
        pb.Part(audio=pb.Audio(media_type="audio/wav", data=b"bytes")),
        pb.Part(file=pb.File(media_type="application/pdf", name="a.pdf", data=b"bytes")),
    ]


async def test_a_message_of_the_sdk_comes_back_as_it_dumps_it(system: System) -> None:
    system.fake.answer = HELLO
    said = ChatCompletionMessage(role="assistant", content="hi").model_dump()
    async with openai_sdk(system) as client:
        await client.chat.completions.create(model=MODEL, messages=[*USER, said, *USER])
    assert asked(system).messages[1] == pb.Message(role=pb.ROLE_ASSISTANT, parts=[pb.Part(text="hi")])


async def test_every_parameter_of_a_chat_reaches_the_gateway(system: System) -> None:
    system.fake.answer = HELLO
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}, "strict": True}}
    form = {"type": "json_schema", "json_schema": {"name": "w", "schema": {"type": "object"}, "strict": True}}
    more = {
        "tools": [tool],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "parallel_tool_calls": False,
        "response_format": form,
        "max_completion_tokens": 9,
        "stop": "END",
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 3,
        "reasoning_effort": "low",
        "service_tier": "flex",
    }
    await posted(system, "/v1/chat/completions", CHAT | more)

    request = asked(system)
    assert request.tools[0] == pb.Tool(name="f", parameters_json='{"type":"object"}', strict=True)
    assert (request.tool_choice, request.HasField("parallel_tool_calls"), request.max_output_tokens) == ("f", True, 9)
    assert request.output_format.json_schema == '{"type":"object"}'
    assert (list(request.stop), request.temperature, request.top_p, request.seed) == (["END"], 0.5, 0.9, 3)
    assert (request.reasoning_effort, request.service_tier) == ("low", "flex")


@pytest.mark.parametrize("field", ["n", "logprobs", "logit_bias", "frequency_penalty", "audio", "functions"])
async def test_what_would_be_left_out_silently_is_refused_by_name(system: System, field: str) -> None:
    status, body = await posted(system, "/v1/chat/completions", CHAT | {field: 2})
    assert (status, body["error"]["param"]) == (400, field)  # type: ignore[index]
    assert system.fake.requests("Generate") == []


async def test_a_field_of_the_wrong_type_is_named_by_its_path(system: System) -> None:
    status, body = await posted(system, "/v1/chat/completions", {"model": MODEL, "messages": [{"role": "robot"}]})
    assert (status, body["error"]["param"]) == (400, "messages.0.role")  # type: ignore[index]
    status, body = await posted(system, "/v1/messages", CHAT)
    assert status == 400
    assert "max_tokens" in body["error"]["message"]  # type: ignore[index,operator]


@pytest.mark.parametrize(
    ("path", "kind"), [("/v1/chat/completions", "invalid_request_error"), ("/v1/messages", "request_too_large")]
)
async def test_a_body_beyond_the_limit_of_models_is_refused_in_the_dialects_form_and_the_connection_ended(
    system: System, path: str, kind: str
) -> None:
    most = EdgeLimits().model_body_bytes_max
    headers = {"Idempotency-Key": "call_413"}
    async with system.http.post(path, data=BytesIO(bytes(most + 1)), headers=headers) as response:
        body = await response.json()
    assert (response.status, response.headers["Connection"]) == (413, "close")
    assert (response.headers["x-should-retry"], response.headers["x-request-id"]) == ("false", "call_413")
    assert (body["error"]["type"], body["error"]["message"]) == (
        kind,
        f"the body is too large; send at most {most} bytes",
    )


class Recording(ThreadPoolExecutor):
    """Keeps what it is asked to call with."""

    def __init__(self) -> None:
        super().__init__(4)
        self.given: list[object] = []

    def submit(self, call: Any, /, *args: Any, **more: Any) -> Any:
        self.given.extend(getattr(call, "args", ()))
        return super().submit(call, *args, **more)


@pytest.mark.parametrize(("text", "beside"), [("x", False), ("x" * (INLINE_BYTES_MAX + 1), True)])
async def test_only_a_large_body_is_read_beside_the_loop(system: System, text: str, beside: bool) -> None:
    system.fake.answer = HELLO
    threads = Recording()
    asyncio.get_running_loop().set_default_executor(threads)
    body = json.dumps(CHAT | {"messages": [{"role": "user", "content": text}]}).encode()
    async with system.http.post("/v1/chat/completions", data=body) as response:
        assert response.status == 200
    assert asked(system).messages[0].parts[0].text == text
    assert (body in threads.given) is beside


@pytest.mark.parametrize("key", ["a b", "a\tc", "k\u00e9", "k" * 129])
async def test_a_key_that_would_not_come_back_as_it_was_sent_is_refused(system: System, key: str) -> None:
    status, body = await posted(system, "/v1/chat/completions", CHAT, **{"Idempotency-Key": key})
    assert (status, body["error"]["param"]) == (400, "idempotency-key")  # type: ignore[index]
    assert system.fake.requests("Generate") == []


async def test_what_the_gateway_refuses_is_told_by_the_name_of_the_header(system: System) -> None:
    system.fake.refusals["Generate"] = InvalidArgument(
        "attribution.agent", "a" * 999, "must have at most 200 characters"
    )
    status, body = await posted(system, "/v1/chat/completions", CHAT, **{"Synod-Agent": "a" * 999})
    assert (status, body["error"]["param"]) == (400, "synod-agent")  # type: ignore[index]
    assert body["error"]["message"].startswith("synod-agent = 'aaa")  # type: ignore[index]


@pytest.mark.parametrize("stream", [False, True])
async def test_what_the_gateway_refuses_of_a_part_is_told_by_the_place_where_it_stood(
    system: System, stream: bool
) -> None:
    unsound = InvalidArgument("messages[2].parts[0].reasoning.signature", b"{}", "must be what a model answered")
    system.fake.refusals = dict.fromkeys(("Generate", "Stream", "CountTokens"), unsound)
    result = {"type": "tool_result", "tool_use_id": "c", "content": "4"}
    history = [{"role": "user", "content": [result]}, {"role": "assistant", "content": [json.loads(SIGNED)]}]
    told = "messages.1.content.0 = b'{}': must be what a model answered"

    asked = CHAT | {"system": "Be brief.", "messages": history}
    status, body = await posted(system, "/v1/messages", asked | {"max_tokens": 9, "stream": stream})
    assert (status, body["error"]["message"]) == (400, told)  # type: ignore[index]
    status, body = await posted(system, "/v1/messages/count_tokens", asked)
    assert (status, body["error"]["message"]) == (400, told)  # type: ignore[index]


async def test_every_answer_keeps_browsers_safe_and_is_kept_by_none(system: System) -> None:
    async with system.http.get("/v1/nothing") as response:
        told = response.headers
    assert told["X-Content-Type-Options"] == "nosniff"
    assert "default-src 'none'" in told["Content-Security-Policy"]
    assert (told["Cache-Control"], told["X-Request-Id"]) == ("no-store", told["Request-Id"])


async def test_images_beyond_the_limit_of_rest_are_taken(system: System) -> None:
    system.fake.answer = HELLO
    large = base64.b64encode(bytes(2 * 1024 * 1024)).decode()
    content = [{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": large}}]
    body = json.dumps(MESSAGE | {"messages": [{"role": "user", "content": content}]}).encode()
    async with system.http.post("/v1/messages", data=BytesIO(body)) as response:
        assert response.status == 200
    assert len(asked(system).messages[0].parts[0].image.data) == 2 * 1024 * 1024


# --- embeddings ---


@pytest.mark.parametrize("encoding", ["float", "base64"])
async def test_texts_become_vectors_in_either_encoding(system: System, encoding: str) -> None:
    async with openai_sdk(system) as client:
        asked = {"model": "simulator/sim-embed", "dimensions": 3, "extra_headers": {"synod-project": "p1"}}
        found = await client.embeddings.create(input=["a", "b"], encoding_format=encoding, **asked)  # type: ignore[call-overload]
        decoded = await client.embeddings.create(input="a", **asked)  # type: ignore[call-overload]

    expected = [[1.0, -0.5, 0.0], [1.0, -0.5, 1.0]]
    packed = [base64.b64encode(struct.pack("<3f", *vector)).decode() for vector in expected]
    assert [one.embedding for one in found.data] == (expected if encoding == "float" else packed)
    assert decoded.data[0].embedding == expected[0]
    assert (found.model, found.usage.prompt_tokens) == ("simulator/sim-embed", 5)
    request = system.fake.requests("Embed")[0].request
    assert (list(request.texts), request.dimensions) == (["a", "b"], 3)  # type: ignore[attr-defined]
    assert (request.attribution.project_id, request.attribution.user_id) == ("p1", "usr_key")  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("field", "value"), [("input", [[1, 2]]), ("input", [1, 2]), ("encoding_format", "hex"), ("dimensions", 0)]
)
async def test_what_cannot_be_embedded_is_refused_by_its_name(system: System, field: str, value: object) -> None:
    status, body = await posted(system, "/v1/embeddings", {"model": "m", "input": "a"} | {field: value})
    assert (status, body["error"]["param"]) == (400, field)  # type: ignore[index]
    assert system.fake.requests("Embed") == []


# --- the provider's cache of prompts ---


async def test_breakpoints_of_anthropics_cache_reach_the_gateway(system: System) -> None:
    system.fake.answer = HELLO
    five_minutes, hour = {"type": "ephemeral"}, {"type": "ephemeral", "ttl": "1h"}
    source = {"type": "base64", "media_type": "image/png", "data": base64.b64encode(PNG).decode()}
    async with anthropic_sdk(system) as client:
        await client.messages.create(
            model=MODEL,
            max_tokens=9,
            cache_control=five_minutes,  # type: ignore[arg-type]
            system=[
                {"type": "text", "text": "one"},
                {"type": "text", "text": "two", "cache_control": hour},  # type: ignore[typeddict-item]
                {"type": "text", "text": "three"},
            ],
            tools=[{"name": "f", "input_schema": {"type": "object"}, "cache_control": hour}],  # type: ignore[typeddict-item]
            messages=[
                {"role": "user", "content": [{"type": "image", "source": source, "cache_control": five_minutes}]},  # type: ignore[list-item,typeddict-item]
                {
                    "role": "assistant",
                    "content": [
                        {"type": "tool_use", "id": "c", "name": "f", "input": {}, "cache_control": five_minutes}  # type: ignore[list-item,typeddict-item]
                    ],
                },
                {
                    "role": "user",
                    "content": [
                        {"type": "tool_result", "tool_use_id": "c", "content": "r", "cache_control": hour},  # type: ignore[list-item,typeddict-item]
                        {"type": "text", "text": "go on"},
                    ],
                },
            ],
        )

    request = asked(system)
    parts = [part for message in request.messages for part in message.parts]
    assert [(part.WhichOneof("part"), part.prompt_cache_ttl) for part in parts] == [
        ("text", "1h"),
        ("text", ""),
        ("image", "5m"),
        ("tool_call", "5m"),
        ("tool_result", "1h"),
        ("text", ""),
    ]
    assert [part.text for part in request.messages[0].parts] == ["one\ntwo\n", "three"]
    assert (request.tools[0].prompt_cache_ttl, request.prompt_cache_ttl) == ("1h", "5m")


async def test_breakpoints_of_the_cache_reach_the_gateway_in_the_openai_format_too(system: System) -> None:
    system.fake.answer = HELLO
    five_minutes, hour = {"type": "ephemeral"}, {"type": "ephemeral", "ttl": "1h"}
    told = [{"type": "text", "text": "be brief", "cache_control": hour}, {"type": "text", "text": "and kind"}]
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    spoken = [
        {"role": "system", "content": told},
        {"role": "assistant", "tool_calls": [call]},
        {
            "role": "tool",
            "tool_call_id": "c",
            "content": [{"type": "text", "text": "r", "cache_control": five_minutes}],
        },
    ]
    tools = [{"type": "function", "function": {"name": "f"}, "cache_control": five_minutes}]
    status, _ = await posted(system, "/v1/chat/completions", CHAT | {"messages": spoken, "tools": tools})

    assert status == 200
    request = asked(system)
    parts = [part for message in request.messages for part in message.parts]
    assert [part.prompt_cache_ttl for part in parts] == ["1h", "", "", "5m"]
    assert request.tools[0].prompt_cache_ttl == "5m"


@pytest.mark.parametrize(
    ("control", "field"), [({"type": "persistent"}, "type"), ({"type": "ephemeral", "ttl": "2h"}, "ttl")]
)
async def test_a_breakpoint_that_no_provider_knows_is_refused_by_its_path(
    system: System, control: dict[str, str], field: str
) -> None:
    tools = [{"type": "function", "function": {"name": "f"}, "cache_control": control}]
    status, body = await posted(system, "/v1/chat/completions", CHAT | {"tools": tools})
    assert (status, body["error"]["param"]) == (400, f"tools.0.cache_control.{field}")  # type: ignore[index]


# --- the cache ---


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"x-synod-cache": "on; ttl=60; tool-calls; similar"}, {}),
        ({}, {"synod_cache": {"ttl_s": 60, "tool_calls": True, "similar": True}}),
        ({"x-synod-cache": "on;ttl=60;tool-calls;similar"}, {"synod_cache": {"mode": "off"}}),
    ],
)
@pytest.mark.parametrize(("path", "call"), [("/v1/chat/completions", CHAT), ("/v1/messages", MESSAGE)])
async def test_a_caller_allows_answers_from_the_cache(
    system: System, path: str, call: dict[str, object], headers: dict[str, str], body: dict[str, object]
) -> None:
    system.fake.answer = HELLO
    await posted(system, path, call | body, **headers)

    assert asked(system).cache == pb.CachePolicy(mode=pb.CACHE_MODE_ON, ttl_s=60, tool_calls=True, similar=True)


@pytest.mark.parametrize("text", ["yes", "on; ttl=soon", "on; everything"])
async def test_a_cache_header_that_cannot_be_read_is_refused_by_name(system: System, text: str) -> None:
    status, body = await posted(system, "/v1/chat/completions", CHAT, **{"x-synod-cache": text})
    assert (status, body["error"]["param"]) == (400, "x-synod-cache")  # type: ignore[index]


async def test_a_caller_learns_whether_the_answer_is_from_the_cache(system: System) -> None:
    hit = pb.GenerateResponse()
    hit.CopyFrom(HELLO)
    hit.cache = "hit"
    started = pb.StreamEvent(started=pb.StreamStarted(model=MODEL, cache="hit"))
    system.fake.answer = hit
    system.fake.model_events = [started, pb.StreamEvent(completed=hit)]
    for more in ({}, {"stream": True}):
        async with system.http.post("/v1/chat/completions", json=CHAT | more) as response:
            assert response.headers["x-synod-cache"] == "hit"

    system.fake.answer = HELLO
    async with system.http.post("/v1/chat/completions", json=CHAT) as response:
        assert "x-synod-cache" not in response.headers


async def test_a_caller_learns_what_the_answer_is_without(system: System) -> None:
    warnings = ["temperature is not supported by «m»\r\n and was left out", "x"]
    warned = pb.GenerateResponse(warnings=warnings)
    warned.MergeFrom(HELLO)
    system.fake.answer = warned
    started = pb.StreamEvent(started=pb.StreamStarted(model=MODEL, warnings=warnings))
    on_record = pb.StreamEvent(completed=warned, sequence=1)
    for more, events in (
        ({}, []),
        ({"stream": True}, [started, pb.StreamEvent(completed=warned)]),
        ({"stream": True}, [on_record]),
    ):
        system.fake.model_events = events
        for path, call in (("/v1/chat/completions", CHAT), ("/v1/messages", MESSAGE)):
            async with system.http.post(path, json=call | more) as response:
                assert json.loads(response.headers["x-synod-warnings"]) == warnings

    system.fake.answer = HELLO
    async with system.http.post("/v1/chat/completions", json=CHAT) as response:
        assert "x-synod-warnings" not in response.headers


# --- reasoning ---


@pytest.mark.parametrize(
    ("thinking", "told"),
    [
        ({"type": "enabled", "budget_tokens": 1024}, {"reasoning_tokens_max": 1024}),
        (
            {"type": "enabled", "budget_tokens": 1024, "display": "omitted"},
            {"reasoning_tokens_max": 1024, "reasoning_display": "omitted"},
        ),
        ({"type": "disabled"}, {"reasoning_tokens_max": 0}),
        ({"type": "adaptive"}, {"reasoning_mode": "adaptive"}),
        (
            {"type": "adaptive", "display": "summarized"},
            {"reasoning_mode": "adaptive", "reasoning_display": "summarized"},
        ),
        ({"type": "between_tools"}, {"reasoning_mode": "between_tools"}),
    ],
)
async def test_how_to_think_reaches_the_gateway(
    system: System, thinking: dict[str, object], told: dict[str, object]
) -> None:
    system.fake.answer = HELLO
    async with anthropic_sdk(system) as client:
        await client.messages.create(model=MODEL, max_tokens=2000, messages=USER, thinking=thinking)  # type: ignore[call-overload]
    request = asked(system)
    assert {field.name: value for field, value in request.ListFields() if field.name.startswith("reasoning")} == told


@pytest.mark.parametrize("thinking", [{"type": "enabled"}, {"type": "enabled", "budget_tokens": 10}])
async def test_more_tokens_to_think_with_than_there_are_is_refused(system: System, thinking: dict[str, object]) -> None:
    status, body = await posted(system, "/v1/messages", MESSAGE | {"thinking": thinking})
    assert (status, "thinking.budget_tokens" in body["error"]["message"]) == (400, True)  # type: ignore[index,operator]


async def test_reasoning_of_anthropic_comes_back_with_its_signature(system: System) -> None:
    system.fake.answer = answer(THOUGHT, CALL, finish="tool_calls")
    async with anthropic_sdk(system) as client:
        first = await client.messages.create(model=MODEL, max_tokens=9, messages=USER)
        result = {"type": "tool_result", "tool_use_id": "call_1", "content": "12"}
        history = [*USER, {"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
        await client.messages.create(model=MODEL, max_tokens=9, messages=history)

    second = system.fake.requests("Generate")[1].request
    reasoning = second.messages[1].parts[0].reasoning  # type: ignore[attr-defined]
    assert (json.loads(reasoning.signature), reasoning.provider) == (json.loads(SIGNED), "anthropic-messages")
    assert [message.role for message in second.messages] == [pb.ROLE_USER, pb.ROLE_ASSISTANT, pb.ROLE_TOOL]  # type: ignore[attr-defined]


@pytest.mark.parametrize("payload", [b"", b"\x00\xff opaque"])
async def test_reasoning_of_another_provider_passes_through_anthropics_form_whole(
    system: System, payload: bytes
) -> None:
    thought = pb.Part(reasoning=pb.Reasoning(text="hm", signature=payload, provider="openai-responses"))
    system.fake.answer = answer(thought)
    _, first = await posted(system, "/v1/messages", MESSAGE)
    history = [*USER, {"role": "assistant", "content": first["content"]}, *USER]
    await posted(system, "/v1/messages", MESSAGE | {"messages": history})

    assert system.fake.requests("Generate")[1].request.messages[1].parts[0] == thought  # type: ignore[attr-defined]


SIGNATURE = pb.Part(reasoning=pb.Reasoning(signature=b'{"thoughtSignature":"EqQB/+=="}', provider="gemini-generate"))
OTHER_CALL = pb.Part(tool_call=pb.ToolCall(id="call_2", name="lookup", arguments_json="{}"))
SIGNED_TURN = answer(pb.Part(text="Let me see."), SIGNATURE, CALL, OTHER_CALL, finish="tool_calls")
CALL_EVENTS = [
    STARTED,
    pb.StreamEvent(text_delta="Let me see."),
    pb.StreamEvent(tool_call_delta=pb.ToolCallDelta(index=0, id="call_1", name="lookup")),
    pb.StreamEvent(tool_call_delta=pb.ToolCallDelta(index=0, arguments_delta='{"a":1}')),
    pb.StreamEvent(tool_call_delta=pb.ToolCallDelta(index=1, id="call_2", name="lookup", arguments_delta="{}")),
]
COMPLETED = pb.StreamEvent(completed=SIGNED_TURN)


@pytest.mark.parametrize("events", [None, [*CALL_EVENTS, COMPLETED], [COMPLETED]])
async def test_the_signature_of_a_call_comes_back_with_it_through_openais_form(
    system: System, events: list[pb.StreamEvent] | None
) -> None:
    system.fake.answer, system.fake.model_events = SIGNED_TURN, events or []
    async with openai_sdk(system) as client:
        if events is None:
            first = await client.chat.completions.create(model=MODEL, messages=USER)
        else:
            async with client.chat.completions.stream(model=MODEL, messages=USER) as stream:
                first = await stream.get_final_completion()
        said = first.choices[0].message
        results = [{"role": "tool", "tool_call_id": call.id, "content": "12"} for call in said.tool_calls]
        await client.chat.completions.create(model=MODEL, messages=[*USER, said.model_dump(), *results])

    signed, other = (call.model_dump() for call in said.tool_calls)
    assert signed["function"]["arguments"] == '{"a":1}'
    assert signed["extra_content"] == {"google": {"thought_signature": "EqQB/+=="}}
    assert "extra_content" not in other
    second = system.fake.requests("Generate")[-1].request
    assert list(second.messages[1].parts) == list(SIGNED_TURN.message.parts)  # type: ignore[attr-defined]


async def test_a_signature_of_anything_else_than_a_call_is_not_shown_as_a_calls(system: System) -> None:
    foreign = pb.Part(reasoning=pb.Reasoning(signature=SIGNED, provider="anthropic-messages"))
    thought = pb.Part(
        reasoning=pb.Reasoning(text="hm", signature=b'{"thought":true,"text":"hm"}', provider="gemini-generate")
    )
    for before in (foreign, thought):
        system.fake.answer = answer(SIGNATURE, pb.Part(text="Hello"), before, CALL, finish="tool_calls")
        _, body = await posted(system, "/v1/chat/completions", CHAT)
        assert "extra_content" not in json.dumps(body)


async def test_a_stream_of_reasoning_and_tools_builds_the_whole_message(system: System) -> None:
    system.fake.model_events = [
        STARTED,
        pb.StreamEvent(reasoning_delta="h"),
        pb.StreamEvent(reasoning_delta="m"),
        pb.StreamEvent(text_delta="Hello"),
        pb.StreamEvent(tool_call_delta=pb.ToolCallDelta(index=0, id="call_1", name="lookup")),
        pb.StreamEvent(tool_call_delta=pb.ToolCallDelta(index=0, arguments_delta='{"a":1}')),
        pb.StreamEvent(tool_call_delta=pb.ToolCallDelta(index=1, id="call_2", name="lookup", arguments_delta="{}")),
        pb.StreamEvent(completed=answer(THOUGHT, pb.Part(text="Hello"), CALL, finish="tool_calls", read=5)),
    ]
    async with (
        anthropic_sdk(system) as client,
        client.messages.stream(model=MODEL, max_tokens=9, messages=USER) as stream,
    ):
        message = await stream.get_final_message()

    thinking, text, first, second = message.content
    assert (thinking.thinking, thinking.signature, text.text) == ("hm", "EqQB/+==", "Hello")
    assert (first.id, first.input, second.id, second.input) == ("call_1", {"a": 1}, "call_2", {})
    assert (message.usage.input_tokens, message.usage.cache_read_input_tokens, message.usage.output_tokens) == (2, 5, 3)
    assert message.stop_reason == "tool_use"


async def test_pieces_of_calls_that_come_mixed_are_put_into_their_own_blocks(system: System) -> None:
    pieces = [(0, "call_1", '{"a":'), (1, "call_2", '{"b":'), (0, "", "1}"), (1, "", "2}"), (2, "call_3", "{}")]
    calls = [
        pb.ToolCallDelta(index=index, id=id, name="lookup" if id else "", arguments_delta=arguments)
        for index, id, arguments in pieces
    ]
    system.fake.model_events = [
        STARTED,
        *(pb.StreamEvent(tool_call_delta=call) for call in calls),
        pb.StreamEvent(completed=answer(CALL, finish="tool_calls")),
    ]
    async with (
        anthropic_sdk(system) as client,
        client.messages.stream(model=MODEL, max_tokens=9, messages=USER) as stream,
    ):
        events = [event async for event in stream]
        message = await stream.get_final_message()

    found = [(block.id, block.name, block.input) for block in message.content]
    assert found == [(f"call_{n}", "lookup", said) for n, said in ((1, {"a": 1}), (2, {"b": 2}), (3, {}))]
    assert [event.index for event in events if event.type == "content_block_stop"] == [0, 1, 2]


async def test_a_block_is_stopped_before_the_next_begins(system: System) -> None:
    """Also a call whose arguments are whole, and thinking beside thinking, each with its own signature."""
    other = pb.Reasoning(text="so", signature=SIGNED.replace(b"hm", b"so").replace(b"Eq", b"Ab"), provider=OWN)
    silent = pb.Reasoning(signature=b'{"type":"redacted_thinking","data":"x"}', provider=OWN)
    hidden = pb.Reasoning(signature=b'{"type":"thinking","thinking":"","signature":"Cd"}', provider=OWN)
    call = pb.ToolCallDelta(index=0, id="call_1", name="lookup", arguments_delta='{"a":1}')
    parts = [THOUGHT, *(pb.Part(reasoning=one) for one in (other, silent)), CALL, pb.Part(reasoning=hidden)]
    system.fake.model_events = [
        STARTED,
        pb.StreamEvent(reasoning_delta="hm"),
        pb.StreamEvent(reasoning_done=THOUGHT.reasoning),
        pb.StreamEvent(reasoning_delta="so"),
        pb.StreamEvent(reasoning_done=other),
        pb.StreamEvent(reasoning_done=silent),
        pb.StreamEvent(tool_call_delta=call),
        pb.StreamEvent(reasoning_done=hidden),
        pb.StreamEvent(text_delta="Hello"),
        pb.StreamEvent(completed=answer(*parts, pb.Part(text="Hello"))),
    ]
    events = [json.loads(frame) for frame in await frames(system, "/v1/messages", MESSAGE)]

    bounds = [(event["type"], event["index"]) for event in events if "index" in event and "delta" not in event]
    assert bounds == [(f"content_block_{side}", index) for index in range(6) for side in ("start", "stop")]
    signatures = [event["delta"]["signature"] for event in events if "signature" in event.get("delta", {})]
    assert signatures == ["EqQB/+==", "AbQB/+==", "Cd"]
    kinds = [event["content_block"]["type"] for event in events if event["type"] == "content_block_start"]
    assert kinds == ["thinking", "thinking", "redacted_thinking", "tool_use", "thinking", "text"]


async def test_a_gateway_of_before_signs_reasoning_with_the_whole_answer(system: System) -> None:
    silent = pb.Part(reasoning=pb.Reasoning(signature=b'{"type":"redacted_thinking","data":"x"}', provider=OWN))
    system.fake.model_events = [
        STARTED,
        pb.StreamEvent(reasoning_delta="hm"),
        pb.StreamEvent(text_delta="Hello"),
        pb.StreamEvent(completed=answer(silent, THOUGHT, pb.Part(text="Hello"))),
    ]
    async with (
        anthropic_sdk(system) as client,
        client.messages.stream(model=MODEL, max_tokens=9, messages=USER) as stream,
    ):
        events = [event async for event in stream]
        thinking, text, redacted = (await stream.get_final_message()).content

    assert (thinking.thinking, thinking.signature, text.text, redacted.data) == ("hm", "EqQB/+==", "Hello", "x")
    assert sorted(event.index for event in events if event.type == "content_block_stop") == [0, 1, 2]


# --- how an answer ended ---


@pytest.mark.parametrize(
    ("reason", "native", "chat", "message"),
    [
        ("stop", "stop_sequence", "stop", "stop_sequence"),
        ("stop", "STOP", "stop", "end_turn"),
        ("length", "max_output_tokens", "length", "max_tokens"),
        ("stop", "", "stop", "end_turn"),
    ],
)
async def test_an_answer_says_in_the_providers_own_word_how_it_ended_where_there_is_room(
    system: System, reason: str, native: str, chat: str, message: str
) -> None:
    ended = answer(pb.Part(text="Hello"), finish=reason)
    ended.provider_finish_reason = native
    system.fake.answer = ended
    system.fake.model_events = [STARTED, pb.StreamEvent(completed=ended)]
    _, whole = await posted(system, "/v1/chat/completions", CHAT)
    last = json.loads((await frames(system, "/v1/chat/completions", CHAT))[-2])
    _, said = await posted(system, "/v1/messages", MESSAGE)

    for choice in (whole["choices"][0], last["choices"][0]):  # type: ignore[index]
        assert (choice["finish_reason"], choice.get("native_finish_reason", "")) == (chat, native)
    assert said["stop_reason"] == message


async def test_what_was_written_to_the_cache_is_told_by_how_long_it_is_kept(system: System) -> None:
    system.fake.answer = answer(pb.Part(text="Hello"))
    for ttl, quantity in (("1h", 5), ("5m", 3)):
        line = ledger_pb.UsageLine(direction="input", cache="write", ttl=ttl, quantity=quantity)
        system.fake.answer.usage.lines.append(line)
    async with anthropic_sdk(system) as client:
        used = (await client.messages.create(model=MODEL, max_tokens=5, messages=USER)).usage

    assert used.cache_creation is not None
    assert (used.cache_creation.ephemeral_1h_input_tokens, used.cache_creation.ephemeral_5m_input_tokens) == (5, 3)
    assert used.cache_creation_input_tokens == 8


# --- the ends of a stream ---


async def test_a_stream_ends_in_one_done(system: System) -> None:
    system.fake.model_events = [STARTED, pb.StreamEvent(text_delta="Hello"), pb.StreamEvent(completed=HELLO)]
    found = await frames(system, "/v1/chat/completions", CHAT | {"stream_options": {"include_usage": True}})

    *chunks, last = found
    assert (last, found.count("[DONE]")) == ("[DONE]", 1)
    assert json.loads(chunks[-1])["usage"]["prompt_tokens"] == 7
    assert [json.loads(chunk)["choices"][0]["finish_reason"] for chunk in chunks[:-1]] == [None, None, "stop"]


@pytest.mark.parametrize(
    ("event", "content"),
    [
        (pb.StreamEvent(text_delta="Hello"), ""),
        (pb.StreamEvent(tool_call_delta=pb.ToolCallDelta(index=0, id="call_1", name="lookup")), None),
        (pb.StreamEvent(refusal_delta="No"), None),
        (None, None),
    ],
    ids=["text", "call", "refusal", "nothing"],
)
async def test_a_stream_begins_with_an_empty_text_only_where_text_follows(
    system: System, event: pb.StreamEvent | None, content: str | None
) -> None:
    system.fake.model_events = [STARTED, *([event] if event else []), pb.StreamEvent(sequence=9, completed=answer())]
    chunks = [json.loads(chunk) for chunk in (await frames(system, "/v1/chat/completions", CHAT))[:-1]]
    roles = [chunk["choices"][0]["delta"].get("role") for chunk in chunks]

    assert chunks[0]["choices"][0]["delta"]["content"] == content
    assert roles == ["assistant", *[None] * (len(chunks) - 1)]


async def test_a_number_of_any_length_is_the_same_in_whole_and_in_streamed_answers(system: System) -> None:
    number = 123456789012345678901234567890
    call = pb.ToolCall(id="call_1", name="pay", arguments_json=f'{{"wei":{number}}}')
    paid = answer(pb.Part(tool_call=call), finish="tool_calls")
    system.fake.answer, system.fake.model_events = paid, [pb.StreamEvent(sequence=1, completed=paid)]
    schema = {"type": "object", "properties": {"wei": {"type": "integer", "maximum": number}}}
    async with anthropic_sdk(system) as client:
        more: Any = {"model": MODEL, "max_tokens": 9, "tools": [{"name": "pay", "input_schema": schema}]}
        whole = await client.messages.create(messages=USER, **more)
        history = [*USER, {"role": "assistant", "content": whole.content}, *USER]
        async with client.messages.stream(messages=history, **more) as stream:
            streamed = await stream.get_final_message()

    assert [message.content[0].input for message in (whole, streamed)] == [{"wei": number}] * 2  # type: ignore[union-attr]
    said = asked(system, "Stream")
    assert said.messages[1].parts[0].tool_call.arguments_json == call.arguments_json
    assert json.loads(said.tools[0].parameters_json) == schema


async def test_usage_that_was_not_asked_for_is_not_sent(system: System) -> None:
    system.fake.model_events = [STARTED, pb.StreamEvent(text_delta="Hello"), pb.StreamEvent(completed=HELLO)]
    chunks = await frames(system, "/v1/chat/completions", CHAT)
    assert not any("usage" in json.loads(chunk) for chunk in chunks[:-1])


async def test_an_answer_on_record_is_streamed_whole(system: System) -> None:
    system.fake.model_events = [pb.StreamEvent(completed=answer(THOUGHT, CALL, finish="tool_calls"))]
    async with openai_sdk(system) as client, client.chat.completions.stream(model=MODEL, messages=USER) as stream:
        completion = await stream.get_final_completion()
    async with (
        anthropic_sdk(system) as other,
        other.messages.stream(model=MODEL, max_tokens=9, messages=USER) as messages,
    ):
        message = await messages.get_final_message()

    assert completion.choices[0].message.tool_calls[0].function.arguments == '{"a":1}'
    assert [block.type for block in message.content] == ["thinking", "tool_use"]
    assert message.content[1].input == {"a": 1}


@pytest.mark.parametrize("broken", ["event", "connection"])
async def test_group_08_a_stream_that_breaks_after_content_ends_in_one_error(system: System, broken: str) -> None:
    system.fake.model_events = [STARTED, pb.StreamEvent(text_delta="Hel")]
    if broken == "event":
        failure = pb.StreamError(reason="PROVIDER_UNAVAILABLE", message="the answer was cut", retryable=True)
        system.fake.model_events.append(pb.StreamEvent(error=failure))
    else:
        system.fake.break_stream = Unavailable("the answer was cut", 1.0)

    found = await frames(system, "/v1/chat/completions", CHAT)
    assert "[DONE]" not in found
    assert "the answer was cut" in json.loads(found[-1])["error"]["message"]
    with pytest.raises(openai.APIError, match="the answer was cut"):
        async with openai_sdk(system) as client:
            async for _ in await client.chat.completions.create(model=MODEL, messages=USER, stream=True):
                pass
    with pytest.raises(anthropic.APIStatusError, match="the answer was cut"):
        async with (
            anthropic_sdk(system) as other,
            other.messages.stream(model=MODEL, max_tokens=9, messages=USER) as stream,
        ):
            await stream.get_final_message()


async def test_group_08_a_stream_that_just_stops_after_content_ends_in_one_error(system: System) -> None:
    system.fake.model_events = [STARTED, pb.StreamEvent(text_delta="Hel")]
    found = await frames(system, "/v1/chat/completions", CHAT)
    assert "[DONE]" not in found
    assert "before its answer was whole" in json.loads(found[-1])["error"]["message"]


async def test_a_stream_that_ends_before_it_began_is_refused(system: System) -> None:
    system.fake.model_events = []
    status, body = await posted(system, "/v1/chat/completions", CHAT | {"stream": True})
    assert status == 503
    assert "before its answer was whole" in body["error"]["message"]  # type: ignore[index]


async def test_a_refusal_before_content_is_no_stream(system: System) -> None:
    system.fake.refusals["Stream"] = fakes.over_budget()
    status, body = await posted(system, "/v1/chat/completions", CHAT | {"stream": True})
    assert (status, body["error"]["code"]) == (402, "budget_exhausted")  # type: ignore[index]


async def test_group_07_a_client_who_leaves_ends_the_stream_at_the_gateway(system: System) -> None:
    system.fake.model_events = [STARTED, pb.StreamEvent(text_delta="Hel")]
    system.fake.hold_stream = True
    async with system.http.post("/v1/chat/completions", json=CHAT | {"stream": True}) as response:
        await response.content.readany()
        response.close()
    async with asyncio.timeout(WAIT_S):
        await system.fake.stream_left.wait()
    assert len(system.fake.requests("Stream")) == 1


@pytest.mark.parametrize(
    ("path", "body", "method"),
    [
        ("/v1/chat/completions", CHAT, "Generate"),
        ("/v1/messages", MESSAGE, "Generate"),
        ("/v1/embeddings", {"model": MODEL, "input": "Hi"}, "Embed"),
    ],
)
async def test_group_07_a_client_who_leaves_ends_the_call_at_the_gateway(
    system: System, path: str, body: dict[str, object], method: str
) -> None:
    system.fake.hold_stream = True
    waiting = asyncio.create_task(posted(system, path, body))
    async with asyncio.timeout(WAIT_S):
        while not system.fake.requests(method):  # noqa: ASYNC110 - the fake offers no event
            await asyncio.sleep(0.005)
        waiting.cancel()
        await system.fake.stream_left.wait()
    assert len(system.fake.requests(method)) == 1


# --- what cannot be carried on ---


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/v1/chat/completions", CHAT | {"seed": 2**63}, "seed"),
        ("/v1/chat/completions", CHAT | {"seed": -(2**63) - 1}, "seed"),
        ("/v1/chat/completions", CHAT | {"max_completion_tokens": 2**40}, "max_completion_tokens"),
        ("/v1/chat/completions", CHAT | {"max_tokens": 2**33}, "max_tokens"),
        ("/v1/responses", {"model": MODEL, "input": "Hi", "max_output_tokens": 2**31}, "max_output_tokens"),
        ("/v1/messages", MESSAGE | {"max_tokens": 2**33}, "max_tokens"),
        ("/v1/messages", MESSAGE | {"top_k": 2**31}, "top_k"),
        (
            "/v1/messages",
            MESSAGE | {"thinking": {"type": "enabled", "budget_tokens": 2**40}},
            "thinking.budget_tokens",
        ),
        ("/v1/embeddings", {"model": MODEL, "input": "Hi", "dimensions": 2**31}, "dimensions"),
    ],
)
async def test_an_integer_that_is_too_large_is_refused_by_its_name(
    system: System, path: str, body: dict[str, object], field: str
) -> None:
    status, answered = await posted(system, path, body)
    assert status == 400
    message = answered["error"]["message"]  # type: ignore[index]
    assert message.startswith(f"{field} = ")
    assert "should be less than" in message or "should be greater than" in message


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/v1/chat/completions", CHAT | {"verbosity": "low"}, "verbosity"),
        ("/v1/chat/completions", CHAT | {"moderation": {"model": "m"}}, "moderation"),
        ("/v1/responses", {"model": MODEL, "input": "Hi", "text": {"verbosity": "high"}}, "text.verbosity"),
        ("/v1/messages", MESSAGE | {"speed": "fast"}, "speed"),
        ("/v1/messages", MESSAGE | {"inference_geo": "us"}, "inference_geo"),
        ("/v1/messages", MESSAGE | {"mcp_servers": [{"url": "https://example.org"}]}, "mcp_servers"),
        ("/v1/messages", MESSAGE | {"system": [{"type": "image"}]}, "system.0.type"),
    ],
)
async def test_what_would_change_answer_or_price_is_refused_by_its_name(
    system: System, path: str, body: dict[str, object], field: str
) -> None:
    status, answered = await posted(system, path, body)
    assert (status, answered["error"]["message"].startswith(f"{field} = ")) == (400, True)  # type: ignore[index]


async def test_hints_and_usual_values_are_taken(system: System) -> None:
    system.fake.answer = HELLO
    hints = {"prompt_cache_key": "k", "user": "u", "verbosity": "medium", "store": False}
    assert (await posted(system, "/v1/chat/completions", CHAT | hints))[0] == 200
    cached = [{"type": "text", "text": "Be brief", "cache_control": {"type": "ephemeral"}}]
    assert (await posted(system, "/v1/messages", MESSAGE | {"speed": "standard", "system": cached}))[0] == 200


async def test_an_image_in_a_tools_result_is_refused_and_not_lost(system: System) -> None:
    shown = {"type": "image_url", "image_url": {"url": PNG_URL}}
    chat = CHAT | {"messages": [{"role": "tool", "tool_call_id": "c", "content": [shown]}]}
    status, answered = await posted(system, "/v1/chat/completions", chat)
    assert (status, 'messages.0.content.0.type = "image_url"' in str(answered)) == (400, True)

    image = {"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}}
    for content, field in (([image], "content.0.content.0.type"), ({"a": 1}, "content.0.content"), ([1], "content")):
        result = {"type": "tool_result", "tool_use_id": "c", "content": content}
        messages = [{"role": "user", "content": [result]}]
        status, answered = await posted(system, "/v1/messages", MESSAGE | {"messages": messages})
        assert (status, f"messages.0.{field}" in str(answered)) == (400, True)


# --- what the SDKs repeat ---


async def test_group_09_a_rate_limit_is_repeated_by_both_sdks_after_the_time_given(system: System) -> None:
    system.fake.answer = HELLO
    limited = ResourceExhausted("slow down", 0.01, reason="RATE_LIMITED")
    async with openai_sdk(system) as client, anthropic_sdk(system) as other:
        system.fake.refusals_once["Generate"] = limited
        completion = await client.chat.completions.create(model=MODEL, messages=USER)
        system.fake.refusals_once["Generate"] = limited
        message = await other.messages.create(model=MODEL, max_tokens=9, messages=USER)

    assert (completion.choices[0].message.content, message.content[0].text) == ("Hello", "Hello")
    assert len(system.fake.requests("Generate")) == 4


async def test_a_rate_limit_says_when_to_come_back(system: System) -> None:
    system.fake.refusals["Generate"] = ResourceExhausted("slow down", 1.25, reason="RATE_LIMITED")
    async with system.http.post("/v1/chat/completions", json=CHAT) as response:
        assert (response.status, response.headers["retry-after"], response.headers["retry-after-ms"]) == (
            429,
            "2",
            "1250",
        )
        assert (await response.json())["error"]["type"] == "rate_limit_error"


@pytest.mark.parametrize(
    ("headers", "most_s"),
    [
        ({"x-stainless-read-timeout": "20"}, 20),
        ({"x-stainless-timeout": "20"}, 20),
        ({"x-stainless-read-timeout": "9999"}, EdgeLimits().model_call_s),
        ({"x-stainless-read-timeout": "None", "x-stainless-timeout": "NOT_GIVEN"}, EdgeLimits().model_call_s),
        ({"x-stainless-read-timeout": "-1"}, EdgeLimits().model_call_s),
    ],
)
@pytest.mark.parametrize(
    ("path", "body", "method"),
    [
        ("/v1/chat/completions", CHAT, "Generate"),
        ("/v1/embeddings", {"model": MODEL, "input": "Hi"}, "Embed"),
    ],
)
async def test_a_whole_answer_is_wanted_for_as_long_as_the_sdk_waits(
    system: System, path: str, body: dict[str, object], method: str, headers: dict[str, str], most_s: float
) -> None:
    system.fake.answer = HELLO
    await posted(system, path, body, **headers)
    (found,) = system.fake.requests(method)
    assert found.left_s is not None
    assert most_s - WAIT_S < found.left_s < most_s + 1  # gRPC rounds up


async def test_a_stream_goes_on_for_longer_than_the_sdk_waits_for_one_piece(system: System) -> None:
    system.fake.model_events = [STARTED, pb.StreamEvent(completed=HELLO)]
    async with system.http.post(
        "/v1/chat/completions", json=CHAT | {"stream": True}, headers={"x-stainless-read-timeout": "20"}
    ) as response:
        await response.read()
    (found,) = system.fake.requests("Stream")
    assert found.left_s is not None
    assert found.left_s > 20


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (fakes.over_budget(), 402),
        (fakes.suspended_budget(), 402),
        (FailedPrecondition("no", reason="PROVIDER_REFUSED"), 400),
        (FailedPrecondition("no", reason="PROVIDER_ACCOUNT_REFUSED"), 502),
        (AlreadyExists("model call", "req", reason="REQUEST_ID_REUSED"), 409),
    ],
    ids=["budget", "suspended", "refused", "account", "reused"],
)
async def test_what_cannot_succeed_later_is_not_repeated(system: System, error: Exception, status: int) -> None:
    system.fake.refusals["Generate"] = error  # type: ignore[assignment]
    async with openai_sdk(system) as client, anthropic_sdk(system) as other:
        with pytest.raises(openai.APIStatusError) as first:
            await client.chat.completions.create(model=MODEL, messages=USER)
        with pytest.raises(anthropic.APIStatusError) as second:
            await other.messages.create(model=MODEL, max_tokens=9, messages=USER)

    assert (first.value.status_code, second.value.status_code) == (status, status)
    assert first.value.response.headers["x-should-retry"] == "false"
    assert len(system.fake.requests("Generate")) == 2


# --- models, counts, other paths ---


async def test_models_that_can_be_called_are_listed_under_all_their_names(system: System) -> None:
    async with openai_sdk(system) as client, anthropic_sdk(system) as other:
        theirs = [model.id async for model in client.models.list()]
        page = await other.models.list()
        one = await client.models.retrieve("small")
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("openai/gpt-4o")

    assert theirs == [model.id for model in page.data] == [MODEL, "small"]
    assert (one.id, one.owned_by) == ("small", "simulator")


async def test_tokens_are_counted_by_the_gateway(system: System) -> None:
    async with anthropic_sdk(system) as client:
        counted = await client.messages.count_tokens(model=MODEL, messages=USER, system="be brief")
    assert counted.input_tokens == 42
    (found,) = system.fake.requests("CountTokens")
    assert [message.role for message in found.request.messages] == [pb.ROLE_SYSTEM, pb.ROLE_USER]  # type: ignore[attr-defined]


async def test_an_unknown_path_under_v1_is_refused_in_the_dialects_form(system: System) -> None:
    status, body = await posted(system, "/v1/completions", {})
    assert (status, body["error"]["type"]) == (404, "invalid_request_error")  # type: ignore[index]
