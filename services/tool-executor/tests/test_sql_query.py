"""What SQL may and may not do, in the real sandbox."""

from pathlib import Path

import pytest
from tool_executor.errors import ToolCallFailed
from tool_executor.tools import sql_query
from tool_executor.tools.runner import Runner

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture
def data(workspace_dir: Path) -> Path:
    (workspace_dir / "prices.csv").write_text("model,usd,at\na,1.5,2026-01-01\nb,3,2026-02-01\n")
    (workspace_dir / "deep").mkdir()
    (workspace_dir / "deep" / "use.jsonl").write_text(
        '{"model": "a", "tags": ["x", "y"]}\n{"model": "b", "tags": []}\n'
    )
    return workspace_dir


async def query(runner: Runner, workspace: Path, sql: str, rows_max: int = 100) -> dict:
    done = await runner.run(sql_query.TOOL, {"sql": sql, "rows_max": rows_max}, workspace, 60.0)
    return done.value


async def kind_of_failure(runner: Runner, workspace: Path, sql: str) -> str:
    with pytest.raises(ToolCallFailed) as caught:
        await query(runner, workspace, sql)
    return caught.value.kind


async def test_joins_files_of_different_kinds(runner: Runner, data: Path) -> None:
    found = await query(runner, data, "SELECT p.model, p.at, u.tags FROM Prices p JOIN use u USING (model) ORDER BY 1")
    assert found["rows"] == [
        {"model": "a", "at": "2026-01-01", "tags": ["x", "y"]},
        {"model": "b", "at": "2026-02-01", "tags": []},
    ]


async def test_reads_parquet(runner: Runner, workspace_dir: Path) -> None:
    import duckdb

    duckdb.sql("SELECT 7 AS n").write_parquet(str(workspace_dir / "numbers.parquet"))
    assert (await query(runner, workspace_dir, "SELECT n FROM numbers"))["rows"] == [{"n": 7}]


async def test_allows_common_table_expressions_windows_and_sets(runner: Runner, data: Path) -> None:
    sql = """
        WITH ranked AS (SELECT model, row_number() OVER (ORDER BY usd) AS rank FROM prices)
        SELECT model FROM ranked WHERE rank = 1 UNION ALL SELECT 'end'
    """
    assert [row["model"] for row in (await query(runner, data, sql))["rows"]] == ["a", "end"]


async def test_names_columns_of_one_name_apart(runner: Runner, data: Path) -> None:
    found = await query(runner, data, "SELECT 1 AS a, 2 AS a, 3 AS a")
    assert found["columns"] == ["a", "a_2", "a_3"]


async def test_cuts_a_long_answer_by_rows_and_by_size(runner: Runner, data: Path) -> None:
    by_rows = await query(runner, data, "SELECT * FROM range(1000)", rows_max=10)
    assert (by_rows["row_count"], by_rows["truncated"]) == (10, True)
    by_size = await query(runner, data, "SELECT repeat('x', 10000) AS x FROM range(1000)", rows_max=1000)
    assert 10 < by_size["row_count"] < 30
    assert by_size["truncated"]


@pytest.mark.parametrize(
    "sql",
    [
        "DELETE FROM prices",
        "INSERT INTO prices VALUES ('c', 1, NULL)",
        "CREATE TABLE t AS SELECT 1",
        "DROP VIEW prices",
        "COPY prices TO 'out.csv'",
        "ATTACH 'other.db'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "PRAGMA database_list",
        "SET enable_external_access = true",
        "EXPORT DATABASE 'out'",
        "SELECT 1; SELECT 2",
        "SELECT 1; COPY prices TO 'out.csv'",
        "CALL pragma_version()",
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM read_text('/etc/passwd')",
        "SELECT * FROM glob('/*')",
        "SELECT * FROM (SELECT * FROM read_csv_auto('/etc/passwd'))",
        "WITH x AS (SELECT * FROM read_blob('/etc/passwd')) SELECT * FROM x",
        "SELECT (SELECT count(*) FROM read_text('/etc/passwd'))",
        "SELECT * FROM query('SELECT 1')",
        "SELECT * FROM query_table('prices')",
        "SELECT * FROM duckdb_settings()",
        "SELECT * FROM information_schema.tables",
    ],
)
async def test_refuses(sql: str, runner: Runner, data: Path) -> None:
    assert await kind_of_failure(runner, data, sql) in ("SQL_REFUSED", "SQL_INVALID")
    assert sorted(each.name for each in data.iterdir()) == ["deep", "prices.csv"]


@pytest.mark.parametrize(
    "sql", ["SELECT * FROM '/etc/passwd'", "SELECT * FROM 'prices.csv'", "SELECT * FROM sqlite_master"]
)
async def test_knows_no_table_but_the_files(sql: str, runner: Runner, data: Path) -> None:
    assert await kind_of_failure(runner, data, sql) == "TABLE_NOT_FOUND"


async def test_passes_on_what_the_database_says_of_a_wrong_query(runner: Runner, data: Path) -> None:
    with pytest.raises(ToolCallFailed, match="nonsense") as caught:
        await query(runner, data, "SELECT nonsense FROM prices")
    assert caught.value.kind == "SQL_FAILED"


async def test_asks_which_file_is_meant(runner: Runner, data: Path) -> None:
    (data / "deep" / "prices.json").write_text("[]")
    with pytest.raises(ToolCallFailed, match=r"deep/prices\.json, prices\.csv") as caught:
        await query(runner, data, "SELECT * FROM prices")
    assert caught.value.kind == "AMBIGUOUS_TABLE"


async def test_does_not_offer_a_link_as_a_table(runner: Runner, data: Path) -> None:
    (data / "passwd.csv").symlink_to("/etc/passwd")
    assert await kind_of_failure(runner, data, "SELECT * FROM passwd") == "TABLE_NOT_FOUND"


async def test_ends_a_query_that_eats_all_memory(runner: Runner, data: Path) -> None:
    sql = "SELECT count(DISTINCT hash(a.range * 1000000 + b.range)) AS n FROM range(20000) a, range(20000) b"
    assert await kind_of_failure(runner, data, sql) in ("LIMIT_MEMORY", "LIMIT_CPU")
