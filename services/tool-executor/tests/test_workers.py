"""Who is alive, by the database's word."""

import asyncio
from pathlib import Path

import psycopg
import pytest
from psycopg_pool import AsyncConnectionPool
from tool_executor.workers import PostgresWorkers, private_directory

WAIT_S = 30


async def test_a_worker_is_alive_until_its_connection_ends(postgres_dsn: str) -> None:
    async with AsyncConnectionPool(postgres_dsn, min_size=1, open=False) as pool:
        ours, theirs = PostgresWorkers(postgres_dsn, pool, "wrk_a"), PostgresWorkers(postgres_dsn, pool, "wrk_b")
        assert not await ours.alive("wrk_b")
        await theirs.enter()
        assert await ours.alive("wrk_b")
        assert await ours.alive("wrk_b")
        await theirs.leave()
        await until_dead(ours, "wrk_b")


async def until_dead(workers: PostgresWorkers, worker: str) -> None:
    """PostgreSQL gives the lock up when it has noticed that the connection is gone, or has told that it ends it."""
    async with asyncio.timeout(WAIT_S):
        while await workers.alive(worker):
            continue


async def test_a_worker_whose_connection_is_lost_says_so_and_comes_back(postgres_dsn: str) -> None:
    async with AsyncConnectionPool(postgres_dsn, min_size=1, open=False) as pool:
        worker = PostgresWorkers(postgres_dsn, pool, "wrk_a")
        await worker.enter()
        async with pool.connection() as connection:
            await connection.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where pid <> pg_backend_pid()"
                " and datname = current_database() and pid in (select pid from pg_locks where locktype = 'advisory')"
            )
        with pytest.raises(psycopg.OperationalError):
            await worker.stay()
        await until_dead(worker, "wrk_a")
        await worker.enter()
        assert await worker.alive("wrk_a")
        await worker.leave()


async def test_what_dead_workers_left_on_the_disk_is_removed(postgres_dsn: str, tmp_path: Path) -> None:
    async with AsyncConnectionPool(postgres_dsn, min_size=1, open=False) as pool:
        living = PostgresWorkers(postgres_dsn, pool, "wrk_living")
        await living.enter()
        for name in ("wrk_living", "wrk_dead"):
            (tmp_path / name / "call-1").mkdir(parents=True)
        own = await private_directory(tmp_path, "wrk_new", living)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["wrk_living", "wrk_new"]
        assert own == tmp_path / "wrk_new"
        await living.leave()
