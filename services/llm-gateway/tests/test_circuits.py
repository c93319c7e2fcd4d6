import pytest
from llm_gateway import errors
from llm_gateway.circuits import Circuit, Circuits, CircuitTerms, Phase, Verdict

TERMS = CircuitTerms(failures_max=3, outcomes_min=4, window_s=10, open_s=5, open_s_max=12)


def failed(circuit: Circuit, now: float, times: int = 1) -> None:
    for _ in range(times):
        assert circuit.enter(now) == 0
        circuit.leave(now, "failure", probe=circuit.probing)


def opened(now: float = 0) -> Circuit:
    circuit = Circuit(TERMS)
    failed(circuit, now, 3)
    return circuit


def test_group_11_failures_in_a_row_open_a_circuit() -> None:
    circuit = Circuit(TERMS)
    failed(circuit, 0, 2)
    assert circuit.phase(0) == "closed"
    failed(circuit, 1)
    assert (circuit.phase(1), circuit.suspended_s(2)) == ("open", 4)


def test_group_11_a_share_of_failures_opens_a_circuit_and_old_ones_are_forgotten() -> None:
    circuit = Circuit(TERMS)
    for now in (0, 1):
        failed(circuit, now)
        circuit.enter(now)
        circuit.leave(now, "success")
    assert circuit.phase(1) == "closed"
    failed(circuit, 2)
    assert circuit.phase(2) == "open"

    slow = Circuit(TERMS)
    for now in (0, 20, 40, 60, 80):
        failed(slow, now)
        slow.enter(now)
        slow.leave(now, "success")
    assert slow.phase(80) == "closed"


def test_group_11_one_probe_is_let_through_half_open() -> None:
    circuit = opened()
    assert circuit.phase(5) == "half_open"
    assert circuit.enter(5) == 0
    assert circuit.enter(5) > 0
    circuit.leave(6, "success", probe=True)
    assert (circuit.phase(6), circuit.enter(6), circuit.enter(6)) == ("closed", 0, 0)


@pytest.mark.parametrize("verdict", ["success", "failure", "refusal", "nothing"])
def test_group_11_what_was_begun_before_neither_ends_the_probe_nor_counts(verdict: Verdict) -> None:
    circuit = opened()
    circuit.leave(1, verdict)
    assert circuit.suspended_s(1) == 4
    assert circuit.enter(5) == 0
    circuit.leave(6, verdict)
    assert (circuit.phase(6), circuit.enter(6) > 0) == ("half_open", True)


def test_group_11_refusals_without_an_answer_between_open_a_circuit() -> None:
    circuit = Circuit(TERMS)
    for verdict in ("refusal", "refusal", "success", "refusal", "refusal"):
        circuit.enter(0)
        circuit.leave(0, verdict)
    assert circuit.phase(0) == "closed"
    circuit.leave(0, "refusal")
    assert (circuit.phase(0), circuit.suspended_s(0)) == ("open", 5)
    circuit.enter(5)
    circuit.leave(5, "refusal", probe=True)
    assert circuit.suspended_s(5) == 10


def test_group_11_a_probe_that_fails_opens_for_twice_as_long_up_to_a_limit() -> None:
    circuit, now, waits = opened(), 0.0, []
    for _ in range(3):
        waits.append(circuit.suspended_s(now))
        now += waits[-1]
        failed(circuit, now)
    assert waits == [5, 10, 12]


def test_group_11_a_probe_whose_callers_leave_lets_another_one_through() -> None:
    circuit = opened()
    assert circuit.enter(5) == 0
    circuit.leave(6, "nothing", probe=True)
    assert (circuit.phase(6), circuit.enter(6)) == ("half_open", 0)


@pytest.mark.parametrize(
    ("error", "phase"),
    [
        (errors.StreamInterrupted("cut"), "open"),
        (errors.ProviderFailed("500", status=500), "open"),
        (errors.AuthenticationRejected("401", status=401), "open"),
        (errors.PaymentRequired("402", status=402), "open"),
        (errors.PermissionRejected("403", status=403), "open"),
        (errors.ModelNotFound("404", status=404), "open"),
        (errors.RequestRejected("400", status=400), "closed"),
        (errors.DeadlineExceeded("late"), "closed"),
        (errors.ProviderRateLimited("429", status=429), "closed"),
        (None, "closed"),
    ],
)
def test_group_11_only_what_the_provider_did_wrong_counts(error: errors.ProviderError | None, phase: Phase) -> None:
    told: list[tuple[str, Phase, float]] = []
    circuits = Circuits(TERMS, lambda circuit, phase, open_s: told.append((circuit, phase, open_s)))
    for _ in range(3):
        circuits.enter("a/m", 0)
        circuits.leave("a/m", 0, error)

    assert told == ([("a/m", "open", 5.0)] if phase == "open" else [])
    circuits.enter("a/other", 0)
    if phase == "open":
        with pytest.raises(errors.ProviderSuspended, match=r"left alone for 4\.0 s") as caught:
            circuits.enter("a/m", 1)
        assert (caught.value.dispatched, caught.value.retry_after_s) == (False, 4)


def test_group_11_a_probe_and_its_outcome_are_told() -> None:
    told: list[tuple[str, Phase, float]] = []
    circuits = Circuits(TERMS, lambda circuit, phase, open_s: told.append((circuit, phase, open_s)))
    for _ in range(3):
        circuits.enter("a/m", 0)
        circuits.leave("a/m", 0, errors.ProviderFailed("500", status=500))
    assert circuits.enter("a/m", 5)
    circuits.leave("a/m", 6, answered=True, probe=True)
    assert told == [("a/m", "open", 5.0), ("a/m", "half_open", 0.0), ("a/m", "closed", 0.0)]


def test_a_rate_limit_lasts_as_long_as_the_provider_says() -> None:
    circuits = Circuits(TERMS)
    circuits.enter("a/m", 0)
    circuits.leave("a/m", 0, errors.ProviderRateLimited("slow", status=429, retry_after_s=7))

    assert (circuits.limited_s("a/m", 2), circuits.limited_s("a/other", 2)) == (5, 0)
    assert circuits.suspended_s("a/m", 2) == 0
    assert circuits.limited_s("a/m", 8) == 0


def test_a_rate_limit_that_does_not_say_how_long_lasts_longer_each_time_until_an_answer() -> None:
    circuits, now, waits = Circuits(TERMS), 0.0, []
    for _ in range(3):
        for _ in range(2):  # the second was under way as the first met the limit
            circuits.leave("a/m", now, errors.ProviderRateLimited("slow", status=429))
        waits.append(circuits.limited_s("a/m", now))
        now += waits[-1]
    assert waits == [1, 2, 4]
    circuits.leave("a/m", now, errors.ProviderRateLimited("slow", status=429))
    circuits.leave("a/m", now, answered=True)
    assert circuits.limited_s("a/m", now) == 0
