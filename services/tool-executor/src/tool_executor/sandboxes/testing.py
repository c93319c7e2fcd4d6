"""A sandbox without processes, for tests of what is built on one."""

from collections.abc import Callable

from tool_executor.errors import SandboxFailure
from tool_executor.sandboxes.sandbox import NO_TRANSCRIPT, Level, OnOutput, SandboxJob, SandboxResult, Transcript


class FakeSandbox:
    """Answers every job with what `answer` makes of it, or fails with what it returns; remembers the jobs."""

    def __init__(
        self,
        answer: Callable[[SandboxJob], bytes | SandboxFailure],
        *,
        level: Level = Level.L2,
        transcript: Transcript = NO_TRANSCRIPT,
    ) -> None:
        self.level = level
        self.jobs: list[SandboxJob] = []
        self.started = False
        self.closed = False
        self._answer = answer
        self._transcript = transcript

    async def start(self) -> None:
        self.started = True

    async def run(self, job: SandboxJob, on_output: OnOutput | None = None) -> SandboxResult:
        self.jobs.append(job)
        answer = self._answer(job)
        if isinstance(answer, SandboxFailure):
            raise answer
        if on_output is not None and self._transcript.stdout.text:
            on_output("stdout", self._transcript.stdout.text.encode())
        return SandboxResult(answer, self._transcript)

    async def aclose(self) -> None:
        self.closed = True
