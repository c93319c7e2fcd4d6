"""A program that appends from a process of its own.

`appender.py DSN STREAM COUNT` appends to a shared stream; `appender.py DSN fence NAME` takes a fence and prints its epoch.
"""

import asyncio
import sys

from eventlog.errors import VersionConflict
from eventlog.fences import take_fence
from eventlog.postgres import PostgresEventLog
from eventlog.records import StreamId
from eventlog.testing import CONTEXT, NOON, a_stream, an_append


async def contend(log: PostgresEventLog, stream: StreamId, count: int) -> None:
    version = 0
    while count:
        try:
            (version,) = (await log.append(an_append(stream, expected=version))).versions
            count -= 1
        except VersionConflict as conflict:
            version = conflict.actual


async def take(dsn: str, name: str) -> None:
    async with await PostgresEventLog.open(dsn) as log:
        print((await take_fence(log, name, CONTEXT, NOON)).epoch)


async def main(dsn: str, stream: str, count: int) -> None:
    async with await PostgresEventLog.open(dsn) as log:
        others = [log.append(an_append(a_stream())) for _ in range(count)]
        await asyncio.gather(contend(log, StreamId.parse(stream), count), *others)


if __name__ == "__main__":
    if sys.argv[2] == "fence":
        asyncio.run(take(sys.argv[1], sys.argv[3]))
    else:
        asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
