"""Every tool keeps its own promises: the examples of its manifest, run through the real runner."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest
from pydantic import JsonValue
from tool_executor.errors import ToolCallFailed
from tool_executor.tools.catalogue import catalogue
from tool_executor.tools.profiles import PYTHON
from tool_executor.tools.runner import Runner
from tool_executor.tools.tool import Effect, SelfTest, Tool

TOOLS = catalogue()


def examples() -> Iterator[object]:
    for tool in TOOLS:
        for index, example in enumerate(tool.self_tests):
            yield pytest.param(tool, example, id=f"{tool.name}-{index}-{example.error or 'succeeds'}")


def holds(expected: JsonValue, actual: JsonValue) -> bool:
    """Whether `expected` is a part of `actual`: objects may have more fields, all else is equal."""
    if isinstance(expected, dict) and isinstance(actual, dict):
        return all(key in actual and holds(value, actual[key]) for key, value in expected.items())
    if isinstance(expected, list) and isinstance(actual, list):
        return len(expected) == len(actual) and all(map(holds, expected, actual))
    return expected == actual


def lay_out(example: SelfTest, workspace: Path) -> None:
    for path, content in example.files.items():
        (workspace / path).parent.mkdir(parents=True, exist_ok=True)
        (workspace / path).write_text(content)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(("tool", "example"), list(examples()))
async def test_does_what_its_manifest_shows(tool: Tool, example: SelfTest, runner: Runner, workspace_dir: Path) -> None:
    lay_out(example, workspace_dir)
    try:
        done = await runner.run(tool, example.arguments, workspace_dir, 30.0)
    except ToolCallFailed as failed:
        assert failed.kind == example.error, failed.message
        return
    assert not example.error, f"expected {example.error}, got {done.value}"
    assert holds(dict(example.expected), done.value), done.value
    assert done.level >= tool.min_level
    jsonschema.validate(done.value, tool.result_schema(), cls=jsonschema.Draft202012Validator)


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.name)
class TestManifest:
    def test_is_complete(self, tool: Tool) -> None:
        assert re.fullmatch(r"[a-z][a-z_]{1,62}", tool.name)
        assert re.fullmatch(r"\d+\.\d+\.\d+", tool.version)
        assert tool.title
        assert len(tool.description) > 40

    def test_shows_a_success_and_a_failure(self, tool: Tool) -> None:
        assert any(example.error for example in tool.self_tests)
        # A network tool's success needs another host: test_http_fetch has it.
        assert tool.hosts or any(not example.error for example in tool.self_tests)

    def test_describes_its_arguments_in_json_schema(self, tool: Tool) -> None:
        schema = tool.parameters_schema()
        jsonschema.Draft202012Validator.check_schema(schema)
        assert schema["type"] == "object"
        assert schema["additionalProperties"] is False
        jsonschema.Draft202012Validator.check_schema(tool.result_schema())

    def test_takes_its_own_good_examples_for_valid(self, tool: Tool) -> None:
        for example in tool.self_tests:
            if not example.error:
                jsonschema.validate(
                    json.loads(json.dumps(dict(example.arguments))),
                    tool.parameters_schema(),
                    cls=jsonschema.Draft202012Validator,
                )

    def test_is_found_by_the_module_it_names(self, tool: Tool) -> None:
        assert tool.module == f"tool_executor.tools.{tool.name}"


def test_lists_each_name_once_and_in_order() -> None:
    names = [tool.name for tool in TOOLS]
    assert names == sorted(set(names))


def test_lets_only_writers_have_effects() -> None:
    assert {tool.name for tool in TOOLS if tool.effect is not Effect.PURE} == {
        "chart_render",
        "file_write",
        "http_fetch",
    }


def test_runs_foreign_code_in_the_jail_only() -> None:
    by_python = [tool for tool in TOOLS if tool.profile is PYTHON]
    assert [(tool.name, tool.min_level.name) for tool in by_python] == [("python_exec", "L2")]
