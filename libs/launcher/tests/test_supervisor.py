"""Starting in order, restarting with backoff, and stopping without a rest."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import pytest_asyncio
from launcher.errors import BinaryMissing, StartFailed
from launcher.keys import ensure_keys
from launcher.layout import Layout, Service
from launcher.logs import Logs
from launcher.processes import Command, Warden
from launcher.programs import environment, needed, programs
from launcher.supervisor import Program, Readiness, State, Status, Supervisor

from .conftest import BROKEN, DEADLINE_S, NEEDY, QUICK, STEADY, STUBBORN, MakeLayout, ends, runs


class Run:
    """A supervisor of fake services without servers, and all that it said."""

    def __init__(self, layout: Layout, *services: Service, extra: tuple[Program, ...] = ()) -> None:
        layout.keys.mkdir(parents=True, exist_ok=True)
        layout.logs.mkdir(exist_ok=True)
        credentials = ensure_keys(layout.keys, (service.name for service in services))
        chosen = [p for p in programs(layout, credentials) if p.name not in ("postgres", "nats")]
        self.history: list[Status] = []
        self.has_process = asyncio.Event()
        self.warden = Warden(1.0)
        self.logs = Logs(layout.logs, layout.limits)
        self.supervisor = Supervisor((*chosen, *extra), layout.limits, self.logs, self.warden, self._changed)

    def _changed(self, status: Status) -> None:
        self.history.append(status)
        if status.pid is not None:
            self.has_process.set()

    def states(self, name: str) -> list[State]:
        states = [status.state for status in self.history if status.name == name]
        return [state for i, state in enumerate(states) if i == 0 or states[i - 1] is not state]

    def first(self, name: str, state: State) -> int:
        return next(i for i, status in enumerate(self.history) if (status.name, status.state) == (name, state))

    def pid(self, name: str) -> int:
        pid = self.supervisor.statuses[name].pid
        assert pid is not None
        return pid

    async def close(self) -> None:
        await self.supervisor.stop()
        self.logs.close()
        self.warden.close()


class Runs:
    """Makes runs, each closed when the test ends."""

    def __init__(self, make_layout: MakeLayout) -> None:
        self._make_layout = make_layout
        self._open: list[Run] = []

    def of(self, *services: Service, extra: tuple[Program, ...] = (), **environment: str) -> Run:
        run = Run(self._make_layout(*services, **environment), *services, extra=extra)
        self._open.append(run)
        return run

    async def close(self) -> None:
        for run in self._open:
            await run.close()


@pytest_asyncio.fixture
async def a_run(make_layout: MakeLayout) -> AsyncIterator[Runs]:
    made = Runs(make_layout)
    yield made
    await made.close()


async def test_a_service_starts_when_what_it_needs_is_ready(a_run: Runs) -> None:
    run = a_run.of(NEEDY, STEADY)
    await run.supervisor.start()
    assert run.first("steady", State.READY) < run.first("steady-two", State.STARTING)


async def test_services_that_need_nothing_of_each_other_start_together(a_run: Runs) -> None:
    run = a_run.of(STEADY, Service("stubborn", 3))
    await run.supervisor.start()
    first_ready = min(run.first("steady", State.READY), run.first("stubborn", State.READY))
    assert run.first("steady", State.STARTING) < first_ready
    assert run.first("stubborn", State.STARTING) < first_ready


async def test_a_crashed_service_is_restarted_and_shown_so(a_run: Runs) -> None:
    run = a_run.of(STEADY)
    await run.supervisor.start()
    before = run.pid("steady")

    run.supervisor.kill("steady")
    await run.supervisor.wait_ready("steady", DEADLINE_S)

    lives = [State.STARTING, State.READY, State.RESTARTING, State.STARTING, State.READY]
    assert run.states("steady") == [State.WAITING, *lives]
    assert run.pid("steady") != before
    assert run.supervisor.statuses["steady"].restarts == 1
    restarting = run.history[run.first("steady", State.RESTARTING)]
    assert restarting.problem == "killed by SIGKILL"


async def test_a_wanted_restart_does_not_count_as_a_crash(a_run: Runs) -> None:
    run = a_run.of(STEADY)
    await run.supervisor.start()
    before = run.pid("steady")

    await run.supervisor.restart("steady")

    assert run.pid("steady") != before
    assert run.supervisor.statuses["steady"].restarts == 0


async def test_a_service_switched_off_stays_off_and_the_others_run_on(a_run: Runs) -> None:
    run = a_run.of(STEADY, NEEDY)
    await run.supervisor.start()
    await run.supervisor.switch_off("steady")
    assert run.supervisor.statuses["steady"].state is State.STOPPED
    assert run.supervisor.statuses["steady-two"].state is State.READY
    assert State.RESTARTING not in run.states("steady")


async def test_a_service_that_ends_at_once_fails_the_start_with_its_last_words(a_run: Runs) -> None:
    run = a_run.of(BROKEN)
    with pytest.raises(StartFailed, match="SYNOD_MEANING is not set"):
        await run.supervisor.start()
    assert run.states("broken").count(State.STARTING) == QUICK.start_attempts_max
    assert run.states("broken")[-1] is State.FAILED


async def test_a_service_that_is_never_ready_fails_with_what_it_said(make_layout: MakeLayout) -> None:
    # It must have come up to say something: on a slow machine that takes longer than the first of these.
    for timeout_s in (0.5, 5, 30):
        problem = await problem_of_never_ready(make_layout, timeout_s)
        assert f"not ready within {timeout_s:g} s: " in problem
        if problem.endswith(": waiting for a peer"):
            return
    pytest.fail(problem)


async def problem_of_never_ready(make_layout: MakeLayout, timeout_s: float) -> str:
    impatient = replace(QUICK, ready_timeout_s=timeout_s, start_attempts_max=1)
    run = Run(make_layout(STEADY, limits=impatient, SYNOD_FAKE_READY="no"), STEADY)
    with pytest.raises(StartFailed) as failed:
        await run.supervisor.start()
    await run.close()
    return failed.value.problem


async def test_a_program_that_does_not_exist_is_named(a_run: Runs) -> None:
    async def never(_pid: int) -> Readiness:
        return Readiness(False)

    run = a_run.of(extra=(Program("ghost", Command(("/nonexistent/ghost",)), never, ""),))
    with pytest.raises(BinaryMissing, match="does not run on this machine"):
        await run.supervisor.start()


async def test_what_ignores_the_request_to_stop_is_killed_with_its_children(a_run: Runs) -> None:
    run = a_run.of(STEADY, STUBBORN)
    await run.supervisor.start()
    service, child = run.pid("stubborn"), _child_of(run)
    assert runs(child)

    await run.supervisor.stop()

    assert not runs(service)
    assert ends(child)
    assert run.first("stubborn", State.STOPPED) < run.first("steady", State.STOPPING)


async def test_a_crashed_service_takes_its_children_along(a_run: Runs) -> None:
    run = a_run.of(Service("stubborn", 3))
    await run.supervisor.start()
    child = _child_of(run)

    run.supervisor.kill("stubborn")
    await run.supervisor.wait_ready("stubborn", DEADLINE_S)

    assert ends(child)
    assert runs(_child_of(run))


async def test_stopping_during_the_start_leaves_nothing(a_run: Runs) -> None:
    run = a_run.of(STEADY, NEEDY)
    starting = asyncio.create_task(run.supervisor.start())
    await asyncio.wait_for(run.has_process.wait(), DEADLINE_S)
    starting.cancel()
    await run.supervisor.stop()
    assert {status.state for status in run.supervisor.statuses.values()} == {State.STOPPED}


async def test_output_becomes_json_lines_of_the_service_and_of_all(a_run: Runs) -> None:
    run = a_run.of(STEADY)
    await run.supervisor.start()
    await run.supervisor.stop()

    for name in ("steady", "all"):
        records = [json.loads(line) for line in run.logs.path(name).read_text().splitlines()]
        assert {record["event"] for record in records} >= {"listening", "a plain line"}
        assert all({"ts", "level", "service", "event"} <= record.keys() for record in records)


def test_a_service_is_given_its_own_secrets_only(make_layout: MakeLayout) -> None:
    gateway = Service("llm-gateway", 3, secrets=("OPENAI_",))
    layout = make_layout(STEADY, gateway, OPENAI_API_KEY="sk-1", AWS_SECRET="x", SYNOD_LOG_LEVEL="DEBUG")
    layout.keys.mkdir(parents=True)
    credentials = ensure_keys(layout.keys, ("steady", "llm-gateway"))

    steady, given = (environment(layout, credentials, service) for service in (STEADY, gateway))

    assert given["OPENAI_API_KEY"] == "sk-1"
    assert "OPENAI_API_KEY" not in steady
    assert "AWS_SECRET" not in given
    assert steady["SYNOD_LOG_LEVEL"] == "DEBUG"
    assert json.loads(steady["SYNOD_PEERS"]) == {}
    assert steady["SYNOD_ARCHIVE_DIRECTORY"] == str(layout.data / "archive" / "steady")


def test_a_service_is_given_the_peers_that_it_and_they_need(make_layout: MakeLayout) -> None:
    first, second, third = (
        Service("first", 1),
        Service("second", 2, needs=("first",)),
        Service("third", 3, needs=("second",)),
    )
    layout = make_layout(first, second, third)
    assert [service.name for service in needed(layout, third)] == ["second", "first"]
    assert needed(layout, first) == ()


def _child_of(run: Run) -> int:
    file = next(run.logs.path("all").parent.parent.glob("state/stubborn/child"))
    return int(file.read_text().rstrip("."))
