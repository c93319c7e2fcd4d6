"""json_query on documents and expressions that Python takes and JSON, or JMESPath, does not: refused by name."""

from pathlib import Path

import pytest
from pydantic import JsonValue
from tool_executor.errors import ToolError
from tool_executor.tools.json_query import JsonQueryArguments, run
from tool_executor.tools.workspace import Workspace


def selected(directory: Path, expression: str, document: bytes) -> JsonValue:
    (directory / "d.json").write_bytes(document)
    workspace = Workspace(directory, file_bytes_max=10**6, total_bytes_max=10**6)
    return run(JsonQueryArguments(expression=expression, path="d.json"), workspace).value


@pytest.mark.parametrize(
    ("expression", "document", "value"),
    [
        ("a", b'{"a": 123456789012345678901234567890}', 123456789012345678901234567890),
        ("a", b'{"a": 1, "a": 2}', 2),
        ("a", b'\xef\xbb\xbf{"a": "\\ud83d\\ude00"}', "\U0001f600"),
        ("length(@)", b"[1, 2]", 2),
    ],
)
def test_selects(tmp_path: Path, expression: str, document: bytes, value: JsonValue) -> None:
    assert selected(tmp_path, expression, document) == value


@pytest.mark.parametrize(
    ("expression", "document", "kind"),
    [
        ("@", b'{"a": NaN}', "INVALID_JSON"),
        ("@", b'{"a": -Infinity}', "INVALID_JSON"),
        ("@", b'{"a": "\xff"}', "INVALID_JSON"),
        ("@", b"[" * 100_000, "INVALID_JSON"),
        ("@", b'{"a": 1e999}', "INVALID_EXPRESSION"),
        ("@", b'{"a": "\\ud800"}', "INVALID_EXPRESSION"),
        ("sum(@)", b"[1e308, 1e308]", "INVALID_EXPRESSION"),
        ("to_number('nan')", b"1", "INVALID_EXPRESSION"),
        ("ceil(to_number('inf'))", b"1", "INVALID_EXPRESSION"),
        ("max_by(@, &a)", b'[{"a": 1}, {"a": "x"}]', "INVALID_EXPRESSION"),
        ("@[::0]", b"[1]", "INVALID_EXPRESSION"),
        ("&a", b"1", "INVALID_EXPRESSION"),
        ("@", b"[" * 900 + b"]" * 900, "TOO_LARGE"),
    ],
)
def test_refuses_what_is_no_json(tmp_path: Path, expression: str, document: bytes, kind: str) -> None:
    with pytest.raises(ToolError) as refused:
        selected(tmp_path, expression, document)
    assert refused.value.kind == kind
