"""A log that seals what is personal for whoever appends, and opens it for whoever reads."""

import os
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Annotated, Any, ClassVar

import psycopg
import pytest
from eventlog.at_rest import EncryptedLog
from eventlog.codec import Codec
from eventlog.data_keys import DataKeys
from eventlog.errors import DuplicateEventId, VersionConflict
from eventlog.log import EventLog
from eventlog.master_keys import LocalMasterKey
from eventlog.personal_log import PersonalLog
from eventlog.postgres import PostgresEventLog
from eventlog.records import ANY, NO_STREAM, Append, Context, Filter, NewEvent, StreamId
from eventlog.testing import NOON
from eventlog.vault import Vault
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool
from synod.common.event import Event, Value
from synod.common.personal import DataSubject, Personal

CONTEXT = Context(tenant="local", actor="ada")
STREAM = StreamId("talk", "t1")


class Part(Value):
    text: Annotated[str, Personal()]


class Said(Event):
    AGGREGATE: ClassVar[str] = "talk"
    words: Annotated[str, Personal()]
    parts: tuple[Part, ...] = ()


class Invited(Event):
    AGGREGATE: ClassVar[str] = "talk"
    guest: Annotated[str, DataSubject()]
    email: Annotated[str, Personal()]


class Counted(Event):
    AGGREGATE: ClassVar[str] = "talk"
    number: int


CODEC: Codec[Event] = Codec([Said, Invited, Counted], sealed_below=True)
SECRET = "my sister is ill"


@pytest.fixture
async def stored(postgres_dsn: str) -> AsyncIterator[PostgresEventLog]:
    async with await PostgresEventLog.open(postgres_dsn) as log:
        yield log


@pytest.fixture
async def pool(postgres_dsn: str) -> AsyncIterator[AsyncConnectionPool[AsyncConnection[Any]]]:
    async with AsyncConnectionPool(postgres_dsn, min_size=1, max_size=4, open=False) as pool:
        yield pool


@pytest.fixture
async def vault(pool: AsyncConnectionPool[AsyncConnection[Any]], stored: PostgresEventLog) -> Vault:
    vault = Vault(pool, stored, LocalMasterKey(os.urandom(32), "test"))
    await vault.prepare()
    return vault


@pytest.fixture
def log(stored: PostgresEventLog, vault: Vault) -> PersonalLog:
    return PersonalLog(stored, vault, [Said, Invited, Counted])


def new(event: Event) -> NewEvent:
    return CODEC.encode(event, at=NOON)


def an_append(*events: Event, context: Context = CONTEXT) -> Append:
    return Append(STREAM, ANY, tuple(map(new, events)), context)


async def test_what_is_personal_is_sealed_below_and_read_as_it_was(log: PersonalLog, stored: PostgresEventLog) -> None:
    said = Said(words=SECRET, parts=(Part(text="very ill"),))
    appended = await log.append(an_append(Counted(number=1), said))
    assert (appended.position, appended.versions) == (2, (2,))
    for events in (
        await log.read(),
        list((await log.next_page()).events),
        await log.read_stream(STREAM),
        await log.read(where=Filter(tenant="local")),
    ):
        assert [CODEC.decode(event) for event in events] == [Counted(number=1), said]
    counted, sealed = await stored.read()
    assert (counted.data_subject, sealed.data_subject) == (None, "ada")
    assert b"ill" not in sealed.data
    assert (await log.verify()).ok


async def test_it_is_about_whom_the_event_names_before_who_appends_it(
    log: PersonalLog, stored: PostgresEventLog
) -> None:
    await log.append(an_append(Invited(guest="eve", email="eve@example.org")))
    (event,) = await stored.read()
    assert event.data_subject == "eve"


async def test_an_erasure_leaves_nothing_to_read_and_who_comes_back_is_heard(log: PersonalLog, vault: Vault) -> None:
    await log.append(
        an_append(Said(words=SECRET)),
    )
    await log.append(an_append(Said(words="bob's"), context=Context(tenant="local", actor="bob")))
    await vault.erase("local", "ada", actor="bob", reason="asked")
    await log.append(an_append(Said(words="it is me again")))
    words = [event.words for event in map(CODEC.decode, await log.read_stream(STREAM)) if isinstance(event, Said)]
    assert words == ["[erased]", "bob's", "it is me again"]
    assert await vault.unrecorded() is None


async def test_an_erasure_in_another_process_does_not_meet_a_key_that_is_still_kept(
    log: PersonalLog, stored: PostgresEventLog, vault: Vault, pool: AsyncConnectionPool[AsyncConnection[Any]]
) -> None:
    """What was sealed with the key that is gone would be stored after the erasure, and nobody could ever read it."""
    other = PersonalLog(stored, vault, [Said])
    await log.append(an_append(Said(words=SECRET)))
    await other.append(an_append(Said(words=SECRET)))
    for _ in range(3):
        await vault.erase("local", "ada", actor="ada", reason="asked")
        await log.append(an_append(Said(words="first")))
        await other.append(an_append(Said(words="second")))
    said = [event.words for event in map(CODEC.decode, await log.read_stream(STREAM)) if isinstance(event, Said)]
    assert said == ["[erased]"] * 6 + ["first", "second"]
    assert await vault.unrecorded() is None


