"""Placeholders in tasks."""

from __future__ import annotations

import pytest
from agent_runtime.errors import TemplateInvalid
from agent_runtime.templates import render

OUTPUTS = {"plan": '{"name": "x", "rows": [{"cost": 3}], "ok": true}', "text": "plain {{input}}"}


@pytest.mark.parametrize(
    ("template", "rendered"),
    [
        ("no placeholder {at} all", "no placeholder {at} all"),
        ("{{input}} and {{ input }}", "job and job"),
        ("{{steps.text.output}}", "plain {{input}}"),
        ("{{steps.plan.json.name}}", "x"),
        ("{{steps.plan.json.rows.0.cost}}", "3"),
        ("{{steps.plan.json.rows}}", '[{"cost": 3}]'),
        ("{{steps.plan.json.ok}}", "true"),
    ],
)
def test_render_puts_in_what_came_before(template: str, rendered: str) -> None:
    assert render(template, "job", OUTPUTS) == rendered


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{{inputs}}", "write {{input}}"),
        ("{{steps.plna.output}}", "did you mean 'plan'?"),
        ("{{steps.zzz.output}}", "ended steps here: plan, text"),
        ("{{steps.plan.result}}", "write {{input}}"),
        ("{{steps.plan.output.name}}", "{{steps.plan.json.<path>}}"),
        ("{{steps.text.json.name}}", "is not JSON"),
        ("{{steps.plan.json.rows.7}}", "there is no '7'"),
        ("{{}}", "write {{input}}"),
    ],
)
def test_what_stands_for_nothing_is_named(template: str, problem: str) -> None:
    with pytest.raises(TemplateInvalid) as caught:
        render(template, "job", OUTPUTS)
    assert problem in str(caught.value)
