"""The runner's own decisions; the isolation is a fake here unless a test says otherwise."""

import asyncio
from pathlib import Path

import pytest
from pydantic import JsonValue
from tool_executor.errors import SandboxFailure, SandboxUnavailable, ToolCallFailed, ToolCrashed
from tool_executor.sandboxes.probe import Capabilities, capabilities
from tool_executor.sandboxes.sandbox import MIB, Level, Limits, Output, SandboxJob, Transcript
from tool_executor.sandboxes.testing import FakeSandbox
from tool_executor.tools import calc, chart_render, csv_profile, file_write, json_query, python_exec
from tool_executor.tools.entry import Request
from tool_executor.tools.runner import Runner, RunnerLimits, choose_level, encoded, granted
from tool_executor.tools.tool import Tool

FULL = capabilities(7, {})
NO_JAIL = capabilities(0, {"landlock": "ENOSYS: Function not implemented"})
NOTHING = b'{"answer": {"outcome": "succeeded", "value": {"value": null, "found": false}}}'


def faked(sandbox: FakeSandbox, tmp_path: Path, limits: RunnerLimits | None = None) -> Runner:
    return Runner(FULL, limits or RunnerLimits(), state_dir=tmp_path, make_sandbox=lambda *_: sandbox)


def answering(answer: bytes | SandboxFailure, **more: object) -> FakeSandbox:
    return FakeSandbox(lambda _: answer, **more)


async def failure_of(runner: Runner, tool: Tool, arguments: dict[str, JsonValue], workspace: Path) -> ToolCallFailed:
    with pytest.raises(ToolCallFailed) as caught:
        await runner.run(tool, arguments, workspace, 10.0)
    return caught.value


QUERY: dict[str, JsonValue] = {"expression": "a", "document": {}}


class TestChoosingTheLevel:
    def test_takes_the_best_there_is(self) -> None:
        assert choose_level(csv_profile.TOOL, FULL) is Level.L2
        assert choose_level(csv_profile.TOOL, NO_JAIL) is Level.L1

    def test_keeps_tools_without_a_profile_in_process(self) -> None:
        assert choose_level(calc.TOOL, FULL) is Level.L0

    def test_refuses_and_says_what_is_missing_and_what_to_do(self) -> None:
        with pytest.raises(SandboxUnavailable) as caught:
            choose_level(python_exec.TOOL, NO_JAIL)
        refused = caught.value
        assert (refused.kind, refused.required, refused.best) == ("SANDBOX_UNAVAILABLE", "L2", "L1")
        assert refused.missing == {"landlock": "ENOSYS: Function not implemented"}
        assert "Linux 5.13" in refused.fix
        assert "ENOSYS" in refused.message

    def test_goes_lower_only_on_an_operators_word(self) -> None:
        assert choose_level(python_exec.TOOL, NO_JAIL, allow_weaker=True) is Level.L1

    def test_never_runs_foreign_code_in_our_own_process(self) -> None:
        nothing = capabilities(0, {"rlimits": "not enforced"})
        with pytest.raises(SandboxUnavailable):
            choose_level(python_exec.TOOL, nothing, allow_weaker=True)


class TestCheckingArguments:
    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ({}, ["expression", "Field required"]),
            ({"expression": 5}, ["expression", "valid string", "'5'"]),
            ({"expression": "1", "extra": True}, ["extra", "not permitted"]),
            ({"expression": "1", "variables": {"x": "many"}}, ["variables.x", "'many'"]),
            ({"expression": "x" * 3000}, ["expression", "2000"]),
        ],
    )
    def test_names_the_field_the_problem_and_the_value(self, arguments: dict[str, JsonValue], words: list[str]) -> None:
        with pytest.raises(ToolCallFailed) as caught:
            encoded(calc.TOOL, arguments)
        assert caught.value.kind == "INVALID_ARGUMENTS"
        assert all(word in caught.value.message for word in words), caught.value.message

    def test_refuses_arguments_that_are_too_deep_or_too_large(self) -> None:
        deep: JsonValue = 1
        for _ in range(10_000):
            deep = [deep]
        for document in (deep, "x" * 300_000):
            with pytest.raises(ToolCallFailed) as caught:
                encoded(json_query.TOOL, {"expression": "a", "document": document})
            assert caught.value.kind == "INVALID_ARGUMENTS"

    async def test_runs_nothing_on_wrong_arguments(self, tmp_path: Path) -> None:
        sandbox = answering(NOTHING)
        async with faked(sandbox, tmp_path) as runner:
            await failure_of(runner, json_query.TOOL, {"expression": ""}, tmp_path)
        assert sandbox.jobs == []


