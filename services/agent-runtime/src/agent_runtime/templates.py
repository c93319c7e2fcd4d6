"""Placeholders in the tasks of a team's steps: what came before, put in by name.

{{input}}                        the input of the team
{{steps.<id>.output}}            the output of a step before this one
{{steps.<id>.json.<path>}}       a value inside an output that is JSON; the path has names and list numbers
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Final

from agent_runtime.errors import TemplateInvalid

_PLACEHOLDER: Final = re.compile(r"\{\{\s*([^{}]*?)\s*\}\}")

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]


def render(template: str, run_input: str, outputs: Mapping[str, str]) -> str:
    """The template filled in, in one pass: what an output says is never read as a placeholder.

    Raises TemplateInvalid naming the first placeholder that stands for nothing.
    """
    return _PLACEHOLDER.sub(lambda match: _value(match[1], run_input, outputs), template)


def _value(name: str, run_input: str, outputs: Mapping[str, str]) -> str:
    if name == "input":
        return run_input
    parts = name.split(".")
    if len(parts) < 3 or parts[0] != "steps" or parts[2] not in ("output", "json"):
        raise TemplateInvalid(name, "write {{input}}, {{steps.<id>.output}} or {{steps.<id>.json.<path>}}")
    output = _output(name, parts[1], outputs)
    if parts[2] == "json":
        return _inside(name, output, parts[3:])
    if len(parts) > 3:
        raise TemplateInvalid(name, f"an output is text; to read inside it write {{{{steps.{parts[1]}.json.<path>}}}}")
    return output


def _output(name: str, step: str, outputs: Mapping[str, str]) -> str:
    if step in outputs:
        return outputs[step]
    near = get_close_matches(step, outputs, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"ended steps here: {', '.join(sorted(outputs)) or 'none'}"
    raise TemplateInvalid(name, f"no step '{step}' has ended before this one; {hint}")


def _inside(name: str, output: str, path: list[str]) -> str:
    value = _parsed(name, output)
    for part in path:
        value = _child(name, value, part)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _parsed(name: str, output: str) -> Json:
    try:
        parsed: Json = json.loads(output)
    except ValueError:
        raise TemplateInvalid(name, "the output of that step is not JSON") from None
    return parsed


def _child(name: str, value: Json, part: str) -> Json:
    if isinstance(value, dict) and part in value:
        return value[part]
    if isinstance(value, list) and part.isdigit() and int(part) < len(value):
        return value[int(part)]
    raise TemplateInvalid(name, f"there is no '{part}' at that place of the JSON")
