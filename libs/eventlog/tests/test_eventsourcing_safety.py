"""What was measured to lose events is refused before anything is opened."""

import pytest
from eventlog.errors import EventLogError
from eventlog.eventsourcing import environment, refuse_unsafe
from eventlog.eventsourcing.errors import UnsafeRecorder
from eventsourcing.application import Application
from eventsourcing.persistence import InfrastructureFactoryError

SAFE = environment("host=127.0.0.1 dbname=none user=nobody")


@pytest.mark.parametrize("value", ["y", "yes", "true", "1", "on"])
def test_the_database_functions_are_refused_with_the_measurement(value: str) -> None:
    with pytest.raises(UnsafeRecorder, match="missed 12,957 of 102,965 events"):
        refuse_unsafe({"POSTGRES_ENABLE_DB_FUNCTIONS": value})


@pytest.mark.parametrize("key", ["PERSISTENCE_MODULE", "INFRASTRUCTURE_FACTORY", "FACTORY_TOPIC"])
@pytest.mark.parametrize(
    "topic", ["eventsourcing.dcb.postgres_tt", "eventsourcing.dcb.postgres_tt:PostgresTTDCBFactory"]
)
def test_the_dcb_recorder_on_postgresql_is_refused_with_the_measurement(key: str, topic: str) -> None:
    with pytest.raises(UnsafeRecorder, match="missed 32,692 of 72,033 events"):
        refuse_unsafe({key: topic})


def test_the_setting_of_a_single_application_is_refused_too() -> None:
    with pytest.raises(UnsafeRecorder) as refused:
        refuse_unsafe(SAFE | {"ORDERS_POSTGRES_ENABLE_DB_FUNCTIONS": "y"})
    assert refused.value.key == "ORDERS_POSTGRES_ENABLE_DB_FUNCTIONS"


@pytest.mark.parametrize(
    "settings",
    [
        SAFE,
        {"POSTGRES_ENABLE_DB_FUNCTIONS": "n"},
        {"POSTGRES_ENABLE_DB_FUNCTIONS": ""},
        {"PERSISTENCE_MODULE": "eventsourcing.postgres"},
        {"PERSISTENCE_MODULE": "eventsourcing.dcb.popo"},
        {"COMMENT": "eventsourcing.dcb.postgres_tt"},
    ],
)
def test_sound_settings_pass(settings: dict[str, str]) -> None:
    assert refuse_unsafe(settings) is None


def test_an_application_does_not_start_on_an_unsafe_environment() -> None:
    with pytest.raises(InfrastructureFactoryError) as refused:
        Application(env=SAFE | {"POSTGRES_ENABLE_DB_FUNCTIONS": "y"})
    assert isinstance(refused.value, EventLogError)
