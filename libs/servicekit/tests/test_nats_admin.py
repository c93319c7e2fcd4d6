"""Streams as data: what drifts is named with both values, what can be mended is."""

import asyncio
import json
from pathlib import Path

import nats
import pytest
from launcher.testing import RunningNats
from nats.js.api import ConsumerConfig, StreamConfig
from servicekit.nats_admin import (
    DRIFTS,
    IN_STEP,
    UNREACHABLE,
    Differs,
    Kept,
    Missing,
    StreamPlan,
    Unknown,
    administrator,
    drift,
    main,
    read_plans,
    with_replicas,
)
from synod.common import streams

EVENTS = StreamPlan(streams.events_of("guest-book").config(), None)
CONSUMER = streams.CommandConsumer("guest-book", "greet").config()
QUEUE = StreamPlan(streams.commands_of("guest-book").config(), (CONSUMER,))
PLANS = (EVENTS, QUEUE)
IN_ORDER = {plan.name: Kept(plan.config, plan.consumers or ()) for plan in PLANS}


def test_nothing_drifts_where_all_is_as_planned() -> None:
    assert drift(PLANS, IN_ORDER) == ()


def test_what_is_missing_is_named_with_its_consumers() -> None:
    found = drift(PLANS, {})
    assert found == (
        Missing("stream EVT_GUEST_BOOK"),
        Missing("stream CMD_GUEST_BOOK"),
        Missing("consumer guest-book-greet of CMD_GUEST_BOOK"),
    )


def test_a_field_that_differs_is_told_with_both_values() -> None:
    changed = {**IN_ORDER, "EVT_GUEST_BOOK": Kept({**EVENTS.config, "deny_delete": False, "metadata": {"x": "y"}})}
    (found,) = drift(PLANS, changed)
    assert found == Differs("stream EVT_GUEST_BOOK", "deny_delete", True, False)
    assert str(found) == "stream EVT_GUEST_BOOK: deny_delete should be true and is false"


@pytest.mark.parametrize(
    "extra",
    [
        {"republish": {"src": ">", "dest": "synod.acme.evt.cost-ledger.a.b.C"}},
        {"sources": [{"name": "EVT_OTHER"}]},
        {"mirror": {"name": "EVT_OTHER"}},
        {"allow_rollup_hdrs": True},
        {"subject_transform": {"src": ">", "dest": "x.>"}},
    ],
)
def test_what_was_switched_on_unplanned_differs(extra: dict[str, streams.Json]) -> None:
    (found,) = drift(PLANS, {**IN_ORDER, "EVT_GUEST_BOOK": Kept({**EVENTS.config, **extra})})
    ((field, value),) = extra.items()
    assert found == Differs("stream EVT_GUEST_BOOK", field, None, value)


def test_unplanned_streams_and_durable_consumers_are_unknown() -> None:
    stranger = {**CONSUMER, "durable_name": "thief", "name": "thief"}
    kept = {**IN_ORDER, "STOLEN": Kept({}), QUEUE.name: Kept(QUEUE.config, (CONSUMER, stranger))}
    assert drift(PLANS, kept) == (Unknown("consumer thief of CMD_GUEST_BOOK"), Unknown("stream STOLEN"))


def test_replicas_are_set_on_every_stream() -> None:
    assert {plan.config["num_replicas"] for plan in with_replicas(PLANS, 3)} == {3}


def document(tmp_path: Path) -> Path:
    file = tmp_path / "jetstream.json"
    entries = [{"config": dict(plan.config), "consumers": plan.consumers} for plan in PLANS]
    file.write_text(json.dumps({"streams": entries}))
    assert read_plans(file.read_text()) == PLANS
    return file


def run(deed: str, tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setenv("SYNOD_NATS_URL", url)
    for name in ("SYNOD_NATS_USER", "SYNOD_NATS_PASSWORD", "SYNOD_NATS_PASSWORD_FILE"):
        monkeypatch.delenv(name, raising=False)
    return main([deed, str(document(tmp_path))])


def test_apply_makes_what_is_missing_once(
    fresh_nats: RunningNats, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("check", tmp_path, fresh_nats.url, monkeypatch) == DRIFTS
    assert "stream EVT_GUEST_BOOK: is missing\n" in capsys.readouterr().out
    assert run("apply", tmp_path, fresh_nats.url, monkeypatch) == IN_STEP
    assert "consumer guest-book-greet of CMD_GUEST_BOOK: is missing; mended" in capsys.readouterr().out
    for deed in ("apply", "check"):
        assert run(deed, tmp_path, fresh_nats.url, monkeypatch) == IN_STEP
        assert capsys.readouterr().out == "2 streams planned, all in step\n"


def test_apply_mends_what_was_changed_and_keeps_the_messages(
    fresh_nats: RunningNats, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def tamper() -> None:
        client = await nats.connect(fresh_nats.url)
        js = client.jetstream()
        await js.publish("synod.acme.cmd.guest-book.greet", b"kept")
        config = StreamConfig.from_response({**QUEUE.config, "max_msg_size": 10, "duplicate_window": 10**9})
        await js.update_stream(config)
        await js.delete_consumer(QUEUE.name, "guest-book-greet")
        await js.add_stream(name="STRANGE", subjects=["strange"])
        await client.close()

    async def kept() -> int:
        async with administrator(fresh_nats.url) as admin:
            assert await admin.drift(PLANS) == (Unknown("stream STRANGE"),)
            return (await admin.client.jetstream().stream_info(QUEUE.name)).state.messages

    assert run("apply", tmp_path, fresh_nats.url, monkeypatch) == IN_STEP
    asyncio.run(tamper())
    capsys.readouterr()
    assert run("check", tmp_path, fresh_nats.url, monkeypatch) == DRIFTS
    said = capsys.readouterr().out
    assert "stream CMD_GUEST_BOOK: max_msg_size should be 1048576 and is 10\n" in said
    assert "stream STRANGE: is not in the document\n" in said
    assert run("apply", tmp_path, fresh_nats.url, monkeypatch) == IN_STEP
    assert asyncio.run(kept()) == 1


def test_what_cannot_be_mended_is_said(
    fresh_nats: RunningNats, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def spoil() -> None:
        client = await nats.connect(fresh_nats.url)
        await client.jetstream().add_stream(name=QUEUE.name, subjects=["synod.*.cmd.guest-book.>"])
        await client.jetstream().add_consumer(QUEUE.name, ConsumerConfig(durable_name="old"))
        await client.close()

    asyncio.run(spoil())
    assert run("apply", tmp_path, fresh_nats.url, monkeypatch) == DRIFTS
    assert "not mended: $JS.API.STREAM.UPDATE.CMD_GUEST_BOOK: " in capsys.readouterr().out


def test_a_server_that_does_not_answer_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("check", tmp_path, "nats://127.0.0.1:1", monkeypatch) == UNREACHABLE
    assert "NATS does not answer" in capsys.readouterr().out
