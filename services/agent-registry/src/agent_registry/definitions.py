"""Documents to definitions: everything wrong is found at once, each with its document, line, field and value."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import lru_cache
from typing import Final

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from synod.common.definitions import (
    NAME_PATTERN,
    AgentDefinition,
    AgentStep,
    TeamDefinition,
    TeamSpec,
    VoteSpec,
    VoteStep,
    canonical_json,
    digest,
    predecessors,
)

from agent_registry import documents
from agent_registry.documents import Document, Path
from agent_registry.errors import CatalogueUnknown, DefinitionsInvalid, Problem, near

MODELS: Final[Mapping[str, type[AgentDefinition] | type[TeamDefinition]]] = {
    "Agent": AgentDefinition,
    "Team": TeamDefinition,
}
KINDS: Final = ("Agent", "Team")
_STEP_MODELS: Final = ("AgentStep", "VoteStep")
NAME: Final = re.compile(NAME_PATTERN)
TOKEN: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")
_REFERENCE = re.compile(r"\{\{\s*steps\.([A-Za-z0-9_-]+)")


@dataclass(frozen=True, slots=True)
class Registered:
    """What the registry holds under a name: the newest version's kind, and the members of a team."""

    kind: str
    members: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Known:
    """What a request may refer to. `tools` is empty while no tool is known."""

    definitions: Mapping[str, Registered] = field(default_factory=dict)
    tools: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Checked:
    """A definition that is whole, with what is kept of it."""

    document: Document
    definition: AgentDefinition | TeamDefinition

    @property
    def name(self) -> str:
        return self.definition.metadata.name

    @property
    def kind(self) -> str:
        return self.definition.kind

    @property
    def spec_json(self) -> str:
        return canonical_json(self.definition)

    @property
    def digest(self) -> str:
        return digest(self.spec_json)

    @property
    def members(self) -> tuple[str, ...]:
        return members(self.definition)


@dataclass(frozen=True, slots=True)
class Reading:
    """The documents of a text: those right in themselves, what is wrong with the others, and what these would define."""

    checked: tuple[Checked, ...]
    problems: tuple[Problem, ...] = ()
    broken: Mapping[str, Registered] = field(default_factory=dict)


def read(text: str) -> Reading:
    """Raises DefinitionsInvalid when the text is not even YAML."""
    shapes = [_shape(document) for document in documents.parse(text)]
    broken = [shape for shape in shapes if isinstance(shape, Broken)]
    return Reading(
        tuple(shape for shape in shapes if isinstance(shape, Checked)),
        tuple(problem for shape in broken for problem in shape.problems),
        {shape.name: Registered(shape.kind) for shape in broken if shape.name},
    )


def check(reading: Reading, known: Known) -> tuple[Checked, ...]:
    """The definitions, if they are right in themselves, together, and with what is known.

    Raises DefinitionsInvalid with every problem; CatalogueUnknown when all that is wrong is that no tool is known yet.
    """
    # A name is not reported as unknown because the document that defines it has a mistake of its own.
    everything = {**reading.broken, **known.definitions}
    problems = [*reading.problems, *_together(reading.checked, Known(everything, known.tools))]
    if problems:
        raise DefinitionsInvalid(problems)
    wanted = sorted({tool for item in reading.checked for tool in _tools(item)})
    if wanted and not known.tools:
        raise CatalogueUnknown(wanted)
    return reading.checked


def members(definition: AgentDefinition | TeamDefinition) -> tuple[str, ...]:
    """The names of agents and teams that a team calls upon, each once, in order."""
    if isinstance(definition, AgentDefinition):
        return ()
    return tuple(dict.fromkeys(name for _, name in _member_paths(definition.spec)))


@dataclass(frozen=True, slots=True)
class Broken:
    """A document that is no definition; its name and kind as far as they can be read."""

    name: str
    kind: str
    problems: tuple[Problem, ...]


def _shape(document: Document) -> Checked | Broken:
    model = MODELS.get(str(document.at(("kind",))))
    if not isinstance(document.value, dict):
        problem = document.problem((), "a definition is a mapping with apiVersion, kind, metadata and spec")
        return _broken(document, [problem])
    if model is None:
        return _broken(document, [_kind_problem(document)])
    try:
        return Checked(document, model.model_validate(document.value))
    except ValidationError as error:
        items = [item for item in error.errors() if _applies(document, item["loc"])]
        return _broken(document, [_shape_problem(document, item) for item in items])


