"""The secrets of one system, made at the first start and kept in <data>/keys, readable by its owner only.

| file | what | who reads it |
|---|---|---|
| signing.pem | Ed25519 private key that signs tokens (PKCS #8) | agent-registry |
| public.pem | its public half | every service |
| <service>.key | the service's own API key | that service |
| service-keys.json | {service: SHA-256 of its key, hexadecimal} | agent-registry |
| dev.key | an API key for the person at this machine | agent-registry, the synod command |
| observer.nats | NATS address, with password, of who may read all events and publish none | subscribers, the SDK |
| client.nats | NATS address, with password, of who carries tasks to agents outside and their answers | the SDK |
| passwords.json | of PostgreSQL's superuser and roles, and of NATS's users | the launcher |
"""

import hashlib
import json
import os
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

KEY_BYTES = 32
SUPERUSER = "superuser"
OBSERVER = "observer"
CLIENT = "client"
NATS_CLIENTS = (OBSERVER, CLIENT)
"""Users of NATS that are no services."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """What the launcher hands to the programs. `dev_key_is_new` until it was shown once."""

    postgres: Mapping[str, str] = field(repr=False)
    """Passwords by role: every service's module, and SUPERUSER."""
    nats: Mapping[str, str] = field(repr=False)
    """Passwords by user: every service's name, and NATS_CLIENTS."""
    dev_key: str = field(repr=False)
    dev_key_is_new: bool


def ensure_keys(directory: Path, services: Iterable[str]) -> Credentials:
    """Makes what is missing in `directory` and returns all of it; what is there is never changed."""
    names = tuple(services)
    _ensure_signing_key(directory)
    hashes = {name: _sha256(_ensure_key(directory / f"{name}.key", f"svc-{name}")) for name in names}
    write_secret(directory / "service-keys.json", json.dumps(hashes, indent=2))
    dev_file = directory / "dev.key"
    is_new = not dev_file.exists()
    dev_key = _ensure_key(dev_file, "dev")
    roles = (SUPERUSER, *(name.replace("-", "_") for name in names))
    passwords = _ensure_passwords(directory / "passwords.json", {"postgres": roles, "nats": (*NATS_CLIENTS, *names)})
    return Credentials(passwords["postgres"], passwords["nats"], dev_key, is_new)


def nats_file(directory: Path, user: str) -> Path:
    """Where the NATS address of one of NATS_CLIENTS is kept."""
    return directory / f"{user}.nats"


def write_secret(file: Path, text: str) -> None:
    """Writes a file that only its owner can read, whole or not at all: a half-written key would be kept for ever."""
    unfinished = file.with_name(f".{file.name}.unfinished")
    unfinished.unlink(missing_ok=True)
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as output:
        output.write(text)
        output.flush()
        os.fsync(descriptor)
    unfinished.replace(file)


def _ensure_signing_key(directory: Path) -> None:
    private_file, public_file = directory / "signing.pem", directory / "public.pem"
    if private_file.exists() and public_file.exists():
        return
    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    write_secret(public_file, public.decode())
    write_secret(private_file, private.decode())


def _ensure_key(file: Path, key_id: str) -> str:
    if not file.exists():
        write_secret(file, f"syn_{key_id}_{secrets.token_urlsafe(KEY_BYTES)}")
    return file.read_text().strip()


def _ensure_passwords(file: Path, wanted: Mapping[str, Iterable[str]]) -> dict[str, dict[str, str]]:
    known = json.loads(file.read_text()) if file.exists() else {}
    complete = {
        server: {user: known.get(server, {}).get(user) or secrets.token_urlsafe(KEY_BYTES) for user in users}
        for server, users in wanted.items()
    }
    if complete != known:
        write_secret(file, json.dumps(complete, indent=2))
    return complete


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
