"""The secrets of one system, made at the first start and kept in <data>/keys, readable by its owner only.

| file | what | who reads it |
|---|---|---|
| signing.pem | Ed25519 private key that signs tokens (PKCS #8) | agent-registry |
| public.pem | its public half | every service |
| <service>.key | the service's own API key | that service |
| <service>.checkpoint.pem | Ed25519 private key that signs the checkpoints of its event log (PKCS #8) | that service |
| <service>.checkpoint.pub.pem | its public half, mode 0644: to be given to whoever shall check | `synod events verify` |
| <service>.checkpoint.<any>.pub.pem | the public half of a former one: what that signed is still believed | both |
| <service>.master.key | 32 random bytes in base64 that wrap the keys of personal data and of payloads | that service |
| <service>.master.<any>.key | a former one: what it wrapped is wrapped anew at the start, then it can go | that service |
| service-keys.json | {service: SHA-256 of its key, hexadecimal} | agent-registry |
| dev.key | an API key for the person at this machine | agent-registry, the synod command |
| observer.nats | NATS address, with password, of who may read all events and publish none | subscribers, the SDK |
| client.nats | NATS address, with password, of who carries tasks to agents outside and their answers | the SDK |
| nats-storage.key | what JetStream's files are encrypted with; there once encryption at rest was on | NATS |
| administrator.nats | NATS address, with password, of who makes and changes streams | `synod nats` |
| passwords.json | of PostgreSQL's superuser and roles, and of NATS's users | the launcher |
"""

import hashlib
import json
import os
import secrets
from base64 import b64encode
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from launcher.errors import KeyLost

KEY_BYTES = 32
_OWNER_ONLY, _ALL_READ = 0o600, 0o644
SUPERUSER = "superuser"
OBSERVER = "observer"
CLIENT = "client"
ADMINISTRATOR = "administrator"
NATS_CLIENTS = (OBSERVER, CLIENT, ADMINISTRATOR)
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
    nats_storage: str = field(default="", repr=False)
    """What JetStream's files are encrypted with; empty if they are not."""


def ensure_keys(directory: Path, services: Iterable[str], *, encrypt_at_rest: bool = False) -> Credentials:
    """Makes what is missing in `directory` and returns all of it; what is there is never changed.

    A key that encrypts JetStream's files is made with `encrypt_at_rest`, and then needed for ever: so it is returned
    without it too.
    Raises KeyLost where a new key would take the place of one that signed already.
    """
    names = tuple(services)
    _ensure_key_pair(directory / "signing.pem", directory / "public.pem")
    for name in names:
        _ensure_checkpoint_key(directory, name)
        _ensure_master_key(master_key_file(directory, name))
    hashes = {name: _sha256(_ensure_key(directory / f"{name}.key", f"svc-{name}")) for name in names}
    write_secret(directory / "service-keys.json", json.dumps(hashes, indent=2))
    dev_file = directory / "dev.key"
    is_new = not dev_file.exists()
    dev_key = _ensure_key(dev_file, "dev")
    roles = (SUPERUSER, *(name.replace("-", "_") for name in names))
    passwords = _ensure_passwords(directory / "passwords.json", {"postgres": roles, "nats": (*NATS_CLIENTS, *names)})
    storage = _nats_storage_key(directory / "nats-storage.key", encrypt_at_rest)
    return Credentials(passwords["postgres"], passwords["nats"], dev_key, is_new, storage)


def nats_file(directory: Path, user: str) -> Path:
    """Where the NATS address of one of NATS_CLIENTS is kept."""
    return directory / f"{user}.nats"


def checkpoint_key_file(directory: Path, service: str) -> Path:
    """Where the private key lies that signs the checkpoints of a service's log."""
    return directory / f"{service}.checkpoint.pem"


def former_checkpoint_key_files(directory: Path, service: str) -> tuple[Path, ...]:
    """The public halves of the keys that signed before a rotation."""
    return tuple(sorted(directory.glob(f"{service}.checkpoint.*.pub.pem")))


def former_master_key_files(directory: Path, service: str) -> tuple[Path, ...]:
    """The master keys of before a rotation; what they wrapped is wrapped anew when the service starts."""
    return tuple(sorted(directory.glob(f"{service}.master.*.key")))


def master_key_file(directory: Path, service: str) -> Path:
    """Where the key lies that wraps the keys of personal data in a service's log."""
    return directory / f"{service}.master.key"


def write_secret(file: Path, text: str, mode: int = _OWNER_ONLY) -> None:
    """Writes a file that only its owner can read (`mode`), whole or not at all: half a key would be kept for ever."""
    unfinished = file.with_name(f".{file.name}.unfinished")
    unfinished.unlink(missing_ok=True)
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "w") as output:
        os.fchmod(descriptor, mode)  # whatever the caller's umask is
        output.write(text)
        output.flush()
        os.fsync(descriptor)
    unfinished.replace(file)


def _ensure_key_pair(private_file: Path, public_file: Path, public_mode: int = _OWNER_ONLY) -> None:
    if not private_file.exists():
        key = Ed25519PrivateKey.generate()
        write_secret(private_file, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode())
        public_file.unlink(missing_ok=True)
    if not public_file.exists():
        public = load_pem_private_key(private_file.read_bytes(), password=None).public_key()
        pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        write_secret(public_file, pem.decode(), public_mode)


def _ensure_checkpoint_key(directory: Path, service: str) -> None:
    private_file = checkpoint_key_file(directory, service)
    public_file = private_file.with_suffix(".pub.pem")
    if public_file.exists() and not private_file.exists():
        former = public_file.with_name(f"{service}.checkpoint.former.pub.pem")
        problem = f"the key that signs the checkpoints of {service} is lost, and {public_file.name} says there was one"
        remedy = (
            f"Put it back from a copy. If there is none, rename {public_file.name} to {former.name}: "
            f"a new key is made, and what the old one signed is still believed."
        )
        raise KeyLost("key", private_file, problem, remedy)
    _ensure_key_pair(private_file, public_file, _ALL_READ)


def _ensure_master_key(file: Path) -> None:
    if not file.exists():
        write_secret(file, b64encode(os.urandom(KEY_BYTES)).decode())


def _ensure_key(file: Path, key_id: str) -> str:
    if not file.exists():
        write_secret(file, f"syn_{key_id}_{secrets.token_urlsafe(KEY_BYTES)}")
    return file.read_text().strip()


def _nats_storage_key(file: Path, wanted: bool) -> str:
    if wanted and not file.exists():
        write_secret(file, secrets.token_urlsafe(KEY_BYTES))
    return file.read_text().strip() if file.exists() else ""


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
