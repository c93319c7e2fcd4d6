"""Output for people (tables) and for programs (--json), and exit codes that mean something."""

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from enum import IntEnum
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from synod_client.errors import (
    Broken,
    BudgetExhausted,
    BudgetSuspended,
    NotAllowed,
    NotFound,
    Refused,
    SynodError,
    TaskFailed,
    TryAgain,
)

# A pipe has no width of its own: wide enough there that tables are not folded.
_PIPE_WIDTH = 140
console = Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH)
errors = Console(stderr=True)
_WIDE = 1000
"""Columns of a table that no terminal shows: whole lines for grep and awk."""


_IN_MESSAGE = frozenset({"field", "value", "problem", "resource", "id", "permission", "principal", "error_id"})
"""Keys of google.rpc.ErrorInfo that services make their messages of."""


class Exit(IntEnum):
    """0 done; 1 what was asked did not come true; 2 wrong usage; 3 to 8 say why a service did not do it; 130 Ctrl-C."""

    DONE = 0
    NOT_TRUE = 1
    USAGE = 2
    REFUSED = 3
    NOT_ALLOWED = 4
    NOT_FOUND = 5
    UNAVAILABLE = 6
    BROKEN = 7
    BUDGET = 8
    INTERRUPTED = 130


def exit_code(error: SynodError) -> Exit:
    match error:
        case TaskFailed():
            return Exit.NOT_TRUE
        case BudgetExhausted() | BudgetSuspended():
            return Exit.BUDGET
        case NotFound():
            return Exit.NOT_FOUND
        case NotAllowed():
            return Exit.NOT_ALLOWED
        case Refused():
            return Exit.REFUSED
        case TryAgain():
            return Exit.UNAVAILABLE
        case Broken() | _:
            return Exit.BROKEN


def print_error(error: SynodError) -> None:
    """The message, then each field's problem on a line of its own. What the message is made of is not said twice."""
    errors.print(f"[red]error[/red] {escape(error.message)}", highlight=False, soft_wrap=True)
    for field, problem in error.details.items():
        if field not in _IN_MESSAGE and problem not in error.message:
            errors.print(f"  {field}: {problem}", highlight=False, soft_wrap=True, markup=False)


def print_json(value: object) -> None:
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=2 if sys.stdout.isatty() else None) + "\n")


def as_dict(message: Message) -> dict[str, Any]:
    """Field names as in proto; numbers of 64 bits are strings, as protobuf's JSON has it."""
    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


def print_messages(messages: Sequence[Message]) -> None:
    print_json([as_dict(message) for message in messages])


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Columns whose name ends in ``>`` are aligned to the right. The title may hold markup, cells are taken as they are.

    That there are no rows is said beside the table, not in it: on stderr.
    """
    table = Table(title=title or None, title_justify="left", box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column.removesuffix(">"), justify="right" if column.endswith(">") else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    shown_on = console if console.is_terminal else Console(width=_WIDE)
    shown_on.print(table)
    if not table.row_count:
        errors.print("[dim]there are none[/dim]")


def moment(timestamp: Timestamp) -> str:
    if not timestamp.seconds:
        return ""
    return datetime.fromtimestamp(timestamp.seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def enum_name(text: str, prefix: str) -> str:
    """``RUN_STATE_COMPLETED`` as ``completed``."""
    return text.removeprefix(prefix).lower()
