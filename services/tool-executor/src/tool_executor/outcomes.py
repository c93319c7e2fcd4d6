"""What the end of a tool's task means: a result, a failure with its kind, or an interruption that says nothing."""

import asyncio
import json
from typing import Final

from synod.common.values import Failure
from synod.tool_executor.events import Artefact

from tool_executor.domain import EXECUTOR_STOPPED, End, Failed, Interrupted, Outcome, Succeeded
from tool_executor.errors import CallCancelled, SandboxUnavailable, ToolCallFailed, ToolError, WallLimit
from tool_executor.sandboxes.sandbox import NO_TRANSCRIPT, Usage
from tool_executor.tools.runner import ToolResult

RESULT_BYTES_MAX: Final = 256 * 1024


def end_of(work: "asyncio.Task[ToolResult]", duration_ms: int) -> End:
    """A kind of its own for each way to end. An unforeseen exception of a tool's own code is the tool's crash."""
    if work.cancelled():
        return Interrupted(EXECUTOR_STOPPED)
    match work.exception():
        case None:
            return _result(work.result(), duration_ms)
        case CallCancelled():
            return Interrupted(EXECUTOR_STOPPED)
        case ToolCallFailed() as error:
            return _failure(error, duration_ms)
        case Exception() as error:
            crash = Failure(reason="TOOL_CRASHED", message=f"the tool failed unexpectedly: {_clean(repr(error)[:500])}")
            return Failed("failed", crash, duration_ms, certain=False)
        case error:
            raise error


def _result(result: ToolResult, duration_ms: int) -> Succeeded | Failed:
    text = json.dumps(result.value, separators=(",", ":"), ensure_ascii=True)
    if len(text) > RESULT_BYTES_MAX:
        message = (
            f"the result has {len(text)} bytes, the limit is {RESULT_BYTES_MAX}; ask for less, or have a file written"
        )
        return Failed("failed", Failure(reason="LIMIT_OUTPUT", message=message), duration_ms, certain=False)
    usage = result.transcript.usage
    return Succeeded(
        result_json=text,
        artefacts=tuple(
            Artefact(path=each.path, size_bytes=each.size_bytes, sha256=each.sha256, media_type=each.media_type)
            for each in result.artefacts
        ),
        isolation=result.level.name,
        duration_ms=duration_ms,
        cpu_ms=_cpu_ms(usage),
    )


def _failure(error: ToolCallFailed, duration_ms: int) -> Failed:
    outcome: Outcome = "timed_out" if isinstance(error, WallLimit) else "failed"
    failure = Failure(reason=error.kind, message=_clean(error.message), retryable=error.retryable)
    cpu_ms = None if error.transcript is NO_TRANSCRIPT else _cpu_ms(error.transcript.usage)
    return Failed(outcome, failure, duration_ms, isinstance(error, ToolError | SandboxUnavailable), cpu_ms)


def _cpu_ms(usage: Usage) -> int:
    return round((usage.cpu_user_s + usage.cpu_system_s) * 1000)


def _clean(text: str) -> str:
    """Foreign code may have put lone surrogates into it, which no UTF-8 can carry."""
    return text.encode(errors="replace").decode()
