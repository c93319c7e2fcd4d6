"""What people write wrong, and what they are told."""

import pytest
from agent_registry import definitions, documents
from agent_registry.definitions import Checked, Known, Registered
from agent_registry.errors import CatalogueUnknown, DefinitionsInvalid

TOOLS = frozenset({"calc", "sql", "csv-profile"})
ANALYST = """\
apiVersion: synod/v1
kind: Agent
metadata:
  name: analyst
spec:
  model: {name: sim-1}
  instructions: Profile the data.
  tools: [calc, sql]
  capabilities: [analysis]
"""
REVIEWER = ANALYST.replace("analyst", "reviewer")
TEAM = """\
apiVersion: synod/v1
kind: Team
metadata:
  name: scouts
spec:
  steps:
    - id: profile
      agent: analyst
      task: Look at {{input}}.
    - id: review
      agent: reviewer
      task: Check {{steps.profile.output}}.
    - id: decide
      task: Is {{steps.review.output}} right?
      vote:
        voters: [analyst, reviewer]
"""
WHOLE = "---\n".join([ANALYST, REVIEWER, TEAM])


def read(text: str) -> tuple[Checked, ...]:
    return definitions.check(definitions.read(text), Known(tools=TOOLS))


def problems(text: str, known: Known | None = None) -> list[str]:
    with pytest.raises(DefinitionsInvalid) as caught:
        definitions.check(definitions.read(text), known or Known(tools=TOOLS))
    return [str(problem) for problem in caught.value.problems]


def problem(text: str, known: Known | None = None) -> str:
    (only,) = problems(text, known)
    return only


def test_a_whole_team_with_its_members_is_right() -> None:
    checked = definitions.check(definitions.read(WHOLE), Known(tools=TOOLS))
    assert [(item.kind, item.name, item.members) for item in checked] == [
        ("Agent", "analyst", ()),
        ("Agent", "reviewer", ()),
        ("Team", "scouts", ("analyst", "reviewer")),
    ]


def test_members_may_be_registered_before() -> None:
    known = Known({"analyst": Registered("Agent"), "reviewer": Registered("Agent")})
    definitions.check(definitions.read(TEAM), known)


