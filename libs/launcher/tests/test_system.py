"""The whole: real PostgreSQL and NATS, fake services."""

import asyncio
import json
import shutil
import stat
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import nats
import psycopg
import pytest
from launcher.errors import DataLocked, DataUnusable, PortInUse, StartFailed
from launcher.layout import Layout
from launcher.supervisor import State
from launcher.system import System

from .conftest import BROKEN, DEADLINE_S, NEEDY, STEADY, MakeLayout, runs

PAIR = (STEADY, NEEDY)


async def test_data_is_kept_over_restarts_and_emptied_when_asked(make_layout: MakeLayout) -> None:
    layout = make_layout(STEADY)
    async with System(layout) as system:
        first_key, first_is_new = system.dev_key, system.credentials.dev_key_is_new
        with psycopg.connect(dsn(system, "steady")) as connection:
            connection.execute("CREATE TABLE kept (value int)")

    async with System(layout) as system:
        assert system.dev_key == first_key
        assert (first_is_new, system.credentials.dev_key_is_new) == (True, False)
        assert tables(system) == ["kept"]

    async with System(layout, fresh=True) as system:
        assert system.dev_key != first_key
        assert tables(system) == []


async def test_data_that_was_copied_after_a_stop_starts_elsewhere(make_layout: MakeLayout, tmp_path: Path) -> None:
    """deploy/README.md has people back it up so."""
    layout = make_layout(STEADY)
    async with System(layout) as system:
        key = system.dev_key
        with psycopg.connect(dsn(system, "steady")) as connection:
            connection.execute("CREATE TABLE kept (value int)")

    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(layout.data, elsewhere)
    shutil.rmtree(layout.data)
    async with System(replace(layout, data=elsewhere)) as restored:
        assert restored.dev_key == key
        assert tables(restored) == ["kept"]


async def test_every_program_is_ready_and_none_runs_after_the_end(make_layout: MakeLayout) -> None:
    progress: list[tuple[str, State]] = []
    system = System(make_layout(*PAIR))

    await system.up(lambda status: progress.append((status.name, status.state)))

    assert set(system.services) == {"postgres", "nats", "steady", "steady-two"}
    assert all(status.state is State.READY for status in system.services.values())
    assert all(status.memory_bytes > 0 for status in system.services.values())
    assert progress.index(("postgres", State.READY)) < progress.index(("steady", State.STARTING))
    pids = [status.pid or 0 for status in system.services.values()]

    await system.down()

    assert not any(map(runs, pids))
    stopped = [name for name, state in progress if state is State.STOPPED]
    assert stopped[:2] == ["steady-two", "steady"]


async def test_servers_that_crash_come_back_with_their_data(make_layout: MakeLayout) -> None:
    async with System(make_layout(STEADY)) as system:
        with psycopg.connect(dsn(system, "steady")) as connection:
            connection.execute("CREATE TABLE kept (value int)")

        for server in ("postgres", "nats"):
            system.kill(server)
        for server in ("postgres", "nats"):
            await system.wait_ready(server)

        assert tables(system) == ["kept"]
        assert system.services["postgres"].restarts == 1


async def test_a_service_cannot_use_what_belongs_to_another(make_layout: MakeLayout) -> None:
    async with System(make_layout(*PAIR)) as system:
        with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
            psycopg.connect(dsn(system, "steady", database="steady_two"))
        with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
            psycopg.connect(dsn(system, "steady", database="postgres"))

        client, refusals = await connect(system, "steady")
        await client.publish("synod.local.evt.steady.thing.1.Made", b"own")
        await client.publish("synod.local.evt.steady-two.thing.1.Made", b"another's")
        assert "synod.local.evt.steady-two.thing.1.made" in (await next_of(refusals)).lower()
        assert refusals.empty()
        await client.close()


async def test_an_observer_reads_events_and_publishes_none(make_layout: MakeLayout) -> None:
    async with System(make_layout(STEADY)) as system:
        service, _ = await connect(system, "steady")
        observer, refusals = await connect(system, "observer")
        subscription = await observer.jetstream().subscribe("synod.*.evt.steady.>", ordered_consumer=True)

        await service.jetstream().publish("synod.local.evt.steady.thing.1.Made", b"1")
        assert (await subscription.next_msg(timeout=DEADLINE_S)).data == b"1"
        await observer.publish("synod.local.evt.steady.thing.1.Made", b"forged")
        assert "permissions violation" in (await next_of(refusals)).lower()

        await observer.close()
        await service.close()


