"""One story out of several logs: what belongs together, each event after what caused it.

Every log is in order by itself; between logs, an event names the one that caused it. Clocks only break ties, so that an
effect never comes before its cause, however far the clocks of two services are apart.
"""

from collections.abc import Mapping, Sequence
from heapq import heappop, heappush
from typing import NamedTuple

from synod.eventlog.v1.eventlog_pb2 import Event


class Logged(NamedTuple):
    """An event and the service whose log it is in."""

    service: str
    event: Event


def in_causal_order(logs: Mapping[str, Sequence[Event]]) -> list[Logged]:
    """The events of all logs, given in order for each service, in one order that keeps that of each log and puts causes
    before effects; among those that may come next, the one recorded first.

    A cause that is not among the events is not waited for. Should causes run in a circle, which no true history does, the
    event recorded first breaks it.
    """
    missing = {event.id for events in logs.values() for event in events} - {""}
    ahead = {service: list(reversed(events)) for service, events in logs.items() if events}
    ready: list[tuple[int, int, str]] = []
    waiting: dict[str, list[str]] = {}
    merged: list[Logged] = []

    def queue(service: str) -> None:
        event = ahead[service][-1]
        if event.causation_id in missing and event.causation_id != event.id:
            waiting.setdefault(event.causation_id, []).append(service)
        else:
            heappush(ready, (*_recorded(event), service))

    for service in ahead:
        queue(service)
    while ready or waiting:
        if not ready:
            _break_circle(ahead, waiting, ready)
        service = heappop(ready)[-1]
        event = ahead[service].pop()
        merged.append(Logged(service, event))
        missing.discard(event.id)
        if ahead[service]:
            queue(service)
        for freed in waiting.pop(event.id, ()):
            heappush(ready, (*_recorded(ahead[freed][-1]), freed))
    return merged


def _break_circle(
    ahead: Mapping[str, Sequence[Event]], waiting: dict[str, list[str]], ready: list[tuple[int, int, str]]
) -> None:
    held = ((*_recorded(ahead[service][-1]), service) for services in waiting.values() for service in services)
    first = min(held)
    ready.append(first)
    _forget(waiting, first[-1])


def _forget(waiting: dict[str, list[str]], service: str) -> None:
    for cause, services in list(waiting.items()):
        waiting[cause] = [other for other in services if other != service]
        if not waiting[cause]:
            del waiting[cause]


def _recorded(event: Event) -> tuple[int, int]:
    return event.recorded_at.seconds, event.recorded_at.nanos