async def test_a_conflict_of_the_caller_stays_the_callers(log: PersonalLog) -> None:
    await log.append(an_append(Said(words=SECRET)))
    with pytest.raises(VersionConflict) as conflict:
        await log.append(Append(STREAM, NO_STREAM, (new(Said(words="again")),), CONTEXT))
    assert conflict.value.stream == STREAM


async def test_a_repeated_request_is_one_fact(log: PersonalLog) -> None:
    request = an_append(Said(words=SECRET))
    first = await log.append(request)
    again = await log.append(request)
    assert (again.position, again.duplicate) == (first.position, True)


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "encrypted at rest"])
async def test_a_request_repeated_after_an_erasure_elsewhere_is_one_fact(
    stored: PostgresEventLog, vault: Vault, pool: AsyncConnectionPool[AsyncConnection[Any]], encrypted: bool
) -> None:
    """What seals the repeat is the next key: the text that the first one sealed is gone, so it differs from what is stored."""
    below: EventLog = stored
    if encrypted:
        below = at_rest = EncryptedLog(stored, DataKeys(pool, LocalMasterKey(os.urandom(32), "test")))
        await at_rest.prepare()
    log, other = (PersonalLog(below, vault, [Said, Invited, Counted]) for _ in range(2))
    request = an_append(Counted(number=1), Said(words=SECRET))
    first = await log.append(request)
    await other.append(an_append(Said(words="mine")))
    await vault.erase("local", "ada", actor="ada", reason="asked")
    await other.append(an_append(Said(words="the next key is made")))
    for repeating in (other, log, PersonalLog(below, vault, [Said])):
        again = await repeating.append(request)
        assert (again.position, again.duplicate) == (first.position, True)
    assert SECRET.encode() not in b"".join(event.data for event in await log.read())


async def test_another_fact_under_the_id_of_one_that_was_erased_is_refused(
    log: PersonalLog, vault: Vault, stored: PostgresEventLog
) -> None:
    said = new(Invited(guest="eve", email="e@x"))
    await log.append(Append(STREAM, NO_STREAM, (said,), CONTEXT))
    await vault.erase("local", "eve", actor="ada", reason="asked")
    another_guest = replace(said, data=new(Invited(guest="bob", email="e@x")).data)
    another_type = replace(new(Said(words="e@x")), id=said.id)
    for changed, context in (
        (another_guest, CONTEXT),
        (another_type, CONTEXT),
        (said, Context(tenant="acme", actor="ada")),
    ):
        with pytest.raises(DuplicateEventId):
            await PersonalLog(stored, vault, [Said, Invited]).append(Append(STREAM, ANY, (changed,), context))


async def test_other_words_of_one_person_under_one_id_are_refused(log: PersonalLog) -> None:
    said = new(Said(words=SECRET))
    await log.append(Append(STREAM, ANY, (said,), CONTEXT))
    with pytest.raises(DuplicateEventId):
        await log.append(Append(STREAM, ANY, (replace(said, data=new(Said(words="no")).data),), CONTEXT))


async def test_several_streams_and_persons_go_in_one_request(log: PersonalLog, stored: PostgresEventLog) -> None:
    appended = await log.append(
        an_append(Said(words="one")),
        Append(StreamId("talk", "t2"), NO_STREAM, (new(Invited(guest="eve", email="e@x")),), CONTEXT),
    )
    assert appended.versions == (1, 1)
    assert [event.data_subject for event in await stored.read()] == ["ada", "eve"]


async def test_no_snapshot_is_kept_of_what_may_be_erased(log: PersonalLog, stored: PostgresEventLog) -> None:
    await log.save_snapshot(STREAM, 1, "fold@1", SECRET.encode())
    assert await log.load_snapshot(STREAM, "fold@1") is None
    assert await stored.load_snapshot(STREAM, "fold@1") is None


async def test_keys_are_asked_for_once(log: PersonalLog, postgres_dsn: str, vault: Vault) -> None:
    """An append that had to ask for its key each time would be a transaction slower."""
    await log.append(an_append(Said(words="first")))
    async with await psycopg.AsyncConnection.connect(postgres_dsn, autocommit=True) as connection:
        await connection.execute("alter table eventlog.subject_keys rename to hidden")
        assert (await log.append(an_append(Said(words="second")))).position == 2
        await connection.execute("alter table eventlog.hidden rename to subject_keys")
