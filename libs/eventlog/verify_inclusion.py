"""Is this event in that log? Usage: python verify_inclusion.py event.json proof.json checkpoint.json public.pem

Needs nothing of the log's owner but these four files: the event, the proof and the checkpoint in the JSON form of
synod.eventlog.v1 (Event, InclusionProof, Checkpoint; 64-bit numbers as text, bytes in base64). Exit status 0 if the
event is proven to be in the log as it was signed, else 1 and the reason. Depends on the package `cryptography` alone.
"""

import json
import struct
import sys
from base64 import b64decode
from datetime import datetime, timedelta, timezone
from hashlib import sha256
from pathlib import Path
from uuid import UUID

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import load_pem_public_key


def microseconds(text: str) -> int:
    at = datetime.fromisoformat(text.replace("Z", "+00:00"))
    return (at - datetime(1970, 1, 1, tzinfo=timezone.utc)) // timedelta(microseconds=1)  # noqa: UP017


def event_hash(event: dict) -> bytes:
    """SHA-256 over the hash before and every column: lengths first, so that no two events share a form."""
    causation, subject = event.get("causation_id"), event.get("data_subject")
    columns = [event["stream"].encode(), UUID(event["id"]).bytes, event["type"].encode(), event["tenant"].encode()]
    columns += [None if subject is None else subject.encode(), UUID(causation).bytes if causation else None]
    columns += [event.get(name, "").encode() for name in ("correlation_id", "actor", "traceparent")]
    columns += [b64decode(event.get("data", ""))]
    numbers = [int(event["position"]), int(event["version"]), int(event["type_version"])]
    times = [microseconds(event["occurred_at"]), microseconds(event["recorded_at"])]
    lengths = [0xFFFFFFFF if column is None else len(column) for column in columns]
    head = struct.pack(">qqiqq10I", *numbers, *times, *lengths)
    return sha256(b64decode(event["previous_hash"]) + head + b"".join(column or b"" for column in columns)).digest()


def root_hash(leaf: bytes, index: int, size: int, path: list) -> bytes:
    """The root that an inclusion proof leads to (RFC 9162, section 2.1.3.2)."""
    node, last = sha256(b"\x00" + leaf).digest(), size - 1
    for sibling in path:
        if last == 0:
            return b""
        if index & 1 or index == last:
            node = sha256(b"\x01" + sibling + node).digest()
            while not index & 1 and index:
                index, last = index >> 1, last >> 1
        else:
            node = sha256(b"\x01" + node + sibling).digest()
        index, last = index >> 1, last >> 1
    return node if last == 0 else b""


def problem(event: dict, proof: dict, checkpoint: dict, public_pem: bytes) -> str:
    head, root = b64decode(checkpoint["head_hash"]).hex(), b64decode(checkpoint["root_hash"])
    lines = ("synod.eventlog.checkpoint.v1", checkpoint["log"], checkpoint["position"], head, root.hex())
    text = "".join(f"{line}\n" for line in (*lines, microseconds(checkpoint["signed_at"])))
    try:
        load_pem_public_key(public_pem).verify(b64decode(checkpoint["signature"]), text.encode())
    except InvalidSignature:
        return "the checkpoint is not signed by this key"
    position, size = int(event["position"]), int(checkpoint["position"])
    if not 1 <= position <= size:
        return "the checkpoint does not reach to the event"
    path = [b64decode(step) for step in proof.get("path", [])]
    return "" if root_hash(event_hash(event), position - 1, size, path) == root else "the event is not the one signed"


if __name__ == "__main__":
    *documents, key = [Path(argument).read_bytes() for argument in sys.argv[1:5]]
    found = problem(*map(json.loads, documents), key)
    if found:
        sys.exit(found)
    sys.stdout.write("the event is in the log as it was signed\n")
