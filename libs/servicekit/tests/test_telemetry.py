"""Logs a machine can read, traces that continue."""

import asyncio
import io
import json
import logging
import socket
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from opentelemetry.trace import SpanKind
from servicekit.telemetry import (
    CLOSE_S,
    Logger,
    Metrics,
    Tracing,
    configure_logging,
    continuing,
    log_fields,
    memory_limit_bytes,
    traceparent,
)

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    before = (root.level, root.handlers[:])
    stream = io.StringIO()
    configure_logging("cost-ledger", "info", stream)
    yield stream
    root.setLevel(before[0])
    root.handlers[:] = before[1]


def test_a_log_line_is_json_with_its_fields_and_its_trace(lines: io.StringIO) -> None:
    with Tracing("cost-ledger").span("reserve", PARENT), log_fields(run="run_1", agent="agt_1"):
        Logger("cost-ledger").info("budget_created", budget="bdg_1", limit=5)
    line = json.loads(lines.getvalue())
    assert line.pop("ts").endswith("Z")
    assert line == {
        "level": "info",
        "service": "cost-ledger",
        "event": "budget_created",
        "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
        "run": "run_1",
        "agent": "agt_1",
        "budget": "bdg_1",
        "limit": 5,
    }


def test_an_error_is_logged_with_its_stack(lines: io.StringIO) -> None:
    try:
        raise ValueError("wrong")
    except ValueError as error:
        Logger("cost-ledger").error("failed", error=error)
    line = json.loads(lines.getvalue())
    assert (line["level"], line["event"]) == ("error", "failed")
    assert "ValueError: wrong" in line["stack"]


def test_lines_of_libraries_are_json_too(lines: io.StringIO) -> None:
    logging.getLogger("some.library").warning("%d left", 3)
    line = json.loads(lines.getvalue())
    assert (line["event"], line["logger"]) == ("3 left", "some.library")


def test_there_is_no_traceparent_outside_of_a_trace() -> None:
    assert traceparent() == ""


@pytest.mark.parametrize("malformed", ["", "nonsense", "00-" + "0" * 32 + "-00f067aa0ba902b7-01"])
async def test_a_malformed_parent_begins_a_new_trace(malformed: str) -> None:
    span = Tracing("test").start("work", SpanKind.SERVER, malformed)
    version, trace_id, span_id, _flags = traceparent().split("-")
    span.end()
    assert (version, len(trace_id), len(span_id)) == ("00", 32, 16)
    assert trace_id != "0" * 32


@pytest.mark.parametrize(
    ("content", "limit"),
    [("536870912\n", 536870912), ("max\n", float("inf")), ("9223372036854771712\n", float("inf"))],
)
def test_the_memory_limit_is_that_of_the_control_group(content: str, limit: float, tmp_path: Path) -> None:
    older = tmp_path / "memory.limit_in_bytes"
    older.write_text(content)
    assert memory_limit_bytes((tmp_path / "memory.max", older)) == limit


def test_without_a_control_group_memory_is_not_limited(tmp_path: Path) -> None:
    assert memory_limit_bytes((tmp_path / "memory.max",)) == float("inf")


def test_a_process_tells_its_memory_and_its_clock() -> None:
    registry = Metrics().registry
    assert (registry.get_sample_value("process_resident_memory_bytes") or 0) > 2**20
    assert abs((registry.get_sample_value("process_clock_seconds") or 0) - time.time()) < 60


def test_a_span_that_nobody_records_has_an_id_of_its_own_in_the_trace_around_it() -> None:
    tracing = Tracing("cost-ledger")
    with tracing.span("outer", PARENT) as outer:
        around = traceparent()
        with tracing.tracer.start_as_current_span("inner"):
            within = traceparent()
        assert traceparent() == around
    assert traceparent() == ""
    assert not outer.is_recording()
    assert {told.split("-")[1] for told in (PARENT, around, within)} == {PARENT.split("-")[1]}
    assert len({told.split("-")[2] for told in (PARENT, around, within)}) == 3


def test_work_that_an_event_leads_to_is_in_its_trace_and_not_in_the_one_around_it() -> None:
    tracing = Tracing("cost-ledger")
    with tracing.span("around"):
        around = traceparent()
        with continuing(PARENT):
            told = traceparent()
            with tracing.span("within"):
                within = traceparent()
        assert traceparent() == around
    assert (told, within[:36]) == (PARENT, PARENT[:36])
    assert around[:36] != PARENT[:36]


async def test_a_span_may_end_in_another_task_than_it_began_in() -> None:
    async def follow() -> AsyncIterator[str]:
        with Tracing("cost-ledger").span("follow", PARENT):
            yield traceparent()

    following = follow()
    begun = await asyncio.create_task(anext(following))  # type: ignore[arg-type]  # a coroutine, as it happens
    await following.aclose()
    assert (begun[:36], traceparent()) == (PARENT[:36], "")


def test_what_an_event_leads_to_is_in_the_trace_of_the_event() -> None:
    with continuing(PARENT):
        within = traceparent()
    assert (within, traceparent()) == (PARENT, "")


def test_without_a_trace_nothing_is_continued() -> None:
    with continuing(""):
        assert traceparent() == ""


def test_a_collector_that_takes_nothing_does_not_hold_up_the_end() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        tracing = Tracing("cost-ledger", f"http://127.0.0.1:{silent.getsockname()[1]}")
        for _ in range(2_000):  # several batches, each of which the SDK would offer for as long as an export may take
            with tracing.span("reserve"):
                pass
        began = time.monotonic()
        tracing.close()
        assert time.monotonic() - began < 2 * CLOSE_S
