"""A stored event as a message: the payload is the stored bytes, everything else is headers.

CloudEvents attributes in binary mode (`ce-` headers, per the working draft of the NATS binding), W3C trace context, and
`synod-` headers for the columns that CloudEvents has no name for. Nothing is lost: the event that comes out verifies
against the hash chain. Text that is not plain ASCII is percent-encoded, as in the CloudEvents HTTP binding.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from urllib.parse import quote, unquote
from uuid import UUID

from eventlog.records import StoredEvent, parse_stream

_PLAIN = re.compile(r"[!-$&-~]*")


def to_headers(event: StoredEvent, service: str) -> dict[str, str]:
    """The headers of an event of `service`; columns without a value have none."""
    headers = {
        "ce-specversion": "1.0",
        "ce-id": str(event.id),
        "ce-source": f"/synod/{service}",
        "ce-type": f"synod.{service}.{event.type}",
        "ce-subject": str(event.stream),
        "ce-time": event.occurred_at.isoformat(),
        "ce-datacontenttype": "application/json",
        "synod-tenant": event.tenant,
        "synod-version": str(event.version),
        "synod-type-version": str(event.type_version),
        "synod-recorded-at": event.recorded_at.isoformat(),
        "synod-actor": _encoded(event.actor),
        "synod-previous-hash": event.previous_hash.hex(),
        "synod-hash": event.hash.hex(),
    }
    optional = {
        "traceparent": event.traceparent,
        "synod-correlation": event.correlation,
        "synod-causation": "" if event.causation is None else str(event.causation),
        "synod-data-subject": event.data_subject or "",
        "synod-stream-previous-hash": (event.stream_previous_hash or b"").hex(),
    }
    headers.update((name, _encoded(value)) for name, value in optional.items() if value)
    return headers


def header_block(headers: Mapping[str, str]) -> bytes:
    """The headers as they go over the wire. ValueError for a value that would begin another header."""
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    if lines.count("\n") != len(headers) or lines.count("\r") != len(headers):
        raise ValueError(f"a header of {headers.get('ce-id')} has a line end in it")
    return f"NATS/1.0\r\n{lines}\r\n".encode()


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


def _encoded(value: str) -> str:
    return value if _PLAIN.fullmatch(value) else quote(value, safe="")


def _decoded(value: str) -> str:
    return unquote(value) if "%" in value else value
