"""The files of keys that the launcher or an administrator makes, read once at the start.

Each raises KeyFileInvalid, which names the setting, the file and what it must hold, and never its content.
"""

from pathlib import Path
from typing import Annotated, Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from pydantic import StringConstraints, TypeAdapter, ValidationError
from servicekit.auth import KeyFileInvalid

from agent_registry import keys
from agent_registry.errors import KeyMalformed

_Service = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]{0,62}$")]
_Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
_SERVICE_KEYS: Final = TypeAdapter(dict[_Service, _Sha256])


def read_signing_key(file: Path) -> Ed25519PrivateKey:
    """The key that signs tokens."""
    wanted = "a PEM file with the Ed25519 private key whose public half every service has"
    try:
        key = load_pem_private_key(_read("SYNOD_SIGNING_KEY_FILE", file, wanted), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _invalid("SYNOD_SIGNING_KEY_FILE", file, wanted) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise _invalid("SYNOD_SIGNING_KEY_FILE", file, wanted)
    return key


def read_key(file: Path | None) -> str | None:
    """The owner's API key, if there is a file."""
    if file is None:
        return None
    wanted = "one API key, syn_<key id>_<secret>"
    text = _read("SYNOD_DEV_KEY_FILE", file, wanted).decode(errors="replace").strip()
    try:
        keys.parse(text)
    except KeyMalformed as error:
        raise _invalid("SYNOD_DEV_KEY_FILE", file, wanted) from error
    return text


def read_service_keys(file: Path | None) -> dict[str, str]:
    """Service name to the SHA-256 of its key; empty without a file."""
    if file is None:
        return {}
    wanted = 'JSON such as {"cost-ledger": "<SHA-256 of its key, 64 hexadecimal digits>"}'
    try:
        return _SERVICE_KEYS.validate_json(_read("SYNOD_SERVICE_KEYS_FILE", file, wanted))
    except ValidationError as error:
        raise _invalid("SYNOD_SERVICE_KEYS_FILE", file, wanted) from error


def _read(setting: str, file: Path, wanted: str) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise KeyFileInvalid(f"{setting}={file} cannot be read ({error.strerror}); it must be {wanted}") from error


def _invalid(setting: str, file: Path, wanted: str) -> KeyFileInvalid:
    return KeyFileInvalid(f"{setting}={file} must be {wanted}")
