"""Archived events as files: one for each range of positions, readable with `zcat` alone.

A file is a sequence of gzip members, so that `zcat` prints it as JSON lines: a header, the events in order (blocks of
1,000, each a member of its own), and an index of the blocks by position and stream. Data is base64, hashes are hex. The
header names the hash before the first event, so that the chain can be checked from file to file.

Events of version 1 of the format have no `stream_previous_hash`: there was none when they were written.
"""

from __future__ import annotations

import fcntl
import gzip
import os
import zlib
from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from hashlib import file_digest, sha256
from io import BufferedReader
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import orjson
from synod.common.ids import uuid7

from eventlog.chain import Verifier
from eventlog.errors import ArchiveDamaged
from eventlog.records import StoredEvent, StreamId, parse_stream

BLOCK_EVENTS: Final = 1_000
_FORMAT: Final = "eventlog-archive"
_FORMAT_VERSION: Final = 2
_LEVEL: Final = 6
_UNFINISHED: Final = ".unfinished"
_BLOCKS_CACHED_MAX: Final = 16
_INDEXES_CACHED_MAX: Final = 64
_UNREADABLE: Final = (OSError, EOFError, zlib.error, ValueError, LookupError, TypeError, AttributeError)
"""What reading damaged bytes raises: of gzip, of JSON, of what it was expected to say."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Where the events `first` to `last` are archived: the file's name, its size in bytes, its
    SHA-256, and at which byte its index begins."""

    first: int
    last: int
    file: str
    size: int
    sha256: bytes
    index_at: int


@dataclass(frozen=True, slots=True)
class Block:
    """Up to 1,000 events from position `first` on, in `size` bytes of the file at `offset`."""

    first: int
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Index:
    """The blocks of a segment, and in which of them each stream has events."""

    blocks: tuple[Block, ...]
    streams: dict[str, tuple[int, ...]]


class SegmentWriter:
    """Writes one segment block by block. Nothing has the file's final name before all of it is on disk.

    Until then its name is nobody else's, and it is locked: an archiver that lost its turn unnoticed spoils no file of the
    next one, which has the same bytes. What a crash leaves is unlocked, and `sweep` deletes it.
    """

    def __init__(self, directory: Path, first: int, last: int, previous_hash: bytes) -> None:
        self._path = directory / f"{first:020d}-{last:020d}.events.gz"
        self._unfinished = self._path.with_suffix(f".{uuid7().hex}{_UNFINISHED}")
        self._first, self._last = first, last
        self._blocks: list[Block] = []
        self._streams: dict[str, list[int]] = {}
        self._digest = sha256()
        self._size = 0
        self._file = self._unfinished.open("wb")
        fcntl.flock(self._file, fcntl.LOCK_EX)
        place = {"first": first, "last": last, "previous_hash": previous_hash.hex()}
        self._put([{"format": _FORMAT, "version": _FORMAT_VERSION, **place}])

    def add(self, events: Sequence[StoredEvent]) -> None:
        """The next block."""
        number = len(self._blocks)
        for stream in {str(event.stream) for event in events}:
            self._streams.setdefault(stream, []).append(number)
        offset = self._size
        self._put(_to_json(event) for event in events)
        self._blocks.append(Block(events[0].position, offset, self._size - offset))

    def finish(self) -> Segment:
        """Write the index, flush everything to disk, and give the file its name."""
        index_at = self._size
        blocks = [[block.first, block.offset, block.size] for block in self._blocks]
        self._put([{"blocks": blocks, "streams": self._streams}])
        with self._file as file:
            file.flush()
            os.fsync(file.fileno())
        self._unfinished.rename(self._path)
        _flush_directory(self._path.parent)
        return Segment(self._first, self._last, self._path.name, self._size, self._digest.digest(), index_at)

    def abandon(self) -> None:
        """Leave nothing behind."""
        self._file.close()
        self._unfinished.unlink(missing_ok=True)

    def _put(self, lines: Iterable[dict[str, object]]) -> None:
        member = gzip.compress(b"".join(orjson.dumps(line) + b"\n" for line in lines), _LEVEL, mtime=0)
        self._file.write(member)
        self._digest.update(member)
        self._size += len(member)


