"""The adapter's settings: sensible without any, refused where wrong."""

import pytest
from eventlog.eventsourcing import environment
from eventlog.eventsourcing.settings import AdapterSettings
from eventlog.records import Context
from eventsourcing.utils import Environment, register_topic
from psycopg.conninfo import conninfo_to_dict

SERVER = environment("postgresql://alice:secret@127.0.0.1:5433/bank")


def settings(name: str = "Orders", **more: str) -> AdapterSettings:
    return AdapterSettings.read(Environment(name, SERVER | more))


def test_the_server_is_named_as_for_the_library() -> None:
    named = conninfo_to_dict(settings().dsn)
    assert named == {"dbname": "bank", "host": "127.0.0.1", "port": "5433", "user": "alice", "password": "secret"}


def test_a_password_may_come_from_a_function() -> None:
    register_topic("tests:fetched_password", lambda: "fetched")
    fetched = settings(POSTGRES_GET_PASSWORD_TOPIC="tests:fetched_password")
    assert conninfo_to_dict(fetched.dsn)["password"] == "fetched"


@pytest.mark.parametrize(
    ("name", "more", "schema"),
    [
        ("Orders", {}, "eventlog_orders"),
        ("", {}, "eventlog"),
        ("Orders", {"POSTGRES_SCHEMA": "shop"}, "shop_eventlog_orders"),
        ("Orders", {"EVENTLOG_SCHEMA": "orders"}, "orders"),
        ("Orders", {"ORDERS_EVENTLOG_SCHEMA": "own", "EVENTLOG_SCHEMA": "orders"}, "own"),
    ],
)
def test_each_application_has_a_log_of_its_own(name: str, more: dict[str, str], schema: str) -> None:
    assert settings(name, **more).schema == schema


def test_without_more_the_application_acts_for_the_local_tenant() -> None:
    assert settings().context == Context(tenant="local", actor="Orders")
    assert settings(EVENTLOG_TENANT="acme", EVENTLOG_ACTOR="shop").context == Context("acme", "shop")


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("EVENTLOG_FIRST_VERSION", "2", "must be '1' or '0', got '2'"),
        ("EVENTLOG_AGGREGATE", "a.b", "EVENTLOG_AGGREGATE 'a.b' must be"),
        ("EVENTLOG_SCHEMA", "s" * 55, "more than 54 bytes"),
        ("EVENTLOG_TENANT", "a b", "tenant 'a b' must be"),
        ("ORIGINATOR_ID_TYPE", "int", "must be 'uuid' or 'text'"),
    ],
)
def test_a_wrong_setting_is_named(key: str, value: str, problem: str) -> None:
    with pytest.raises(OSError, match=problem):
        settings(**{key: value})
