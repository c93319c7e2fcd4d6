"""Every event ever published still decodes, and no published schema is broken."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from synod.common.event import Event

CONTRACTS = Path(__file__).parents[1]
GOLDEN = CONTRACTS / "tests" / "golden"


def _generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", CONTRACTS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generate = _generator()
EVENTS: dict[tuple[str, str], type[Event]] = {
    (service, event.type_name()): event
    for service in generate.SERVICES
    for event in generate.events_module(service).EVENTS
}
FILES = sorted(GOLDEN.glob("*/*.json"))


def test_derived_documents_are_current() -> None:
    check = subprocess.run([sys.executable, str(CONTRACTS / "generate.py"), "--check"], capture_output=True, text=True)
    assert check.returncode == 0, check.stdout + check.stderr + "run `make asyncapi`"


def test_every_event_version_has_a_golden_file() -> None:
    names = {(path.parent.name, path.stem) for path in FILES}
    wanted = {(service, f"{name}.v{event.VERSION}") for (service, name), event in EVENTS.items()}
    assert wanted <= names


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_golden_event_decodes_and_loses_nothing(path: Path) -> None:
    name, version = path.stem.rsplit(".v", 1)
    event = EVENTS[(path.parent.name, name)]
    assert int(version) == event.VERSION, "an older version needs an upcaster and a test of it beside its golden file"
    recorded = json.loads(path.read_text())
    encoded = json.loads(event.model_validate(recorded).model_dump_json())
    assert keeps(encoded, recorded)


def keeps(newer: Any, older: Any) -> bool:
    """Whether all that is recorded is there still; at any depth a field may have been added since."""
    match older:
        case dict():
            return older.keys() <= newer.keys() and all(keeps(newer[name], value) for name, value in older.items())
        case list():
            return len(newer) == len(older) and all(map(keeps, newer, older))
        case _:
            return bool(newer == older)


def test_a_value_that_is_lost_within_a_value_is_noticed() -> None:
    assert keeps({"a": [{"b": 1, "c": 2}]}, {"a": [{"b": 1}]})
    assert not keeps({"a": [{"c": 2}]}, {"a": [{"b": 1}]})
    assert not keeps({"a": [{"b": 2}]}, {"a": [{"b": 1}]})


def test_event_names_are_unique_within_a_service_and_aggregates_are_subject_tokens() -> None:
    for service in generate.SERVICES:
        names = [event.type_name() for event in generate.events_module(service).EVENTS]
        assert len(names) == len(set(names))
    assert all(event.AGGREGATE.replace("-", "").isalnum() for event in EVENTS.values())


OLD = {"properties": {"a": {"type": "string"}, "b": {"enum": ["x"], "type": "string"}}, "required": ["a"]}


def test_adding_an_optional_field_or_a_choice_is_compatible() -> None:
    new = {"properties": {**OLD["properties"], "c": {"type": "integer", "default": 0}}, "required": ["a"]}
    grown = {"properties": {**OLD["properties"], "b": {"enum": ["x", "y"], "type": "string"}}, "required": ["a"]}
    assert generate.breaking_changes(OLD, new) == []
    assert generate.breaking_changes(OLD, grown) == []


def test_text_may_become_personal_and_nothing_may_cease_to_be() -> None:
    personal = {"properties": {**OLD["properties"], "a": {"type": "string", "personal": True}}, "required": ["a"]}
    assert generate.breaking_changes(OLD, personal) == []
    assert generate.breaking_changes(personal, OLD) == ["field a changed its type"]


@pytest.mark.parametrize(
    ("new", "problem"),
    [
        ({"properties": {"b": OLD["properties"]["b"]}, "required": []}, "field a was removed"),
        (
            {"properties": {**OLD["properties"], "a": {"type": "integer"}}, "required": ["a"]},
            "field a changed its type",
        ),
        (
            {"properties": {**OLD["properties"], "c": {"type": "string"}}, "required": ["a", "c"]},
            "field c became required",
        ),
        (
            {"properties": {**OLD["properties"], "b": {"enum": ["y"], "type": "string"}}, "required": ["a"]},
            "field b changed",
        ),
    ],
)
def test_breaking_changes_are_named(new: dict[str, object], problem: str) -> None:
    assert any(problem in found for found in generate.breaking_changes(OLD, new))
