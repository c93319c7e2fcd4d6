import pytest
from servicekit.errors import InvalidArgument
from servicekit.paging import PAGE_DEFAULT, PAGE_MAX, next_page_token, page_key, page_size


def test_token_carries_the_last_key_of_a_full_page() -> None:
    token = next_page_token(["a", "zürich / 1"], 2)
    assert page_key(token) == "zürich / 1"


@pytest.mark.parametrize("keys", [[], ["a"]])
def test_a_page_that_is_not_full_is_the_last(keys: list[str]) -> None:
    assert next_page_token(keys, 2) == ""
    assert page_key("") == ""


@pytest.mark.parametrize("token", ["?", "ä", "abc", "_w==", "AA=="])
def test_a_strange_token_is_refused_by_name(token: str) -> None:
    with pytest.raises(InvalidArgument, match="page_token"):
        page_key(token)


def test_size_has_a_default_and_limits() -> None:
    assert page_size(0) == PAGE_DEFAULT
    assert page_size(PAGE_MAX) == PAGE_MAX
    for asked in (-1, PAGE_MAX + 1):
        with pytest.raises(InvalidArgument, match="page_size"):
            page_size(asked)
