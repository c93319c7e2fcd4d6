"""`python -m eventlog archive DSN DIRECTORY --keep EVENTS`: move the oldest events of a log to files.

Any argument may be `@FILE`, which stands for the lines of that file: a DSN with a password is best given so.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from eventlog.postgres import PostgresEventLog


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m eventlog", description=__doc__, fromfile_prefix_chars="@")
    archive = parser.add_subparsers(required=True).add_parser("archive", help="move the oldest events to files")
    archive.add_argument("dsn")
    archive.add_argument("directory", type=Path, help="the same for every process that opens the log")
    archive.add_argument("--schema", default="eventlog")
    archive.add_argument(
        "--keep", type=int, required=True, metavar="EVENTS", help="the newest, which stay in the database"
    )
    archive.add_argument("--segment", type=int, default=1_000_000, metavar="EVENTS", help="events of a file")
    options = parser.parse_args(arguments)
    return asyncio.run(_archive(options))


async def _archive(options: argparse.Namespace) -> int:
    async with await PostgresEventLog.open(options.dsn, schema=options.schema, archive=options.directory) as log:
        for segment in await log.archive(keep_events=options.keep, segment_events=options.segment):
            sys.stdout.write(f"{segment.first} to {segment.last}: {segment.file}, {segment.size} bytes\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
