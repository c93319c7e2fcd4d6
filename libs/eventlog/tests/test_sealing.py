"""Personal fields: sealed on encode, opened on decode, erased without the key."""

import json
from dataclasses import replace
from datetime import date
from typing import Annotated

import pytest
from eventlog.codec import Codec
from eventlog.errors import SealBroken, SubjectLocked
from eventlog.records import NewEvent, StoredEvent, StreamId
from eventlog.sealing import Keyring, SubjectKey
from eventlog.testing import NOON
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, JsonValue
from synod.common.event import Event, Value
from synod.common.ids import uuid7
from synod.common.personal import ERASED, DataSubject, Personal

KEY = SubjectKey("acme", "g1", b"k" * 32)
KEYS = Keyring({("acme", "g1"): KEY})


class Contact(Value):
    channel: str
    address: Annotated[str, Personal()]


class Invited(Event):
    AGGREGATE = "guest"
    guest: Annotated[str, DataSubject()]
    name: Annotated[str, Personal()]
    born: Annotated[date | None, Personal()] = None
    contacts: tuple[Contact, ...] = ()
    notes: dict[str, Contact] = Field(default_factory=dict)
    answers: Annotated[JsonValue, Personal()] = None


class Anonymous(Event):
    AGGREGATE = "guest"
    name: Annotated[str, Personal()]


class Left(Event):
    AGGREGATE = "guest"
    guest: Annotated[str, DataSubject()]


CODEC = Codec[Event]([Invited, Anonymous, Left])
INVITED = Invited(
    guest="g1",
    name="Ada Lovelace",
    born=date(1815, 12, 10),
    contacts=(Contact(channel="post", address="London"), Contact(channel="fax", address="none")),
    notes={"a/b~c": Contact(channel="mail", address="ada@example.org")},
    answers={"$sealed": {"/guest": "x"}, "deep": [1, None, "ä"]},
)


def stored(new: NewEvent, tenant: str = "acme") -> StoredEvent:
    return StoredEvent(
        1, StreamId("guest", "g1"), 1, new.id, new.type, new.type_version, tenant, new.data_subject, new.occurred_at,
        NOON, None, "", "tester", "", new.data, None, b"", b"",
    )  # fmt: skip


def test_what_is_sealed_is_opened_with_the_key() -> None:
    new = CODEC.encode(INVITED, at=NOON, key=KEY)
    assert new.data_subject == "g1"
    assert CODEC.decode(stored(new), KEYS) == INVITED


def test_no_personal_text_is_stored() -> None:
    data = CODEC.encode(INVITED, at=NOON, key=KEY).data
    for text in (b"Ada", b"1815", b"London", b"none", b"ada@example.org", b"deep"):
        assert text not in data
    for text in (b'"channel":"post"', b'"guest":"g1"', b'"name":"[erased]"'):
        assert text in data


def test_without_the_key_every_personal_field_is_erased() -> None:
    erased = CODEC.decode(stored(CODEC.encode(INVITED, at=NOON, key=KEY)))
    assert isinstance(erased, Invited)
    assert erased.guest == "g1"
    assert erased.name is erased.born is erased.answers is ERASED
    assert [(contact.channel, contact.address) for contact in erased.contacts] == [("post", ERASED), ("fax", ERASED)]
    assert erased.notes["a/b~c"].address is ERASED


def test_a_reader_that_knows_nothing_of_keys_reads_the_erased_event() -> None:
    """As a service does that follows another one's stream."""
    data = CODEC.encode(INVITED, at=NOON, key=KEY).data
    assert Invited.model_validate_json(data).name is ERASED


def test_a_retry_makes_the_same_bytes_and_another_event_makes_others() -> None:
    event_id = uuid7()
    first, again, other = (
        CODEC.encode(INVITED, id=id, at=NOON, key=SubjectKey("acme", "g1", b"k" * 32))
        for id in (event_id, event_id, uuid7())
    )
    assert first.data == again.data
    assert set(seals(first).values()).isdisjoint(seals(other).values())


def test_the_same_text_at_two_places_has_two_nonces() -> None:
    twins = Invited(guest="g1", name="x", contacts=(Contact(channel="a", address="x"),))
    first, second = seals(CODEC.encode(twins, at=NOON, key=KEY)).values()
    assert first[:16] != second[:16]


def seals(new: NewEvent) -> dict[str, str]:
    return json.loads(new.data)["$sealed"]["fields"]