def test_order_of_fields_and_layout_do_not_change_the_digest() -> None:
    shuffled = "kind: Agent\nspec: {capabilities: [analysis], tools: [calc, sql], instructions: 'Profile the data.', model: {name: sim-1}}\nmetadata: {name: analyst}\napiVersion: synod/v1\n"
    assert read(shuffled)[0].digest == read(ANALYST)[0].digest
    assert read(ANALYST.replace("the data", "all data"))[0].digest != read(ANALYST)[0].digest


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "[calc, sql]",
            "[calk, sql]",
            "document 1, line 8, spec.tools[0] = 'calk': no such tool; did you mean calc?",
        ),
        (
            "[calc, sql]",
            "[telepathy]",
            "document 1, line 8, spec.tools[0] = 'telepathy': no such tool; there are calc, csv-profile, sql",
        ),
        (
            "[calc, sql]",
            "[sql, sql]",
            "document 1, line 8, spec.tools[1] = 'sql': listed twice, first as spec.tools[0]",
        ),
        (
            "[calc, sql]",
            "calc",
            "document 1, line 8, spec.tools = 'calc': should be a valid tuple",
        ),
        (
            "kind: Agent",
            "kind: Agnt",
            "document 1, line 2, kind = 'Agnt': no such kind; use Agent or Team; did you mean Agent?",
        ),
        (
            "kind: Agent",
            "kind: Workflow",
            "document 1, line 2, kind = 'Workflow': workflows cannot be registered in this version; use Agent or Team",
        ),
        ("kind: Agent\n", "", "document 1, line 1, kind: missing; use Agent or Team"),
        (
            "synod/v1",
            "synod/v2",
            "document 1, line 1, apiVersion = 'synod/v2': must be 'synod/v1'; did you mean synod/v1?",
        ),
        ("apiVersion: synod/v1\n", "", "document 1, line 1, apiVersion: missing"),
        (
            "  instructions: Profile the data.\n",
            "  instruction: Profile the data.\n  instructions: x\n",
            "document 1, line 7, spec.instruction = 'Profile the data.': no such field; did you mean instructions?",
        ),
        (
            "{name: sim-1}",
            "{name: sim-1, top_k: 5}",
            "document 1, line 6, spec.model.top_k = 5: no such field; there are name, fallback, max_output_tokens, temperature",
        ),
        ("  instructions: Profile the data.\n", "", "document 1, line 5, spec.instructions: missing"),
        ("{name: sim-1}", "{name: 7}", "document 1, line 6, spec.model.name = 7: must be text; put it in quotes"),
        ("{name: sim-1}", "{name: yes}", "document 1, line 6, spec.model.name = true: must be text; put it in quotes"),
        (
            "{name: sim-1}",
            "{name: sim-1, max_output_tokens: many}",
            "document 1, line 6, spec.model.max_output_tokens = 'many': "
            "should be a valid integer, unable to parse string as an integer",
        ),
        (
            "{name: sim-1}",
            "{name: sim-1, max_output_tokens: 0}",
            "document 1, line 6, spec.model.max_output_tokens = 0: should be greater than or equal to 1",
        ),
        (
            "name: analyst",
            "name: The Analyst",
            "document 1, line 4, metadata.name = 'The Analyst': should match pattern '^[a-z][a-z0-9-]{0,62}$'",
        ),
        (
            "  capabilities: [analysis]",
            "  budget: lots",
            "document 1, line 9, spec.budget = 'lots': should match pattern '^\\$?[0-9]{1,9}(\\.[0-9]{1,9})?$'",
        ),
        (
            "  capabilities: [analysis]",
            "  behaviour: ract",
            "document 1, line 9, spec.behaviour = 'ract': must be 'chat' or 'react'; did you mean react?",
        ),
        (
            "metadata:\n  name: analyst",
            "metadata: analyst",
            "document 1, line 3, metadata = 'analyst': should be a valid dictionary or instance of Metadata",
        ),
        (
            "  name: analyst\n",
            "  name: analyst\n  name: again\n",
            "document 1, line 5, metadata.name: written twice, first in line 4; keep one",
        ),
    ],
)
def test_what_is_wrong_with_an_agent_is_named_with_line_field_and_value(old: str, new: str, message: str) -> None:
    assert old in ANALYST
    assert problem(ANALYST.replace(old, new, 1)) == message


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "agent: analyst",
            "agent: analist",
            "line 8, spec.steps[0].agent = 'analist': no agent or team of this name is in this request or registered; did you mean analyst?",
        ),
        (
            "[analyst, reviewer]",
            "[analyst, nobody]",
            "line 16, spec.steps[2].vote.voters[1] = 'nobody': no agent or team of this name is in this request or registered",
        ),
        (
            "id: review",
            "id: profile",
            "line 10, spec.steps[1].id = 'profile': the step id is used already in line 7; ids are unique in a team",
        ),
        (
            "agent: reviewer\n",
            "agent: reviewer\n      after: [profil]\n",
            "line 12, spec.steps[1].after[0] = 'profil': no step has this id; did you mean profile?",
        ),
        (
            "      agent: analyst\n",
            "      agent: analyst\n      after: [review]\n",
            "line 9, spec.steps[0].after = ['review']: the steps wait for each other: profile -> review -> profile",
        ),
        (
            "      agent: analyst\n",
            "      agent: analyst\n      after: [profile]\n",
            "line 9, spec.steps[0].after = ['profile']: the steps wait for each other: profile -> profile",
        ),
        (
            "steps.profile.output",
            "steps.profil.output",
            "line 12, spec.steps[1].task = 'Check {{steps.profil.output}}.': refers to {{steps.profil}}, but no step has this id; did you mean profile?",
        ),
        (
            "      agent: reviewer\n",
            "      agent: reviewer\n      after: []\n",
            "line 13, spec.steps[1].task = 'Check {{steps.profile.output}}.': refers to the output of step 'profile', which does not come before 'review'; add it to after",
        ),
        (
            "[analyst, reviewer]",
            "[analyst, analyst]",
            "line 16, spec.steps[2].vote.voters[1] = 'analyst': listed twice, first as spec.steps[2].vote.voters[0]",
        ),
        (
            "[analyst, reviewer]",
            "[analyst, reviewer]\n        rule: veto\n        veto: [reviewr]",
            "line 18, spec.steps[2].vote.veto[0] = 'reviewr': only a voter can hold a veto; did you mean reviewer?",
        ),
        (
            "[analyst, reviewer]",
            "[analyst, reviewer]\n        rule: veto",
            "line 17, spec.steps[2].vote.rule = 'veto': rule veto needs at least one voter in veto",
        ),
        (
            "[analyst, reviewer]",
            "[analyst, reviewer]\n        veto: [analyst]",
            "line 17, spec.steps[2].vote.veto = ['analyst']: has no meaning under rule majority; set rule: veto or drop it",
        ),
        (
            "[analyst, reviewer]",
            "[analyst, reviewer]\n        rule: threshold\n        threshold: 3",
            "line 18, spec.steps[2].vote.threshold = 3: must be from 1 to 2, the weight of all voters, or nothing could ever be decided",
        ),
        (
            "[analyst, reviewer]",
            "[analyst, reviewer]\n        threshold: 2",
            "line 17, spec.steps[2].vote.threshold = 2: has no meaning under rule majority; set rule: threshold or drop it",
        ),
        (
            "[analyst, reviewer]",
            "[analyst, reviewer]\n        options: [go, go]",
            "line 17, spec.steps[2].vote.options[1] = 'go': listed twice, first as spec.steps[2].vote.options[0]",
        ),
        (
            "[analyst, reviewer]",
            "[analyst, reviewer]\n        rule: loudest",
            "line 17, spec.steps[2].vote.rule = 'loudest': must be 'majority', 'two_thirds', 'unanimous', 'threshold' or 'veto'",
        ),
        (
            "      agent: analyst\n",
            "",
            "line 7, spec.steps[0].agent: missing (name the agent or team that does it, or write vote: for a vote)",
        ),
        (
            "      agent: analyst\n",
            "      agnt: analyst\n      agent: analyst\n",
            "line 8, spec.steps[0].agnt = 'analyst': no such field; did you mean agent?",
        ),
    ],
)
def test_what_is_wrong_with_a_team_is_named_with_line_field_and_value(old: str, new: str, message: str) -> None:
    assert old in TEAM
    text = "---\n".join([TEAM.replace(old, new, 1), ANALYST, REVIEWER])
    assert problem(text) == f"document 1, {message}"


