"""json_query: pick and reshape JSON with a JMESPath expression (jmespath.org)."""

from typing import cast

import jmespath
from jmespath.exceptions import JMESPathError
from pydantic import Field, JsonValue, ValidationError

from tool_executor import plain_json
from tool_executor.errors import ToolError
from tool_executor.sandboxes.sandbox import Access, Level
from tool_executor.tools.profiles import PLAIN
from tool_executor.tools.tool import Arguments, Effect, PureTool, Result, SelfTest
from tool_executor.tools.workspace import Workspace


class JsonQueryArguments(Arguments):
    expression: str = Field(
        min_length=1, max_length=2000, description="JMESPath, such as 'models[?price < `2`].name | sort(@)'."
    )
    path: str | None = Field(default=None, description="A JSON file of the workspace, or set document.")
    document: JsonValue = Field(default=None, description="The JSON itself, instead of path.")


class JsonQueryResult(Result):
    value: JsonValue
    found: bool = Field(description="False if the expression selects nothing.")


def run(arguments: JsonQueryArguments, workspace: Workspace) -> JsonQueryResult:
    """ToolError INVALID_ARGUMENTS, INVALID_EXPRESSION, INVALID_JSON, NOT_FOUND, TOO_LARGE."""
    value = _selected(arguments.expression, _document(arguments, workspace))
    try:
        return JsonQueryResult(value=value, found=value is not None)
    except ValidationError as error:
        raise ToolError("TOO_LARGE", "expression: what it selects is nested too deeply; select a part of it") from error


def _selected(expression: str, document: JsonValue) -> JsonValue:
    """JMESPath's functions fail in Python's ways too, and may give what JSON cannot say, as an infinite sum."""
    try:
        value = cast(JsonValue, jmespath.search(expression, document))
        plain_json.canonical(value)
    except JMESPathError as error:
        message = f"expression: {expression!r} is not usable JMESPath ({str(error).splitlines()[0]})"
        raise ToolError("INVALID_EXPRESSION", message) from error
    except RecursionError as error:
        raise ToolError("INVALID_EXPRESSION", "expression: it is nested too deeply; simplify it") from error
    except (TypeError, ValueError, ArithmeticError) as error:
        message = f"expression: {expression!r} gives no JSON for this document ({str(error)[:200]})"
        raise ToolError("INVALID_EXPRESSION", message) from error
    return value


def _document(arguments: JsonQueryArguments, workspace: Workspace) -> JsonValue:
    if (arguments.path is None) == (arguments.document is None):
        raise ToolError("INVALID_ARGUMENTS", "path, document: give exactly one of the two")
    if arguments.path is None:
        return arguments.document
    try:
        return plain_json.loads(workspace.read_bytes(arguments.path))
    except (ValueError, RecursionError) as error:
        raise ToolError("INVALID_JSON", f"path: {arguments.path!r} is not JSON ({error})") from error


TOOL = PureTool(
    name="json_query",
    version="1.0.0",
    title="Query JSON",
    description="Selects and reshapes parts of a JSON document or file with a JMESPath expression.",
    arguments=JsonQueryArguments,
    result=JsonQueryResult,
    effect=Effect.PURE,
    min_level=Level.L1,
    profile=PLAIN,
    access=Access.READ,
    run=run,
    self_tests=(
        SelfTest(
            arguments={"expression": "m[?p < `2`].n", "document": {"m": [{"n": "a", "p": 1}, {"n": "b", "p": 3}]}},
            expected={"value": ["a"], "found": True},
        ),
        SelfTest(
            arguments={"expression": "length(@)", "path": "list.json"},
            files={"list.json": "[1, 2, 3]"},
            expected={"value": 3},
        ),
        SelfTest(arguments={"expression": "missing", "document": {"a": 1}}, expected={"value": None, "found": False}),
        SelfTest(arguments={"expression": "a[", "document": {"a": 1}}, error="INVALID_EXPRESSION"),
        SelfTest(arguments={"expression": "a", "path": "x.json"}, files={"x.json": "{"}, error="INVALID_JSON"),
    ),
)
