import pytest
from provider_simulator.conversation import Json
from provider_simulator.templates import Failed, Scope, TemplateError, render_text, render_value

ROWS: Json = [{"model": "a|b", "price": 0.126}, {"model": "c", "price": 2}]
SCOPE = Scope(
    input='{"budget": {"usd": 40}, "tags": ["a", "b"]}',
    steps={1: ({"rows": ROWS, "ok": True, "none": None, "word": "no"},), 2: (Failed("timed out"),), 3: ("plain",)},
)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{1.rows.1.model}}", "c"),
        ("{{ 1.rows.0.price | round:2 }}", "0.13"),
        ("{{1.rows.1.price|round:0}}", "2"),
        ("{{1.ok}}", "true"),
        ("{{1.rows.1|json}}", '{"model":"c","price":2}'),
        ("{{3}} {{3|json}}", 'plain "plain"'),
        ("{{1.ok|yesno:approve,reject}}", "approve"),
        ("{{1.word|yesno:approve,reject}}", "reject"),
        ("{{1.none|yesno:approve,reject}}", "reject"),
        ("{{2.anything|yesno:approve,reject}}", "reject"),
        ("{{1.absent|default:nothing}}", "nothing"),
        ("{{1.none|default:nothing}}", "nothing"),
        ("{{9.rows|default:nothing}}", "nothing"),
        ("{{2.deep.path}}", "timed out"),
        ("{{2|default:hidden}}", "timed out"),
        ("{{2.value|round:2}}", "timed out"),
        ("{{1.rows|count}}", "2"),
        ("{{input.tags|join:/}}", "a/b"),
        ("{{1.rows|table:model,price}}", "| model | price |\n| --- | --- |\n| a\\|b | 0.126 |\n| c | 2 |"),
        ("{{1.rows|column:price}}", "[0.126,2]"),
        ("{{1.rows|column:model|join:/}}", "a|b/c"),
        ("{{input.budget.usd}}", "40"),
        ("{{input}}", '{"budget": {"usd": 40}, "tags": ["a", "b"]}'),
        ("no template", "no template"),
    ],
)
def test_a_template_renders_as_text(template: str, text: str) -> None:
    assert render_text(template, SCOPE) == text


def test_a_string_that_is_one_template_keeps_the_type_inside_json() -> None:
    arguments: Json = {
        "rows": "{{1.rows}}",
        "usd": "{{input.budget.usd}}",
        "text": "max {{input.budget.usd}}",
        "n": [1],
    }

    assert render_value(arguments, SCOPE) == {"rows": ROWS, "usd": 40, "text": "max 40", "n": [1]}


def test_two_templates_in_one_string_are_text() -> None:
    assert render_value("{{1.ok}}{{1.ok}}", SCOPE) == "truetrue"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("1.rows.7.model", "'7' is no index into a list of 2"),
        ("1.nope", "there is no key 'nope'; present: rows, ok, none, word"),
        ("4.x", "step 4 has 0 results so far"),
        ("1#2.x", "step 1 has 1 results so far"),
        ("output", "'output' is neither 'input' nor a step number"),
        ("3.x", "'x' is sought in a str"),
        ("1.ok|shout", "there is no filter 'shout'"),
        ("1.rows|column:size", "there is no key 'size'"),
        ("1.word|round:2", "round needs a number, not 'no'"),
        ("1.ok|join", "join needs a list, not a bool"),
        ("1.ok|yesno:yes", "yesno needs two words"),
    ],
)
def test_a_template_that_does_not_resolve_names_itself_and_the_reason(template: str, reason: str) -> None:
    with pytest.raises(TemplateError) as caught:
        render_text("x {{" + template + "}}", SCOPE)

    assert caught.value.template == template
    assert reason in str(caught.value)
