"""Which deployment is asked first."""

import random
from collections import Counter
from dataclasses import replace

import pytest
from llm_gateway.balancing import Load, Loads, Place, Strategy, order

PLACES = tuple(Place(name) for name in ("a", "b", "c", "d"))


def firsts(places: tuple[Place, ...], strategy: Strategy, keys: int = 2000) -> Counter[str]:
    draw = random.Random(1).random
    return Counter(places[order(places, strategy, f"t\n{key}".encode(), draw)[0]].key for key in range(keys))


@pytest.mark.parametrize("strategy", ["order", "affinity", "p2c", "weighted", "least_in_flight"])
def test_every_deployment_is_in_the_order_once(strategy: Strategy) -> None:
    assert sorted(order(PLACES, strategy, b"key", random.Random(1).random)) == [0, 1, 2, 3]
    assert order(PLACES[:1], strategy, b"key", random.Random(1).random) == [0]


def test_a_conversation_stays_where_its_prompt_is_cached() -> None:
    draws = {tuple(order(PLACES, "affinity", b"tenant\nconversation", random.random)) for _ in range(20)}
    assert len(draws) == 1


def test_when_a_deployment_goes_only_its_own_conversations_move() -> None:
    keys = [f"t\n{number}".encode() for number in range(500)]
    before = {key: PLACES[order(PLACES, "affinity", key, random.random)[0]].key for key in keys}
    rest = PLACES[:3]
    after = {key: rest[order(rest, "affinity", key, random.random)[0]].key for key in keys}
    assert all(after[key] == before[key] for key in keys if before[key] != "d")


@pytest.mark.parametrize("strategy", ["affinity", "weighted", "p2c"])
def test_calls_spread_by_weight(strategy: Strategy) -> None:
    places = (Place("a", weight=3), Place("b"))
    share = firsts(places, strategy)["a"] / 2000
    # The better of two is one that was drawn, and of two alike the first drawn.
    assert share == pytest.approx(0.75, abs=0.04)


def test_of_two_drawn_the_quicker_and_less_busy_one_is_asked() -> None:
    slow, quick = Load(1, 2.0), Load(1, 0.2)
    places = (replace(PLACES[0], load=slow), replace(PLACES[1], load=quick))
    assert firsts(places, "p2c") == {"b": 2000}
    busy = (replace(PLACES[0], load=Load(9, 0.3)), replace(PLACES[1], load=Load(0, 0.5)))
    assert firsts(busy, "p2c") == {"b": 2000}


def test_the_fewest_calls_are_counted_by_weight() -> None:
    places = (Place("a", 4, Load(4, 0.0)), Place("b", 1, Load(2, 0.0)))
    assert firsts(places, "least_in_flight") == {"a": 2000}


def test_a_slow_call_counts_at_once_and_is_forgotten_over_time() -> None:
    loads = Loads(decay_s=10.0)
    for at, seconds in ((0.0, 0.1), (1.0, 5.0)):
        loads.enter("a")
        loads.leave("a", at, seconds)
    assert loads.of("a") == Load(0, 5.0)
    loads.enter("a")
    assert loads.of("a").in_flight == 1
    loads.leave("a", 11.0, 0.1)
    assert 1.5 < loads.of("a").first_content_s < 2.5
    loads.enter("a")
    loads.leave("a", 12.0, None)
    assert 1.5 < loads.of("a").first_content_s < 2.5
