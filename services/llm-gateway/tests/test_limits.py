"""Rate limits and the line before them, by the meters' own clock."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llm_gateway.limits import LimitRule, Line, LineTerms, Need, Priority, Rate, Ticket

ONE = Need(0, 0)
FOREVER = 1e9


def line(*rules: LimitRule, **terms: float) -> Line:
    return Line(rules, LineTerms(**terms))  # type: ignore[arg-type]


def joined(
    queue: Line, tenant: str = "t", need: Need = ONE, priority: Priority = "normal", now: float = 0, model: str = "p/m"
) -> Ticket:
    ticket = queue.ticket(tenant, model, need, priority, now, FOREVER)
    queue.join(ticket)
    return ticket


def test_a_burst_passes_at_once_and_the_rest_at_the_rate() -> None:
    rate = Rate(per_min=60, burst_s=3)
    for _ in range(3):
        assert rate.wait_s(0, 1) == 0
        rate.take(0, 1)
    assert rate.wait_s(0, 1) == pytest.approx(1)
    assert rate.wait_s(1, 1) == pytest.approx(0)


def test_what_was_not_used_is_given_back_and_what_was_used_beyond_is_owed() -> None:
    rate = Rate(per_min=60, burst_s=10)
    rate.take(0, 10)
    assert rate.wait_s(0, 5) == pytest.approx(5)
    rate.take(0, -5)
    assert rate.wait_s(0, 5) == 0
    rate.take(0, 25)
    assert rate.wait_s(0, 5) == pytest.approx(25)


def test_a_call_larger_than_the_burst_passes_when_the_meter_is_empty() -> None:
    rate = Rate(per_min=60, burst_s=10)
    assert rate.wait_s(0, 100) == 0
    rate.take(0, 100)
    assert rate.wait_s(0, 1) == pytest.approx(91)


@given(st.lists(st.tuples(st.floats(0, 2), st.integers(1, 20)), max_size=60))
def test_no_more_than_the_rate_and_one_burst_ever_passes(asked: list[tuple[float, int]]) -> None:
    rate, now, passed = Rate(per_min=60, burst_s=20), 0.0, 0
    for pause, amount in asked:
        now += pause
        if rate.wait_s(now, amount) == 0:
            rate.take(now, amount)
            passed += amount
        assert passed <= now + 20 + 1e-6


@pytest.mark.parametrize("per", ["provider", "model", "tenant", "tenant_model"])
def test_a_limit_holds_for_each_of_what_it_is_per(per: str) -> None:
    queue = line(LimitRule(per, concurrent=1))  # type: ignore[arg-type]
    asked = {
        (tenant, model): joined(queue, tenant, model=model) for tenant in ("t", "u") for model in ("p/m", "p/n", "q/m")
    }
    admitted = queue.admit(0)
    assert len(admitted) == {"provider": 2, "model": 3, "tenant": 2, "tenant_model": 6}[per]
    assert asked[("t", "p/m")] in admitted


def test_a_limit_is_of_the_models_that_it_names() -> None:
    queue = line(LimitRule("provider", models="openai/gpt-5*", concurrent=1))
    assert queue.ticket("t", "openai/gpt-4o", ONE, "normal", 0, 1).meters == ()
    assert len(queue.ticket("t", "openai/gpt-5-mini", ONE, "normal", 0, 1).meters) == 1


def test_calls_at_once_are_limited_until_one_ends() -> None:
    queue = line(LimitRule("model", concurrent=2))
    first, second, third = (joined(queue) for _ in range(3))
    assert queue.admit(0) == [first, second]
    assert queue.admit(100) == []
    queue.settle(first, 100, ONE)
    assert queue.admit(100) == [third]


def test_input_and_output_tokens_are_metered_apart() -> None:
    queue = line(LimitRule("model", input_tokens_per_min=600, output_tokens_per_min=60, burst_s=10))
    first = joined(queue, need=Need(100, 5))
    second = joined(queue, need=Need(0, 5))
    third = joined(queue, need=Need(1, 0))
    assert queue.admit(0) == [first, second]
    assert queue.next_at(0) == pytest.approx(0.1)
    queue.settle(first, 0, Need(50, 5))
    assert queue.admit(0) == [third]


def test_a_call_that_the_provider_did_not_count_gives_all_back() -> None:
    queue = line(LimitRule("model", requests_per_min=6, burst_s=10, input_tokens_per_min=60))
    first = joined(queue, need=Need(10, 0))
    queue.admit(0)
    queue.settle(first, 0, None)
    second = joined(queue, need=Need(10, 0))
    assert queue.admit(0) == [second]


def test_tenants_share_however_many_calls_each_brings() -> None:
    queue = line(LimitRule("provider", concurrent=1))
    for _ in range(50):
        joined(queue, "greedy")
    for _ in range(2):
        joined(queue, "modest")
    order = []
    for now in range(6):
        (ticket,) = queue.admit(now)
        order.append(ticket.tenant)
        queue.settle(ticket, now, ONE)
    assert order == ["greedy", "modest", "greedy", "modest", "greedy", "greedy"]


def test_who_asks_for_much_waits_for_as_much() -> None:
    queue = line(LimitRule("provider", concurrent=1))
    for _ in range(3):
        joined(queue, "large", Need(100, 0))
    for _ in range(200):
        joined(queue, "small", Need(0, 0))
    order = []
    for now in range(150):
        (ticket,) = queue.admit(now)
        order.append(ticket.tenant)
        queue.settle(ticket, now, ONE)
    second_large = [at for at, tenant in enumerate(order) if tenant == "large"][1]
    assert 95 <= second_large <= 110


def test_group_20_a_high_class_goes_first_and_a_low_one_does_not_starve() -> None:
    queue = line(LimitRule("provider", concurrent=1), aging_s=10)
    low = [joined(queue, priority="low") for _ in range(100)]
    high = joined(queue, priority="high", now=1)
    assert queue.admit(1) == [high]
    assert queue._rank(low[0], 5) > queue._rank(high, 5)
    newer = joined(queue, priority="high", now=25)
    queue.settle(high, 25, ONE)
    assert queue.admit(25) == [low[0]]
    queue.settle(low[0], 25, ONE)
    assert newer in queue.admit(25) or low[1].admitted


def test_group_20_low_calls_that_fill_the_line_leave_the_high_ones_quick() -> None:
    """A simulation: ten low calls for each that can be served, and now and then a high one."""
    draw, queue = random.Random(1), line(LimitRule("provider", concurrent=4), aging_s=1e9)
    waits: dict[Priority, list[float]] = {"high": [], "low": []}
    running: list[tuple[float, Ticket]] = []
    for tick in range(2000):
        now = tick / 10
        for _ in range(4):
            joined(queue, f"t{draw.randrange(3)}", priority="low", now=now)
        if draw.random() < 0.2:
            joined(queue, "vip", priority="high", now=now)
        for ended in [one for one in running if one[0] <= now]:
            running.remove(ended)
            queue.settle(ended[1], now, ONE)
        for ticket in queue.admit(now):
            waits[ticket.priority if ticket.priority != "normal" else "low"].append(now - ticket.asked_at)
            running.append((now + 1, ticket))
        if tick % 50 == 0:
            for ticket in [one for one in queue._waiting if now - one.asked_at > 20]:
                queue.leave(ticket)
    high = sorted(waits["high"])
    assert high[len(high) * 95 // 100] <= 1.0
    assert sum(waits["low"]) / len(waits["low"]) > 5


def test_group_20_classes_borrow_what_nobody_uses_up_to_a_fifth_that_is_kept_for_the_others() -> None:
    queue = line(LimitRule("provider", concurrent=10, low_share=0.2))
    low = [joined(queue, priority="low") for _ in range(20)]
    assert len(queue.admit(0)) == 8
    high = [joined(queue, priority="high", now=1) for _ in range(3)]
    assert queue.admit(1) == high[:2]
    for ticket in low[:7]:
        queue.settle(ticket, 2, ONE)
    assert queue.admit(2)[0] == high[2]
    running = [ticket for ticket in low[7:] if ticket.admitted]
    assert len(running) == 5
    assert len([ticket for ticket in high if ticket.admitted]) == 3


def test_group_20_a_class_that_is_held_to_its_share_keeps_nobody_back_and_does_not_starve() -> None:
    queue = line(LimitRule("model", requests_per_min=600, burst_s=10, low_share=0.2))
    for _ in range(2000):
        joined(queue, priority="low")
    assert len(queue.admit(0)) in (80, 81)
    passed: dict[Priority, list[float]] = {"normal": [], "low": [], "high": []}
    for tick in range(1, 301):
        now = tick / 10
        if tick % 2:
            joined(queue, priority="normal", now=now)
        for ticket in queue.admit(now):
            passed[ticket.priority].append(now - ticket.asked_at)
            queue.settle(ticket, now, ONE)
    assert len(passed["normal"]) == 150
    assert max(passed["normal"]) == 0
    assert len(passed["low"]) >= 100
    assert queue.next_at(30.0) <= 30.25


def test_below_the_mark_shares_hold_nobody() -> None:
    queue = line(LimitRule("model", requests_per_min=600, burst_s=10, low_share=0.01))
    for _ in range(79):
        joined(queue, priority="low")
    assert len(queue.admit(0)) == 79


def test_a_call_that_does_not_fit_keeps_back_its_own_kind_only() -> None:
    queue = line(LimitRule("model", requests_per_min=60, burst_s=1))
    first, second = joined(queue), joined(queue)
    other = joined(queue, model="p/other")
    assert queue.admit(0) == [first, other]
    assert not second.admitted


def test_who_cannot_be_served_in_time_is_told_at_once_how_long_it_takes() -> None:
    queue = line(LimitRule("model", requests_per_min=60, burst_s=1))
    for _ in range(5):
        joined(queue)
    impatient = queue.ticket("t", "p/m", ONE, "normal", 0, 3)
    assert queue.hopeless_s(impatient, 0) == pytest.approx(5)
    patient = queue.ticket("t", "p/m", ONE, "normal", 0, 6)
    assert queue.hopeless_s(patient, 0) is None
    privileged = queue.ticket("t", "p/m", ONE, "high", 0, 3)
    assert queue.hopeless_s(privileged, 0) is None


def test_a_full_line_takes_nobody() -> None:
    queue = line(LimitRule("model", concurrent=1), length_max=1)
    joined(queue)
    assert queue.hopeless_s(queue.ticket("t", "p/m", ONE, "normal", 0, FOREVER), 0) is not None


def test_those_whose_time_is_over_leave_the_line() -> None:
    queue = line(LimitRule("model", concurrent=1))
    joined(queue)
    queue.admit(0)
    waiting = queue.ticket("t", "p/m", ONE, "normal", 0, 5)
    queue.join(waiting)
    assert queue.next_at(0) == 5
    assert (queue.late(4), queue.late(5), len(queue)) == ([], [waiting], 0)