def test_every_problem_of_every_document_comes_at_once_in_the_order_of_the_lines() -> None:
    text = WHOLE.replace("[calc, sql]", "[calk]").replace("agent: reviewer", "agent: nobody").replace("sim-1", "1", 1)
    assert [line.split(":")[0] for line in problems(text)] == [
        "document 1, line 6, spec.model.name = 1",
        "document 2, line 18, spec.tools[0] = 'calk'",
        "document 3, line 31, spec.steps[1].agent = 'nobody'",
    ]


def team(name: str, *members: str) -> str:
    steps = "\n".join(f"    - {{id: s{index}, agent: {member}, task: go}}" for index, member in enumerate(members))
    return f"apiVersion: synod/v1\nkind: Team\nmetadata:\n  name: {name}\nspec:\n  steps:\n{steps}\n"


def test_teams_that_call_upon_each_other_are_shown_as_a_path() -> None:
    text = "---\n".join([ANALYST, team("a", "analyst", "b"), team("b", "c"), team("c", "a")])
    assert problem(text) == (
        "document 2, line 18, spec.steps[1].agent = 'b': "
        "the teams call upon each other: a -> b -> c -> a; a run would never end"
    )


def test_a_team_that_calls_upon_itself_is_a_cycle() -> None:
    assert "a -> a; a run would never end" in problem(team("a", "a"))


def test_a_cycle_through_registered_teams_is_found() -> None:
    known = Known({"b": Registered("Team", ("c",)), "c": Registered("Team", ("a",))})
    assert "a -> b -> c -> a" in problem(team("a", "b"), known)


