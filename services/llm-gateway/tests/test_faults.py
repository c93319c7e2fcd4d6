import pytest
from provider_simulator.conversation import BadRequest
from provider_simulator.faults import NO_FAULT, Fault, FaultPlan, fault_of_model, parse_fault


def test_a_fault_header_may_be_json_or_pairs() -> None:
    assert parse_fault('{"status": 429, "retry_after": "2"}') == Fault(status=429, retry_after="2")
    assert parse_fault("status=429,retry_after=2, omit_usage") == Fault(status=429, retry_after="2", omit_usage=True)


@pytest.mark.parametrize("header", ["status=200", "speed=1", "{", "first_byte_delay_s=-1"])
def test_a_wrong_fault_header_is_refused_by_name(header: str) -> None:
    with pytest.raises(BadRequest, match="x-simulator-fault"):
        parse_fault(header)


def test_model_names_stand_for_faults() -> None:
    overloaded, cut = fault_of_model("sim-529"), fault_of_model("sim-cut")

    assert overloaded == Fault(status=529, retry_after="1")
    assert cut is not None
    assert cut.cut_after_frames == 4
    assert fault_of_model("sim-1") is None
    assert fault_of_model("sim-200") is None


def test_a_planned_fault_meets_the_next_requests_and_no_more() -> None:
    plan = FaultPlan()
    plan.plan(Fault(status=503), requests=2)
    plan.plan(Fault(status=429))

    assert [plan.take(None, "sim-1").status for _ in range(4)] == [503, 503, 429, None]


def test_a_fault_planned_for_a_model_waits_for_it_and_holds_up_no_other() -> None:
    plan = FaultPlan()
    plan.plan(Fault(status=429), model="sim-2")
    plan.plan(Fault(status=503))

    assert [plan.take(None, model).status for model in ("sim-1", "sim-1", "sim-2", "sim-2")] == [503, None, 429, None]


def test_a_header_wins_over_a_model_name_and_leaves_the_plan_alone() -> None:
    plan = FaultPlan()
    plan.plan(Fault(status=503))

    assert plan.take("status=500", "sim-429").status == 500
    assert plan.take(None, "sim-429").status == 429
    assert plan.take(None, "sim-1").status == 503
    assert plan.take(None, "sim-1") == NO_FAULT
