"""Signed checkpoints as somebody outside checks them: by public keys of his own, and against copies that he kept."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from google.protobuf.json_format import ParseDict, ParseError
from synod.eventlog.v1.eventlog_pb2 import Checkpoint

from synod_client.errors import InvalidInput

WITNESSED_MAX = 1_000
"""As many as a service compares in one request."""


class PublicKeys:
    """The keys that whoever checks believes, by key id. With none, nothing is checked here."""

    def __init__(self, keys: Mapping[str, Ed25519PublicKey]) -> None:
        self._keys = dict(keys)

    @classmethod
    def load(cls, files: Iterable[Path]) -> "PublicKeys":
        """The Ed25519 keys in PEM files. Raises InvalidInput for a file that holds none."""
        keys = [_public_key(file) for file in files]
        return cls({_key_id(key): key for key in keys})

    @classmethod
    def of_system(cls, data: Path | None, service: str) -> "PublicKeys":
        """Those that a system on this machine exported for the log of a service: the present one and former ones."""
        return cls.load(sorted((data / "keys").glob(f"{service}.checkpoint*.pub.pem")) if data else ())

    def __bool__(self) -> bool:
        return bool(self._keys)

    def pem(self, key_id: str) -> bytes:
        """One of them as it is exported; empty if it is not here."""
        key = self._keys.get(key_id)
        return b"" if key is None else key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def problem(self, checkpoint: Checkpoint, log: str) -> str:
        """Why a checkpoint of `log` is not believed; empty if it is."""
        key = self._keys.get(checkpoint.key_id)
        if checkpoint.log != log:
            return f"it is a checkpoint of the log '{checkpoint.log}'"
        if key is None:
            return f"it is signed by key {checkpoint.key_id or 'none'}, not by {' or '.join(self._keys)}"
        try:
            key.verify(checkpoint.signature, signed_text(checkpoint))
        except InvalidSignature:
            return "its signature is not valid"
        return ""


def signed_text(checkpoint: Checkpoint) -> bytes:
    """What is signed, as libs/eventlog/src/eventlog/signing.py shows it."""
    at = checkpoint.signed_at.seconds * 1_000_000 + checkpoint.signed_at.nanos // 1_000
    hashes = (checkpoint.head_hash.hex(), checkpoint.root_hash.hex())
    lines = ("synod.eventlog.checkpoint.v1", checkpoint.log, checkpoint.position, *hashes, at)
    return "".join(f"{line}\n" for line in lines).encode()


def read_kept(file: Path) -> dict[str, list[Checkpoint]]:
    """The checkpoints that `synod events checkpoints` printed to a file, by log, ascending. InvalidInput for others."""
    kept: dict[str, list[Checkpoint]] = {}
    for checkpoint in _lines(file):
        kept.setdefault(checkpoint.log, []).append(checkpoint)
    return {log: sorted(found, key=lambda each: each.position) for log, found in kept.items()}


def sampled(checkpoints: Sequence[Checkpoint], limit: int = WITNESSED_MAX) -> list[Checkpoint]:
    """At most `limit` of them: the newest, which is over everything before it, and others evenly over the rest."""
    if len(checkpoints) <= limit:
        return list(checkpoints)
    return [checkpoints[(len(checkpoints) - 1) * number // (limit - 1)] for number in range(limit)]


def _lines(file: Path) -> Iterator[Checkpoint]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{file} cannot be read: {error}", "CHECKPOINTS_UNREADABLE") from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                yield _checkpoint(line)
            except (ValueError, ParseError) as error:
                raise InvalidInput(
                    f"line {number} of {file} is no checkpoint: {error}", "CHECKPOINT_INVALID"
                ) from error


def _checkpoint(line: str) -> Checkpoint:
    document = json.loads(line)
    if not isinstance(document, dict) or not document.get("log"):
        raise ValueError("it names no log")
    return ParseDict(document, Checkpoint())


def _public_key(file: Path) -> Ed25519PublicKey:
    try:
        key = load_pem_public_key(file.read_bytes())
    except (OSError, ValueError) as error:
        raise InvalidInput(f"{file} holds no public key in PEM: {error}", "PUBLIC_KEY_INVALID") from error
    if not isinstance(key, Ed25519PublicKey):
        raise InvalidInput(f"{file} holds a public key of another kind than Ed25519", "PUBLIC_KEY_INVALID")
    return key


def _key_id(key: Ed25519PublicKey) -> str:
    return sha256(key.public_bytes(Encoding.Raw, PublicFormat.Raw)).hexdigest()[:16]
