"""Which faults come when: a function of the seed."""

from collections.abc import Collection
from random import Random

from .nemesis import NEMESES, Nemesis
from .target import TargetKind

SLOW_EVERY = 5
"""Faults that take ten seconds come in one of so many rounds."""


def writers(number: int) -> int:
    """How many write in round `number`: rivals, or one who may rely on what he remembers."""
    return (3, 1)[number % 2]


def possible(kind: TargetKind, *, disk: bool, rivals: bool = True, only: Collection[str] = ()) -> list[Nemesis]:
    """The faults that a log has parts for, on a machine with or without a disk to fill; `only` these, if any is named."""
    return [
        nemesis
        for nemesis in NEMESES
        if (kind.whole or not nemesis.whole_only)
        and (disk or nemesis.name != "fill disk")
        and (kind.forbid or nemesis.name != "forbidden event")
        and (rivals or not nemesis.needs_rivals)
        and (kind.commits or not nemesis.needs_transaction)
        and (not only or nemesis.name in only)
    ]


def plan(random: Random, nemeses: list[Nemesis], kills: int, number: int) -> list[Nemesis]:
    """The faults of round `number` in random order: so many kills, shared out by weight, and each other fault once.

    In the first round each kind of kill comes once at least, if the kills suffice.
    """
    killers = [nemesis for nemesis in nemeses if nemesis.weight]
    first = killers[:kills] if number == 0 else []
    weights = [nemesis.weight for nemesis in killers]
    more = random.choices(killers, weights, k=kills - len(first)) if killers else []
    others = [nemesis for nemesis in nemeses if not nemesis.weight and (number % SLOW_EVERY == 0 or not nemesis.slow)]
    steps = [*first, *more, *others]
    random.shuffle(steps)
    return steps
