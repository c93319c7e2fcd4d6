"""AWS's binary event streams: its own examples, any cut into chunks, any damage; and what Bedrock says in them."""

import base64
import struct
import zlib

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llm_gateway.errors import MalformedResponse
from llm_gateway.providers.bedrock import BedrockStream
from llm_gateway.providers.event_stream import EventStreamParser, Message
from provider_simulator.clouds import event_message

# Examples that AWS publishes with its SDKs (aws-c-event-stream, "empty_message" and "payload_no_headers").
EMPTY = bytes.fromhex("000000100000000005c248eb7d98c8ff")
NO_HEADERS = bytes.fromhex("0000001d00000000fd528c5a7b27666f6f273a27626172277dc3653936")
TEXTS = st.dictionaries(st.text(min_size=1, max_size=20), st.text(max_size=60), max_size=4)


def test_the_examples_of_aws_are_read() -> None:
    assert EventStreamParser().feed(EMPTY + NO_HEADERS) == [Message({}, b""), Message({}, b"{'foo':'bar'}")]


@given(st.lists(st.tuples(TEXTS, st.binary(max_size=100)), max_size=4), st.integers(1, 50))
def test_messages_are_the_same_however_they_are_cut(messages: list[tuple[dict[str, str], bytes]], piece: int) -> None:
    data = b"".join(event_message(headers, payload) for headers, payload in messages)
    parser = EventStreamParser()
    read = [each for at in range(0, len(data), piece) for each in parser.feed(data[at : at + piece])]
    assert read == [Message(headers, payload) for headers, payload in messages]


def test_headers_of_other_types_are_passed_over() -> None:
    other = b"\x01a\x00" + b"\x01b\x04\x00\x00\x00\x07" + b"\x01c\x06\x00\x02xy" + b"\x01d\x07\x00\x02ok"
    message = event_message({}, other)
    # The same bytes, said to be headers and not payload.
    assert EventStreamParser().feed(_with_headers_of(message, len(other))) == [Message({"d": "ok"}, b"")]


def _with_headers_of(message: bytes, size: int) -> bytes:
    prelude = message[:4] + struct.pack(">I", size)
    whole = prelude + struct.pack(">I", zlib.crc32(prelude)) + message[12:-4]
    return whole + struct.pack(">I", zlib.crc32(whole))


@pytest.mark.parametrize("at", range(len(NO_HEADERS)))
def test_a_damaged_byte_is_never_taken_for_an_answer(at: int) -> None:
    damaged = bytearray(NO_HEADERS)
    damaged[at] ^= 0x20
    with pytest.raises(MalformedResponse):
        EventStreamParser().feed(bytes(damaged))


def test_headers_that_end_too_early_are_malformed() -> None:
    message = _with_headers_of(event_message({}, b"\x09abc"), 4)
    with pytest.raises(MalformedResponse, match="headers"):
        EventStreamParser().feed(message)


def test_an_unfinished_message_is_not_told() -> None:
    assert EventStreamParser().feed(NO_HEADERS[:-1]) == []


def chunk(event: bytes) -> bytes:
    headers = {":event-type": "chunk", ":message-type": "event"}
    return event_message(headers, orjson.dumps({"bytes": base64.b64encode(event).decode(), "p": "abc"}))


def test_a_chunk_becomes_the_event_that_it_holds() -> None:
    assert BedrockStream().feed(chunk(b'{"type":"ping"}')) == b'event: ping\ndata: {"type":"ping"}\n\n'


def test_what_is_no_chunk_is_passed_over() -> None:
    headers = {":event-type": "initial-response", ":message-type": "event"}
    assert BedrockStream().feed(event_message(headers, b"{}")) == b""


@pytest.mark.parametrize("event", [b"no json", b'{"no":"type"}', b"[]"])
def test_a_chunk_that_holds_no_event_is_malformed(event: bytes) -> None:
    with pytest.raises(MalformedResponse):
        BedrockStream().feed(chunk(event))


@pytest.mark.parametrize(
    ("headers", "payload", "type", "message"),
    [
        (
            {":message-type": "exception", ":exception-type": "throttlingException"},
            b'{"message":"slow down"}',
            "rate_limit_error",
            "slow down",
        ),
        (
            {":message-type": "exception", ":exception-type": "modelStreamErrorException"},
            b"",
            "api_error",
            "modelStreamErrorException",
        ),
        (
            {":message-type": "error", ":error-code": "InternalFailure", ":error-message": "broken"},
            b"",
            "api_error",
            "broken",
        ),
    ],
)
def test_group_08_an_exception_in_the_stream_is_an_error_event(
    headers: dict[str, str], payload: bytes, type: str, message: str
) -> None:
    sent = BedrockStream().feed(event_message(headers, payload))
    name, data = sent.rstrip().split(b"\n")
    assert name == b"event: error"
    assert orjson.loads(data.removeprefix(b"data: "))["error"] == {"type": type, "message": message}
