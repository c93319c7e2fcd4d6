"""The core of the WebSocket edge: offsets, recovery, tenants and slow consumers, without any socket."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ws_gateway.errors import ChannelRefused
from ws_gateway.hub.channels import MONITORING, Channel, Encoded, Fanout, Follower, Kept, Plan, parse, plan
from ws_gateway.hub.outbox import Outbox
from ws_gateway.ws import origin_allowed

KEPT = Kept("EVT@1", first=10, head=100)


def frame(offset: int, tenant: str = "local") -> Encoded:
    return Encoded(offset, tenant, str(offset).encode())


def follower(
    sent: list[int], *, tenant: str = "local", lost: list[bool] | None = None, held_max: int = 100
) -> Follower:
    return Follower(tenant, lambda data: sent.append(int(data)), lambda: (lost or []).append(True), held_max)


# Recovery


@pytest.mark.parametrize(
    ("offset", "epoch", "expected"),
    [
        (None, "", Plan(False, 100, 100)),
        (40, "EVT@1", Plan(True, 40, 100)),
        (40, "", Plan(True, 40, 100)),
        (100, "EVT@1", Plan(True, 100, 100)),
        (9, "EVT@1", Plan(True, 9, 100)),
        (8, "EVT@1", Plan(False, 100, 100)),
        (40, "EVT@0", Plan(False, 100, 100)),
        (101, "EVT@1", Plan(False, 100, 100)),
    ],
    ids=["new", "known", "no epoch", "up to date", "the oldest", "too old", "other epoch", "never reached"],
)
def test_who_comes_back_is_told_whether_nothing_is_missing(offset: int | None, epoch: str, expected: Plan) -> None:
    assert plan(offset, epoch, KEPT, positions_max=1_000) == expected


def test_who_is_too_far_behind_starts_anew() -> None:
    assert plan(40, "EVT@1", KEPT, positions_max=59) == Plan(False, 100, 100)


@given(
    history=st.integers(0, 20), during=st.integers(0, 20), later=st.integers(0, 20), again=st.lists(st.integers(1, 40))
)
def test_nothing_is_missed_or_passed_twice_or_out_of_order(
    history: int, during: int, later: int, again: list[int]
) -> None:
    """Given events before, while and after the history is read, and some delivered again."""
    sent: list[int] = []
    one = follower(sent)
    for offset in range(history + 1, history + during + 1):
        one.offer(frame(offset))
    sent += range(1, history + 1)
    one.release(history)
    for offset in range(history + during + 1, history + during + later + 1):
        one.offer(frame(offset))
    for offset in (offset for offset in again if offset <= history + during + later):
        one.offer(frame(offset))
    assert sent == list(range(1, history + during + later + 1))


def test_holding_is_bounded() -> None:
    lost: list[bool] = []
    one = Follower("local", lambda data: None, lambda: lost.append(True), held_max=2)
    for offset in range(1, 4):
        one.offer(frame(offset))
    assert lost == [True]


# Tenants


def test_events_go_to_their_own_tenant_only() -> None:
    fanout, ours, theirs = Fanout(), [], []  # type: ignore[var-annotated]
    for sent, tenant in ((ours, "local"), (theirs, "other")):
        one = follower(sent, tenant=tenant)
        one.release(0)
        fanout.join(one)
    fanout.publish([frame(1), frame(2, "other"), frame(3)], 3)
    assert (ours, theirs, fanout.position) == ([1, 3], [2], 3)


def test_nobody_is_followed_after_the_last_has_left() -> None:
    fanout, one = Fanout(), follower([])
    fanout.join(one)
    assert fanout.wants("local")
    fanout.leave(one)
    assert not fanout.followed
    assert not fanout.wants("local")


def test_lost_history_concerns_everybody_once() -> None:
    fanout, one = Fanout(), follower([])
    fanout.join(one)
    assert list(fanout.lose()) == [one]
    assert not fanout.followed


# Channels


@pytest.mark.parametrize(
    ("text", "channel"),
    [
        ("monitoring", MONITORING),
        ("run:run_1", Channel("run", "run_1")),
        ("events:consensus", Channel("events", "consensus")),
    ],
)
def test_channels_are_read_and_written_alike(text: str, channel: Channel) -> None:
    assert parse(text) == channel
    assert str(channel) == text


@pytest.mark.parametrize(
    "text", ["", "run:", "events:", "events:nats", "synod.other.evt.>", "monitoring:x", "Events:consensus"]
)
def test_other_channels_are_refused_with_those_there_are(text: str) -> None:
    with pytest.raises(ChannelRefused) as caught:
        parse(text)
    assert "services are agent-registry" in caught.value.message


# Slow consumers


def drain(outbox: Outbox) -> list[bytes]:
    return list(iter(outbox.take, None))


def test_frames_leave_in_the_order_they_came() -> None:
    outbox = Outbox(10, 100)
    for number, policy in enumerate(("keep", "drop_oldest", "keep")):
        assert outbox.put(b"%d" % number, policy)  # type: ignore[arg-type]
    assert drain(outbox) == [b"0", b"1", b"2"]


def test_oldest_token_makes_room_and_events_stay() -> None:
    outbox = Outbox(3, 100)
    outbox.put(b"event", "keep")
    outbox.put(b"t1", "drop_oldest")
    outbox.put(b"t2", "drop_oldest")
    assert outbox.put(b"event2", "keep")
    assert drain(outbox) == [b"event", b"t2", b"event2"]
    assert outbox.dropped == 1


def test_event_without_room_ends_the_connection_and_a_token_does_not() -> None:
    outbox = Outbox(2, 100)
    outbox.put(b"e1", "keep")
    outbox.put(b"e2", "keep")
    assert outbox.put(b"t", "drop_oldest")
    assert not outbox.put(b"e3", "keep")
    assert drain(outbox) == [b"e1", b"e2"]


@given(st.lists(st.tuples(st.sampled_from(["keep", "drop_oldest", "take"]), st.integers(0, 30)), max_size=80))
def test_outbox_never_grows_beyond_its_limits(steps: list[tuple[str, int]]) -> None:
    outbox, held = Outbox(5, 60), 0
    for policy, size in steps:
        if policy == "take":
            outbox.take()
        else:
            outbox.put(bytes(size), policy)  # type: ignore[arg-type]
        held = max(held, len(outbox))
    assert held <= 5
    assert sum(len(data) for data in drain(outbox)) <= 60


# Origins


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        (None, True),
        ("http://localhost:3000", True),
        ("http://127.0.0.1:8080", True),
        ("http://[::1]:8080", True),
        ("https://synod.example", True),
        ("https://evil.example", False),
        ("http://localhost.evil.example", False),
        ("null", False),
        ("http://[", False),
    ],
)
def test_only_pages_of_this_machine_and_allowed_ones_connect(origin: str | None, allowed: bool) -> None:
    assert origin_allowed(origin, frozenset({"https://synod.example"})) is allowed
