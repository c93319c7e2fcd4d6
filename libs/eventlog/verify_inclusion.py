"""Is this event in that log? Usage: python verify_inclusion.py event.json proof.json checkpoint.json public.pem

Needs what `synod events prove` writes and the package `cryptography`. Exit status 1 with the reason if it is not."""

import json
import struct
import sys
from base64 import b64decode
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import load_pem_public_key


def microseconds(text: str) -> int:
    return (datetime.fromisoformat(text) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def root_hash(leaf: bytes, index: int, size: int, path: list) -> bytes:  # RFC 9162, 2.1.3: siblings, the top one last
    if size == 1 or not path:
        return leaf if (index, size, path) == (0, 1, []) else b""
    left = 1 << (size - 1).bit_length() - 1
    if index < left:
        return sha256(b"\1" + root_hash(leaf, index, left, path[:-1]) + path[-1]).digest()
    return sha256(b"\1" + path[-1] + root_hash(leaf, index - left, size - left, path[:-1])).digest()


event, proof, signed = (json.loads(Path(name).read_text(encoding="utf-8")) for name in sys.argv[1:4])
columns = [event["stream"].encode(), bytes.fromhex(event["id"].replace("-", "")), event["type"].encode()]
columns += [event["tenant"].encode(), event["data_subject"].encode() if "data_subject" in event else None]
columns += [bytes.fromhex(event["causation_id"].replace("-", "")) if event.get("causation_id") else None]
columns += [event.get(name, "").encode() for name in ("correlation_id", "actor", "traceparent")]
columns += [b64decode(event.get(name, "")) for name in ("data", "stream_previous_hash") if name in {"data", *event}]
numbers = [int(event[name]) for name in ("position", "version", "type_version")]
numbers += [microseconds(event[name]) for name in ("occurred_at", "recorded_at")]
lengths = [0xFFFFFFFF if each is None else len(each) for each in columns]
head = (b"\x81" if len(columns) == 11 else b"") + struct.pack(f">qqiqq{len(columns)}I", *numbers, *lengths)
digest = sha256(b64decode(event["previous_hash"]) + head + b"".join(each or b"" for each in columns)).digest()
leaf, path = sha256(b"\0" + digest).digest(), [b64decode(step) for step in proof.get("path", [])]
hashes = [b64decode(signed[name]).hex() for name in ("head_hash", "root_hash")]
lines = ("synod.eventlog.checkpoint.v1", signed["log"], signed["position"], *hashes, microseconds(signed["signed_at"]))
public_key, text = load_pem_public_key(Path(sys.argv[4]).read_bytes()), "".join(f"{line}\n" for line in lines)
try:
    public_key.verify(b64decode(signed["signature"]), text.encode())
except InvalidSignature:
    sys.exit("the checkpoint is not signed by this key")
if root_hash(leaf, int(event["position"]) - 1, int(signed["position"]), path).hex() != hashes[1]:
    sys.exit("the event is not the one signed")
