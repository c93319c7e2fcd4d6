"""Views of other services' events need the log those come from, and not what a stream still holds of it."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import nats
import pytest
from launcher.layout import SERVICES, Layout
from launcher.streams import plans_of
from launcher.testing import free_port_base
from servicekit.nats_admin import StreamPlan, administrator
from synod.common.subjects import event_stream
from synod_client import Synod

from .conftest import RunningSystem, command_of
from .definitions import CALCULATOR

pytestmark = pytest.mark.system


@pytest.fixture
def small(tmp_path: Path) -> Iterator[RunningSystem]:
    started = RunningSystem(Layout(tmp_path, free_port_base(), simulator=True, durable=False))
    try:
        started.call(started.system.up())
        yield started
    finally:
        started.close()


async def apply(running: RunningSystem, plans: tuple[StreamPlan, ...]) -> None:
    url = (running.system.layout.keys / "administrator.nats").read_text().strip()
    async with administrator(url) as admin:
        await admin.apply(plans)


def holding_one(plan: StreamPlan) -> StreamPlan:
    """An event stream that keeps its newest event only."""
    return replace(plan, config={**plan.config, "max_msgs": 1}) if plan.name.startswith("EVT_") else plan


async def held(running: RunningSystem, service: str) -> tuple[int, int]:
    """The messages of a stream, and the number of the last."""
    client = await nats.connect(running.system.observer_url)
    state = (await client.jetstream().stream_info(event_stream(service))).state
    await client.close()
    return state.messages, state.last_seq


async def test_views_are_compared_and_rebuilt_though_their_streams_hold_one_event(small: RunningSystem) -> None:
    command = command_of(small)

    async def work(synod: Synod) -> None:
        assert (await synod.wait((await synod.start("calculator", "go")).id)).result_sha256

    async with Synod.connect(small.endpoints) as synod:
        await synod.define(CALCULATOR)
        await synod.grant("calculator", "calc")
        await work(synod)
        await apply(small, tuple(map(holding_one, plans_of(SERVICES))))
        await work(synod)  # what comes now is gone from the streams before everybody has read it
        assert command("views", "verify").returncode == 0
        views = json.loads(command("views", "list", "--json").stdout)
        foreign = [view for view in views if view["source"] != view["service"]]
        assert {view["source"] for view in foreign} == {"agent-runtime", "llm-gateway", "tool-executor"}
        for view in foreign:
            messages, last = await held(small, view["source"])
            assert messages == 1 < last
            assert command("views", "rebuild", view["service"], view["name"]).returncode == 0

        await apply(small, plans_of(SERVICES))  # allowed more again, a stream begins in the middle: no reason to stop
        await work(synod)
        assert command("views", "verify").returncode == 0
        assert command("events", "verify").returncode == 0
