"""Limits, cancellation and clean-up, on real processes. Both levels keep the same promises here."""

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from tool_executor.errors import SandboxFailure, ToolCrashed
from tool_executor.sandboxes.process_sandbox import SubprocessSandbox, ZygoteSandbox
from tool_executor.sandboxes.sandbox import MIB, Access, Limits, SandboxJob, SandboxResult
from tool_executor.sandboxes.zygote_process import Profile
from tool_executor.tools.entry import ENTRY, Request

AnySandbox = ZygoteSandbox | SubprocessSandbox
PROFILE = Profile("test", ("tool_executor.tools.entry", "tool_executor.tools.python_exec"))
DEADLINE_S = 30.0


def job(code: str, limits: Limits = Limits(), workspace: Path | None = None) -> SandboxJob:  # noqa: B008
    """A job that runs Python, as python_exec does; without the runner, at any level."""
    request = Request(
        module="tool_executor.tools.python_exec",
        arguments=f'{{"code": {_quoted(code)}}}',
        file_bytes_max=MIB,
        workspace_bytes_max=MIB,
    )
    return SandboxJob(
        entry=ENTRY,
        payload=request.model_dump_json().encode(),
        workspace=workspace,
        access=Access.NONE if workspace is None else Access.WRITE,
        limits=limits,
    )


def _quoted(code: str) -> str:
    return json.dumps(code)


