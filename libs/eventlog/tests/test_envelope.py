"""An event as a message: what stands in its headers, to the byte, and that nothing is lost on the way."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import pytest
from eventlog.chain import link
from eventlog.envelope import from_headers, header_block, to_headers
from eventlog.records import StoredEvent, StreamId


def a_stored_event(**differently: Any) -> StoredEvent:
    at = datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC)
    event = StoredEvent(
        position=7,
        stream=StreamId("run", "r-1"),
        version=3,
        id=UUID(int=5),
        type="Started",
        type_version=2,
        tenant="acme",
        data_subject="user 1",
        occurred_at=at,
        recorded_at=at.replace(second=6),
        causation=UUID(int=77),
        correlation="run é%",
        actor=" zoë",
        traceparent="00-ab-cd-01",
        data=b"{}",
        stream_previous_hash=None,
        previous_hash=bytes(32),
        hash=b"",
    )._replace(**differently)
    return event._replace(hash=link(event.previous_hash, event))


@pytest.mark.parametrize("stream_previous_hash", [None, bytes(range(32))], ids=["of before", "linked"])
def test_an_event_survives_the_way_through_headers_with_its_hash(stream_previous_hash: bytes | None) -> None:
    event = a_stored_event(stream_previous_hash=stream_previous_hash)
    headers = to_headers(event, "agent-runtime")
    assert all(value.isascii() and value == value.strip() for value in headers.values())
    decoded = from_headers(7, headers, b"{}")
    assert decoded == event
    assert link(decoded.previous_hash, decoded) == event.hash


def test_headers_as_bytes_are_those_that_the_client_would_write() -> None:
    zone = timezone(timedelta(hours=2))
    event = a_stored_event(
        stream_previous_hash=bytes(range(32)),
        correlation="run é%",
        occurred_at=datetime(2026, 11, 22, 3, 4, tzinfo=zone),
    )
    lines = (
        "NATS/1.0",
        "Nats-Batch-Id: x",
        "ce-specversion: 1.0",
        "ce-id: 00000000-0000-0000-0000-000000000005",
        "ce-source: /synod/agent-runtime",
        "ce-type: synod.agent-runtime.Started",
        "ce-subject: run/r-1",
        "ce-time: 2026-11-22T03:04:00+02:00",
        "ce-datacontenttype: application/json",
        "synod-tenant: acme",
        "synod-version: 3",
        "synod-type-version: 2",
        "synod-recorded-at: 2026-01-02T03:04:06.000006+00:00",
        "synod-actor: %20zo%C3%AB",
        f"synod-previous-hash: {'00' * 32}",
        f"synod-hash: {event.hash.hex()}",
        "traceparent: 00-ab-cd-01",
        "synod-correlation: run%20%C3%A9%25",
        "synod-causation: 00000000-0000-0000-0000-00000000004d",
        "synod-data-subject: user%201",
        "synod-stream-previous-hash: 000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f",
        "",
        "",
    )
    block = header_block(event, "agent-runtime", "Nats-Batch-Id: x\r\n")
    assert block == "\r\n".join(lines).encode()


def test_an_empty_data_subject_is_not_lost() -> None:
    event = a_stored_event(data_subject="")
    assert from_headers(7, to_headers(event, "agent-runtime"), b"{}") == event


def test_columns_without_a_value_have_no_header() -> None:
    headers = to_headers(
        a_stored_event(data_subject=None, causation=None, correlation="", traceparent=""), "agent-runtime"
    )
    assert list(headers)[-2:] == ["synod-previous-hash", "synod-hash"]


@pytest.mark.parametrize("value", ["a\r\nsynod-actor: another", "a\nb", "a\rb"])
def test_a_value_cannot_begin_another_header(value: str) -> None:
    with pytest.raises(ValueError, match="has a line end"):
        header_block(a_stored_event(tenant=value), "agent-runtime")