def _broken(document: Document, problems: Sequence[Problem]) -> Broken:
    name = document.at(("metadata", "name"))
    return Broken(name if isinstance(name, str) else "", str(document.at(("kind",))), tuple(problems))


def _kind_problem(document: Document) -> Problem:
    kind = document.at(("kind",))
    if kind is None:
        return document.problem(("kind",), "missing; use Agent or Team", show_value=False)
    if kind == "Workflow":
        return document.problem(("kind",), "workflows cannot be registered in this version; use Agent or Team")
    return document.problem(("kind",), f"no such kind; use Agent or Team{near(str(kind), KINDS)}")


def _applies(document: Document, location: Path) -> bool:
    """A step is tried as a call of an agent and as a vote; only the errors of what was meant say something."""
    for index, part in enumerate(location):
        if part in _STEP_MODELS:
            step = document.at(location[:index])
            return (part == "VoteStep") == (isinstance(step, dict) and "vote" in step)
    return True


def _shape_problem(document: Document, error: ErrorDetails) -> Problem:
    path = tuple(part for part in error["loc"] if part not in _STEP_MODELS)
    match error["type"]:
        case "missing":
            return document.problem(path, f"missing{_alternative(path)}", show_value=False)
        case "extra_forbidden":
            return document.problem(path, f"no such field{_fields_near(document, path, error)}")
        case "string_type":
            return document.problem(path, "must be text; put it in quotes")
        case "literal_error":
            expected = str(error.get("ctx", {}).get("expected", ""))
            words = re.findall(r"'([^']*)'", expected)
            return document.problem(path, f"must be {expected}{near(str(document.at(path)), words)}")
        case _:
            return document.problem(
                path, error["msg"].replace("String should", "should").replace("Input should", "should")
            )


def _alternative(path: Path) -> str:
    in_step = len(path) == 4 and path[:2] == ("spec", "steps") and path[-1] == "agent"
    return " (name the agent or team that does it, or write vote: for a vote)" if in_step else ""


def _fields_near(document: Document, path: Path, error: ErrorDetails) -> str:
    # Every item of a list has the same fields, so one answer serves thousands of mistakes.
    location = tuple(0 if isinstance(part, int) else part for part in error["loc"][:-1])
    known = _fields_at(str(document.at(("kind",))), location)
    matches = get_close_matches(str(path[-1]), known, n=1, cutoff=0.6)
    return f"; did you mean {matches[0]}?" if matches else f"; there are {', '.join(known)}"


@lru_cache(maxsize=256)
def _fields_at(kind: str, location: Path) -> tuple[str, ...]:
    """The names of fields at a place, from the JSON Schema, which knows every model by its path."""
    schema = MODELS[kind].model_json_schema()
    node = schema
    for part in location:
        node = _step_into(schema, node, part)
    return tuple(map(str, _mapping(_resolve(schema, node).get("properties"))))


def _step_into(schema: dict[str, object], node: dict[str, object], part: str | int) -> dict[str, object]:
    here = _resolve(schema, node)
    if part in _STEP_MODELS:
        return {"$ref": f"#/$defs/{part}"}
    if isinstance(part, int):
        return _mapping(here.get("items"))
    return _mapping(_mapping(here.get("properties")).get(part))


def _resolve(schema: dict[str, object], node: dict[str, object]) -> dict[str, object]:
    choices = node.get("anyOf")
    if isinstance(choices, list):
        node = next((choice for choice in choices if "$ref" in choice), {})
    reference = node.get("$ref")
    return _mapping(_mapping(schema.get("$defs")).get(str(reference).rpartition("/")[2])) if reference else node


def _mapping(value: object) -> dict[str, object]:
    return value if isinstance(value, dict) else {}


def _together(checked: Sequence[Checked], known: Known) -> Iterator[Problem]:
    here = {item.name: Registered(item.kind, item.members) for item in checked}
    everything = {**known.definitions, **here}
    yield from _duplicate_names(checked)
    yield from _names_taken(checked, known)
    for item in checked:
        yield from _alone(item)
        yield from _unknown_tools(item, known.tools)
        yield from _unknown_members(item, everything)
    yield from _team_cycles(checked, everything)


def _alone(item: Checked) -> Iterator[Problem]:
    if isinstance(item.definition, AgentDefinition):
        yield from _repeated(item.document, ("spec", "tools"), item.definition.spec.tools)
        yield from _repeated(item.document, ("spec", "capabilities"), item.definition.spec.capabilities)
    else:
        yield from _team_problems(item.document, item.definition.spec)


