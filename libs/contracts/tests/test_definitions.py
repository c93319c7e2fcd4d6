import pytest
from pydantic import TypeAdapter, ValidationError
from synod.common.definitions import AnyDefinition, TeamDefinition, canonical_json, digest, predecessors

PARSER: TypeAdapter[AnyDefinition] = TypeAdapter(AnyDefinition)


def team(**spec: object) -> TeamDefinition:
    found = PARSER.validate_python({"apiVersion": "synod/v1", "kind": "Team", "metadata": {"name": "t"}, "spec": spec})
    assert isinstance(found, TeamDefinition)
    return found


def step(name: str, **more: object) -> dict[str, object]:
    return {"id": name, "agent": "worker", "task": "work", **more}


def test_sequence_waits_for_the_step_before() -> None:
    assert predecessors(team(steps=[step("a"), step("b"), step("c", after=["a"])]).spec) == {
        "a": (),
        "b": ("a",),
        "c": ("a",),
    }


def test_aggregator_of_a_parallel_team_waits_for_all() -> None:
    spec = team(pattern="parallel", steps=[step("a"), step("b")], aggregator=step("sum")).spec
    assert predecessors(spec) == {"a": (), "b": (), "sum": ("a", "b")}


def test_digest_does_not_depend_on_the_order_of_keys() -> None:
    one = team(steps=[step("a")], pattern="sequence")
    other = team(pattern="sequence", steps=[{"task": "work", "agent": "worker", "id": "a"}])
    assert digest(canonical_json(one)) == digest(canonical_json(other))


def test_misspelt_field_is_refused() -> None:
    with pytest.raises(ValidationError, match="patern"):
        team(patern="sequence", steps=[step("a")])
