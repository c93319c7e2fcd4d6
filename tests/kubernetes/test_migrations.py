"""What a migration does: a service told to prepare only makes its tables in an empty database, alone, and ends."""

import asyncio
import os
import sys
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest
from launcher.keys import ensure_keys
from launcher.layout import SERVICES, Layout, Service
from launcher.programs import environment
from launcher.streams import make_streams
from launcher.testing import RunningNats, RunningPostgres, free_port_base

DEADLINE_S = 240
AT_ONCE = asyncio.Semaphore(2)
"""As many as a small machine has cores: a start has deadlines of its own, which seven at once may miss."""


async def prepare(service: Service, told: dict[str, str]) -> tuple[int | None, str]:
    """The exit code, and what it logged."""
    async with AT_ONCE:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", service.module, env=told, stderr=asyncio.subprocess.PIPE
        )
        async with asyncio.timeout(DEADLINE_S):
            _, log = await process.communicate()
        return process.returncode, log.decode()


@pytest.mark.system
@pytest.mark.timeout(300)
async def test_every_service_prepares_an_empty_database_while_no_other_runs(
    postgres_server: RunningPostgres, fresh_nats: RunningNats, tmp_path: Path
) -> None:
    layout = Layout(tmp_path, free_port_base(), environment=dict(os.environ))
    layout.keys.mkdir()
    credentials = ensure_keys(layout.keys, (service.name for service in SERVICES))
    await asyncio.to_thread(make_streams, fresh_nats.url, SERVICES)
    with ExitStack() as databases:
        dsns = {service.name: databases.enter_context(postgres_server.fresh_database()) for service in SERVICES}
        ended = await asyncio.gather(
            *(
                prepare(
                    service,
                    {
                        **environment(layout, credentials, service),
                        "SYNOD_POSTGRES_DSN": dsns[service.name],
                        "SYNOD_NATS_URL": fresh_nats.url,
                        "SYNOD_NATS_USER": "",
                        "SYNOD_PREPARE_ONLY": "true",
                        "SYNOD_LIMITS__PEERS_WAIT_S": "0.1",
                    },
                )
                for service in SERVICES
            )
        )
        views = {name: views_in(dsn) for name, dsn in dsns.items()}
    assert {service.name: log for service, (code, log) in zip(SERVICES, ended, strict=True) if code} == {}
    assert all('"phase":"prepared"' in log and '"phase":"grpc"' not in log for _, log in ended)
    assert all(views.values())


def views_in(dsn: str) -> list[str]:
    with psycopg.connect(dsn) as connection:
        rows = connection.execute("select nspname from pg_namespace where nspname like 'view!_%' escape '!'")
        return [name for (name,) in rows]
