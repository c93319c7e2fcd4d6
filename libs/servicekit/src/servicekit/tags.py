"""Tags: free words on a cost. Every service that takes them takes the same ones."""

import re
from collections.abc import Iterable, Mapping
from typing import Final

from synod.common.values import Tag

from servicekit.errors import InvalidArgument

TAGS_MAX: Final = 8
VALUE_CHARACTERS_MAX: Final = 64
_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,31}")


def tags_of(field: str, given: Mapping[str, str]) -> tuple[Tag, ...]:
    """The tags of a message, by name. Raises InvalidArgument that names the field and the tag."""
    if not given:
        return ()
    if len(given) > TAGS_MAX:
        raise InvalidArgument(field, len(given), f"has at most {TAGS_MAX} entries")
    return tuple(_tag(field, name, given[name]) for name in sorted(given))


def values_of(tags: Iterable[Tag]) -> dict[str, str]:
    """The tags as they stand in a message."""
    return {tag.name: tag.value for tag in tags}


def tag_name(field: str, name: str) -> str:
    """The name, if a tag can have it. Raises InvalidArgument."""
    if not _NAME.fullmatch(name):
        problem = "a tag's name has 1 to 32 characters of A-Z a-z 0-9 . _ -, the first a letter, such as team"
        raise InvalidArgument(field, name, problem)
    return name


def _tag(field: str, name: str, value: str) -> Tag:
    tag_name(field, name)
    if not 0 < len(value) <= VALUE_CHARACTERS_MAX or not value.isprintable():
        problem = f"a tag's value has 1 to {VALUE_CHARACTERS_MAX} printable characters"
        raise InvalidArgument(f"{field}.{name}", value, problem)
    return Tag(name=name, value=value)
