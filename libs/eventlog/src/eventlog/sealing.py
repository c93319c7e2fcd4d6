"""Personal fields of an event, encrypted one by one with the key of the person they are about. Pure functions.

In the stored JSON a sealed field holds "[erased]", and one more member stands beside the fields:

    "$sealed": {"key": "<id of the key>", "fields": {"<JSON pointer, RFC 6901>": "<base64 of nonce ‖ AES-256-GCM>"}}

So a reader who knows nothing of keys reads an erased event, and no payload can be mistaken for a seal, because no field
of a model is called "$sealed". The ciphertext is bound to the event's id and the pointer, so that it cannot be moved. The
key's id tells what a destroyed key sealed from what the same person's next key did.

The nonce is HMAC-SHA256 over id, pointer and text under a key of its own, not a random number: whoever repeats an append
after a crash must produce the same bytes, or the log would refuse the retry as another fact under the same id. A nonce
then repeats only for the same text at the same place of the same event, which is the same ciphertext.
"""

from __future__ import annotations

import hmac
import json
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pydantic import BaseModel
from synod.common.personal import ERASED, Path, personal_paths

from eventlog.errors import SealBroken
from eventlog.records import StoredEvent

SEALED: Final = "$sealed"
KEY_BYTES: Final = 32
_KEY_ID_BYTES: Final = 8
_NONCE_BYTES: Final = 12
_PSEUDONYM_BYTES: Final = 16
_MARK: Final = b'"$sealed"'
_NO_SEAL: Final[Mapping[str, Any]] = {"key": "", "fields": {}}


class SubjectKey:
    """The data key of one person in one tenant."""

    def __init__(self, tenant: str, subject: str, key: bytes) -> None:
        self.tenant = tenant
        self.subject = subject
        self.key_id = hmac.digest(key, b"synod.eventlog.key-id.v1", "sha256")[:_KEY_ID_BYTES].hex()
        self._cipher = AESGCM(key)
        self._nonce_key = hmac.digest(key, b"synod.eventlog.nonce.v1", "sha256")
        self._pseudonym_key = hmac.digest(key, b"synod.eventlog.pseudonym.v1", "sha256")

    def pseudonym(self, text: str) -> str:
        """32 hexadecimal digits, the same for the same text, that nobody without the key can compute from it."""
        return hmac.digest(self._pseudonym_key, text.encode(), "sha256")[:_PSEUDONYM_BYTES].hex()

    def seal(self, text: bytes, bound_to: bytes) -> bytes:
        """The ciphertext of `text`, the same for the same arguments."""
        nonce = hmac.digest(self._nonce_key, len(bound_to).to_bytes(4, "big") + bound_to + text, "sha256")
        nonce = nonce[:_NONCE_BYTES]
        return nonce + self._cipher.encrypt(nonce, text, bound_to)

    def open(self, sealed: bytes, bound_to: bytes) -> bytes:
        """What was sealed. cryptography.exceptions.InvalidTag if it is not from here."""
        return self._cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], bound_to)


@dataclass(frozen=True, slots=True)
class Keyring:
    """The keys that a reader was given, by tenant and subject. Without the key, a sealed field reads as ERASED."""

    keys: Mapping[tuple[str, str], SubjectKey]

    def key_of(self, event: StoredEvent) -> SubjectKey | None:
        return None if event.data_subject is None else self.keys.get((event.tenant, event.data_subject))


NO_KEYS: Final = Keyring({})


def is_sealed(event: StoredEvent) -> bool:
    """Whether an event may hold sealed fields: cheap, and never wrong when it says no."""
    return event.data_subject is not None and may_be_sealed(event.data)


def may_be_sealed(data: bytes) -> bool:
    return _MARK in data


def differ_in_seal_only(one: bytes, other: bytes) -> bool:
    """Whether two events have the same fields, the same of them sealed, each by a key of its own."""
    if not (may_be_sealed(one) and may_be_sealed(other)):
        return False
    left, right = json.loads(one), json.loads(other)
    seal, other_seal = left.pop(SEALED, _NO_SEAL), right.pop(SEALED, _NO_SEAL)
    same = left == right and seal["fields"].keys() == other_seal["fields"].keys()
    return same and bool(seal["key"] != other_seal["key"])


def sealed_json(event: BaseModel, event_id: UUID, key: SubjectKey) -> bytes:
    """The event as it is stored, its personal fields sealed."""
    document = event.model_dump(mode="json")
    seals = {}
    for path in personal_paths(event):
        pointer = _pointer(path)
        text = _dumps(_value_at(document, path))
        seals[pointer] = b64encode(key.seal(text, _bound_to(event_id, pointer))).decode()
        _put(document, path, ERASED)
    return _dumps({**document, SEALED: {"key": key.key_id, "fields": seals}})


def opened_json(event: StoredEvent, keys: Keyring) -> bytes:
    """The event's data, with those fields in place whose key is at hand. SealBroken if a seal does not fit its key."""
    if not is_sealed(event):
        return event.data
    document = json.loads(event.data)
    seals, key = document.pop(SEALED, {}), keys.key_of(event)
    if key is not None and key.key_id == seals.get("key"):
        for pointer, sealed in seals["fields"].items():
            _put(document, _path(document, pointer), json.loads(_opened(event, pointer, sealed, key)))
    return _dumps(document)


def _opened(event: StoredEvent, pointer: str, sealed: str, key: SubjectKey) -> bytes:
    try:
        return key.open(b64decode(sealed), _bound_to(event.id, pointer))
    except (InvalidTag, ValueError) as error:
        raise SealBroken(event.position, pointer) from error


def _bound_to(event_id: UUID, pointer: str) -> bytes:
    return event_id.bytes + pointer.encode()


def _pointer(path: Path) -> str:
    return "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in path)


def _path(document: Any, pointer: str) -> Path:
    """The way that a pointer names: a step is an index where the document has a list."""
    path: list[str | int] = []
    for step in pointer.split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        path.append(int(name) if isinstance(_value_at(document, path), list) else name)
    return tuple(path)


def _value_at(document: Any, path: Sequence[str | int]) -> Any:
    for step in path:
        document = document[step]
    return document


def _put(document: Any, path: Path, value: object) -> None:
    _value_at(document, path[:-1])[path[-1]] = value


def _dumps(document: object) -> bytes:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
