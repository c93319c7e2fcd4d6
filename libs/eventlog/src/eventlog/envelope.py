"""A stored event as a message: the payload is the stored bytes, everything else is headers.

CloudEvents attributes in binary mode (`ce-` headers, per the working draft of the NATS binding), W3C trace context, and
`synod-` headers for the columns that CloudEvents has no name for. Nothing is lost: the event that comes out verifies
against the hash chain. Text that is not plain ASCII is percent-encoded, as in the CloudEvents HTTP binding.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from urllib.parse import quote, unquote
from uuid import UUID

from eventlog.records import StoredEvent, parse_stream

_PLAIN = re.compile(r"[!-$&-~]*")
_LINES = 14
"""Headers that every event has."""


def to_headers(event: StoredEvent, service: str) -> dict[str, str]:
    """The headers of an event of `service`; columns without a value have none. Raises as header_lines."""
    pairs = (line.partition(": ") for line in header_lines(event, service).split("\r\n")[:-1])
    return {name: value for name, _, value in pairs}


def header_block(event: StoredEvent, service: str, conditions: str = "") -> bytes:
    """The headers as they go over the wire, behind `conditions`: whole lines, for the server. Raises as header_lines."""
    return f"NATS/1.0\r\n{conditions}{header_lines(event, service)}\r\n".encode()


def header_lines(event: StoredEvent, service: str) -> str:
    """The headers of an event of `service`, a line each. ValueError for a value that would begin another header."""
    optional = [
        f"{name}: {value}\r\n"
        for name, value in (
            ("traceparent", _encoded(event.traceparent) or None),
            ("synod-correlation", _encoded(event.correlation) or None),
            ("synod-causation", event.causation),
            # An empty one is another than none: the hash tells the two apart.
            ("synod-data-subject", None if event.data_subject is None else _encoded(event.data_subject)),
            ("synod-stream-previous-hash", (event.stream_previous_hash or b"").hex() or None),
        )
        if value is not None
    ]
    # In one piece rather than as a mapping first: it is made for every event that is published.
    lines = (
        "ce-specversion: 1.0\r\n"
        f"ce-id: {event.id}\r\n"
        f"ce-source: /synod/{service}\r\n"
        f"ce-type: synod.{service}.{event.type}\r\n"
        f"ce-subject: {event.stream}\r\n"
        f"ce-time: {event.occurred_at.isoformat()}\r\n"
        "ce-datacontenttype: application/json\r\n"
        f"synod-tenant: {event.tenant}\r\n"
        f"synod-version: {event.version}\r\n"
        f"synod-type-version: {event.type_version}\r\n"
        f"synod-recorded-at: {event.recorded_at.isoformat()}\r\n"
        f"synod-actor: {_encoded(event.actor)}\r\n"
        f"synod-previous-hash: {event.previous_hash.hex()}\r\n"
        f"synod-hash: {event.hash.hex()}\r\n"
        f"{''.join(optional)}"
    )
    ends = _LINES + len(optional)
    if lines.count("\n") != ends or lines.count("\r") != ends:
        raise ValueError(f"a header of {event.id} has a line end in it")
    return lines


def from_headers(position: int, headers: Mapping[str, str], data: bytes) -> StoredEvent:
    """The event that `to_headers` described. KeyError or ValueError for headers of anything else."""
    causation = headers.get("synod-causation")
    data_subject = headers.get("synod-data-subject")
    stream_previous_hash = headers.get("synod-stream-previous-hash")
    return StoredEvent(
        position=position,
        stream=parse_stream(headers["ce-subject"]),
        version=int(headers["synod-version"]),
        id=UUID(headers["ce-id"]),
        type=headers["ce-type"].rpartition(".")[2],
        type_version=int(headers["synod-type-version"]),
        tenant=headers["synod-tenant"],
        data_subject=None if data_subject is None else _decoded(data_subject),
        occurred_at=datetime.fromisoformat(headers["ce-time"]),
        recorded_at=datetime.fromisoformat(headers["synod-recorded-at"]),
        causation=None if causation is None else UUID(causation),
        correlation=_decoded(headers.get("synod-correlation", "")),
        actor=_decoded(headers.get("synod-actor", "")),
        traceparent=_decoded(headers.get("traceparent", "")),
        data=data,
        stream_previous_hash=None if stream_previous_hash is None else bytes.fromhex(stream_previous_hash),
        previous_hash=bytes.fromhex(headers["synod-previous-hash"]),
        hash=bytes.fromhex(headers["synod-hash"]),
    )


@lru_cache(maxsize=4_096)
def _encoded(value: str) -> str:
    """Cached: the events of one act come one after another, of one actor and with one correlation."""
    return value if _PLAIN.fullmatch(value) else quote(value, safe="")


@lru_cache(maxsize=4_096)
def _decoded(value: str) -> str:
    return unquote(value) if "%" in value else value
