"""How a system looks to a person."""

import os
from io import StringIO

from launcher.status import LiveStatus, PlainStatus, line, table
from launcher.supervisor import State, Status
from rich.console import Console

READY = Status("cost-ledger", "127.0.0.1:7105", State.READY, os.getpid(), 2)
BROKEN = Status("consensus", "127.0.0.1:7106", State.RESTARTING, None, 3, "exit code 1: no quorum\nat line 7")


def test_the_table_shows_state_restarts_address_memory_and_problem() -> None:
    output = StringIO()
    Console(file=output, width=140).print(table({"a": READY, "b": BROKEN}, 12.0))
    shown = output.getvalue()
    assert "1 of 2 ready  12 s" in shown
    row = next(text for text in shown.splitlines() if "cost-ledger" in text)
    assert all(word in row for word in ("● ready", " 2 ", "127.0.0.1:7105", "MiB"))
    row = next(text for text in shown.splitlines() if "consensus" in text)
    assert all(word in row for word in ("↻ restarting", " 3 ", "exit code 1: no quorum"))
    assert "at line 7" not in shown


def test_a_line_says_where_a_ready_program_is_and_why_another_is_not() -> None:
    assert line(READY, 2.5) == "   2.5 s  cost-ledger         ready       127.0.0.1:7105"
    assert line(BROKEN, 2.5) == "   2.5 s  consensus           restarting  restart 3  exit code 1: no quorum"


def test_plain_lines_come_for_changes_of_state_only() -> None:
    lines: list[str] = []
    with PlainStatus(lines.append) as view:
        for status in (READY, READY, BROKEN, READY):
            view.changed(status)
        view.changed(Status("cost-ledger", "", State.STOPPED))
    assert [text.split()[2:4] for text in lines] == [
        ["cost-ledger", "ready"],
        ["consensus", "restarting"],
        ["cost-ledger", "stopped"],
    ]


def test_the_live_table_is_drawn_on_a_terminal() -> None:
    output = StringIO()
    with LiveStatus(Console(file=output, force_terminal=True, width=140)) as view:
        view.changed(READY)
    assert "cost-ledger" in output.getvalue()
