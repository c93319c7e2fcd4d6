"""sql_query: one SELECT over the data files of the run's workspace, by an embedded DuckDB.

Three locks, each enough by itself: the statement is checked before it runs (sqlglot, and DuckDB's own parser for its
kind), the database may open no file but the registered ones and its settings are locked, and the process is jailed.
"""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import date, datetime, time
from decimal import Decimal
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from pydantic import Field, JsonValue

from tool_executor.errors import ToolError
from tool_executor.sandboxes.sandbox import MIB, Access, Level, Limits
from tool_executor.tools.profiles import DATA
from tool_executor.tools.tool import Arguments, Effect, PureTool, Result, SelfTest
from tool_executor.tools.workspace import Workspace, WorkspaceFile

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection
    from sqlglot import exp

READERS = {
    ".csv": "read_csv({path}, sample_size = -1)",
    ".tsv": "read_csv({path}, delim = '\t', sample_size = -1)",
    ".parquet": "read_parquet({path})",
    ".json": "read_json({path})",
    ".jsonl": "read_json({path}, format = 'newline_delimited')",
    ".ndjson": "read_json({path}, format = 'newline_delimited')",
}
GLOB = frozenset("*?[]{}")
SETTINGS: dict[str, str | bool | int | float | list[str]] = {
    "threads": 1,
    "memory_limit": "384MB",
    "temp_directory": "",
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "allow_community_extensions": False,
    "python_enable_replacements": False,
}
ROW_BYTES_MAX = 200_000
FETCH_ROWS = 256


class SqlArguments(Arguments):
    sql: str = Field(
        min_length=1,
        max_length=20_000,
        description="One SELECT in DuckDB's dialect. Tables are the workspace's files by name without extension.",
    )
    rows_max: int = Field(default=200, ge=1, le=5000)


class SqlResult(Result):
    columns: tuple[str, ...]
    rows: tuple[dict[str, JsonValue], ...]
    row_count: int = Field(description="Rows returned.")
    truncated: bool = Field(description="True if the query has more rows than were returned.")


def run(arguments: SqlArguments, workspace: Workspace) -> SqlResult:
    """ToolError SQL_INVALID, SQL_REFUSED, TABLE_NOT_FOUND, AMBIGUOUS_TABLE, SQL_FAILED."""
    with _database() as database:
        sources = _sources(workspace)
        used = _tables_of(_single_select(arguments.sql, database), sources)
        _open_only({name: _only(name, sources[name]) for name in used}, workspace, database)
        return _fetched(database.execute(arguments.sql), arguments.rows_max)


def _sources(workspace: Workspace) -> dict[str, list[WorkspaceFile]]:
    """Readable files by the name of their table, which SQL compares without regard to case."""
    sources: dict[str, list[WorkspaceFile]] = {}
    for file in workspace.files():
        path = PurePosixPath(file.path)
        if path.suffix.lower() in READERS and not GLOB & set(file.path):
            sources.setdefault(path.stem.lower(), []).append(file)
    return sources


def _tables_of(statement: "exp.Query", sources: Mapping[str, object]) -> tuple[str, ...]:
    """The tables of the workspace that a statement reads; ToolError if it reads anything else."""
    from sqlglot import exp

    defined = {each.alias_or_name.lower() for each in statement.find_all(exp.CTE)}
    names = {name for table in statement.find_all(exp.Table) if (name := _name(table)) and name not in defined}
    for name in sorted(names - sources.keys()):
        known = ", ".join(sorted(sources)) or "none; write a CSV, JSON or Parquet file first"
        raise ToolError("TABLE_NOT_FOUND", f"sql: there is no table {name!r}; the workspace has: {known}")
    return tuple(sorted(names))


def _single_select(sql: str, database: "DuckDBPyConnection") -> "exp.Query":
    """The statement's tree, if DuckDB's own parser and sqlglot's agree that it is one SELECT."""
    import duckdb
    import sqlglot
    from sqlglot import exp
    from sqlglot.errors import SqlglotError

    try:
        kinds = [statement.type for statement in database.extract_statements(sql)]
        parsed = sqlglot.parse(sql, dialect="duckdb")
    except (duckdb.Error, SqlglotError, RecursionError) as error:
        raise ToolError("SQL_INVALID", f"sql: {_brief(error)}") from error
    if kinds != [duckdb.StatementType.SELECT] or len(parsed) != 1 or not isinstance(parsed[0], exp.Query):
        raise ToolError(
            "SQL_REFUSED", "sql: exactly one SELECT is allowed; nothing that writes, sets, loads or attaches"
        )
    return _reading_only(parsed[0])


def _reading_only(statement: "exp.Query") -> "exp.Query":
    from sqlglot import exp

    refused = (exp.DML, exp.DDL, exp.Into, exp.Command, exp.Set, exp.Attach, exp.Copy, exp.Pragma)
    for node in statement.walk():
        if isinstance(node, refused) and not isinstance(node, exp.Query):
            raise ToolError("SQL_REFUSED", f"sql: {type(node).__name__.upper()} is not allowed; only SELECT is")
    return statement


