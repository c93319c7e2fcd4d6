"""The language of sim-1: numbered steps in the instructions, the next turn out. Pure.

    1. call sql_query with {"sql": "select model, price from models order by price limit 3"}
    2. call calc with {"expression": "{{1.rows.0.price}} * 12"} and call calc with {"expression": "1 + 1"}
    answer: {{1.rows.0.model}} costs {{2.value|round:2}} a year.

Everything after `answer:` to the end of the instructions is the template of the answer. Text before and between
steps is left to real models and ignored here. Which step is next follows from how many tool calls were made since
the last user message, so the simulator keeps no state. Calls joined by `and` are made in parallel, or one after
another if the request forbids parallel calls.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from provider_simulator.conversation import (
    Answer,
    CallTools,
    Conversation,
    Json,
    JsonObject,
    PastCall,
    Refusal,
    ToolCall,
    Turn,
)
from provider_simulator.templates import Failed, Scope, TemplateError, parse_result, render_object, render_text

MODEL = "sim-1"
ECHO_CHARACTERS_MAX = 500

_STEP = re.compile(r"^[ \t]*(\d+)\.[ \t]+(?=call\b)", re.MULTILINE)
_CALL = re.compile(r"call[ \t]+([A-Za-z0-9_.\-]+)(?:[ \t]+with[ \t]+(?=\{))?")
_AND = re.compile(r"[ \t]+and[ \t]+(?=call\b)")
_END = re.compile(r"[ \t.;]*(?:\n|$)")
_ANSWER = re.compile(r"^[ \t]*(?:\d+\.[ \t]+)?answer:[ \t]*\n?", re.MULTILINE)
_JSON = json.JSONDecoder()


class ScriptError(Exception):
    """The steps cannot be read or carried out as written; the message says which and why."""


@dataclass(frozen=True, slots=True)
class PlannedCall:
    tool: str
    arguments: JsonObject


@dataclass(frozen=True, slots=True)
class Script:
    """Steps in order (step n is `steps[n - 1]`), then the template of the answer."""

    steps: tuple[tuple[PlannedCall, ...], ...]
    answer: str


def decide(conversation: Conversation) -> Turn:
    """The next turn of sim-1. A script that cannot be followed gives a Refusal that names the reason."""
    try:
        script = parse(conversation.instructions)
        return _echo(conversation) if script is None else _follow(script, conversation)
    except (ScriptError, TemplateError) as error:
        return Refusal(f"{MODEL} is a simulator and stops here: {error}.")


def parse(instructions: str) -> Script | None:
    """The script in the instructions, or None if there is none. Raises ScriptError for one that is malformed."""
    answer = _ANSWER.search(instructions)
    body = instructions[: answer.start()] if answer else instructions
    starts = list(_STEP.finditer(body))
    if not starts and not answer:
        return None
    if not answer:
        raise ScriptError("the steps end without an 'answer:' line")
    _check_numbers([int(start[1]) for start in starts])
    steps = tuple(_parse_step(body, start.end(), int(start[1])) for start in starts)
    return Script(steps, instructions[answer.end() :].rstrip())


def _check_numbers(numbers: Sequence[int]) -> None:
    if list(numbers) != list(range(1, len(numbers) + 1)):
        raise ScriptError(f"steps must be numbered 1, 2, 3 and so on, not {', '.join(map(str, numbers))}")


def _parse_step(body: str, position: int, number: int) -> tuple[PlannedCall, ...]:
    calls: list[PlannedCall] = []
    while True:
        call, position = _parse_call(body, position, number)
        calls.append(call)
        following = _AND.match(body, position)
        if not following:
            break
        position = following.end()
    if not _END.match(body, position):
        raise ScriptError(f"step {number} has words after the call: {_line_at(body, position)!r}")
    return tuple(calls)


def _parse_call(body: str, position: int, number: int) -> tuple[PlannedCall, int]:
    head = _CALL.match(body, position)
    if not head:
        raise ScriptError(f"step {number} names no tool: {_line_at(body, position)!r}")
    if not head[0].endswith((" ", "\t")):
        return PlannedCall(head[1], {}), head.end()
    try:
        arguments, end = _JSON.raw_decode(body, head.end())
    except ValueError as error:
        raise ScriptError(f"the arguments in step {number} are no valid JSON ({error})") from None
    return PlannedCall(head[1], arguments), end


def _line_at(body: str, position: int) -> str:
    return body[position:].partition("\n")[0].strip()[:80]


def _follow(script: Script, conversation: Conversation) -> Turn:
    scope = Scope(conversation.input, _results(script, conversation.calls))
    made = len(conversation.calls)
    for number, step in enumerate(script.steps, start=1):
        if made < len(step):
            return CallTools(_next_calls(number, step[made:], conversation, scope))
        made -= len(step)
    return Answer(render_text(script.answer, scope))


def _results(script: Script, calls: Sequence[PastCall]) -> Mapping[int, tuple[Json | Failed, ...]]:
    results: dict[int, tuple[Json | Failed, ...]] = {}
    start = 0
    for number, step in enumerate(script.steps, start=1):
        results[number] = tuple(_value(call) for call in calls[start : start + len(step)])
        start += len(step)
    return results


def _value(call: PastCall) -> Json | Failed:
    value = parse_result(call.result)
    message = _error_message(value)
    if call.failed:
        return Failed(message or call.result)
    return value if message is None else Failed(message)


def _error_message(value: Json) -> str | None:
    """Wire formats without an error flag carry a failed result as an object whose only key is `error`."""
    if not isinstance(value, Mapping) or set(value) != {"error"}:
        return None
    error = value["error"]
    message = error.get("message") if isinstance(error, Mapping) else error
    return message if isinstance(message, str) else json.dumps(error, ensure_ascii=False)


def _next_calls(
    number: int, step: Sequence[PlannedCall], conversation: Conversation, scope: Scope
) -> tuple[ToolCall, ...]:
    wanted = step if conversation.parallel_calls else step[:1]
    for call in wanted:
        if call.tool not in conversation.tools:
            offered = ", ".join(sorted(conversation.tools)) or "none"
            raise ScriptError(f"step {number} calls the tool {call.tool!r}, which is not offered (offered: {offered})")
    return tuple(
        ToolCall(
            _call_id(conversation.messages, number, index, call.tool),
            call.tool,
            render_object(call.arguments, scope),
        )
        for index, call in enumerate(wanted)
    )


def _call_id(messages: int, step: int, index: int, tool: str) -> str:
    """Deterministic, and different for every call of one conversation because `messages` only grows."""
    digest = hashlib.sha256(f"{messages}/{step}/{index}/{tool}".encode()).hexdigest()
    return f"call_{digest[:24]}"


def _echo(conversation: Conversation) -> Answer:
    said = conversation.input[:ECHO_CHARACTERS_MAX]
    return Answer(f"This is {MODEL}, a simulator and no model; it was given no steps. It read: {said}")
