"""Integers of any length, read and written exactly."""

import orjson
import pytest
from servicekit import numbers

WEI = "123456789012345678901234567"


def test_numbers_of_any_length_are_read_and_written_and_what_is_no_json_is_not() -> None:
    text = f'{{"a":{WEI},"b":[-{WEI},{{}}],"c":18446744073709551615,"d":1.5,"e":"ü"}}'.encode()
    assert numbers.dumps(numbers.loads(text)) == text
    for wrong in (b"NaN", b"[1e999]", b'"\xff"', b"9" * 5000, b"{"):
        with pytest.raises(ValueError, match=r".+"):
            numbers.loads(wrong)


def test_depth_is_no_error_of_another_kind() -> None:
    deep = b"[" * 200 + WEI.encode() + b"]" * 200
    assert numbers.dumps(numbers.loads(deep)) == deep
    with pytest.raises(ValueError, match="nested too deeply"):
        numbers.loads(b"[" * 1000 + WEI.encode() + b"]" * 1000)


def test_what_is_written_already_may_stand_beside_such_a_number() -> None:
    written = orjson.Fragment(b'{"x":1.0}')
    assert (
        numbers.dumps({"a": written, "b": (int(WEI),), 'c"': None})
        == f'{{"a":{{"x":1.0}},"b":[{WEI}],"c\\"":null}}'.encode()
    )


@pytest.mark.parametrize("value", [object(), {"a": [object(), int(WEI)]}])
def test_what_json_has_no_word_for_is_refused(value: object) -> None:
    with pytest.raises(TypeError):
        numbers.dumps(value)
