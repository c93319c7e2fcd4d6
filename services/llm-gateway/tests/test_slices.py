"""One limit handed out in slices: in virtual time, with as many processes as it takes."""

import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from llm_gateway.limits import LimitRule, Need
from llm_gateway.slices import NOTHING, Amounts, Book, SlicedMeters, SliceTerms, Want, hand_out

TERMS = SliceTerms(slice_s=0.5)
TICK_S = 0.05


@dataclass
class Replica:
    """One process: calls that wait, calls that run, and its slices. Calls use what they asked for."""

    name: str
    meters: SlicedMeters
    waiting: deque[Need] = field(default_factory=deque)
    running: list[tuple[float, Need]] = field(default_factory=list)
    alive: bool = True

    def step(self, now: float, runs_s: float) -> Iterator[Need]:
        for end, need in [one for one in self.running if one[0] <= now]:
            self.running.remove((end, need))
            self.meters.settle(now, need, need)
        while self.waiting and not self.meters.wait_s(now, self.waiting[0]):
            need = self.waiting.popleft()
            self.meters.take(now, need)
            self.running.append((now + runs_s, need))
            yield need


@dataclass
class Fleet:
    """Processes around one book. `passed` is who let what pass when; an answer of the book takes `latency_s`."""

    rule: LimitRule
    size: int
    runs_s: float = 0.2
    book: Book = field(default_factory=Book)
    passed: list[tuple[float, str, Need]] = field(default_factory=list)
    replicas: list[Replica] = field(init=False)
    reachable: bool = True

    def __post_init__(self) -> None:
        self.replicas = [Replica(f"gw_{number}", SlicedMeters(self.rule, TERMS)) for number in range(self.size)]

    def run(self, until: float, start: float = 0.0) -> None:
        for tick in range(round(start / TICK_S), round(until / TICK_S)):
            now = tick * TICK_S
            for replica in self.replicas:
                if replica.alive:
                    self.serve(replica, now)

    def serve(self, replica: Replica, now: float) -> None:
        self.let_pass(replica, now)
        if replica.meters.due(now, replica.waiting) <= now:
            want = replica.meters.want(now, tuple(replica.waiting))
            if not self.reachable:
                replica.meters.failed(now, 0.25)
                return
            self.book, grant = hand_out(self.book, self.rule, replica.name, want, 1e6 + now, TERMS)
            replica.meters.receive(grant, now, now)
            self.let_pass(replica, now)

    def let_pass(self, replica: Replica, now: float) -> None:
        self.passed.extend((now, replica.name, need) for need in replica.step(now, self.runs_s))

    def most_in(self, window_s: float) -> int:
        """The most requests in any window of this length."""
        times = [at for at, _, _ in self.passed]
        return max((sum(start <= at < start + window_s for at in times) for start in times), default=0)

    def at_once(self) -> int:
        ends = [(at, at + self.runs_s) for at, _, _ in self.passed]
        return max(sum(start <= at < end - 1e-9 for start, end in ends) for at, _ in ends)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_group_20_replicas_together_pass_what_the_limit_allows_and_hardly_less(size: int) -> None:
    fleet = Fleet(LimitRule("model", requests_per_min=600, burst_s=4), size)
    for replica in fleet.replicas:
        replica.waiting.extend([Need(1, 1)] * 1000)
    fleet.run(30)
    for window_s in (1, 4, 10, 30):
        assert fleet.most_in(window_s) <= 10 * (window_s + 4)
    assert len(fleet.passed) >= 0.9 * 10 * 30
    after_the_burst = [name for at, name, _ in fleet.passed if at > 5]
    shares = [after_the_burst.count(replica.name) for replica in fleet.replicas]
    assert min(shares) >= 0.9 * max(shares)


def test_a_replica_that_is_killed_takes_its_slice_along_and_no_more() -> None:
    fleet = Fleet(LimitRule("model", requests_per_min=600, burst_s=4), 3)
    for replica in fleet.replicas:
        replica.waiting.extend([Need(1, 1)] * 1000)
    fleet.run(10)
    fleet.replicas[0].alive = False
    fleet.run(30, start=10)
    assert fleet.most_in(10) <= 10 * (10 + 4)
    late = [name for at, name, _ in fleet.passed if at > 15]
    assert set(late) == {"gw_1", "gw_2"}
    assert len(late) >= 0.9 * 10 * 15


def test_a_book_that_cannot_be_reached_lets_nothing_pass_beyond_the_slices_at_hand() -> None:
    fleet = Fleet(LimitRule("model", requests_per_min=600, burst_s=4), 4)
    for replica in fleet.replicas:
        replica.waiting.extend([Need(1, 1)] * 1000)
    fleet.run(10)
    fleet.reachable = False
    fleet.run(20, start=10)
    assert [at for at, _, _ in fleet.passed if at > 10 + TERMS.slice_s] == []
    fleet.reachable = True
    fleet.run(25, start=20)
    assert fleet.most_in(5) <= 10 * (5 + 4)
    assert len([at for at, _, _ in fleet.passed if at >= 20]) >= 0.9 * 10 * 5


