"""A writer relies on its memory only where the database cannot know better."""

from eventlog.admission import Head, StreamHead
from eventlog.records import ANY, Append
from eventlog.tail import Tail
from eventlog.testing import CONTEXT, a_stream, an_append, an_event

START, NEXT = Head(7, b"seven"), Head(8, b"eight")


def at(version: int) -> StreamHead:
    return StreamHead(version, b"hash %d" % version)


def a_tail(streams_max: int = 10, **versions: int) -> tuple[Tail, dict]:
    streams = {name: a_stream() for name in versions}
    tail = Tail(streams_max)
    tail.learn(Head(0, b""), START, {streams[name]: at(version) for name, version in versions.items()})
    return tail, streams


def test_nothing_is_certain_before_the_first_commit() -> None:
    assert Tail(10).basis([[an_append(a_stream(), expected=0)]]) is None


def test_streams_of_the_last_commits_need_not_be_asked_for() -> None:
    tail, streams = a_tail(order=3, invoice=5)
    both = [an_append(streams["order"], expected=3), an_append(streams["invoice"], expected=ANY)]
    assert tail.basis([both]) == (START, {streams["order"]: at(3), streams["invoice"]: at(5)})


def test_an_unknown_stream_is_taken_as_new_only_if_its_first_event_would_prove_it() -> None:
    tail, _ = a_tail(order=3)
    assert tail.basis([[an_append(a_stream(), expected=0)]]) == (START, {})
    assert tail.basis([[an_append(a_stream(), expected=ANY)]]) is None
    assert tail.basis([[an_append(a_stream(), expected=2)]]) is None
    only_guarded = Append(a_stream(), 0, (), CONTEXT)
    assert tail.basis([[only_guarded, an_append(a_stream(), an_event(), expected=0)]]) is None


def test_a_head_that_somebody_else_moved_ends_the_memory_of_streams() -> None:
    tail, streams = a_tail(order=3)
    tail.learn(NEXT, Head(9, b"nine"), {})
    assert tail.basis([[an_append(streams["order"], expected=3)]]) is None


def test_a_commit_upon_the_known_head_adds_to_the_memory() -> None:
    tail, streams = a_tail(order=3)
    invoice = a_stream()
    tail.confirm(NEXT, {invoice: at(1)})
    both = [an_append(streams["order"], expected=3), an_append(invoice, expected=1)]
    assert tail.basis([both]) == (NEXT, {streams["order"]: at(3), invoice: at(1)})


def test_the_streams_used_longest_ago_are_forgotten_first() -> None:
    tail, streams = a_tail(2, old=1, middle=1)
    tail.confirm(NEXT, {streams["old"]: at(2), a_stream(): at(1)})
    assert tail.basis([[an_append(streams["middle"], expected=1)]]) is None
    assert tail.basis([[an_append(streams["old"], expected=2)]]) is not None


def test_a_writer_that_is_overtaken_again_and_again_tries_ever_less_often() -> None:
    tail, _ = a_tail()
    request = [[an_append(a_stream(), expected=0)]]
    rests = []
    for _ in range(10):
        tail.overtaken()
        tail.learn(START, START, {})
        rests.append(next(groups for groups in range(1_000) if tail.basis(request) is not None))
    assert rests == [1, 2, 4, 8, 16, 32, 64, 64, 64, 64]
    tail.confirm(NEXT, {})
    tail.overtaken()
    tail.learn(START, START, {})
    assert [tail.basis(request) is None for _ in range(2)] == [True, False]
