"""Signed checkpoints of a log, and the keys that make and check them (Ed25519, RFC 8032).

A checkpoint says: at `signed_at` the log named `log` had the events 1 to `position`, the last of them with the hash
`head_hash`, all of them under the Merkle root `root_hash`. What is signed is text, so that anyone can rebuild it:

    synod.eventlog.checkpoint.v1⏎ log⏎ position⏎ head hash, hex⏎ root hash, hex⏎ microseconds since 1970⏎
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Final

import orjson
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from eventlog.errors import KeyUnusable
from eventlog.records import require_token

_TITLE: Final = "synod.eventlog.checkpoint.v1"
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_OWNER_ONLY: Final = 0o600
_PEM_END: Final = b"-----END PUBLIC KEY-----"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a log was at one moment. `position` is also the number of events and of leaves: positions have no gaps."""

    log: str
    position: int
    head_hash: bytes
    root_hash: bytes
    signed_at: datetime
    key_id: str
    signature: bytes = b""

    @property
    def text(self) -> bytes:
        """What is signed."""
        at = (self.signed_at - _EPOCH) // _MICROSECOND
        lines = (_TITLE, self.log, str(self.position), self.head_hash.hex(), self.root_hash.hex(), str(at))
        return "".join(f"{line}\n" for line in lines).encode()

    def to_json(self) -> str:
        """One line; the JSON form of synod.eventlog.v1.Checkpoint (bytes in base64)."""
        fields = {
            "log": self.log,
            "position": str(self.position),
            "head_hash": b64encode(self.head_hash).decode(),
            "root_hash": b64encode(self.root_hash).decode(),
            "signed_at": self.signed_at.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
            "key_id": self.key_id,
            "signature": b64encode(self.signature).decode(),
        }
        return orjson.dumps(fields).decode()

    @classmethod
    def from_json(cls, line: str | bytes) -> Checkpoint:
        """The checkpoint that `to_json` wrote. KeyError, TypeError or ValueError for anything else."""
        fields = orjson.loads(line)
        return cls(
            log=fields["log"],
            position=int(fields["position"]),
            head_hash=b64decode(fields["head_hash"]),
            root_hash=b64decode(fields["root_hash"]),
            signed_at=datetime.fromisoformat(fields["signed_at"]),
            key_id=fields["key_id"],
            signature=b64decode(fields["signature"]),
        )


class SigningKey:
    """The key that signs a log's checkpoints: keep it where those who can write the database cannot read it."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.key_id = key_id(key.public_key())

    @classmethod
    def generate(cls) -> SigningKey:
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def load(cls, path: Path) -> SigningKey:
        """The private key in a PEM file (PKCS 8, without password). KeyUnusable if there is none."""
        try:
            key = load_pem_private_key(path.read_bytes(), password=None)
        except (OSError, ValueError, TypeError) as error:
            raise KeyUnusable(str(path), f"an Ed25519 private key in PEM is needed: {error}") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise KeyUnusable(str(path), "an Ed25519 private key is needed, this is another kind")
        return cls(key)

    def save(self, path: Path) -> None:
        """Write the private key for its owner only; FileExistsError rather than overwrite one."""
        path.touch(mode=_OWNER_ONLY, exist_ok=False)
        path.write_bytes(self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))

    @property
    def public_pem(self) -> bytes:
        """The public key, to be given to whoever shall check."""
        return self._key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    @property
    def trusted(self) -> TrustedKeys:
        """The keys with which checkpoints signed by this key are checked."""
        return TrustedKeys([self._key.public_key()])

    def sign(self, log: str, position: int, head_hash: bytes, root_hash: bytes, at: datetime) -> Checkpoint:
        require_token("log", log)
        unsigned = Checkpoint(log, position, head_hash, root_hash, at, self.key_id)
        return Checkpoint(log, position, head_hash, root_hash, at, self.key_id, self._key.sign(unsigned.text))


class TrustedKeys:
    """The public keys a verifier believes: the present one, and those of the past after a rotation."""

    def __init__(self, keys: Iterable[Ed25519PublicKey]) -> None:
        self._keys = {key_id(key): key for key in keys}

    @classmethod
    def load(cls, *paths: Path) -> TrustedKeys:
        """The public keys in PEM files, any number in each. KeyUnusable if one holds anything else."""
        return cls(key for path in paths for key in _public_keys(path))

    def __contains__(self, key_id: str) -> bool:
        return key_id in self._keys

    def including(self, other: TrustedKeys) -> TrustedKeys:
        return TrustedKeys([*self._keys.values(), *other._keys.values()])

    def problem(self, checkpoint: Checkpoint, log: str) -> str:
        """Why a checkpoint of `log` cannot be believed; empty if it can."""
        key = self._keys.get(checkpoint.key_id)
        if checkpoint.log != log:
            return f"it is a checkpoint of the log {checkpoint.log}"
        if key is None:
            return f"its key {checkpoint.key_id} is not trusted"
        try:
            key.verify(checkpoint.signature, checkpoint.text)
        except InvalidSignature:
            return "its signature is not valid"
        return ""


def key_id(key: Ed25519PublicKey) -> str:
    """The short name of a key: the first 16 hexadecimal digits of the SHA-256 of its 32 bytes."""
    return sha256(key.public_bytes(Encoding.Raw, PublicFormat.Raw)).hexdigest()[:16]


def _public_keys(path: Path) -> tuple[Ed25519PublicKey, ...]:
    try:
        text = path.read_bytes()
    except OSError as error:
        raise KeyUnusable(str(path), f"an Ed25519 public key in PEM is needed: {error}") from error
    *keys, rest = text.split(_PEM_END)
    if rest.strip():
        raise KeyUnusable(str(path), "after the last Ed25519 public key in PEM there is something else")
    return tuple(_public_key(key + _PEM_END, path) for key in keys)


def _public_key(pem: bytes, path: Path) -> Ed25519PublicKey:
    try:
        key = load_pem_public_key(pem)
    except ValueError as error:
        raise KeyUnusable(str(path), f"an Ed25519 public key in PEM is needed: {error}") from error
    if not isinstance(key, Ed25519PublicKey):
        raise KeyUnusable(str(path), "an Ed25519 public key is needed, this is another kind")
    return key