def _duplicate_names(checked: Sequence[Checked]) -> Iterator[Problem]:
    first: dict[str, Checked] = {}
    for item in checked:
        other = first.setdefault(item.name, item)
        if other is not item:
            where = f"document {other.document.number}, line {other.document.line(('metadata', 'name'))}"
            yield item.document.problem(("metadata", "name"), f"the name is used already in {where}; names are unique")


def _names_taken(checked: Sequence[Checked], known: Known) -> Iterator[Problem]:
    for item in checked:
        registered = known.definitions.get(item.name)
        if registered is not None and registered.kind != item.kind:
            problem = f"registered as kind {registered.kind}; a version cannot change the kind, choose another name"
            yield item.document.problem(("metadata", "name"), problem)


def _repeated(document: Document, path: Path, values: Iterable[str]) -> Iterator[Problem]:
    seen: dict[str, int] = {}
    for index, value in enumerate(values):
        if seen.setdefault(value, index) != index:
            yield document.problem(
                (*path, index), f"listed twice, first as {documents.field_name((*path, seen[value]))}"
            )


def _tools(item: Checked) -> tuple[str, ...]:
    return item.definition.spec.tools if isinstance(item.definition, AgentDefinition) else ()


def _unknown_tools(item: Checked, tools: frozenset[str]) -> Iterator[Problem]:
    if not tools:
        return
    for index, tool in enumerate(_tools(item)):
        if tool not in tools:
            hint = near(tool, sorted(tools)) or f"; there are {', '.join(sorted(tools)[:20])}"
            yield item.document.problem(("spec", "tools", index), f"no such tool{hint}")


def _member_paths(spec: TeamSpec) -> Iterator[tuple[Path, str]]:
    for path, step in _steps(spec):
        if isinstance(step, AgentStep):
            yield (*path, "agent"), step.agent
        else:
            for index, voter in enumerate(step.vote.voters):
                yield (*path, "vote", "voters", index), voter


def _steps(spec: TeamSpec) -> Iterator[tuple[Path, AgentStep | VoteStep]]:
    for index, step in enumerate(spec.steps):
        yield ("spec", "steps", index), step
    if spec.aggregator is not None:
        yield ("spec", "aggregator"), spec.aggregator


def _unknown_members(item: Checked, everything: Mapping[str, Registered]) -> Iterator[Problem]:
    if isinstance(item.definition, AgentDefinition):
        return
    for path, name in _member_paths(item.definition.spec):
        if name not in everything:
            problem = "no agent or team of this name is in this request or registered"
            yield item.document.problem(path, problem + near(name, everything))


def _team_problems(document: Document, spec: TeamSpec) -> Iterator[Problem]:
    ambiguous = [*_step_ids(document, spec)]
    # With two steps of one id nobody knows which of them is waited for.
    yield from ambiguous or _step_order(document, spec)
    for path, step in _steps(spec):
        if isinstance(step, VoteStep):
            yield from _vote_problems(document, (*path, "vote"), step.vote)


def _step_ids(document: Document, spec: TeamSpec) -> Iterator[Problem]:
    first: dict[str, Path] = {}
    for path, step in _steps(spec):
        if first.setdefault(step.id, path) != path:
            line = document.line((*first[step.id], "id"))
            yield document.problem(
                (*path, "id"), f"the step id is used already in line {line}; ids are unique in a team"
            )


def _step_order(document: Document, spec: TeamSpec) -> Iterator[Problem]:
    ids = [step.id for _, step in _steps(spec)]
    unknown = [*_unknown_after(document, spec, ids), *_unknown_references(document, spec, ids)]
    yield from unknown
    waits = predecessors(spec)
    cycle = find_cycle({step: [name for name in names if name in waits] for step, names in waits.items()})
    if cycle:
        path = next(path for path, step in _steps(spec) if step.id == cycle[0])
        yield document.problem((*path, "after"), f"the steps wait for each other: {' -> '.join(cycle)}")
    elif not unknown:
        yield from _early_references(document, spec, waits)


def _unknown_after(document: Document, spec: TeamSpec, ids: Sequence[str]) -> Iterator[Problem]:
    for path, step in _steps(spec):
        for index, name in enumerate(step.after or ()):
            if name not in ids:
                yield document.problem((*path, "after", index), f"no step has this id{near(name, ids)}")


