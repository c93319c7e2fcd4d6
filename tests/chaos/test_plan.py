"""The faults are a function of the seed, and none is forgotten."""

from random import Random

from .nemesis import NEMESES
from .plan import plan, possible
from .target_eventlog import EVENTLOG

ALL = possible(EVENTLOG, disk=True)
KINDS_OF_KILL = sum(nemesis.weight > 0 for nemesis in NEMESES)


def test_the_first_round_has_every_fault_and_each_kill_once_if_there_are_just_enough() -> None:
    assert sorted(step.name for step in plan(Random(1), ALL, KINDS_OF_KILL, 0)) == sorted(each.name for each in NEMESES)


def test_the_same_seed_gives_the_same_faults_and_another_seed_others() -> None:
    assert plan(Random(1), ALL, 50, 3) == plan(Random(1), ALL, 50, 3)
    assert plan(Random(1), ALL, 50, 3) != plan(Random(2), ALL, 50, 3)


def test_a_round_has_exactly_the_kills_that_are_asked_for() -> None:
    for number in (0, 1):
        assert sum(step.weight > 0 for step in plan(Random(1), ALL, 50, number)) == 50


def test_a_lone_writer_is_spared_what_needs_a_rival_only() -> None:
    names = {nemesis.name for nemesis in possible(EVENTLOG, disk=True, rivals=False)}
    assert {nemesis.name for nemesis in ALL} - names == {"freeze writer", "freeze lock holder"}


def test_without_a_disk_to_fill_all_other_faults_remain() -> None:
    names = {nemesis.name for nemesis in possible(EVENTLOG, disk=False)}
    assert {nemesis.name for nemesis in ALL} - names == {"fill disk"}