def _name(table: "exp.Table") -> str | None:
    """The plain name of a table, None for a series of numbers; every other function or catalogue is refused."""
    from sqlglot import exp

    if isinstance(table.this, exp.GenerateSeries):
        return None
    if not isinstance(table.this, exp.Identifier) or table.db or table.catalog:
        shown = table.sql(dialect="duckdb")[:100]
        raise ToolError("SQL_REFUSED", f"sql: {shown} may not be read; name a file of the workspace without extension")
    return table.name.lower()


def _only(name: str, files: list[WorkspaceFile]) -> str:
    if len(files) > 1:
        paths = ", ".join(file.path for file in files)
        raise ToolError("AMBIGUOUS_TABLE", f"sql: {name!r} could be any of {paths}; give the file its own name")
    return files[0].path


@contextmanager
def _database() -> Iterator["DuckDBPyConnection"]:
    """An empty database in memory; what DuckDB raises inside the block becomes SQL_FAILED or MemoryError."""
    # Imported here, as sqlglot is, because the executor reads the manifests of all tools and must stay small.
    import duckdb

    try:
        with duckdb.connect(":memory:", config=SETTINGS) as database:
            yield database
    except duckdb.OutOfMemoryException as error:
        raise MemoryError(str(error)) from error
    except duckdb.Error as error:
        raise ToolError("SQL_FAILED", f"sql: {_brief(error)}") from error


def _open_only(tables: Mapping[str, str], workspace: Workspace, database: "DuckDBPyConnection") -> None:
    """One view per file; from then on the database opens those files and no other, and nothing can undo that.

    Files are opened by their path in the workspace, where the sandbox runs us: an absolute path might hold a character
    that the readers expand.
    """
    database.execute(f"SET allowed_paths = [{', '.join(map(_literal, tables.values()))}]")
    for name, path in tables.items():
        workspace.check(path)
        reader = READERS[PurePosixPath(path).suffix.lower()].format(path=_literal(path))
        database.execute(f"CREATE VIEW {_identifier(name)} AS SELECT * FROM {reader}")
    database.execute("SET enable_external_access = false")
    database.execute("SET lock_configuration = true")


def _fetched(cursor: "DuckDBPyConnection", rows_max: int) -> SqlResult:
    columns = _unique([str(column[0]) for column in cursor.description])
    rows: list[dict[str, JsonValue]] = []
    size_bytes = 0
    while batch := cursor.fetchmany(FETCH_ROWS):
        for values in batch:
            row = dict(zip(columns, map(_json, values), strict=True))
            size_bytes += len(json.dumps(row))
            if len(rows) == rows_max or size_bytes > ROW_BYTES_MAX:
                return SqlResult(columns=columns, rows=tuple(rows), row_count=len(rows), truncated=True)
            rows.append(row)
    return SqlResult(columns=columns, rows=tuple(rows), row_count=len(rows), truncated=False)


def _unique(names: list[str]) -> tuple[str, ...]:
    """Rows are objects, so a name that comes twice gets a number."""
    unique: list[str] = []
    for name in names:
        count = sum(1 for earlier in unique if earlier == name or earlier.startswith(f"{name}_"))
        unique.append(f"{name}_{count + 1}" if name in unique else name)
    return tuple(unique)


def _json(value: object) -> JsonValue:
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else None
        case Decimal():
            return int(value) if value == value.to_integral_value() else float(value)
        case datetime() | date() | time():
            return value.isoformat()
        case list() | tuple():
            return [_json(item) for item in value]
        case dict():
            return {str(key): _json(item) for key, item in value.items()}
        case bytes():
            return value.hex()
        case _:
            return str(value)


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _brief(error: Exception) -> str:
    """The first paragraph: what follows is a picture of the statement."""
    return str(error).split("\n\n")[0].strip()[:600]


TOOL = PureTool(
    name="sql_query",
    version="1.0.0",
    title="Query files with SQL",
    description=(
        "Runs one SELECT (DuckDB dialect) over the CSV, TSV, JSON and Parquet files of this run's workspace. Each file "
        "is a table named like the file without its extension: prices.csv is prices."
    ),
    arguments=SqlArguments,
    result=SqlResult,
    effect=Effect.PURE,
    min_level=Level.L1,
    profile=DATA,
    access=Access.READ,
    limits=Limits(memory_bytes=1024 * MIB, cpu_s=20),
    run=run,
    self_tests=(
        SelfTest(
            arguments={"sql": "SELECT model, min(usd) AS usd FROM prices GROUP BY model ORDER BY model"},
            files={"prices.csv": "model,usd\na,2.5\nb,1\na,1.5\n"},
            expected={
                "columns": ["model", "usd"],
                "rows": [{"model": "a", "usd": 1.5}, {"model": "b", "usd": 1.0}],
                "row_count": 2,
                "truncated": False,
            },
        ),
        SelfTest(
            arguments={"sql": "SELECT range AS n FROM range(10)", "rows_max": 2},
            expected={"rows": [{"n": 0}, {"n": 1}], "truncated": True},
        ),
        SelfTest(arguments={"sql": "SELECT * FROM missing"}, error="TABLE_NOT_FOUND"),
        SelfTest(arguments={"sql": "SELECT * FROM read_csv('/etc/passwd')"}, error="SQL_REFUSED"),
        SelfTest(arguments={"sql": "COPY (SELECT 1) TO 'x.csv'"}, error="SQL_REFUSED"),
        SelfTest(arguments={"sql": "SELECT FROM WHERE"}, error="SQL_INVALID"),
    ),
)
