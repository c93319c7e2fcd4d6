"""JSON that Python reads and others do not is refused where it comes in."""

import pytest
from tool_executor.arguments import json_value, parse
from tool_executor.errors import FieldInvalid

NO_JSON = ["NaN", "-Infinity", "1e999", '"\\ud800"', "{", "[" * 100_000, "9" * 5000]


@pytest.mark.parametrize("text", NO_JSON)
def test_what_others_cannot_read_is_no_value(text: str) -> None:
    with pytest.raises(FieldInvalid, match="result_json"):
        json_value("result_json", text)
    with pytest.raises(FieldInvalid, match="arguments_json"):
        parse(f'{{"a":{text}}}')


def test_a_value_stays_as_it_was_written() -> None:
    assert json_value("result_json", '{"wei": 123456789012345678901234567}') == '{"wei": 123456789012345678901234567}'


def test_of_a_name_that_comes_twice_the_last_is_what_is_checked_approved_and_run() -> None:
    assert parse('{"path":"a","path":"b","n":123456789012345678901234567}').text == (
        '{"n":123456789012345678901234567,"path":"b"}'
    )
