"""Payloads encrypted where they are stored: the log keeps every promise, and nobody without the key reads it."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic

import psycopg
import pytest
from eventlog.at_rest import OVERHEAD_BYTES, ROTATION_NOTICED_S, EncryptedLog, PayloadCipher, key_number
from eventlog.checkpoints import Checkpoints
from eventlog.data_keys import DataKeys, has_data_keys
from eventlog.errors import DuplicateEventId, EventTooLarge, KeyUnusable, PayloadUnreadable
from eventlog.log import EventLog
from eventlog.master_keys import LocalMasterKey, MasterKey
from eventlog.postgres import PostgresEventLog
from eventlog.signing import SigningKey
from eventlog.testing import EventLogContract, a_stream, an_append, an_event
from psycopg_pool import AsyncConnectionPool

MASTER = LocalMasterKey(b"m" * 32, "test")
SECRET = b'{"text":"the secret of the house"}'


@asynccontextmanager
async def opened(
    dsn: str,
    master: MasterKey = MASTER,
    *,
    retired: tuple[MasterKey, ...] = (),
    encrypting: bool = True,
    stopwatch=monotonic,
) -> AsyncIterator[EncryptedLog]:
    async with (
        await PostgresEventLog.open(dsn) as stored,
        AsyncConnectionPool(dsn, min_size=1, max_size=2, open=False) as pool,
    ):
        log = EncryptedLog(stored, DataKeys(pool, master, retired=retired), encrypting=encrypting, stopwatch=stopwatch)
        await log.prepare()
        yield log


@pytest.fixture
async def log(postgres_dsn: str) -> AsyncIterator[EncryptedLog]:
    async with opened(postgres_dsn) as encrypted:
        yield encrypted


class TestEncryptedLog(EventLogContract):
    @pytest.fixture
    async def log(self, postgres_dsn: str) -> AsyncIterator[EncryptedLog]:
        async with opened(postgres_dsn) as encrypted:
            yield encrypted

    async def test_nothing_to_append_and_too_much_data_are_refused(self, log: EventLog) -> None:
        """The limit is that of what is stored."""
        with pytest.raises(ValueError, match="1 to 1000 events"):
            await log.append()
        with pytest.raises(EventTooLarge) as refused:
            await log.append(an_append(a_stream(), an_event(data=bytes(800_000))))
        assert refused.value.size == 800_000 + OVERHEAD_BYTES


async def everything(dsn: str) -> bytes:
    """All that events and snapshots hold."""
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        found = await connection.execute(
            "select data from eventlog.events union all select data from eventlog.snapshots"
        )
        return b"\n".join([bytes(data) for (data,) in await found.fetchall()])


async def test_payloads_and_snapshots_are_ciphertext_in_the_database(log: EncryptedLog, postgres_dsn: str) -> None:
    stream = a_stream()
    await log.append(an_append(stream, an_event(data=SECRET)))
    await log.save_snapshot(stream, 1, "fold-1", SECRET)
    assert b"secret" not in await everything(postgres_dsn)
    (event,) = await log.read()
    snapshot = await log.load_snapshot(stream, "fold-1")
    assert snapshot is not None
    assert (event.data, snapshot.data) == (SECRET, SECRET)
    assert (await log.read_stream(stream))[0].data == SECRET


async def test_the_chain_is_over_ciphertext_and_needs_no_key(log: EncryptedLog, postgres_dsn: str) -> None:
    async with AsyncConnectionPool(postgres_dsn, min_size=1, max_size=2, open=False) as pool:
        checkpoints = Checkpoints(pool, log.stored, "house", SigningKey.generate())
        await checkpoints.prepare()
        await log.append(an_append(a_stream(), *[an_event(data=SECRET) for _ in range(5)]))
        await checkpoints.make()
        async with await PostgresEventLog.open(postgres_dsn) as keyless:
            assert (await keyless.verify()).ok
        found = await checkpoints.verify()
        assert (found.ok, found.attested_to) == (True, 5)
        proven = await checkpoints.prove(3)
        assert key_number(proven.event.data) == 1
        async with pool.connection() as connection:
            await connection.execute("update eventlog.events set data = set_byte(data, 30, 0) where position = 4")
        assert (await checkpoints.verify()).broken_at == 4


async def test_a_changed_payload_is_not_read(log: EncryptedLog, postgres_dsn: str) -> None:
    await log.append(an_append(a_stream(), an_event(data=SECRET), an_event(data=SECRET)))
    async with await psycopg.AsyncConnection.connect(postgres_dsn, autocommit=True) as connection:
        await connection.execute(
            "update eventlog.events set data = (select data from eventlog.events where position = 2) where position = 1"
        )
    with pytest.raises(PayloadUnreadable, match="the event at 1 is not what data key 1 encrypted"):
        await log.read()


@pytest.mark.parametrize(
    "change",
    [
        "data = set_byte(data, 40, get_byte(data, 40) # 1)",
        "version = version - 1",
        'data = \'{"text":"forged"}\'',
        "data = (select data from eventlog.events where position = 1)",
    ],
    ids=["changed", "moved", "in the clear", "of something else"],
)
async def test_a_tampered_snapshot_is_not_believed(log: EncryptedLog, postgres_dsn: str, change: str) -> None:
    stream = a_stream()
    await log.append(an_append(stream, an_event(data=SECRET), an_event()))
    await log.save_snapshot(stream, 2, "fold-1", SECRET)
    async with await psycopg.AsyncConnection.connect(postgres_dsn, autocommit=True) as connection:
        await connection.execute(f"update eventlog.snapshots set {change}".encode())
    assert await log.load_snapshot(stream, "fold-1") is None


async def test_a_rotated_key_encrypts_what_comes_and_the_old_one_still_reads(log: EncryptedLog) -> None:
    await log.append(an_append(a_stream(), an_event(data=SECRET)))
    assert await log.rotate() == 2
    await log.append(an_append(a_stream(), an_event(data=SECRET)))
    assert [key_number(event.data) for event in await log.stored.read()] == [1, 2]
    assert [event.data for event in await log.read()] == [SECRET] * 2


async def test_another_process_reads_what_a_new_key_encrypted(log: EncryptedLog, postgres_dsn: str) -> None:
    async with opened(postgres_dsn) as other:
        await log.rotate()
        await log.append(an_append(a_stream(), an_event(data=SECRET)))
        assert [event.data for event in await other.read()] == [SECRET]


async def test_a_request_repeated_after_a_rotation_is_stored_once(log: EncryptedLog) -> None:
    request = an_append(a_stream(), an_event(data=SECRET))
    await log.append(request)
    await log.rotate()
    assert (await log.append(request)).duplicate
    other = an_append(request.stream, an_event(data=b"{}", event_id=request.events[0].id))
    with pytest.raises(DuplicateEventId):
        await log.append(other)
    assert await log.head() == 1


async def test_a_request_repeated_in_another_process_after_a_rotation_is_stored_once(
    log: EncryptedLog, postgres_dsn: str
) -> None:
    request = an_append(a_stream(), an_event(data=SECRET))
    async with opened(postgres_dsn) as other:
        await log.rotate()
        await log.append(request)
        assert (await other.append(request)).duplicate
        with pytest.raises(DuplicateEventId):
            await other.append(an_append(request.stream, an_event(data=b"{}", event_id=request.events[0].id)))
        await other.append(an_append(a_stream(), an_event(data=SECRET)))
    assert [key_number(event.data) for event in await log.stored.read()] == [2, 2]


async def test_a_process_that_only_writes_notices_a_rotation_in_time(log: EncryptedLog, postgres_dsn: str) -> None:
    now = 1_000.0
    async with opened(postgres_dsn, stopwatch=lambda: now) as other:
        await log.rotate()
        await other.append(an_append(a_stream(), an_event(data=SECRET)))
        now += ROTATION_NOTICED_S
        await other.append(an_append(a_stream(), an_event(data=SECRET)))
    assert [key_number(event.data) for event in await log.stored.read()] == [1, 2]


async def test_while_the_keys_cannot_be_read_a_process_goes_on_with_the_key_it_knows(postgres_dsn: str) -> None:
    now = 1_000.0
    async with await PostgresEventLog.open(postgres_dsn) as stored:
        async with AsyncConnectionPool(postgres_dsn, min_size=1, max_size=2, open=False) as pool:
            log = EncryptedLog(stored, DataKeys(pool, MASTER), stopwatch=lambda: now)
            await log.prepare()
        now += ROTATION_NOTICED_S  # the pool is closed: the keys cannot be read any more
        await log.append(an_append(a_stream(), an_event(data=SECRET)))
        assert [key_number(event.data) for event in await stored.read()] == [1]


async def test_the_switch_may_be_turned_either_way(postgres_dsn: str) -> None:
    request = an_append(a_stream(), an_event(data=SECRET))
    async with await PostgresEventLog.open(postgres_dsn) as plain:
        await plain.append(request)
    async with opened(postgres_dsn) as encrypted:
        assert (await encrypted.append(request)).duplicate
        await encrypted.append(an_append(a_stream(), an_event(data=SECRET)))
    async with opened(postgres_dsn, encrypting=False) as off:
        await off.append(an_append(a_stream(), an_event(data=SECRET)))
        assert [event.data for event in await off.read()] == [SECRET] * 3
        assert [key_number(event.data) for event in await off.stored.read()] == [None, 1, None]


async def test_data_keys_are_wrapped_anew_under_another_master_key(log: EncryptedLog, postgres_dsn: str) -> None:
    await log.append(an_append(a_stream(), an_event(data=SECRET)))
    await log.rotate()
    new = LocalMasterKey(os.urandom(32), "new")
    with pytest.raises(KeyUnusable, match=f"wrapped by another master key, {MASTER.key_id}; give that key back"):
        async with opened(postgres_dsn, new):
            pass
    async with AsyncConnectionPool(postgres_dsn, min_size=1, max_size=2, open=False) as pool:
        keys = DataKeys(pool, new, retired=[MASTER])
        assert (await keys.rewrap(), await keys.rewrap()) == (2, 0)
    async with opened(postgres_dsn, new) as alone:
        assert [event.data for event in await alone.read()] == [SECRET]


async def test_a_log_knows_whether_it_was_ever_encrypted(postgres_dsn: str) -> None:
    async with AsyncConnectionPool(postgres_dsn, min_size=1, max_size=2, open=False) as pool:
        assert not await has_data_keys(pool)
        async with opened(postgres_dsn):
            assert await has_data_keys(pool)


def test_the_same_payload_of_the_same_event_is_the_same_ciphertext() -> None:
    cipher = PayloadCipher(7, b"k" * 32)
    sealed = cipher.encrypt(SECRET, b"event 1")
    assert sealed == cipher.encrypt(SECRET, b"event 1") != cipher.encrypt(SECRET, b"event 2")
    assert (key_number(sealed), len(sealed)) == (7, len(SECRET) + OVERHEAD_BYTES)
    assert key_number(SECRET) is None
