"""What writers ask for is a function of the seed, and does not trip over itself."""

from collections import Counter

from .history import POISON, Acked, Refused, Request
from .workload import SHARED_STREAMS, Mix, Workload


def requests(workload: Workload, count: int) -> list[Request]:
    """Requests that are each stored at once, by a log that has no other writer."""
    versions: Counter[str] = Counter()
    made = []
    for position in range(1, count + 1):
        request = workload.next()
        for write in request.writes:
            assert write.expected in (None, versions[write.stream])
            versions[write.stream] += len(write.ids)
        workload.learn(request, Acked(position, tuple(versions[write.stream] for write in request.writes)))
        made.append(request)
    return made


def test_the_same_seed_and_name_ask_the_same() -> None:
    assert requests(Workload("w", "1"), 50) == requests(Workload("w", "1"), 50)


def test_no_id_and_no_own_stream_is_shared_with_another_writer() -> None:
    mine, yours = (requests(Workload(name, "1"), 200) for name in ("w0i0", "w0i1"))
    assert not {event_id for each in mine for event_id in each.ids()} & {i for each in yours for i in each.ids()}
    streams = [{w.stream for each in side for w in each.writes if w.stream.startswith("w")} for side in (mine, yours)]
    assert not streams[0] & streams[1]


def test_every_kind_of_request_occurs() -> None:
    made = requests(Workload("w", "1"), 200)
    assert {len(request.writes) for request in made} == {1, 2, 3}
    assert any(write.expected is None for request in made for write in request.writes)
    assert any(write.stream in SHARED_STREAMS for request in made for write in request.writes)
    assert any(len(write.ids) > 1 for request in made for write in request.writes)


def test_an_own_stream_is_left_alone_while_a_request_to_it_is_on_the_way() -> None:
    workload = Workload("w", "1", Mix(contended=0, any_version=0))
    requests(workload, 20)
    writes = [write for _ in range(20) for write in workload.next().writes]
    on_the_way = [write.stream for write in writes if write.stream not in SHARED_STREAMS]
    assert len(on_the_way) == len(set(on_the_way))


def test_a_conflict_teaches_the_true_version() -> None:
    workload = Workload("w", "1", Mix(new_stream=0, own_stream=0, several_streams=0, any_version=0))
    asked = workload.next()
    workload.learn(asked, Refused("VersionConflict", dict.fromkeys(SHARED_STREAMS, 7)))
    assert workload.next().writes[0].expected == 7


def test_what_is_ordered_comes_next_beside_something_harmless() -> None:
    workload = Workload("w", "1")
    workload.order(POISON)
    harmless, ordered = workload.next().writes
    assert (harmless.type, ordered.type) == ("Happened", POISON)
