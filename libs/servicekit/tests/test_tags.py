"""Which free words a cost may have."""

import pytest
from servicekit.errors import InvalidArgument
from servicekit.tags import TAGS_MAX, VALUE_CHARACTERS_MAX, tags_of, values_of
from synod.common.values import Tag


def test_tags_stand_by_name_whatever_their_order_was() -> None:
    given = {"team": "search", "feature": "chat v2"}
    tags = tags_of("tags", given)
    assert tags == (Tag(name="feature", value="chat v2"), Tag(name="team", value="search"))
    assert values_of(tags) == given


def test_as_many_and_as_long_as_is_allowed_are_taken() -> None:
    given = {f"t{number}".ljust(32, "x"): "v" * VALUE_CHARACTERS_MAX for number in range(TAGS_MAX)}
    assert len(tags_of("tags", given)) == TAGS_MAX


@pytest.mark.parametrize(
    ("given", "field", "problem"),
    [
        ({f"t{number}": "v" for number in range(TAGS_MAX + 1)}, "tags", "at most 8 entries"),
        ({"": "v"}, "tags", "1 to 32 characters"),
        ({"2nd": "v"}, "tags", "the first a letter"),
        ({"synod/agent": "v"}, "tags", "1 to 32 characters"),
        ({"t" * 33: "v"}, "tags", "1 to 32 characters"),
        ({"team": ""}, "tags.team", "1 to 64 printable"),
        ({"team": "v" * 65}, "tags.team", "1 to 64 printable"),
        ({"team": "a\nb"}, "tags.team", "1 to 64 printable"),
    ],
)
def test_others_are_refused_by_their_name(given: dict[str, str], field: str, problem: str) -> None:
    with pytest.raises(InvalidArgument, match=problem) as refused:
        tags_of("tags", given)
    assert refused.value.field == field
