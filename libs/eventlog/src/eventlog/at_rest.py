"""Whole payloads encrypted where the log stores them, by a switch: who reads the tables, or a backup, reads no payload.

`EncryptedLog` stands before a log: what is appended is encrypted, what is read is decrypted, and the log below hashes,
chains and proves ciphertext, so that a verification needs no key. Relay, views and callers stand before it, and see
plaintext: JetStream has its own encryption at rest, and views are tables of plaintext (README, "Encrypt at rest").

A stored payload is

    00 "aead" 01 ‖ number of the data key, 4 bytes ‖ nonce, 12 bytes ‖ AES-256-GCM, bound to the event's id

No JSON begins with a zero byte, so that a log may hold both, from before and after the switch. The nonce is HMAC-SHA256
over id and payload, not a random number, for the reason that sealing.py gives: a retry must produce the same bytes.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from time import monotonic
from typing import Final

import psycopg
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from eventlog.data_keys import DataKeys
from eventlog.errors import DuplicateEventId, KeyUnusable, LogUnavailable, PayloadUnreadable
from eventlog.log import Auditing, EventLog
from eventlog.records import (
    EVERYTHING,
    Append,
    Appended,
    Filter,
    Page,
    Snapshot,
    StoredEvent,
    StreamId,
    Verified,
    VerifiedStream,
)

MAGIC: Final = b"\x00aead\x01"
_NUMBER_BYTES: Final = 4
_NONCE_BYTES: Final = 12
_HEAD_BYTES: Final = len(MAGIC) + _NUMBER_BYTES
OVERHEAD_BYTES: Final = _HEAD_BYTES + _NONCE_BYTES + 16
"""By so much is a stored payload longer than what was appended."""
ROTATION_NOTICED_S: Final = 60.0
"""At the latest after so long does a process encrypt with the key to which another one rotated."""

_log = logging.getLogger(__name__)


class PayloadCipher:
    """One data key: encrypts under its number, decrypts what it encrypted."""

    def __init__(self, number: int, key: bytes) -> None:
        self._head = MAGIC + number.to_bytes(_NUMBER_BYTES, "big")
        self._cipher = AESGCM(key)
        self._nonce_key = hmac.digest(key, b"synod.eventlog.at-rest.nonce.v1", "sha256")

    def encrypt(self, payload: bytes, bound_to: bytes) -> bytes:
        """The stored form, the same for the same arguments."""
        text = len(bound_to).to_bytes(4, "big") + bound_to + payload
        nonce = hmac.digest(self._nonce_key, text, "sha256")[:_NONCE_BYTES]
        return self._head + nonce + self._cipher.encrypt(nonce, payload, self._head + bound_to)

    def decrypt(self, stored: bytes, bound_to: bytes) -> bytes:
        """What was encrypted. cryptography.exceptions.InvalidTag if it is not from here."""
        nonce = stored[_HEAD_BYTES : _HEAD_BYTES + _NONCE_BYTES]
        return self._cipher.decrypt(nonce, stored[_HEAD_BYTES + _NONCE_BYTES :], self._head + bound_to)


def key_number(stored: bytes) -> int | None:
    """The number of the data key that a stored payload needs; None if it is plaintext."""
    if not stored.startswith(MAGIC):
        return None
    return int.from_bytes(stored[len(MAGIC) : _HEAD_BYTES], "big")


class EncryptedLog:
    """An EventLog whose payloads and snapshots are ciphertext in the log below, `stored`.

    `hash` and `previous_hash` of the events it gives are over the ciphertext: who checks hashes reads `stored`. With
    `encrypting` off it writes plaintext, and reads what was encrypted before. `stopwatch` tells seconds from any start.
    """

    def __init__(
        self,
        stored: EventLog,
        keys: DataKeys,
        *,
        encrypting: bool = True,
        stopwatch: Callable[[], float] = monotonic,
    ) -> None:
        self.stored = stored
        self.encrypting = encrypting
        self._keys = keys
        self._ciphers: Mapping[int, PayloadCipher] = {}
        self._stopwatch = stopwatch
        self._look_again_at = 0.0

    async def prepare(self) -> None:
        """Load the data keys, the first one made if there is none. KeyUnusable if the master key is another."""
        await self._keys.prepare()
        await self._load()

    async def rotate(self) -> int:
        """Encrypt from here on with a new data key; its number. What older keys encrypted stays readable."""
        number = await self._keys.add()
        await self._load()
        return number

    async def append(self, *appends: Append) -> Appended:
        """As EventLog.append. What is repeated after a rotation, or a turn of the switch, is still the same request."""
        await self._notice_rotation()
        forms = self._forms()
        try:
            return await self._append_in_one_of(forms, appends)
        except DuplicateEventId:
            await self._load()  # perhaps another process has rotated, and stored it in a form unknown here
            newer = [form for form in self._forms() if form not in forms]
            if not newer:
                raise
            return await self._append_in_one_of(newer, appends)

    async def _append_in_one_of(self, forms: Sequence[PayloadCipher | None], appends: Sequence[Append]) -> Appended:
        *others, last = forms
        for form in others:
            try:
                return await self.stored.append(*(_in_form(append, form) for append in appends))
            except DuplicateEventId:
                continue  # perhaps it was stored in an older form
        return await self.stored.append(*(_in_form(append, last) for append in appends))

    async def read(self, after: int = 0, *, limit: int = 1000, where: Filter = EVERYTHING) -> list[StoredEvent]:
        return [await self._decrypted(event) for event in await self.stored.read(after, limit=limit, where=where)]

    async def next_page(self, after: int = 0, *, limit: int = 1000, where: Filter = EVERYTHING) -> Page:
        page = await self.stored.next_page(after, limit=limit, where=where)
        return page._replace(events=[await self._decrypted(event) for event in page.events])

    async def position_at(self, moment: datetime) -> int:
        return await self.stored.position_at(moment)

    async def read_stream(self, stream: StreamId, *, after: int = 0, limit: int = 1000) -> list[StoredEvent]:
        return [
            await self._decrypted(event) for event in await self.stored.read_stream(stream, after=after, limit=limit)
        ]

    async def head(self) -> int:
        return await self.stored.head()

    async def wait_for(self, position: int, timeout_s: float) -> int:
        return await self.stored.wait_for(position, timeout_s)

    async def verify(self, first: int = 1, last: int | None = None) -> Verified:
        return await self.stored.verify(first, last)

    async def verify_stream(self, stream: StreamId) -> VerifiedStream:
        return await self.stored.verify_stream(stream)

    async def audit(self, audit: Auditing) -> None:
        await self.stored.audit(audit)

    async def save_snapshot(self, stream: StreamId, version: int, fold: str, data: bytes) -> None:
        newest = self._forms()[0]
        kept = data if newest is None else newest.encrypt(data, _snapshot_id(stream, version, fold))
        await self.stored.save_snapshot(stream, version, fold, kept)

    async def load_snapshot(self, stream: StreamId, fold: str) -> Snapshot | None:
        """As EventLog.load_snapshot. One that was changed, or put there by somebody without the key, is none: no chain is
        over snapshots, and a state can be folded anew.
        """
        found = await self.stored.load_snapshot(stream, fold)
        if found is None or (key_number(found.data) is None and self.encrypting):
            return None
        try:
            bound_to = _snapshot_id(stream, found.version, fold)
            return replace(found, data=await self._payload(found.data, bound_to, f"the snapshot of {stream}"))
        except PayloadUnreadable as error:
            _log.warning("folding anew: %s", error)
            return None

    async def _decrypted(self, event: StoredEvent) -> StoredEvent:
        if not event.data.startswith(MAGIC):
            return event
        return event._replace(data=await self._payload(event.data, event.id.bytes, f"the event at {event.position}"))

    async def _payload(self, stored: bytes, bound_to: bytes, what: str) -> bytes:
        number = key_number(stored)
        if number is None:
            return stored
        if number not in self._ciphers:
            await self._load()  # another process may have rotated
        cipher = self._ciphers.get(number)
        if cipher is None:
            raise PayloadUnreadable(f"{what} is encrypted with data key {number}, which is not here")
        try:
            return cipher.decrypt(stored, bound_to)
        except (InvalidTag, ValueError) as error:
            raise PayloadUnreadable(f"{what} is not what data key {number} encrypted: verify the log") from error

    def _forms(self) -> list[PayloadCipher | None]:
        """How a payload may be stored, the present form first; None is plaintext."""
        ciphers = [self._ciphers[number] for number in sorted(self._ciphers, reverse=True)]
        return [*ciphers, None] if self.encrypting else [None, *ciphers]

    async def _notice_rotation(self) -> None:
        """Ask now and then for the newest key, by which what is appended is to be encrypted."""
        now = self._stopwatch()
        if not self.encrypting or now < self._look_again_at:
            return
        self._look_again_at = now + ROTATION_NOTICED_S
        try:
            if await self._keys.newest() not in self._ciphers:
                await self._load()
        except (psycopg.OperationalError, LogUnavailable, KeyUnusable) as error:
            _log.warning("encrypting with the newest data key known here, the keys cannot be read: %s", error)

    async def _load(self) -> None:
        self._look_again_at = self._stopwatch() + ROTATION_NOTICED_S
        try:
            keys = await self._keys.all()
        except psycopg.OperationalError as error:
            raise LogUnavailable(f"the data keys cannot be read: {error}") from error
        known = self._ciphers
        self._ciphers = {number: known.get(number) or PayloadCipher(number, key) for number, key in keys.items()}


def _in_form(append: Append, cipher: PayloadCipher | None) -> Append:
    if cipher is None:
        return append
    encrypted = [replace(event, data=cipher.encrypt(event.data, event.id.bytes)) for event in append.events]
    return replace(append, events=tuple(encrypted))


def _snapshot_id(stream: StreamId, version: int, fold: str) -> bytes:
    return f"{stream}\n{version}\n{fold}".encode()
