"""What programs write, as JSON lines: one file for each program, and one stream of all."""

import asyncio
import json
import os
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from launcher.layout import Limits

CHUNK_BYTES = 64 * 1024
LAST_WORDS_MAX = 12
"""Lines of a program that an error about it quotes."""
ALL = "all"
Record = dict[str, object]


class Logs:
    """Writes <directory>/<program>.log and <directory>/all.log; `listener` hears each record as it comes."""

    def __init__(self, directory: Path, limits: Limits, listener: Callable[[Record], None] | None = None) -> None:
        self._directory = directory
        self._limits = limits
        self._listener = listener
        self._files: dict[str, _LogFile] = {}
        self._last_words: dict[str, deque[str]] = {}

    def path(self, program: str) -> Path:
        return self._directory / f"{program}.log"

    async def pump(self, program: str, descriptor: int) -> None:
        """Records what comes through a pipe until its last writer closes it. Owns the descriptor."""
        self._last_words[program] = deque(maxlen=LAST_WORDS_MAX)
        stream = asyncio.StreamReader()
        pipe = os.fdopen(descriptor, "rb", buffering=0)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(stream), pipe
        )
        try:
            await self._pump_lines(program, stream)
        finally:
            transport.close()

    def record(self, program: str, line: bytes) -> None:
        """Records one line; one that is not a JSON object becomes the event of a new one."""
        record = as_record(program, line, datetime.now(UTC))
        text = json.dumps(record, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"
        # On a full disk the line is lost, and not the program that would wait for its output to be taken.
        with suppress(OSError):
            self._file(program).write(text)
            self._file(ALL).write(text)
        self._last_words.setdefault(program, deque(maxlen=LAST_WORDS_MAX)).append(_in_words(record))
        if self._listener is not None:
            self._listener(record)

    def last_words(self, program: str) -> str:
        """What a program said last in its present or latest life, for error messages."""
        return "\n".join(self._last_words.get(program, ()))

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()

    async def _pump_lines(self, program: str, stream: asyncio.StreamReader) -> None:
        rest = b""
        while chunk := await stream.read(CHUNK_BYTES):
            *lines, rest = (rest + chunk).split(b"\n")
            if len(rest) > self._limits.log_line_bytes_max:
                lines, rest = [*lines, rest], b""
            for line in filter(None, lines):
                self.record(program, line[: self._limits.log_line_bytes_max])
        if rest:
            self.record(program, rest)

    def _file(self, name: str) -> "_LogFile":
        if name not in self._files:
            self._files[name] = _LogFile(self.path(name), self._limits.log_bytes_max)
        return self._files[name]


class _LogFile:
    """A file that is moved aside when it grows beyond its limit, so that a chatty program cannot fill the disk."""

    def __init__(self, path: Path, bytes_max: int) -> None:
        self._path = path
        self._bytes_max = bytes_max
        self._open()

    def write(self, text: bytes) -> None:
        if self._size + len(text) > self._bytes_max:
            self._output.close()
            self._path.replace(self._path.with_suffix(".log.1"))
            self._open()
        self._output.write(text)
        self._size += len(text)

    def close(self) -> None:
        self._output.close()

    def _open(self) -> None:
        # Unbuffered: a log that is read after a crash must be whole.
        self._output = self._path.open("ab", buffering=0)
        self._size = self._path.stat().st_size


def as_record(program: str, line: bytes, now: datetime) -> Record:
    """A line as a record that has at least ts, level, service and event."""
    text = line.decode(errors="replace").rstrip()
    level = next((level for sign, level in _LEVELS.items() if sign in text), "info")
    base: Record = {"ts": now.isoformat(timespec="milliseconds"), "level": level, "service": program}
    try:
        parsed = json.loads(text)
    except ValueError:
        parsed = None
    return {**base, **parsed} if isinstance(parsed, dict) else {**base, "event": text}


_LEVELS = {
    " [WRN] ": "warning",
    " [ERR] ": "error",
    " [FTL] ": "error",
    " WARNING:  ": "warning",
    " ERROR:  ": "error",
    " FATAL:  ": "error",
    " PANIC:  ": "error",
}
"""How nats-server and PostgreSQL mark the lines that matter."""


def _in_words(record: Record) -> str:
    rest = (f"{key}={value}" for key, value in record.items() if key not in ("ts", "level", "service", "event"))
    return " ".join((str(record.get("event", "")), *rest))
