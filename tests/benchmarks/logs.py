"""A log filled with plain events, for benchmarks that read one."""

from datetime import UTC, datetime

from eventlog.log import EventLog
from eventlog.records import ANY, Append, Context, NewEvent, StreamId
from synod.common.ids import uuid7

PAYLOAD = (
    b'{"run_id":"run_0123456789abcdef","model":"provider/model","input_tokens":812,"output_tokens":133,"text":"%s"}'
)
EVENT = PAYLOAD % (b"x" * (320 - len(PAYLOAD)))
CONTEXT = Context(tenant="bench", actor="bench", correlation="run_bench")
EVENTS_AN_APPEND = 500
STREAMS = 1000


async def fill(log: EventLog, events: int) -> None:
    """Appends ``events`` events of 320 bytes over a thousand streams."""
    for start in range(0, events, EVENTS_AN_APPEND):
        stream = StreamId("run", f"run_{start // EVENTS_AN_APPEND % STREAMS}")
        now = datetime.now(UTC)
        count = min(EVENTS_AN_APPEND, events - start)
        new = tuple(NewEvent("StepRecorded", 1, EVENT, uuid7(), now) for _ in range(count))
        await log.append(Append(stream, ANY, new, CONTEXT))