@pytest.mark.parametrize("seed", range(5))
def test_any_arrivals_and_sizes_stay_within_every_rate_of_the_limit(seed: int) -> None:
    draw = random.Random(seed)
    rule = LimitRule("model", requests_per_min=600, input_tokens_per_min=60_000, output_tokens_per_min=6_000, burst_s=5)
    fleet = Fleet(rule, 3)
    for tick in range(30):
        for replica in fleet.replicas:
            asked = [Need(draw.randrange(1, 3000), draw.randrange(1, 300)) for _ in range(draw.choice((0, 0, 1, 9)))]
            replica.waiting.extend(asked)
        fleet.run(tick + 1, start=tick)
        if tick == 15:
            fleet.replicas[draw.randrange(3)].alive = False
    for start in range(30):
        for end in range(start + 1, 31):
            inside = [need for at, _, need in fleet.passed if start <= at < end]
            assert len(inside) <= 10 * (end - start + 5)
            assert sum(need.input_tokens for need in inside) <= 1000 * (end - start + 5)
            assert sum(need.output_tokens for need in inside) <= 100 * (end - start + 5)
    assert fleet.passed


@pytest.mark.parametrize("concurrent", [1, 3, 10])
def test_slots_are_shared_and_never_more_than_there_are(concurrent: int) -> None:
    fleet = Fleet(LimitRule("provider", concurrent=concurrent), 3)
    for replica in fleet.replicas:
        replica.waiting.extend([Need(1, 1)] * 1000)
    fleet.run(10)
    assert fleet.at_once() <= concurrent
    assert len(fleet.passed) >= 0.5 * concurrent * 10 / fleet.runs_s
    assert {name for _, name, _ in fleet.passed} == {"gw_0", "gw_1", "gw_2"}


def test_the_slots_of_a_process_that_is_gone_are_free_after_a_while() -> None:
    fleet = Fleet(LimitRule("provider", concurrent=2), 2, runs_s=1e6)
    fleet.replicas[0].waiting.extend([Need(1, 1)] * 2)
    fleet.run(1)
    fleet.replicas[0].alive = False
    fleet.replicas[1].waiting.extend([Need(1, 1)] * 2)
    fleet.run(TERMS.held_s - 1, start=1)
    assert {name for _, name, _ in fleet.passed} == {"gw_0"}
    fleet.run(TERMS.held_s + 3, start=TERMS.held_s - 1)
    assert [name for _, name, _ in fleet.passed] == ["gw_0", "gw_0", "gw_1", "gw_1"]


def test_a_call_that_is_larger_than_the_burst_waits_for_the_small_ones_of_others_to_stand_back() -> None:
    fleet = Fleet(LimitRule("model", input_tokens_per_min=6000, burst_s=5), 2)
    fleet.replicas[1].waiting.extend([Need(50, 1)] * 1000)
    fleet.run(5)
    fleet.replicas[0].waiting.append(Need(600, 1))
    fleet.run(60, start=5)
    large = [at for at, name, _ in fleet.passed if name == "gw_0"]
    assert len(large) == 1
    assert large[0] < 17


def test_who_asks_often_gets_ahead_what_the_next_moment_needs() -> None:
    fleet = Fleet(LimitRule("model", requests_per_min=6000), 1)
    for tick in range(100):
        fleet.replicas[0].waiting.append(Need(1, 1))
        fleet.run((tick + 1) * TICK_S, start=tick * TICK_S)
    exchanges_at_most_every_slice = TERMS.slice_s * 0.75
    assert len(fleet.passed) == 100
    assert fleet.replicas[0].meters.due(5.0, ()) <= 5.0 + exchanges_at_most_every_slice
    assert not fleet.replicas[0].meters.wait_s(5.0 - TICK_S, Need(1, 1))


def test_an_idle_process_asks_for_nothing() -> None:
    meters = SlicedMeters(LimitRule("model", requests_per_min=60), TERMS)
    assert meters.due(100.0, ()) == float("inf")


def test_what_a_call_did_not_use_goes_back_to_the_book() -> None:
    rule = LimitRule("model", input_tokens_per_min=600, burst_s=20)
    book, _ = hand_out(Book(), rule, "a", Want(Amounts(1, 150), Amounts(0, 150)), 100.0, TERMS)
    _, refused = hand_out(book, rule, "b", Want(Amounts(1, 150), Amounts(0, 150)), 100.0, TERMS)
    assert (refused.amounts, refused.wait_s > 0) == (NOTHING, True)
    book, _ = hand_out(book, rule, "a", Want(returned=Amounts(0, 140)), 100.0, TERMS)
    _, granted = hand_out(book, rule, "b", Want(Amounts(1, 150), Amounts(0, 150)), 100.0, TERMS)
    assert granted.amounts.input_tokens == 150
    assert granted.sharers == 2


@pytest.mark.parametrize("rule", [LimitRule("model", requests_per_min=600), LimitRule("model", concurrent=5)])
def test_what_was_brought_back_to_the_book_lets_nothing_pass_until_the_answer(rule: LimitRule) -> None:
    meters, need = SlicedMeters(rule, TERMS), Need(1, 1)
    _, grant = hand_out(Book(), rule, "a", meters.want(0.0, (need, need)), 1e6, TERMS)
    meters.receive(grant, 0.0, 0.0)
    assert meters.wait_s(0.0, need) == 0
    meters.take(0.0, need)
    returned = meters.want(0.1, ())
    assert (returned.returned.requests, returned.running) == ((1, 0) if rule.requests_per_min else (0, 1))
    assert meters.wait_s(0.1, need) > 0
    meters.failed(0.1, 0.25)
    assert meters.wait_s(0.1, need) > 0