class TestLimits:
    def test_grants_no_more_than_ceiling_and_deadline(self) -> None:
        limits = granted(Limits(wall_s=30, memory_bytes=512 * MIB), Limits(wall_s=20, memory_bytes=64 * MIB), 5.0)
        assert (limits.wall_s, limits.memory_bytes) == (5.0, 64 * MIB)
        assert granted(Limits(wall_s=30), Limits(wall_s=20), 100.0).wall_s == 20
        assert granted(Limits(wall_s=30), Limits(wall_s=20), -1.0).wall_s == 0.0

    async def test_hands_workspace_limits_and_request_to_the_sandbox(self, tmp_path: Path) -> None:
        sandbox = answering(NOTHING)
        async with faked(sandbox, tmp_path) as runner:
            await runner.run(json_query.TOOL, QUERY, tmp_path, 3.0)
        (job,) = sandbox.jobs
        assert job.workspace == tmp_path
        assert 0 < job.limits.wall_s <= 3.0
        request = Request.model_validate_json(job.payload)
        assert request.module == "tool_executor.tools.json_query"

    async def test_lets_calls_wait_for_a_slot_no_longer_than_their_deadline(self, tmp_path: Path) -> None:
        entered, leave = asyncio.Event(), asyncio.Event()

        class Busy(FakeSandbox):
            async def run(self, job: SandboxJob, on_output=None):
                entered.set()
                await leave.wait()
                return await super().run(job, on_output)

        async with faked(Busy(lambda _: NOTHING), tmp_path, RunnerLimits(calls_max=1)) as runner:
            first = asyncio.create_task(runner.run(json_query.TOOL, QUERY, tmp_path, 30.0))
            await entered.wait()
            with pytest.raises(ToolCallFailed) as caught:
                await runner.run(json_query.TOOL, QUERY, tmp_path, 0.05)
            leave.set()
            await first
        assert (caught.value.kind, caught.value.retryable) == ("LIMIT_WALL", True)


class TestJudgingAnswers:
    @pytest.mark.parametrize(
        "answer",
        [
            b"not json",
            b"[]",
            b'{"answer": {"outcome": "succeeded", "value": {"value": 1}}}',
            b'{"answer": {"outcome": "succeeded", "value": {"value": 1, "found": true, "more": 1}}}',
            b'{"answer": {"outcome": "succeeded", "value": {"value": 1, "found": "perhaps"}}}',
            b'{"answer": {"outcome": "won", "value": {}}}',
        ],
    )
    async def test_takes_nothing_that_does_not_fit_the_schema(self, answer: bytes, tmp_path: Path) -> None:
        async with faked(answering(answer), tmp_path) as runner:
            assert isinstance(await failure_of(runner, json_query.TOOL, QUERY, tmp_path), ToolCrashed)

    async def test_takes_nothing_that_is_nested_too_deep(self, tmp_path: Path) -> None:
        nested = b"[" * 40 + b"]" * 40
        answer = b'{"answer": {"outcome": "succeeded", "value": {"found": true, "value": ' + nested + b"}}}"
        async with faked(answering(answer), tmp_path) as runner:
            assert (await failure_of(runner, json_query.TOOL, QUERY, tmp_path)).kind == "LIMIT_OUTPUT"

    async def test_raises_the_tools_own_refusal(self, tmp_path: Path) -> None:
        answer = b'{"answer": {"outcome": "refused", "kind": "NOT_FOUND", "message": "path: no", "retryable": false}}'
        async with faked(answering(answer), tmp_path) as runner:
            failed = await failure_of(runner, json_query.TOOL, QUERY, tmp_path)
        assert (failed.kind, failed.message) == ("NOT_FOUND", "path: no")

    async def test_passes_the_sandboxs_failure_on(self, tmp_path: Path) -> None:
        async with faked(answering(ToolCrashed("died", signal="SIGSEGV")), tmp_path) as runner:
            failed = await failure_of(runner, json_query.TOOL, QUERY, tmp_path)
        assert isinstance(failed, ToolCrashed)
        assert failed.signal == "SIGSEGV"

    async def test_shows_output_of_python_as_the_kernel_delivered_it(self, tmp_path: Path) -> None:
        answer = b'{"answer": {"outcome": "succeeded", "value": {"value": 1, "stdout": "claimed", "stderr": ""}}}'
        transcript = Transcript(stdout=Output("real", 4))
        heard: list[bytes] = []
        async with faked(answering(answer, transcript=transcript), tmp_path) as runner:
            done = await runner.run(
                python_exec.TOOL, {"code": "1"}, tmp_path, 5.0, lambda _, chunk: heard.append(chunk)
            )
        assert done.value["stdout"] == "real"
        assert heard == [b"real"]


