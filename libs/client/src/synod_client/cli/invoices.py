"""A provider's invoice as a file: CSV with a header, or JSON lines. What cannot be read for certain is refused.

An amount that is misread becomes an adjustment in the ledger, so nothing is guessed: no column by another name or case, no
cell beyond the header, no second value, no other currency. Nor does a time depend on when the file is read: the same
invoice again has to be the same.
"""

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import typer
from synod.cost_ledger.v1 import cost_ledger_pb2 as pb

from synod_client.cli.values import fixed_moment, signed_nano_usd

CURRENCY: Final = "USD"
_NEEDED: Final = ("since", "until", "amount_usd")
_COLUMNS: Final = ("model", *_NEEDED, "currency")
_KNOWN: Final = f"the columns are {', '.join(_NEEDED)}, and if need be model and currency, in CSV with commas between"
_SHOWN_CHARS: Final = 60


@dataclass(frozen=True, slots=True)
class _Row:
    """`where` is the file and the number of the line, from 1, as an editor shows it."""

    where: str
    cells: dict[str, str]


def read(file: Path) -> list[pb.InvoiceLine]:
    """The lines of the invoice. typer.BadParameter for whatever is wrong, with its line and column."""
    text = _text(file)
    rows = list(_json_rows(file, text) if text.lstrip().startswith(("{", "[")) else _csv_rows(file, text))
    if not rows:
        raise _wrong(str(file), "has no lines")
    return [_line(row) for row in rows]


def _text(file: Path) -> str:
    try:
        # Spreadsheets put a mark before UTF-8, which would else be a part of the first column's name.
        return file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise _wrong(str(file), error.strerror or "cannot be read") from error
    except UnicodeDecodeError as error:
        raise _wrong(str(file), "is not UTF-8 text; save it as CSV UTF-8") from error


def _csv_rows(file: Path, text: str) -> Iterator[_Row]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        columns = next(reader, [])
        _check_columns(f"{file}, line 1", columns)
        for cells in reader:
            where = f"{file}, line {reader.line_num}"
            if len(cells) not in (0, len(columns)):
                problem = f"has {len(cells)} cells for {len(columns)} columns; quote what has a comma in it"
                raise _wrong(where, f'{problem}, such as "1,234.50"')
            if cells:
                yield _Row(where, dict(zip(columns, cells, strict=True)))
    except csv.Error as error:
        raise _wrong(f"{file}, line {reader.line_num}", f"is no CSV: {error}") from error


def _json_rows(file: Path, text: str) -> Iterator[_Row]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            where = f"{file}, line {number}"
            yield _Row(where, _json_cells(where, line))


def _json_cells(where: str, line: str) -> dict[str, str]:
    try:
        # Numbers as they are written: a float has not the digits of every amount.
        pairs = json.loads(line, parse_float=str, parse_int=str, parse_constant=str, object_pairs_hook=tuple)
    except (ValueError, RecursionError) as error:
        raise _wrong(where, f"is no JSON, of which each line is an object: {error}") from error
    if not isinstance(pairs, tuple):
        raise _wrong(where, "is no JSON object; write each line of the invoice as one, on a line of its own")
    _check_columns(where, [name for name, _ in pairs])
    for name, value in pairs:
        if not isinstance(value, str):
            shown = "null" if value is None else "neither text nor a number"
            raise _wrong(f"{where}, {name}", f"is {shown}; leave it out, or write what it is")
    return dict(pairs)


def _check_columns(where: str, names: Sequence[str]) -> None:
    for name, times in Counter(names).items():
        if name not in _COLUMNS:
            raise _wrong(where, f"has the unknown column '{name[:_SHOWN_CHARS]}'; {_KNOWN}")
        if times > 1:
            raise _wrong(where, f"has the column {name} {times} times; leave one")
    for name in _NEEDED:
        if name not in names:
            raise _wrong(where, f"has no {name}; {_KNOWN}")


def _line(row: _Row) -> pb.InvoiceLine:
    for name in _NEEDED:
        if not row.cells.get(name):
            raise _wrong(row.where, f"has no {name}; {_KNOWN}")
    if (currency := row.cells.get("currency", CURRENCY)) != CURRENCY:
        problem = f"is '{currency}', and the ledger counts in {CURRENCY}; convert the amounts, or leave the column out"
        raise _wrong(f"{row.where}, currency", problem)
    model = row.cells.get("model", "")
    if not model.isprintable() or model != model.strip():
        problem = f"is {model[:_SHOWN_CHARS]!r}, which has characters that no name has; write provider/model"
        raise _wrong(f"{row.where}, model", problem)
    return pb.InvoiceLine(
        model=model,
        since=fixed_moment(row.cells["since"], f"{row.where}, since"),
        until=fixed_moment(row.cells["until"], f"{row.where}, until"),
        amount_nano_usd=signed_nano_usd(row.cells["amount_usd"], f"{row.where}, amount_usd"),
    )


def _wrong(where: str, problem: str) -> typer.BadParameter:
    return typer.BadParameter(problem, param_hint=where)