def test_a_cycle_that_the_request_repairs_is_none() -> None:
    known = Known({"b": Registered("Team", ("a",)), "analyst": Registered("Agent")})
    definitions.check(definitions.read("---\n".join([team("a", "b"), team("b", "analyst")])), known)


def test_a_name_is_used_once_in_a_request() -> None:
    assert problem(ANALYST + "---\n" + ANALYST) == (
        "document 2, line 14, metadata.name = 'analyst': the name is used already in document 1, line 4; names are unique"
    )


def test_a_registered_name_keeps_its_kind() -> None:
    known = Known({"analyst": Registered("Team")}, TOOLS)
    assert "registered as kind Team; a version cannot change the kind, choose another name" in problem(ANALYST, known)


def test_an_unknown_catalogue_is_said_to_be_unknown_not_the_tools_to_be_wrong() -> None:
    with pytest.raises(CatalogueUnknown, match="calc, sql cannot be checked: the catalogue is not known yet"):
        definitions.check(definitions.read(ANALYST), Known())
    definitions.check(definitions.read(ANALYST.replace("[calc, sql]", "[]")), Known())


def test_problems_come_before_an_unknown_catalogue() -> None:
    assert "no agent or team" in problem(ANALYST + "---\n" + team("a", "nobody"), Known())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1, 2", "line 2: this is not YAML: did not find expected ',' or ']' (column 1)"),
        ("a: 1\n b: 2\n", "line 2: this is not YAML: mapping values are not allowed in this context (column 3)"),
        ("a:\n\t- 1\n", "line 2: this is not YAML: found character that cannot start any token (column 1)"),
        ("", "line 1: there is no document; write one of kind Agent or Team"),
        ("---\n---\n", "line 1: there is no document; write one of kind Agent or Team"),
        ("just words", "line 1: a definition is a mapping with apiVersion, kind, metadata and spec"),
        ("- a\n- b", "line 1: a definition is a mapping with apiVersion, kind, metadata and spec"),
        ("a: &x [1]\nb: *x\n", "line 1: anchors and aliases (&x, *x) are not allowed; write it out"),
        ("b: *x\n", "line 1: anchors and aliases (&x, *x) are not allowed; write it out"),
        ("kind: !!python/object:os.system x", "line 1, kind: the tag tag:yaml.org,2002:python/object:os.system is not allowed; write a plain value"),
        ("[a, b]: 1", "line 1: a key must be a word, not a list or a mapping"),
        ("[" * 40 + "]" * 40, "line 1: nested deeper than 32 levels"),
        ("kind: !!int twelve", "line 1, kind: 'twelve' is not a value of the type tag:yaml.org,2002:int"),
    ],
)  # fmt: skip
def test_text_that_is_no_definition_is_refused_with_its_line(text: str, message: str) -> None:
    assert problem(text) == f"document 1, {message}"


def test_a_text_over_the_limit_is_refused_before_it_is_read() -> None:
    text = "x" * (documents.BYTES_MAX + 1)
    assert problem(text) == (
        "document 1, line 1: the text has 262145 bytes, the limit is 262144; split it into several requests"
    )


def test_too_many_documents_are_refused() -> None:
    assert "more than 100 documents" in problem("--- {}\n" * 101)


def test_a_billion_laughs_are_refused_at_the_first() -> None:
    bomb = "a: &a [x, x]\n" + "\n".join(f"{b}: &{b} [*{a}, *{a}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
    assert "anchors and aliases" in problem(bomb)


def test_dates_and_version_like_words_stay_text() -> None:
    (checked,) = read(ANALYST.replace("Profile the data.", "2026-01-01"))
    assert '"instructions":"2026-01-01"' in checked.spec_json


def test_empty_documents_between_separators_are_no_definitions() -> None:
    assert [item.name for item in read("---\n" + ANALYST + "---\n---\n" + REVIEWER)] == [
        "analyst",
        "reviewer",
    ]


def test_a_long_chain_of_teams_does_not_exhaust_the_stack() -> None:
    graph = {str(number): [str(number + 1)] for number in range(20_000)} | {"20000": ["0"]}
    assert len(definitions.find_cycle(graph, "0")) == 20_002
