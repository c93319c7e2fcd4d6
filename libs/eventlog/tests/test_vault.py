"""A person's data: sealed in the log, in JetStream and in views, and gone from all of them after an erasure."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import nats
import psycopg
import pytest
from eventlog.aggregates import Aggregates, SnapshotPolicy
from eventlog.checkpoints import Checkpoints
from eventlog.clock import SystemClock
from eventlog.codec import Codec
from eventlog.ending import end
from eventlog.errors import KeyUnusable, LogClosed, SubjectLocked
from eventlog.master_keys import LocalMasterKey, MasterKey
from eventlog.postgres import PostgresEventLog
from eventlog.projections import Projector
from eventlog.records import NO_STREAM, Append, Appended, Context, StoredEvent, StreamId
from eventlog.relay import Relay, from_message
from eventlog.signing import SigningKey
from eventlog.sources import LogSource
from eventlog.testing import NOON, FakeKms, KmsMasterKey, a_stream, an_append
from eventlog.vault import SubjectErased, Vault
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool
from synod.common.event import Event
from synod.common.ids import uuid7
from synod.common.personal import ERASED, DataSubject, Personal

MASTER = LocalMasterKey(b"m" * 32, "test")
CONTEXT = Context("acme", "tester")


class Invited(Event):
    AGGREGATE = "guest"
    guest: Annotated[str, DataSubject()]
    email: Annotated[str, Personal()]


class Welcomed(Event):
    AGGREGATE = "guest"
    table: int


CODEC = Codec[Event]([Invited, Welcomed, SubjectErased])


@dataclass(frozen=True)
class Guest:
    email: str = ""
    table: int = 0


def evolve(guest: Guest, event: Event) -> Guest:
    match event:
        case Invited(email=email):
            return replace(guest, email=email)
        case Welcomed(table=table):
            return replace(guest, table=table)
    return guest


class Emails:
    """Who was invited under which address: personal data in the clear."""

    name = "emails"
    version = 1
    types = frozenset({"Invited"})
    tables = "create table emails (guest text primary key, email text not null)"
    personal = True

    def __init__(self, vault: Vault) -> None:
        self._vault = vault

    async def apply(self, connection: AsyncConnection[Any], events: Sequence[StoredEvent]) -> None:
        keys = await self._vault.keys(events)
        for event in events:
            invited = CODEC.decode(event, keys)
            assert isinstance(invited, Invited)
            await connection.execute("insert into emails values (%s, %s)", [invited.guest, invited.email])


@dataclass
class House:
    dsn: str
    log: PostgresEventLog
    pool: AsyncConnectionPool
    vault: Vault
    saved: list[bytes] = field(default_factory=list)

    def another_vault(self, master: MasterKey = MASTER, **changed: Any) -> Vault:
        """As in another process."""
        return Vault(self.pool, self.log, master, **changed)

    async def invite(self, guest: str, email: str) -> StoredEvent:
        key = await self.vault.key("acme", guest)
        event = CODEC.encode(Invited(guest=guest, email=email), at=NOON, key=key)
        appended = await self.log.append(Append(StreamId("guest", guest), NO_STREAM, (event,), CONTEXT))
        (stored,) = await self.log.read(appended.position - 1, limit=1)
        return stored

    async def read(self, stored: StoredEvent, vault: Vault | None = None) -> Event:
        decoded = CODEC.decode(stored, await (vault or self.vault).keys([stored]))
        assert isinstance(decoded, Event)
        return decoded

    async def email(self, stored: StoredEvent, vault: Vault | None = None) -> str:
        invited = await self.read(stored, vault)
        assert isinstance(invited, Invited)
        return invited.email

    async def sql(self, statement: str) -> None:
        async with await psycopg.AsyncConnection.connect(self.dsn, autocommit=True) as connection:
            await connection.execute(statement.encode())

    async def forget(self, guest: str) -> None:
        await self.vault.erase("acme", guest, actor="officer", reason="asked for it")

    def guests(self, vault: Vault | None, every: int = 1) -> Aggregates[Guest, Event]:
        def dump(guest: Guest) -> bytes:
            self.saved.append(guest.email.encode())
            return f"{guest.table}|{guest.email}".encode()

        def load(data: bytes) -> Guest:
            table, _, email = data.decode().partition("|")
            return Guest(email, int(table))

        policy = SnapshotPolicy("guest-1", dump, load, every)
        return Aggregates(self.log, "guest", Guest, evolve, CODEC, SystemClock(), snapshots=policy, vault=vault)


@pytest.fixture
async def house(postgres_dsn: str, tmp_path: Path) -> AsyncIterator[House]:
    async with (
        await PostgresEventLog.open(postgres_dsn, archive=tmp_path) as log,
        AsyncConnectionPool(postgres_dsn, min_size=1, max_size=6, open=False) as pool,
    ):
        vault = Vault(pool, log, MASTER)
        await vault.prepare()
        yield House(postgres_dsn, log, pool, vault)


async def table_dump(dsn: str) -> str:
    """Every row of every table of the database, as text."""
    async with await AsyncConnection.connect(dsn) as connection:
        names = await connection.execute(
            "select format('%I.%I', schemaname, tablename) from pg_tables where schemaname !~ '^(pg_|information)'"
        )
        rows: list[str] = []
        for (name,) in await names.fetchall():
            found = await connection.execute(f"select t::text from {name} t".encode())
            rows += [text for (text,) in await found.fetchall()]
    return "\n".join(rows)


def in_dump(text: str) -> tuple[str, str]:
    """How a text would show: as it is, or in a column of bytes."""
    return text, text.encode().hex()


async def test_a_person_is_erased_from_log_stream_view_and_snapshot_and_the_chain_still_verifies(
    house: House, nats_url: str
) -> None:
    service = f"hotel-{uuid7().hex[-8:]}"
    client = await nats.connect(nats_url)
    relay = Relay(house.log, client, service)
    relaying = asyncio.create_task(relay.run())
    checkpoints = Checkpoints(house.pool, house.log, service, SigningKey.generate())
    await checkpoints.prepare()
    view = Projector(house.pool, Emails(house.vault), LogSource(house.log))

    ada, bob = await house.invite("ada", "ada@example.org"), await house.invite("bob", "bob@example.org")
    await house.log.save_snapshot(ada.stream, 1, "guest-1", b"0|ada@example.org")
    await house.log.save_snapshot(bob.stream, 1, "guest-1", b"0|bob@example.org")
    await checkpoints.make()
    await view.catch_up()
    await view.rebuild()
    assert await house.email(ada) == "ada@example.org"

    erasure = await house.vault.erase("acme", "ada", actor="officer", reason="asked for it")
    await view.forget()
    assert (erasure.position, erasure.key_destroyed, erasure.snapshots_dropped) == (3, True, 1)

    assert await house.email(ada) is ERASED
    assert await house.email(bob) == "bob@example.org"
    (record,) = await house.log.read(2)
    assert await house.read(record) == SubjectErased(subject="ada", reason="asked for it")
    assert (record.actor, record.tenant, record.data_subject) == ("officer", "acme", "ada")

    await relay.wait_for(3, timeout_s=30)
    messages = await client.jetstream().subscribe(f"synod.*.evt.{service}.>", ordered_consumer=True)
    copy = await messages.next_msg(timeout=10)
    assert b"ada@example.org" not in copy.data
    assert await house.email(from_message(copy)) is ERASED

    everything = await table_dump(house.dsn)
    assert not any(text in everything for text in in_dump("ada@example.org"))
    assert any(text in everything for text in in_dump("bob@example.org"))

    found = await checkpoints.verify()
    assert (found.ok, found.events, found.checkpoints) == (True, 3, 1)

    await end(relaying)
    await client.close()


async def test_an_erasure_counts_at_once_in_every_process(house: House) -> None:
    other = house.another_vault()
    ada = await house.invite("ada", "ada@example.org")
    assert await house.email(ada, other) == "ada@example.org"
    await house.forget("ada")
    assert await house.email(ada, other) is ERASED


async def test_an_erasure_may_be_repeated(house: House) -> None:
    await house.invite("ada", "ada@example.org")
    first = await house.vault.erase("acme", "ada", actor="officer", reason="asked")
    again = await house.vault.erase("acme", "ada", actor="officer", reason="asked")
    assert (first.key_destroyed, again.key_destroyed) == (True, False)
    assert again.position == first.position + 1


async def test_who_comes_back_gets_a_new_key_and_the_past_stays_erased(house: House) -> None:
    old = await house.invite("ada", "ada@example.org")
    await house.forget("ada")
    event = CODEC.encode(
        Invited(guest="ada", email="new@example.org"), at=NOON, key=await house.vault.key("acme", "ada")
    )
    await house.log.append(Append(old.stream, 1, (event,), CONTEXT))
    new = (await house.log.read_stream(old.stream))[-1]
    assert await house.email(old) is ERASED
    assert await house.email(new) == "new@example.org"


async def test_a_tenant_cannot_erase_the_person_of_another(house: House) -> None:
    ada = await house.invite("ada", "ada@example.org")
    erasure = await house.vault.erase("rival", "ada", actor="mallory", reason="spite")
    assert not erasure.key_destroyed
    assert await house.email(ada) == "ada@example.org"


async def test_processes_that_make_the_same_key_at_once_agree(house: House) -> None:
    vaults = [house.another_vault() for _ in range(5)]
    keys = await asyncio.gather(*[vault.key("acme", "ada") for vault in vaults])
    assert len({key.seal(b"x", b"y") for key in keys}) == 1


async def test_an_aggregate_seals_and_opens_its_persons_data(house: House) -> None:
    guests = house.guests(house.vault)
    executed = await guests.execute("ada", lambda _: [Invited(guest="ada", email="ada@example.org")], CONTEXT)
    await guests.execute("ada", lambda guest: [Welcomed(table=7)], CONTEXT)
    assert executed.state.email == "ada@example.org"
    assert (await guests.load("ada")).state == Guest("ada@example.org", 7)
    await house.forget("ada")
    assert (await guests.load("ada")).state == Guest(ERASED, 7)


async def test_a_state_with_personal_data_is_neither_cached_nor_saved(house: House) -> None:
    guests = house.guests(house.vault)
    for table in range(3):
        await guests.execute("plain", lambda _, table=table: [Welcomed(table=table)], CONTEXT)
    await guests.execute("ada", lambda _: [Invited(guest="ada", email="ada@example.org")], CONTEXT)
    for table in range(3):
        await guests.execute("ada", lambda _, table=table: [Welcomed(table=table)], CONTEXT)
    await guests.settle()
    assert house.saved == [b""] * 3
    assert {id: loaded.state for id, loaded in guests._cache.items()} == {"plain": Guest(table=2), "ada": Guest()}


async def test_a_command_repeated_after_a_crash_stays_one_fact(house: House) -> None:
    event_id = uuid7()
    for _ in range(2):
        key = await house.another_vault().key("acme", "ada")
        event = CODEC.encode(Invited(guest="ada", email="ada@example.org"), id=event_id, at=NOON, key=key)
        appended = await house.log.append(Append(StreamId("guest", "ada"), NO_STREAM, (event,), CONTEXT))
    assert appended.duplicate
    assert await house.log.head() == 1


async def test_without_a_vault_personal_data_is_refused_and_reads_as_erased(house: House) -> None:
    await house.invite("ada", "ada@example.org")
    guests = house.guests(None)
    assert (await guests.load("ada")).state.email is ERASED
    with pytest.raises(SubjectLocked, match="none is given"):
        await guests.execute("bob", lambda _: [Invited(guest="bob", email="bob@example.org")], CONTEXT)


async def test_keys_lie_in_the_database_wrapped_only(house: House) -> None:
    key = await house.vault.key("acme", "ada")
    async with house.pool.connection() as connection:
        ((wrapped, master_key_id),) = await (
            await connection.execute("select wrapped, master_key_id from eventlog.subject_keys")
        ).fetchall()
    assert master_key_id == MASTER.key_id
    unwrapped = await MASTER.unwrap(bytes(wrapped), b"acme\nada")
    assert unwrapped not in bytes(wrapped)
    assert len(unwrapped) == 32
    with pytest.raises(KeyUnusable):
        await MASTER.unwrap(bytes(wrapped), b"acme\nbob")
    assert key.subject == "ada"


async def test_a_master_key_is_rotated_by_keeping_the_old_one(house: House) -> None:
    ada = await house.invite("ada", "ada@example.org")
    new = LocalMasterKey(b"n" * 32, "new")
    assert await house.email(ada, house.another_vault(new, retired=[MASTER])) == "ada@example.org"
    with pytest.raises(KeyUnusable, match="wrapped by this master key, which is not here"):
        await house.email(ada, house.another_vault(new))


async def test_a_vault_of_another_master_key_is_told_at_the_start(house: House) -> None:
    await house.another_vault(LocalMasterKey(b"n" * 32, "new")).prepare()
    await house.invite("ada", "ada@example.org")
    with pytest.raises(KeyUnusable, match=f"wrapped by another master key, {MASTER.key_id}; give that key back"):
        await house.another_vault(LocalMasterKey(b"n" * 32, "new")).prepare()
    await house.another_vault(LocalMasterKey(b"n" * 32, "new"), retired=[MASTER]).prepare()
    assert len((await house.vault.keys(await house.log.read())).keys) == 1


async def test_reading_what_is_not_sealed_asks_the_database_nothing(house: House) -> None:
    await house.log.append(an_append(a_stream()))
    await house.pool.close()
    assert (await house.vault.keys(await house.log.read())).keys == {}


async def test_keys_are_wrapped_anew_under_another_master_key(house: House) -> None:
    invited = [await house.invite(name, f"{name}@example.org") for name in ("ada", "bob", "cai")]
    new = LocalMasterKey(b"n" * 32, "new")
    rotated = house.another_vault(new, retired=[MASTER])
    assert (await rotated.rewrap(), await rotated.rewrap()) == (3, 0)
    alone = house.another_vault(new)
    await alone.prepare()
    assert [await house.email(each, alone) for each in invited] == [f"{n}@example.org" for n in ("ada", "bob", "cai")]


async def test_a_person_is_erased_with_the_key_in_a_key_management_service(house: House) -> None:
    kms = FakeKms()
    vault = house.another_vault(KmsMasterKey(kms, kms.create_key()))
    house.vault = vault
    ada = await house.invite("ada", "ada@example.org")
    for _ in range(3):
        assert await house.email(ada) == "ada@example.org"
    assert kms.calls == ["encrypt", "decrypt"]
    await house.forget("ada")
    assert await house.email(ada) is ERASED


async def test_a_key_management_service_that_is_down_is_no_erasure(house: House) -> None:
    kms = FakeKms()
    name = kms.create_key()
    house.vault = house.another_vault(KmsMasterKey(kms, name))
    ada = await house.invite("ada", "ada@example.org")
    kms.down = True
    with pytest.raises(KeyUnusable, match="does not answer"):
        await house.email(ada, house.another_vault(KmsMasterKey(kms, name)))


async def test_a_key_taken_without_an_erasure_is_found_at_the_first_event_that_it_sealed(house: House) -> None:
    await house.log.append(an_append(a_stream()))
    ada = await house.invite("ada", "ada@example.org")
    await house.invite("bob", "bob@example.org")
    assert await house.vault.unrecorded() is None
    await house.forget("bob")
    assert await house.vault.unrecorded() is None
    await house.sql("delete from eventlog.subject_keys where subject = 'ada'")
    assert await house.vault.unrecorded() == ada.position == 2
    assert await house.vault.unrecorded(first=3) is None
    await house.forget("ada")
    assert await house.vault.unrecorded() is None


async def test_an_erasure_drops_the_snapshot_of_a_stream_that_was_archived(house: House) -> None:
    ada, bob = await house.invite("ada", "ada@example.org"), await house.invite("bob", "bob@example.org")
    await house.log.save_snapshot(ada.stream, 1, "guest-1", b"0|ada@example.org")
    await house.log.save_snapshot(bob.stream, 1, "guest-1", b"0|bob@example.org")
    await house.log.archive(keep_events=0, segment_events=1)
    erasure = await house.vault.erase("acme", "ada", actor="officer", reason="asked for it")
    assert erasure.snapshots_dropped == 1
    assert await house.log.load_snapshot(ada.stream, "guest-1") is None
    assert await house.log.load_snapshot(bob.stream, "guest-1") is not None
    assert "ada@example.org" not in await table_dump(house.dsn)


async def test_an_erasure_reaches_what_a_former_release_archived(house: House, tmp_path: Path) -> None:
    """It left nothing in the database of whom archived events are about; whoever opens the log next notes that."""
    ada, bob = await house.invite("ada", "ada@example.org"), await house.invite("bob", "bob@example.org")
    await house.log.archive(keep_events=0, segment_events=1)
    await house.sql("drop table eventlog.archived_subjects cascade")
    await house.sql("alter table eventlog.archived_segments drop column subjects_noted")
    async with await PostgresEventLog.open(house.dsn, archive=tmp_path) as log:
        await log.save_snapshot(ada.stream, 1, "guest-1", b"0|ada@example.org")
        assert (await house.vault.erase("acme", "ada", actor="officer", reason="asked")).snapshots_dropped == 1
        assert await house.vault.unrecorded() is None
    (segment,) = tmp_path.glob("*-00000000000000000002.events.gz")
    segment.unlink()
    await house.sql("update eventlog.archived_segments set subjects_noted = false")
    async with await PostgresEventLog.open(house.dsn, archive=tmp_path) as log:
        assert await log.head() == 3, "a file that is gone keeps nobody from the rest of the log"
    assert bob.position == 2


async def test_a_key_taken_without_an_erasure_is_found_in_the_archive_too(house: House) -> None:
    ada = await house.invite("ada", "ada@example.org")
    await house.invite("bob", "bob@example.org")
    await house.forget("bob")
    await house.log.archive(keep_events=0, segment_events=3)
    assert await house.vault.unrecorded() is None
    await house.sql("delete from eventlog.subject_keys")
    assert await house.vault.unrecorded() == ada.position == 1


async def test_an_erasure_on_record_does_not_excuse_what_was_taken_after_it(house: House) -> None:
    await house.invite("ada", "ada@example.org")
    await house.forget("ada")
    key = await house.vault.key("acme", "ada")
    event = CODEC.encode(Invited(guest="ada", email="new@example.org"), at=NOON, key=key)
    appended = await house.log.append(Append(StreamId("guest", "ada-again"), NO_STREAM, (event,), CONTEXT))
    await house.sql("delete from eventlog.subject_keys")
    assert await house.vault.unrecorded() == appended.position


async def test_an_erasure_waits_for_what_is_being_sealed_and_covers_it(house: House) -> None:
    async with house.vault.sealing("acme", ["ada"]) as keys:
        erasing = asyncio.create_task(house.forget("ada"))
        await waits_for_a_lock(house.dsn)
        event = CODEC.encode(Invited(guest="ada", email="ada@example.org"), at=NOON, key=keys["ada"])
        appended = await house.log.append(Append(StreamId("guest", "ada"), NO_STREAM, (event,), CONTEXT))
        assert not erasing.done()
    await erasing
    assert [event.type for event in await house.log.read(appended.position)] == ["SubjectErased"]
    assert await house.vault.unrecorded() is None


async def test_a_command_that_is_being_appended_holds_an_erasure_back(house: House) -> None:
    """What the log holds behind SubjectErased is never sealed with the key that it destroyed."""
    guests = house.guests(house.vault)
    for number in range(10):
        invited = guests.execute(f"ada-{number}", lambda _: [Invited(guest="ada", email="ada@example.org")], CONTEXT)
        results = await asyncio.gather(invited, house.forget("ada"), return_exceptions=True)
        assert [each for each in results if isinstance(each, BaseException) and not isinstance(each, KeyUnusable)] == []
    assert await house.vault.unrecorded() is None


class ClosedLog:
    """Of a process that ends."""

    async def append(self, *_: Append) -> Appended:
        raise LogClosed


async def test_an_erasure_that_fails_half_way_is_listed_and_ended_by_another_process(house: House) -> None:
    ada = await house.invite("ada", "ada@example.org")
    forgotten: list[str] = []

    async def dies() -> None:
        raise ConnectionError("the database of the views is gone")

    async def forgets() -> None:
        forgotten.append("views")

    with pytest.raises(ConnectionError):
        await house.vault.erase("acme", "ada", actor="officer", reason="asked", views=dies)
    restarted = house.another_vault()
    (pending,) = await restarted.pending()
    assert (pending.tenant, pending.subject, pending.actor, pending.key_destroyed) == ("acme", "ada", "officer", True)
    assert (await restarted.pending("acme"), await restarted.pending("rival")) == ([pending], [])
    assert await house.email(ada) is ERASED

    (erasure,) = await restarted.resume(forgets)
    assert (erasure.position, erasure.key_destroyed, forgotten) == (2, True, ["views"])
    assert await house.log.head() == 2, "the record that was written is not written again"
    assert (await restarted.pending(), await restarted.resume(forgets)) == ([], [])


async def test_an_erasure_that_died_before_its_record_is_recorded_as_it_was_asked_for(house: House) -> None:
    """And what the person said since, under the next key, stays: the first one alone was to be destroyed."""
    await house.invite("ada", "ada@example.org")
    with pytest.raises(LogClosed):
        await Vault(house.pool, ClosedLog(), MASTER).erase("acme", "ada", actor="officer", reason="asked")  # type: ignore[arg-type]
    event = CODEC.encode(
        Invited(guest="ada", email="new@example.org"), at=NOON, key=await house.vault.key("acme", "ada")
    )
    appended = await house.log.append(Append(StreamId("guest", "ada-again"), NO_STREAM, (event,), CONTEXT))
    await house.another_vault().resume()
    new, record = await house.log.read(appended.position - 1)
    assert await house.email(new) == "new@example.org"
    assert (record.actor, await house.read(record)) == ("officer", SubjectErased(subject="ada", reason="asked"))


async def test_who_repeats_an_erasure_that_died_ends_both_and_both_are_on_record(house: House) -> None:
    await house.invite("ada", "ada@example.org")
    with pytest.raises(LogClosed):
        await Vault(house.pool, ClosedLog(), MASTER).erase("acme", "ada", actor="officer", reason="asked")  # type: ignore[arg-type]
    erasure = await house.vault.erase("acme", "ada", actor="deputy", reason="asked again")
    assert erasure.key_destroyed
    records = (await house.log.read())[-2:]
    assert [(record.actor, await house.read(record)) for record in records] == [
        ("officer", SubjectErased(subject="ada", reason="asked")),
        ("deputy", SubjectErased(subject="ada", reason="asked again")),
    ]
    assert await house.vault.pending() == []


async def test_an_erasure_that_somebody_is_at_is_left_to_them(house: House) -> None:
    await house.invite("ada", "ada@example.org")
    resumed: list[object] = []

    async def meanwhile() -> None:
        assert len(await house.vault.pending()) == 1
        resumed.append(await house.another_vault().resume())

    await house.vault.erase("acme", "ada", actor="officer", reason="asked", views=meanwhile)
    assert resumed == [[]]
    assert await house.vault.pending() == []


async def test_a_command_repeated_after_an_erasure_is_one_fact(house: House) -> None:
    ids = [uuid7()]
    invite = [Invited(guest="ada", email="ada@example.org")]
    first = await house.guests(house.vault).execute("ada", lambda _: invite, CONTEXT, event_ids=ids)
    await house.forget("ada")
    again = await house.guests(house.another_vault()).execute("ada", lambda _: invite, CONTEXT, event_ids=ids)
    assert (again.position, again.version, again.events) == (first.position, 1, ())


async def waits_for_a_lock(dsn: str) -> None:
    """Until a statement waits for a lock that somebody else holds."""
    async with asyncio.timeout(30), await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        query = "select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
        while await (await connection.execute(query)).fetchone() is None:
            pass


async def test_the_key_of_another_person_in_the_place_of_ones_own_is_refused(house: House) -> None:
    ada = await house.invite("ada", "ada@example.org")
    await house.invite("bob", "bob@example.org")
    await house.sql(
        "update eventlog.subject_keys set wrapped ="
        " (select wrapped from eventlog.subject_keys where subject = 'bob') where subject = 'ada'"
    )
    with pytest.raises(KeyUnusable, match="does not unwrap"):
        await house.email(ada, house.another_vault())


async def test_a_damaged_wrapped_key_is_an_error_not_an_erasure(house: House) -> None:
    """What cannot be unwrapped must not look as if it had been erased by right."""
    ada = await house.invite("ada", "ada@example.org")
    async with await psycopg.AsyncConnection.connect(house.dsn, autocommit=True) as connection:
        await connection.execute("update eventlog.subject_keys set wrapped = '\\x00'")
    with pytest.raises(KeyUnusable, match="does not unwrap"):
        await house.email(ada)
