"""Any id and any topic becomes a token and comes back; a registered name outlives its class."""

import pytest
from eventlog.eventsourcing.names import TypeNames, from_token, to_token
from eventlog.records import require_token
from hypothesis import given
from hypothesis import strategies as st


@given(st.text(min_size=1, max_size=30))
def test_every_text_comes_back_from_its_token(text: str) -> None:
    token = to_token(text)
    if len(token) <= 128:
        require_token("token", token)
    assert from_token(token) == text


@given(st.text(max_size=5), st.text(max_size=5))
def test_two_texts_never_share_a_token(one: str, other: str) -> None:
    assert (to_token(one) == to_token(other)) == (one == other)


def test_a_uuid_is_its_own_token() -> None:
    assert to_token("0f8fad5b-d9cb-469f-a165-70867728950e") == "0f8fad5b-d9cb-469f-a165-70867728950e"


def test_a_topic_that_is_not_registered_is_escaped() -> None:
    types = TypeNames()
    assert types.type_of("bank.domain:Account.Opened") == "bank_2Edomain_3AAccount_2EOpened"
    assert types.topic_of("bank_2Edomain_3AAccount_2EOpened") == "bank.domain:Account.Opened"


def test_a_registered_name_is_stored_and_leads_to_the_present_class() -> None:
    types = TypeNames()
    types.register("AccountOpened", "accounts:Account.Opened", "bank.domain:Account.Opened")
    assert types.type_of("accounts:Account.Opened") == "AccountOpened"
    assert types.type_of("bank.domain:Account.Opened") == "AccountOpened"
    assert types.topic_of("AccountOpened") == "accounts:Account.Opened"


def test_registering_the_same_again_changes_nothing() -> None:
    types = TypeNames()
    types.register("AccountOpened", "accounts:Opened")
    types.register("AccountOpened", "accounts:Opened")
    assert types.topic_of("AccountOpened") == "accounts:Opened"


@pytest.mark.parametrize(
    ("name", "topic", "problem"),
    [
        ("AccountOpened", "other:Opened", "stands for accounts:Opened already"),
        ("OtherOpened", "accounts:Opened", "is stored as 'AccountOpened' already"),
        ("account.opened", "other:Opened", "must be 1 to 128 characters"),
        ("account_2Eopened", "other:Opened", "looks escaped"),
    ],
)
def test_a_name_that_could_be_mistaken_is_refused(name: str, topic: str, problem: str) -> None:
    types = TypeNames()
    types.register("AccountOpened", "accounts:Opened")
    with pytest.raises(ValueError, match=problem):
        types.register(name, topic)
