"""The key that wraps all others, and never lies with them: from a file, from the environment, or in a service of its own.

A key management service is one more MasterKey; eventlog.testing has the contract that every one keeps, and a fake.
"""

from __future__ import annotations

import os
from base64 import b64decode
from binascii import Error as Base64Error
from hashlib import sha256
from pathlib import Path
from typing import Final, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from eventlog.errors import KeyUnusable
from eventlog.sealing import KEY_BYTES

_NONCE_BYTES: Final = 12


class MasterKey(Protocol):
    """Wraps data keys. The seam to a key management service, which owns the key; both calls may fail as KeyUnusable.

    `context` names what the key is for, and must be the same to unwrap.
    """

    @property
    def key_id(self) -> str:
        """The key's name, stored with what it wrapped."""
        ...

    async def wrap(self, key: bytes, context: bytes) -> bytes: ...
    async def unwrap(self, wrapped: bytes, context: bytes) -> bytes: ...


class LocalMasterKey:
    """A master key of 32 bytes in this process's memory: AES-256-GCM under a random nonce. `source` says whence."""

    def __init__(self, key: bytes, source: str) -> None:
        if len(key) != KEY_BYTES:
            raise KeyUnusable(source, f"a master key of {KEY_BYTES} bytes in base64 is needed, this has {len(key)}")
        self._cipher = AESGCM(key)
        self._source = source
        self.key_id = sha256(b"synod.eventlog.master." + key).hexdigest()[:16]

    async def wrap(self, key: bytes, context: bytes) -> bytes:
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, key, context)

    async def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        try:
            return self._cipher.decrypt(wrapped[:_NONCE_BYTES], wrapped[_NONCE_BYTES:], context)
        except (InvalidTag, ValueError) as error:
            raise KeyUnusable(self._source, "it does not unwrap a key of this database") from error


class FileMasterKey(LocalMasterKey):
    """A master key in a file: base64 of 32 random bytes, for example from `openssl rand -base64 32`."""

    def __init__(self, path: Path) -> None:
        try:
            text = path.read_text()
        except OSError as error:
            raise KeyUnusable(str(path), f"the master key cannot be read: {error}") from error
        super().__init__(_decoded(text, str(path)), str(path))


def former_master_keys(path: Path) -> tuple[MasterKey, ...]:
    """The master keys in a file, one in each line. KeyUnusable if a line is none; a file may be empty."""
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise KeyUnusable(str(path), f"the former master keys cannot be read: {error}") from error
    return tuple(LocalMasterKey(_decoded(line, str(path)), str(path)) for line in lines if line.strip())


class EnvironmentMasterKey(LocalMasterKey):
    """A master key in a variable of the environment, in the same form."""

    def __init__(self, variable: str) -> None:
        super().__init__(_decoded(os.environ.get(variable, ""), variable), variable)


def _decoded(text: str, source: str) -> bytes:
    try:
        return b64decode(text.strip(), validate=True)
    except (Base64Error, ValueError) as error:
        raise KeyUnusable(source, f"a master key of {KEY_BYTES} bytes in base64 is needed: {error}") from error
