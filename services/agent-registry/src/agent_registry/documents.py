"""YAML text to plain values that remember their lines. Pure, and safe on hostile text: aliases, custom tags, deep nesting
and endless documents are refused before anything is built from them.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from agent_registry.errors import DefinitionsInvalid, Problem

BYTES_MAX: Final = 256 * 1024
DOCUMENTS_MAX: Final = 100
DEPTH_MAX: Final = 32
VALUE_CHARS_MAX: Final = 80

Value = str | int | float | bool | None | list["Value"] | dict[str, "Value"]
Path = tuple[str | int, ...]

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml is many times faster, where the wheel brings it
_CORE_TAGS = frozenset(f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null"))
_PLAIN_TAGS = frozenset(f"tag:yaml.org,2002:{name}" for name in ("timestamp", "merge", "value"))
"""Tags that YAML 1.1 gives to plain words on its own; a definition means the word."""


@dataclass(frozen=True, slots=True)
class Document:
    """One document. `number` and `lines` count from 1; `lines` has every path of `value`, the root being ()."""

    number: int
    value: Value
    lines: Mapping[Path, int]

    def line(self, path: Path) -> int:
        """The line of the path, or of the nearest thing around it that is there."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines[path]

    def at(self, path: Path) -> Value:
        """The value at the path; None where there is none."""
        value = self.value
        for part in path:
            if isinstance(value, dict) and isinstance(part, str):
                value = value.get(part)
            elif isinstance(value, list) and isinstance(part, int) and part < len(value):
                value = value[part]
            else:
                return None
        return value

    def problem(self, path: Path, problem: str, *, show_value: bool = True) -> Problem:
        """A problem at the path, with its line and its value."""
        shown = show(self.at(path)) if show_value and path else ""
        return Problem(self.number, self.line(path), field_name(path), shown, problem)


def parse(text: str) -> tuple[Document, ...]:
    """The documents that are not empty. Raises DefinitionsInvalid."""
    size = len(text.encode())
    if size > BYTES_MAX:
        raise _invalid(1, 1, f"the text has {size} bytes, the limit is {BYTES_MAX}; split it into several requests")
    _refuse_hostile(text)
    documents = [
        _Builder(number).document(node) for number, node in enumerate(_compose(text), start=1) if not _is_empty(node)
    ]
    problems = [problem for builder in documents for problem in builder.problems]
    if problems:
        raise DefinitionsInvalid(problems)
    if not documents:
        raise _invalid(1, 1, "there is no document; write one of kind Agent or Team")
    return tuple(builder.result() for builder in documents)


def field_name(path: Path) -> str:
    """``("spec", "steps", 0, "agent")`` as ``spec.steps[0].agent``."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


def show(value: Value) -> str:
    """The value as a person wrote it, more or less, and not too much of it."""
    text = json.dumps(value) if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= VALUE_CHARS_MAX else text[: VALUE_CHARS_MAX - 1] + "…"


def _refuse_hostile(text: str) -> None:
    """Parser events need no memory for what they describe, so the shape is judged before it is built."""
    document, depth = 0, 0
    try:
        for event in yaml.parse(text, Loader=_Loader):
            line = _line(event)
            if isinstance(event, yaml.DocumentStartEvent):
                document += 1
                _refuse_many(document, line)
            elif anchor := getattr(event, "anchor", None):
                raise _invalid(
                    document,
                    line,
                    f"anchors and aliases (&{anchor}, *{anchor}) are not allowed; write it out",
                )
            elif isinstance(event, yaml.CollectionStartEvent):
                depth += 1
                _refuse_deep(depth, document, line)
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
    except yaml.YAMLError as error:
        raise _syntax_error(error, max(document, 1)) from error


def _line(marked: Any) -> int:
    """Counted from 1; the marks of events and nodes are untyped."""
    return int(marked.start_mark.line) + 1


def _refuse_many(document: int, line: int) -> None:
    if document > DOCUMENTS_MAX:
        raise _invalid(document, line, f"more than {DOCUMENTS_MAX} documents; split the text into several requests")


def _refuse_deep(depth: int, document: int, line: int) -> None:
    if depth > DEPTH_MAX:
        raise _invalid(document, line, f"nested deeper than {DEPTH_MAX} levels")


def _compose(text: str) -> Iterator[Node | None]:
    try:
        yield from yaml.compose_all(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise _syntax_error(error, 1) from error


def _syntax_error(error: yaml.YAMLError, document: int) -> DefinitionsInvalid:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
    problem = getattr(error, "problem", None) or (str(error).splitlines() or ["it cannot be read"])[0]
    return _invalid(document, line, f"this is not YAML: {problem} (column {column})")


def _invalid(document: int, line: int, problem: str) -> DefinitionsInvalid:
    return DefinitionsInvalid([Problem(document, line, "", "", problem)])


def _is_empty(node: Node | None) -> bool:
    return node is None or (isinstance(node, ScalarNode) and node.tag.endswith(":null"))


@dataclass(slots=True)
class _Builder:
    number: int
    value: Value = None
    lines: dict[Path, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def document(self, node: Node | None) -> "_Builder":
        assert node is not None
        self.value = self._build(node, ())
        return self

    def result(self) -> Document:
        return Document(self.number, self.value, self.lines)

    def _build(self, node: Node, path: Path) -> Value:
        self.lines.setdefault(path, _line(node))
        match node:
            case MappingNode():
                return self._mapping(node, path)
            case SequenceNode():
                return [self._build(item, (*path, index)) for index, item in enumerate(node.value)]
            case _:
                return self._scalar(node, path)

    def _mapping(self, node: MappingNode, path: Path) -> dict[str, Value]:
        result: dict[str, Value] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            line = _line(key_node)
            if not isinstance(key_node, ScalarNode):
                self._refuse(line, path, "a key must be a word, not a list or a mapping")
            elif key in result:
                self._refuse(line, (*path, key), f"written twice, first in line {self.lines[*path, key]}; keep one")
            else:
                # A key's own line is what a person looks for when the key itself is wrong.
                self.lines[*path, key] = line
                result[key] = self._build(value_node, (*path, key))
        return result

    def _scalar(self, node: Node, path: Path) -> Value:
        if node.tag in _PLAIN_TAGS:
            return str(node.value)
        if node.tag not in _CORE_TAGS:
            self._refuse(_line(node), path, f"the tag {node.tag} is not allowed; write a plain value")
            return None
        return self._plain(node, path)

    def _plain(self, node: Node, path: Path) -> Value:
        constructor = yaml.constructor.SafeConstructor()
        try:
            value: Value = constructor.construct_object(node)
        except (ValueError, KeyError, yaml.YAMLError):
            self._refuse(_line(node), path, f"{node.value!r} is not a value of the type {node.tag}")
            return None
        return value

    def _refuse(self, line: int, path: Path, problem: str) -> None:
        self.problems.append(Problem(self.number, line, field_name(path), "", problem))