@pytest_asyncio.fixture(params=[ZygoteSandbox, SubprocessSandbox], ids=["L2", "L1"])
async def sandbox(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[AnySandbox]:
    directory = tmp_path / "sandbox"
    directory.mkdir()
    made = ZygoteSandbox(PROFILE, directory) if request.param is ZygoteSandbox else SubprocessSandbox(directory)
    yield made
    await made.aclose()
    assert [each.name for each in directory.iterdir() if each.name.startswith("call-")] == []


async def failure_of(sandbox: AnySandbox, sandbox_job: SandboxJob) -> SandboxFailure:
    with pytest.raises(SandboxFailure) as caught:
        await sandbox.run(sandbox_job)
    return caught.value


async def until_printed(sandbox: AnySandbox, code: str) -> "tuple[asyncio.Task[SandboxResult], str]":
    """Start a job and wait for the first thing it prints."""
    printed: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def hear(_: str, chunk: bytes) -> None:
        if not printed.done():
            printed.set_result(chunk.decode())

    task = asyncio.create_task(sandbox.run(job(code), hear))
    async with asyncio.timeout(DEADLINE_S):
        await asyncio.wait({task, printed}, return_when=asyncio.FIRST_COMPLETED)
    return task, printed.result().strip()


async def until_gone(pid: int) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while runs(pid):
        assert time.monotonic() < deadline, f"process {pid} is still there"
        await asyncio.sleep(0)


def runs(pid: int) -> bool:
    """Whether a process is there and is no zombie, which is for its parent to remove: of orphans, whoever is process 1."""
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


ENDLESS = "import os, time\nprint(os.getpid(), flush=True)\nwhile True: time.sleep(1)"


async def test_ends_a_call_at_its_wall_time(sandbox: AnySandbox) -> None:
    failed = await failure_of(sandbox, job("import time\nwhile True: time.sleep(1)", Limits(wall_s=0.4)))
    assert failed.kind == "LIMIT_WALL"
    assert "0.4 s" in failed.message


async def test_ends_a_call_that_computes_too_long(sandbox: AnySandbox) -> None:
    failed = await failure_of(sandbox, job("while True: pass", Limits(cpu_s=1)))
    assert failed.kind == "LIMIT_CPU"
    # Not the whole second: the kernel holds the limit against the ticks at which the process ran, usage is exact.
    assert failed.transcript.usage.cpu_user_s + failed.transcript.usage.cpu_system_s > 0.2


async def test_ends_a_call_that_ignores_the_warning(sandbox: AnySandbox) -> None:
    code = "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass"
    assert (await failure_of(sandbox, job(code, Limits(cpu_s=1)))).kind == "LIMIT_CPU"


async def test_refuses_memory_over_the_limit(sandbox: AnySandbox) -> None:
    failed = await failure_of(sandbox, job("hoard = bytearray(900 << 20)", Limits(memory_bytes=512 * MIB)))
    assert failed.kind == "LIMIT_MEMORY"
    assert "512 MiB" in failed.message


async def test_ends_a_call_that_writes_too_large_a_file(sandbox: AnySandbox, workspace_dir: Path) -> None:
    code = "open('big', 'wb').write(bytes(3 << 20))"
    failed = await failure_of(sandbox, job(code, Limits(file_bytes=MIB), workspace_dir))
    assert failed.kind == "LIMIT_FILE"
    assert (workspace_dir / "big").stat().st_size <= MIB


async def test_ends_a_call_that_floods_its_output(sandbox: AnySandbox) -> None:
    limits = Limits(output_bytes=MIB, output_kept_bytes=1000)
    failed = await failure_of(sandbox, job("while True: print('x' * 999)", limits))
    assert failed.kind == "LIMIT_OUTPUT"
    assert failed.transcript.stdout.truncated
    assert failed.transcript.stdout.size_bytes > MIB


async def test_keeps_head_and_tail_of_long_output_of_a_call_that_may_go_on(sandbox: AnySandbox) -> None:
    done = await sandbox.run(job("print('first')\nprint('x' * 100000)\nprint('last')", Limits(output_kept_bytes=100)))
    assert done.transcript.stdout.text.startswith("first\n")
    assert done.transcript.stdout.text.endswith("last\n")
    assert done.transcript.stdout.size_bytes == 100_012


async def test_refuses_a_result_over_the_limit(sandbox: AnySandbox) -> None:
    failed = await failure_of(sandbox, job("result = 'x' * 5000", Limits(result_bytes=4000)))
    assert failed.kind == "LIMIT_OUTPUT"
    assert "4000" in failed.message


async def test_names_the_signal_that_ended_a_call(sandbox: AnySandbox) -> None:
    failed = await failure_of(sandbox, job("import os\nos.abort()"))
    assert isinstance(failed, ToolCrashed)
    assert failed.signal == "SIGABRT"


async def test_reports_what_a_call_used(sandbox: AnySandbox) -> None:
    done = await sandbox.run(job("result = sum(range(10**6))"))
    usage = done.transcript.usage
    assert 0 < usage.wall_s < DEADLINE_S
    assert usage.memory_peak_bytes > MIB


async def test_passes_output_on_while_the_call_runs(sandbox: AnySandbox) -> None:
    task, pid = await until_printed(sandbox, ENDLESS)
    assert not task.done()
    assert pid.isdigit()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_kills_the_process_of_a_cancelled_call(sandbox: AnySandbox) -> None:
    task, pid = await until_printed(sandbox, ENDLESS)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not Path(f"/proc/{pid}").exists()


async def test_ends_running_calls_when_it_is_closed(sandbox: AnySandbox) -> None:
    task, pid = await until_printed(sandbox, ENDLESS)
    await sandbox.aclose()
    with pytest.raises(SandboxFailure) as caught:
        await task
    assert (caught.value.kind, caught.value.retryable) == ("CANCELLED", True)
    assert not Path(f"/proc/{pid}").exists()


async def test_takes_no_more_calls_when_it_is_closed(sandbox: AnySandbox) -> None:
    await sandbox.aclose()
    assert (await failure_of(sandbox, job("result = 1"))).kind == "CANCELLED"


async def test_a_call_that_waits_for_its_process_is_cancelled_and_not_crashed_by_a_close(sandbox: AnySandbox) -> None:
    failed = asyncio.create_task(failure_of(sandbox, job("result = 1")))
    await asyncio.sleep(0)  # it has asked for a process, and waits for it
    await sandbox.aclose()
    assert ((await failed).kind, (await failed).retryable) == ("CANCELLED", True)


async def test_runs_calls_side_by_side_without_mixing_them(sandbox: AnySandbox) -> None:
    done = await asyncio.gather(*(sandbox.run(job(f"print({n})\nresult = {n}")) for n in range(8)))
    assert [each.transcript.stdout.text.strip() for each in done] == [str(n) for n in range(8)]


async def test_leaves_no_descriptor_behind(sandbox: AnySandbox) -> None:
    await sandbox.run(job("result = 1"))
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        await sandbox.run(job("result = 1"))
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


@pytest_asyncio.fixture
async def zygote_sandbox(tmp_path: Path) -> AsyncIterator[ZygoteSandbox]:
    made = ZygoteSandbox(PROFILE, tmp_path)
    yield made
    await made.aclose()


async def test_fails_the_calls_of_a_zygote_that_dies_and_starts_another(zygote_sandbox: ZygoteSandbox) -> None:
    task, pid = await until_printed(zygote_sandbox, ENDLESS)
    first = zygote_sandbox.zygote_pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    with pytest.raises(ToolCrashed, match="zygote died"):
        await task
    await until_gone(int(pid))  # no call outlives its zygote
    await zygote_sandbox.run(job("result = 1"))
    assert zygote_sandbox.zygote_pid != first


@pytest.mark.parametrize(("deaths", "starts"), [(2, True), (3, False)])
async def test_starts_another_zygote_for_one_that_a_signal_ended_before_it_took_a_call(
    zygote_sandbox: ZygoteSandbox, monkeypatch: pytest.MonkeyPatch, deaths: int, starts: bool
) -> None:
    left, spawn = iter(range(deaths)), asyncio.create_subprocess_exec

    async def dying(*command: Any, **more: Any) -> asyncio.subprocess.Process:
        process = await spawn(*command, **more)
        if next(left, None) is not None:
            process.send_signal(signal.SIGSEGV)
        return process

    monkeypatch.setattr(asyncio, "create_subprocess_exec", dying)
    if starts:
        assert (await zygote_sandbox.run(job("result = 1"))).value
    else:
        with pytest.raises(ToolCrashed, match="zygote died"):
            await zygote_sandbox.run(job("result = 1"))
    assert next(left, None) is None


async def test_serves_calls_from_one_warm_process(zygote_sandbox: ZygoteSandbox) -> None:
    await zygote_sandbox.start()
    pid = zygote_sandbox.zygote_pid
    await zygote_sandbox.run(job("result = 1"))
    await zygote_sandbox.run(job("import sys\nsys.modules['json'].spoiled = True\nresult = 1"))
    done = await zygote_sandbox.run(job("import json\nprint(hasattr(json, 'spoiled'))"))
    assert done.transcript.stdout.text == "False\n"
    assert zygote_sandbox.zygote_pid == pid


async def test_says_why_a_profile_does_not_start(tmp_path: Path) -> None:
    broken = ZygoteSandbox(Profile("broken", ("no_such_module",)), tmp_path)
    failed = await failure_of(broken, job("result = 1"))
    assert "No module named 'no_such_module'" in failed.message
    await broken.aclose()


async def test_keeps_a_zygote_single_threaded(zygote_sandbox: ZygoteSandbox) -> None:
    await zygote_sandbox.start()
    status = Path(f"/proc/{zygote_sandbox.zygote_pid}/status").read_text()
    assert "\nThreads:\t1\n" in status