def _references(spec: TeamSpec) -> Iterator[tuple[Path, str, str]]:
    """Path of the task, id of its step, id of the step that it refers to."""
    for path, step in _steps(spec):
        for name in dict.fromkeys(_REFERENCE.findall(step.task)):
            yield (*path, "task"), step.id, name


def _unknown_references(document: Document, spec: TeamSpec, ids: Sequence[str]) -> Iterator[Problem]:
    for path, _, name in _references(spec):
        if name not in ids:
            yield document.problem(path, f"refers to {{{{steps.{name}}}}}, but no step has this id{near(name, ids)}")


def _early_references(document: Document, spec: TeamSpec, waits: Mapping[str, Sequence[str]]) -> Iterator[Problem]:
    for path, step, name in _references(spec):
        if name not in _before(step, waits):
            yield document.problem(
                path, f"refers to the output of step {name!r}, which does not come before {step!r}; add it to after"
            )


def _before(step: str, waits: Mapping[str, Sequence[str]]) -> frozenset[str]:
    seen: set[str] = set()
    waiting = list(waits[step])
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting.extend(waits[name])
    return frozenset(seen)


def _vote_problems(document: Document, path: Path, vote: VoteSpec) -> Iterator[Problem]:
    yield from _repeated(document, (*path, "voters"), vote.voters)
    yield from _repeated(document, (*path, "options"), vote.options)
    for index, name in enumerate(vote.veto):
        if name not in vote.voters:
            yield document.problem((*path, "veto", index), f"only a voter can hold a veto{near(name, vote.voters)}")
    yield from _rule_problems(document, path, vote)


def _rule_problems(document: Document, path: Path, vote: VoteSpec) -> Iterator[Problem]:
    weight = len(vote.voters)
    if vote.rule == "threshold" and not 1 <= vote.threshold <= weight:
        problem = f"must be from 1 to {weight}, the weight of all voters, or nothing could ever be decided"
        yield document.problem((*path, "threshold"), problem)
    if vote.rule != "threshold" and vote.threshold:
        yield document.problem(
            (*path, "threshold"), f"has no meaning under rule {vote.rule}; set rule: threshold or drop it"
        )
    if vote.rule == "veto" and not vote.veto:
        yield document.problem((*path, "rule"), "rule veto needs at least one voter in veto")
    if vote.rule != "veto" and vote.veto:
        yield document.problem((*path, "veto"), f"has no meaning under rule {vote.rule}; set rule: veto or drop it")


def _team_cycles(checked: Sequence[Checked], everything: Mapping[str, Registered]) -> Iterator[Problem]:
    """Each cycle once, at the first document of the request that is on it."""
    graph = {name: [member for member in item.members if member in everything] for name, item in everything.items()}
    reported: set[frozenset[str]] = set()
    for item in checked:
        cycle = find_cycle(graph, item.name)
        if cycle and frozenset(cycle) not in reported:
            reported.add(frozenset(cycle))
            yield _cycle_problem(item, cycle)


def _cycle_problem(item: Checked, cycle: Sequence[str]) -> Problem:
    path: Path = ("spec", "steps")
    if isinstance(item.definition, TeamDefinition):
        path = next((path for path, name in _member_paths(item.definition.spec) if name in cycle), path)
    return item.document.problem(path, f"the teams call upon each other: {' -> '.join(cycle)}; a run would never end")


def find_cycle(graph: Mapping[str, Sequence[str]], start: str | None = None) -> tuple[str, ...]:
    """A path that ends where it began, such as ``("a", "b", "a")``, or nothing.

    With `start` only a cycle through it counts; without, any. Depth first without recursion, since graphs may be deep.
    """
    done: set[str] = set()
    for root in [start] if start is not None else graph:
        cycle = _cycle_from(graph, root, done, start)
        if cycle:
            return cycle
    return ()


def _cycle_from(graph: Mapping[str, Sequence[str]], root: str, done: set[str], through: str | None) -> tuple[str, ...]:
    path, open_edges = [root], [iter(graph.get(root, ()))]
    on_path = {root}
    while path:
        following = next(open_edges[-1], None)
        if following is None:
            on_path.discard(path[-1])
            done.add(path.pop())
            open_edges.pop()
        elif following in on_path and through in (None, following):
            return (*path[path.index(following) :], following)
        elif following not in done and following not in on_path:
            path.append(following)
            on_path.add(following)
            open_edges.append(iter(graph.get(following, ())))
    return ()
