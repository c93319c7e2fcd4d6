"""What programs write becomes JSON lines."""

import asyncio
import json
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest
from launcher.layout import Limits
from launcher.logs import Logs, Record, as_record

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.mark.parametrize(
    ("line", "level"),
    [
        (b"[1] 2026/01/02 03:04:05.0 [WRN] Plaintext passwords", "warning"),
        (b"[1] 2026/01/02 03:04:05.0 [ERR] no quorum", "error"),
        (b"2026-01-02 03:04:05 UTC [1] FATAL:  no space", "error"),
        (b"2026-01-02 03:04:05 UTC [1] LOG:  ready", "info"),
        (b"Traceback (most recent call last):", "info"),
    ],
)
def test_a_plain_line_becomes_an_event_with_the_level_of_its_server(line: bytes, level: str) -> None:
    record = as_record("postgres", line, NOW)
    assert record == {
        "ts": "2026-01-02T03:04:05.000+00:00",
        "level": level,
        "service": "postgres",
        "event": line.decode(),
    }


def test_a_json_line_is_kept_and_completed(tmp_path: Path) -> None:
    record = as_record("ledger", b'{"event": "reserved", "run": "run_1", "level": "debug"}', NOW)
    assert record["level"] == "debug"
    assert record["run"] == "run_1"
    assert record["service"] == "ledger"


async def test_lines_arrive_in_order_whatever_their_chunks_and_too_long_ones_are_cut(tmp_path: Path) -> None:
    heard: list[Record] = []
    logs = Logs(tmp_path, Limits(log_line_bytes_max=10), heard.append)
    reading, writing = os.pipe()
    pumping = asyncio.create_task(logs.pump("chatty", reading))
    with os.fdopen(writing, "wb", buffering=0) as output:
        for piece in (b"fir", b"st\nsec", b"ond\n\n", b"0123456789abc\nlast"):
            output.write(piece)
    await pumping
    logs.close()

    assert [record["event"] for record in heard] == ["first", "second", "0123456789", "last"]
    assert logs.last_words("chatty") == "first\nsecond\n0123456789\nlast"


def test_a_log_that_grew_too_large_is_moved_aside(tmp_path: Path) -> None:
    logs = Logs(tmp_path, Limits(log_bytes_max=300))
    for number in range(9):
        logs.record("chatty", f"line {number}".encode())
    logs.close()

    kept = [*_events(tmp_path / "chatty.log.1"), *_events(tmp_path / "chatty.log")]
    assert kept == [f"line {number}" for number in range(9 - len(kept), 9)]
    assert all(file.stat().st_size <= 300 for file in tmp_path.iterdir())


def _events(file: Path) -> list[str]:
    return [json.loads(line)["event"] for line in file.read_text().splitlines()]
