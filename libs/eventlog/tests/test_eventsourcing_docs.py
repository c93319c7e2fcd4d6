"""The page's examples run as they stand, one after the other."""

import re
import sys
from pathlib import Path
from types import ModuleType

import psycopg
import pytest

PAGE = Path(__file__).parent.parent / "docs" / "eventsourcing.md"


def test_the_examples_run_one_after_the_other(postgres_dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTGRES_DSN", postgres_dsn)
    page = ModuleType("bank")
    monkeypatch.setitem(sys.modules, "bank", page)  # the library looks for the module of each event class
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) >= 7
    for number, block in enumerate(blocks, 1):
        exec(compile(block, f"eventsourcing.md block {number}", "exec"), page.__dict__)

    with psycopg.connect(postgres_dsn) as connection:
        rows = connection.execute("select type, tenant, actor from eventlog_bank.events order by position").fetchall()
    assert rows == [
        ("bank_3AAccount_2EOpened", "local", "Bank"),
        ("bank_3AAccount_2EDeposited", "local", "Bank"),
        ("Deposited", "acme", "usr_alice"),
    ]
