"""Marks for personal data: found at any depth, passed by ERASED whatever the type, and shown in the schema."""

from datetime import date
from typing import Annotated

import pytest
from pydantic import BaseModel, Field, ValidationError
from synod.common.event import Event, Value
from synod.common.personal import (
    ERASED,
    DataSubject,
    Personal,
    data_subject_of,
    holds_personal_data,
    personal_paths,
)


class Address(Value):
    street: Annotated[str, Personal()]
    country: str


class Invited(Event):
    AGGREGATE = "guest"
    guest: Annotated[str, DataSubject()]
    email: str = Field(json_schema_extra={"personal": True})
    born: Annotated[date | None, Personal()] = None
    addresses: tuple[Address, ...] = ()
    by_name: dict[str, Address] = Field(default_factory=dict)


class Counted(Event):
    AGGREGATE = "guest"
    count: int


class Tree(Value):
    """A model that holds itself."""

    children: tuple["Tree", ...] = ()
    address: Address | None = None


INVITED = Invited(
    guest="g1",
    email="ada@example.org",
    addresses=(Address(street="A 1", country="X"), Address(street="B 2", country="Y")),
    by_name={"home": Address(street="C 3", country="Z")},
)


def test_marked_fields_are_found_at_any_depth() -> None:
    assert list(personal_paths(INVITED)) == [
        ("email",),
        ("addresses", 0, "street"),
        ("addresses", 1, "street"),
        ("by_name", "home", "street"),
    ]


def test_an_empty_or_erased_field_holds_nothing_to_protect() -> None:
    assert list(personal_paths(Invited(guest="g1", email=ERASED))) == []


@pytest.mark.parametrize(("cls", "holds"), [(Invited, True), (Address, True), (Tree, True), (Counted, False)])
def test_a_model_says_whether_it_holds_personal_data(cls: type[BaseModel], holds: bool) -> None:
    assert holds_personal_data(cls) is holds


def test_the_field_that_names_the_person_is_known() -> None:
    assert data_subject_of(INVITED) == "g1"
    assert data_subject_of(Counted(count=1)) is None


def test_erased_passes_a_marked_field_of_any_type_and_survives_json() -> None:
    erased = Invited.model_validate_json('{"guest":"g1","email":"[erased]","born":"[erased]"}')
    assert erased.born is ERASED
    assert erased.email == ERASED
    assert Invited.model_validate_json(erased.model_dump_json()) == erased


def test_a_marked_field_still_checks_what_is_not_erased() -> None:
    assert Invited.model_validate({"guest": "g", "email": "e", "born": "1815-12-10"}).born == date(1815, 12, 10)
    with pytest.raises(ValidationError):
        Invited.model_validate({"guest": "g", "email": "e", "born": "yesterday"})


def test_the_schema_shows_what_is_personal() -> None:
    properties = Invited.model_json_schema()["properties"]
    assert properties["email"]["personal"] is properties["born"]["personal"] is True
    assert properties["guest"]["data_subject"] is True
    assert "personal" not in properties["addresses"]


def test_erased_is_recognised_in_a_log() -> None:
    assert repr(ERASED) == "ERASED"
    assert f"{ERASED}" == "[erased]"