class SegmentReader:
    """Reads one segment; cheap to make, blocks and indexes used last are kept. ArchiveDamaged if the file is not whole."""

    def __init__(self, directory: Path, segment: Segment) -> None:
        self.segment = segment
        self._path = directory / segment.file

    def events(self, after: int) -> Iterator[StoredEvent]:
        """The events with a position above `after`, in order."""
        blocks = self._index().blocks
        begin = max(0, (after - self.segment.first + 1) // BLOCK_EVENTS)
        for block in blocks[begin:]:
            yield from (event for event in self._block(block) if event.position > after)

    def stream(self, stream: StreamId, after: int) -> Iterator[StoredEvent]:
        """The events of one stream with a version above `after`, in order."""
        index = self._index()
        for number in index.streams.get(str(stream), ()):
            for event in self._block(index.blocks[number]):
                if event.stream == stream and event.version > after:
                    yield event

    def verify(self, previous_hash: bytes) -> bytes:
        """The hash of the last event, if the file on disk is the one written and its chain holds; else ArchiveDamaged."""
        self.compare()
        verifier = Verifier(self.segment.first, self.segment.last, previous_hash)
        for block in _read_index(self._path, self.segment).blocks:
            verifier.check(_read_events(self._path, block))
        finding = verifier.finding()
        if finding.broken_at is not None:
            problem = f"position {finding.broken_at}: {finding.reason}"
            raise ArchiveDamaged(str(self._path), finding.broken_at, problem)
        return finding.head_hash

    def compare(self) -> None:
        """ArchiveDamaged unless the file on disk is, byte for byte, the one that was written."""
        with _opened(self._path, self.segment.first) as file:
            digest = file_digest(file, "sha256").digest()
        if digest != self.segment.sha256:
            problem = "its bytes are not those that were written"
            raise ArchiveDamaged(str(self._path), self.segment.first, problem)

    def _index(self) -> Index:
        return _index(self._path, self.segment)

    def _block(self, block: Block) -> tuple[StoredEvent, ...]:
        return _events(self._path, block)


def sweep(directory: Path) -> None:
    """Delete what archivers that died had begun to write, and nothing that one is writing."""
    for path in directory.glob(f"*{_UNFINISHED}"):
        # Opened for writing: a network file system locks for nobody else.
        with suppress(BlockingIOError, FileNotFoundError), path.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()


def _read_index(path: Path, segment: Segment) -> Index:
    place = Block(segment.first, segment.index_at, segment.size - segment.index_at)
    try:
        (line,) = _lines(path, place)
        blocks = tuple(Block(*block) for block in line["blocks"])
        return Index(blocks, {stream: tuple(numbers) for stream, numbers in line["streams"].items()})
    except _UNREADABLE as error:
        raise _unreadable(path, place, error) from error


def _read_events(path: Path, block: Block) -> tuple[StoredEvent, ...]:
    try:
        return tuple(_from_json(line) for line in _lines(path, block))
    except _UNREADABLE as error:
        raise _unreadable(path, block, error) from error


_index = lru_cache(maxsize=_INDEXES_CACHED_MAX)(_read_index)
_events = lru_cache(maxsize=_BLOCKS_CACHED_MAX)(_read_events)


def forget_read() -> None:
    """Read from the disk again what was kept of all files: to see what they hold now."""
    _index.cache_clear()
    _events.cache_clear()


def _lines(path: Path, block: Block) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in gzip.decompress(_bytes_at(path, block)).splitlines()]


def _bytes_at(path: Path, block: Block) -> bytes:
    with _opened(path, block.first) as file:
        file.seek(block.offset)
        data = file.read(block.size)
    if len(data) != block.size:
        problem = f"it ends at byte {block.offset + len(data)}, expected {block.offset + block.size}"
        raise ArchiveDamaged(str(path), block.first, problem)
    return data


@contextmanager
def _opened(path: Path, first: int) -> Iterator[BufferedReader]:
    """The file, of which `first` is the position that cannot be had if it cannot be read."""
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise ArchiveDamaged(str(path), first, f"it cannot be read: {error}") from error


def _unreadable(path: Path, block: Block, error: Exception) -> ArchiveDamaged:
    return ArchiveDamaged(str(path), block.first, f"the block at byte {block.offset} cannot be read: {error!r}")


def _to_json(event: StoredEvent) -> dict[str, object]:
    link = event.stream_previous_hash
    return event._asdict() | {
        "stream": str(event.stream),
        "data": b64encode(event.data).decode(),
        "stream_previous_hash": None if link is None else link.hex(),
        "previous_hash": event.previous_hash.hex(),
        "hash": event.hash.hex(),
    }


def _from_json(line: dict[str, Any]) -> StoredEvent:
    cause, link = line["causation"], line.get("stream_previous_hash")
    return StoredEvent(**{**line, "stream_previous_hash": None})._replace(
        stream=parse_stream(line["stream"]),
        id=UUID(line["id"]),
        occurred_at=datetime.fromisoformat(line["occurred_at"]),
        recorded_at=datetime.fromisoformat(line["recorded_at"]),
        causation=None if cause is None else UUID(cause),
        data=b64decode(line["data"]),
        stream_previous_hash=None if link is None else bytes.fromhex(link),
        previous_hash=bytes.fromhex(line["previous_hash"]),
        hash=bytes.fromhex(line["hash"]),
    )


def _flush_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