def test_a_seal_that_was_moved_or_changed_is_found() -> None:
    new = CODEC.encode(INVITED, at=NOON, key=KEY)
    document = json.loads(new.data)
    sealed = document["$sealed"]["fields"]
    sealed["/contacts/0/address"], sealed["/contacts/1/address"] = (
        sealed["/contacts/1/address"], sealed["/contacts/0/address"],
    )  # fmt: skip
    moved = stored(replace(new, data=json.dumps(document).encode()))
    with pytest.raises(SealBroken, match=r"/contacts/0/address of the event at position 1"):
        CODEC.decode(moved, KEYS)
    with pytest.raises(SealBroken):
        CODEC.decode(stored(replace(new, id=uuid7())), KEYS)


def test_what_another_key_of_the_person_sealed_is_erased() -> None:
    """As when somebody was erased and came back."""
    renewed = Keyring({("acme", "g1"): SubjectKey("acme", "g1", b"o" * 32)})
    erased = CODEC.decode(stored(CODEC.encode(INVITED, at=NOON, key=KEY)), renewed)
    assert isinstance(erased, Invited)
    assert erased.name is ERASED


def test_a_key_opens_in_its_own_tenant_only() -> None:
    elsewhere = CODEC.decode(stored(CODEC.encode(INVITED, at=NOON, key=KEY), tenant="rival"), KEYS)
    assert isinstance(elsewhere, Invited)
    assert elsewhere.name is ERASED


@pytest.mark.parametrize("key", [None, SubjectKey("acme", "g2", b"k" * 32)])
def test_personal_data_is_never_stored_without_the_persons_own_key(key: SubjectKey | None) -> None:
    with pytest.raises(SubjectLocked, match="the key of g1 is needed"):
        CODEC.encode(INVITED, at=NOON, key=key)


def test_personal_data_of_nobody_is_refused() -> None:
    with pytest.raises(SubjectLocked, match="DataSubject"):
        CODEC.sealed_for(Anonymous(name="x"))
    with pytest.raises(SubjectLocked):
        CODEC.encode(Anonymous(name="x"), at=NOON, key=KEY)
    assert CODEC.encode(Anonymous(name="x"), at=NOON, data_subject="g1", key=KEY).data_subject == "g1"


def test_an_event_without_personal_data_needs_no_key_but_names_its_person() -> None:
    new = CODEC.encode(Left(guest="g1"), at=NOON)
    assert (new.data, new.data_subject) == (b'{"guest":"g1"}', "g1")
    assert CODEC.sealed_for(Left(guest="g1")) is None
    assert CODEC.decode(stored(new)) == Left(guest="g1")


def test_a_reencoded_erased_event_stays_erased() -> None:
    erased = CODEC.decode(stored(CODEC.encode(INVITED, at=NOON, key=KEY)))
    assert isinstance(erased, Invited)
    again = CODEC.encode(erased, at=NOON, key=KEY)
    assert seals(again) == {}
    assert CODEC.decode(stored(again), KEYS) == erased


def test_an_old_version_is_opened_before_it_is_lifted() -> None:
    class Renamed(Event):
        AGGREGATE = "guest"
        VERSION = 2
        guest: Annotated[str, DataSubject()]
        full_name: Annotated[str, Personal()]

        @classmethod
        def type_name(cls) -> str:
            return "Invited"

    def lift(fields: dict[str, JsonValue]) -> dict[str, JsonValue]:
        return {"guest": fields["guest"], "full_name": fields["name"]}

    codec = Codec([Renamed], {("Invited", 1): lift})
    old = stored(CODEC.encode(INVITED, at=NOON, key=KEY))
    assert codec.decode(old, KEYS) == Renamed(guest="g1", full_name="Ada Lovelace")
    assert codec.decode(old) == Renamed(guest="g1", full_name=ERASED)


@given(st.text(), st.lists(st.text(), max_size=3), st.dictionaries(st.text(), st.text(), max_size=3))
def test_any_text_comes_back(name: str, addresses: list[str], notes: dict[str, str]) -> None:
    event = Invited(
        guest="g1",
        name=name,
        contacts=tuple(Contact(channel="c", address=address) for address in addresses),
        notes={key: Contact(channel="c", address=address) for key, address in notes.items()},
    )
    assert CODEC.decode(stored(CODEC.encode(event, at=NOON, key=KEY)), KEYS) == event
