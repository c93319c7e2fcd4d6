from dataclasses import replace

import pytest
from provider_simulator.conversation import Answer, CallTools, Conversation, PastCall, Refusal
from provider_simulator.script import PlannedCall, ScriptError, decide, parse

SCRIPT = """You compare models. Do exactly this:
1. call sql_query with {"sql": "select 1", "limit": 3}
2. call calc with {"expression": "{{1.rows.0.price}} * 12"} and call clock
answer: {{1.rows.0.model}} costs {{2.value|round:2}}.
It was {{2#2.now}}."""

ASKED = Conversation(SCRIPT, "which one?", tools=frozenset({"sql_query", "calc", "clock"}), messages=2)
QUERY = PastCall("c1", "sql_query", '{"rows": [{"model": "small", "price": 0.25}]}')
CALC = PastCall("c2", "calc", '{"value": 3.0049}')
CLOCK = PastCall("c3", "clock", '{"now": "noon"}')


def test_parse_reads_steps_in_order_and_the_answer_over_the_remaining_lines() -> None:
    script = parse(SCRIPT)

    assert script is not None
    assert script.steps == (
        (PlannedCall("sql_query", {"sql": "select 1", "limit": 3}),),
        (PlannedCall("calc", {"expression": "{{1.rows.0.price}} * 12"}), PlannedCall("clock", {})),
    )
    assert script.answer == "{{1.rows.0.model}} costs {{2.value|round:2}}.\nIt was {{2#2.now}}."


def test_instructions_without_steps_are_no_script() -> None:
    assert parse("You are helpful. 1. call me maybe, in mid-sentence") is None


def test_an_answer_needs_no_steps() -> None:
    assert decide(Conversation("answer: You said {{input}}", "hi")) == Answer("You said hi")


def test_arguments_may_span_lines() -> None:
    script = parse('1. call calc with {\n  "expression": "1 + 1"\n}\nanswer: done')

    assert script is not None
    assert script.steps[0][0].arguments == {"expression": "1 + 1"}


@pytest.mark.parametrize(
    ("instructions", "problem"),
    [
        ('1. call calc with {"a": }\nanswer: x', "the arguments in step 1 are no valid JSON"),
        ('1. call calc with {"a": 1}', "without an 'answer:' line"),
        ('2. call calc with {"a": 1}\nanswer: x', "numbered 1, 2, 3"),
        ('1. call calc with {"a": 1} and then rest\nanswer: x', "step 1 has words after the call: 'and then rest'"),
        ("1. call the customer kindly\nanswer: x", "step 1 has words after the call: 'customer kindly'"),
        ("1. call\nanswer: x", "step 1 names no tool"),
    ],
)
def test_a_malformed_script_is_refused_with_the_step_and_the_reason(instructions: str, problem: str) -> None:
    with pytest.raises(ScriptError, match=problem):
        parse(instructions)
    assert isinstance(decide(Conversation(instructions, "go")), Refusal)


def test_the_first_turn_calls_the_tool_of_the_first_step() -> None:
    turn = decide(ASKED)

    assert isinstance(turn, CallTools)
    assert [(call.name, call.arguments) for call in turn.calls] == [("sql_query", {"sql": "select 1", "limit": 3})]


def test_calls_joined_by_and_are_made_in_parallel_with_templates_rendered() -> None:
    turn = decide(replace(ASKED, calls=(QUERY,), messages=4))

    assert isinstance(turn, CallTools)
    assert [(call.name, call.arguments) for call in turn.calls] == [
        ("calc", {"expression": "0.25 * 12"}),
        ("clock", {}),
    ]
    assert turn.calls[0].id != turn.calls[1].id


def test_calls_joined_by_and_are_made_one_by_one_when_parallel_calls_are_forbidden() -> None:
    single = replace(ASKED, parallel_calls=False, messages=4)

    first = decide(replace(single, calls=(QUERY,)))
    second = decide(replace(single, calls=(QUERY, CALC), messages=6))

    assert isinstance(first, CallTools)
    assert isinstance(second, CallTools)
    assert [call.name for call in (*first.calls, *second.calls)] == ["calc", "clock"]


def test_the_answer_comes_after_the_last_step() -> None:
    turn = decide(replace(ASKED, calls=(QUERY, CALC, CLOCK)))

    assert turn == Answer("small costs 3.0.\nIt was noon.")


def test_the_same_conversation_gives_the_same_turn() -> None:
    assert decide(ASKED) == decide(ASKED)


def test_a_later_turn_of_the_conversation_gives_other_call_ids() -> None:
    early, late = decide(ASKED), decide(replace(ASKED, messages=9))

    assert isinstance(early, CallTools)
    assert isinstance(late, CallTools)
    assert early.calls[0].id != late.calls[0].id


def test_a_failed_result_renders_its_message() -> None:
    failed = replace(QUERY, result="no such table: prices", failed=True)

    turn = decide(replace(ASKED, calls=(failed, CALC, CLOCK)))

    assert turn == Answer("no such table: prices costs 3.0.\nIt was noon.")


@pytest.mark.parametrize("result", ['{"error": "out of range"}', '{"error": {"message": "out of range", "kind": "x"}}'])
def test_an_error_object_counts_as_a_failed_result_where_the_wire_has_no_flag(result: str) -> None:
    script = '1. call calc with {"e": "1/0"}\nanswer: {{1.value}} {{1.ok|yesno:approve,reject}}'
    asked = Conversation(script, "go", calls=(PastCall("c", "calc", result),), tools=frozenset({"calc"}))

    assert decide(asked) == Answer("out of range reject")


def test_an_unresolvable_template_is_refused_by_name() -> None:
    turn = decide(replace(ASKED, instructions="answer: {{input.price}} is it", input='{"cost": 1}'))

    assert isinstance(turn, Refusal)
    assert "{{input.price}}" in turn.text
    assert "present: cost" in turn.text


def test_a_tool_that_is_not_offered_is_refused_by_name() -> None:
    turn = decide(replace(ASKED, tools=frozenset({"clock"})))

    assert isinstance(turn, Refusal)
    assert "step 1 calls the tool 'sql_query', which is not offered (offered: clock)" in turn.text


def test_without_a_script_the_simulator_says_what_it_is() -> None:
    turn = decide(Conversation("You are helpful.", "What is the weather?"))

    assert turn == Answer(
        "This is sim-1, a simulator and no model; it was given no steps. It read: What is the weather?"
    )