async def test_the_observers_address_is_all_that_a_subscriber_needs(make_layout: MakeLayout) -> None:
    async with System(make_layout()) as system:
        client = await nats.connect(system.observer_url)
        assert client.is_connected
        await client.close()


async def test_addresses_with_logins_are_in_files_that_only_their_owner_reads(make_layout: MakeLayout) -> None:
    layout = make_layout()
    async with System(layout) as system:
        published = json.loads((layout.data / "system.json").read_text())
        files = [
            Path(published[name]) for name in ("nats_observer_file", "nats_client_file", "nats_administrator_file")
        ]
        assert [file.read_text() for file in files] == [
            system.observer_url,
            system.client_url,
            system.administrator_url,
        ]
        assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


async def test_keys_are_made_for_each_service_and_readable_by_their_owner_only(make_layout: MakeLayout) -> None:
    layout = make_layout(*PAIR)
    async with System(layout):
        names = {file.name for file in layout.keys.iterdir()}
        assert names >= {"signing.pem", "public.pem", "steady.key", "steady-two.key", "service-keys.json", "dev.key"}
        secret = [file for file in layout.keys.iterdir() if not file.name.endswith(".checkpoint.pub.pem")]
        assert {stat.S_IMODE(file.stat().st_mode) for file in secret} == {0o600}
        assert json.loads((layout.keys / "service-keys.json").read_text()).keys() == {"steady", "steady-two"}


async def test_addresses_are_in_a_file_while_the_system_is_up(make_layout: MakeLayout) -> None:
    layout = make_layout(STEADY)
    async with System(layout) as system:
        published: Mapping[str, object] = json.loads((layout.data / "system.json").read_text())
        assert published["endpoints"] == system.endpoints
    assert not (layout.data / "system.json").exists()


async def test_a_second_system_on_the_same_data_is_told_who_holds_it(make_layout: MakeLayout) -> None:
    layout = make_layout(STEADY)
    async with System(layout):
        with pytest.raises(DataLocked, match=r"held by process \d+ since"):
            await System(layout).up()


async def test_a_second_system_on_the_same_ports_is_told_who_listens(make_layout: MakeLayout, tmp_path: Path) -> None:
    layout = make_layout(STEADY)
    async with System(layout):
        elsewhere = Layout(tmp_path / "other", layout.port_base, layout.services, limits=layout.limits)
        with pytest.raises(
            PortInUse, match=r"port of postgres = \d+: process \d+ \(.*postgres.* listens there already"
        ):
            await System(elsewhere).up()


async def test_a_failed_start_stops_everything_and_frees_the_data(make_layout: MakeLayout) -> None:
    layout = make_layout(STEADY, BROKEN)
    pids: set[int] = set()
    with pytest.raises(StartFailed, match="SYNOD_MEANING is not set"):
        await System(layout).up(lambda status: pids.add(status.pid or 0))
    assert not any(map(runs, pids - {0}))
    async with System(Layout(layout.data, layout.port_base, (), limits=layout.limits)) as system:
        assert system.services.keys() == {"postgres", "nats"}


async def test_data_of_another_postgresql_is_refused(make_layout: MakeLayout) -> None:
    layout = make_layout()
    async with System(layout):
        pass
    (layout.data / "postgres" / "data" / "PG_VERSION").write_text("16\n")
    with pytest.raises(DataUnusable, match="PostgreSQL 16, needed is 18"):
        await System(layout).up()


def dsn(system: System, role: str, database: str | None = None) -> str:
    password = system.credentials.postgres[role]
    return f"postgresql://{role}:{password}@127.0.0.1:{system.layout.postgres_port}/{database or role}"


def tables(system: System) -> list[str]:
    with psycopg.connect(dsn(system, "steady")) as connection:
        rows = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        return [name for (name,) in rows]


async def connect(system: System, user: str) -> tuple[nats.NATS, asyncio.Queue[str]]:
    """A client, and what the server refuses it."""
    refusals: asyncio.Queue[str] = asyncio.Queue()

    async def refused(error: Exception) -> None:
        refusals.put_nowait(str(error))

    password = system.credentials.nats[user]
    client = await nats.connect(system.endpoints["nats"], user=user, password=password, error_cb=refused)
    return client, refusals


async def next_of(refusals: asyncio.Queue[str]) -> str:
    return await asyncio.wait_for(refusals.get(), DEADLINE_S)