class TestArtefacts:
    async def test_lists_what_a_call_has_made(self, tmp_path: Path, workspace_dir: Path) -> None:
        async with Runner(FULL, state_dir=tmp_path) as runner:
            arguments: dict[str, JsonValue] = {"path": "out/report.md", "content": "# Report\n"}
            done = await runner.run(file_write.TOOL, arguments, workspace_dir, 5.0)
        (artefact,) = done.artefacts
        assert (artefact.path, artefact.size_bytes, artefact.media_type) == ("out/report.md", 9, "text/markdown")
        assert artefact.sha256 == done.value["sha256"]

    async def test_draws_the_same_chart_twice_alike(
        self, tmp_path: Path, workspace_dir: Path, capabilities: Capabilities
    ) -> None:
        arguments: dict[str, JsonValue] = {
            "kind": "line",
            "x": ["jan", "feb", "mar"],
            "series": [{"name": "a", "values": [1, None, 3]}, {"name": "b", "values": [3, 2, 1]}],
            "path": "chart.png",
            "log_y": True,
        }
        async with Runner(capabilities, state_dir=tmp_path) as runner:
            first = await runner.run(chart_render.TOOL, arguments, workspace_dir, 60.0)
            second = await runner.run(chart_render.TOOL, arguments, workspace_dir, 60.0)
        assert first.artefacts == second.artefacts
        assert first.artefacts[0].media_type == "image/png"
        png = (workspace_dir / "chart.png").read_bytes()
        assert png.startswith(b"\x89PNG\r\n")
        assert (int.from_bytes(png[16:20]), int.from_bytes(png[20:24])) == (900, 540)


class TestLife:
    async def test_starts_each_needed_sandbox_once(self, tmp_path: Path) -> None:
        made: list[str] = []
        sandbox = answering(NOTHING)

        def make(profile, level, directory):
            made.append(profile.name)
            return sandbox

        async with Runner(FULL, state_dir=tmp_path, make_sandbox=make) as runner:
            await runner.start((calc.TOOL, csv_profile.TOOL, json_query.TOOL))
            await runner.run(json_query.TOOL, QUERY, tmp_path, 5.0)
        assert made == ["plain"]
        assert sandbox.started
        assert sandbox.closed

    async def test_starts_what_can_run_here_and_leaves_the_rest(self, tmp_path: Path) -> None:
        sandbox = answering(NOTHING)
        async with Runner(NO_JAIL, state_dir=tmp_path, make_sandbox=lambda *_: sandbox) as runner:
            await runner.start((python_exec.TOOL,))
        assert not sandbox.started

    async def test_leaves_no_file_behind(self, tmp_path: Path, workspace_dir: Path, capabilities: Capabilities) -> None:
        state = tmp_path / "state"
        state.mkdir()
        async with Runner(capabilities, state_dir=state) as runner:
            await runner.run(json_query.TOOL, QUERY, workspace_dir, 30.0)
            assert list(state.iterdir())
        assert list(state.iterdir()) == []

    async def test_works_without_a_jail_for_trusted_tools_and_says_so(
        self, tmp_path: Path, workspace_dir: Path
    ) -> None:
        async with Runner(NO_JAIL, state_dir=tmp_path) as runner:
            done = await runner.run(json_query.TOOL, QUERY, workspace_dir, 30.0)
        assert done.level is Level.L1
        assert done.value == {"value": None, "found": False}


def test_every_failure_has_a_kind_of_its_own() -> None:
    def kinds(base: type[SandboxFailure]) -> list[str]:
        own = [base.KIND] if "KIND" in vars(base) else []
        return own + [kind for each in base.__subclasses__() for kind in kinds(each)]

    found = kinds(SandboxFailure)
    assert len(found) == len(set(found)) == 9
