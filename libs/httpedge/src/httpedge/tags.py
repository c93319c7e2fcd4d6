"""Tags as people write them. Pure."""

from collections.abc import Iterable

from httpedge.mistakes import wrong


def to_tags(field: str, words: Iterable[str]) -> dict[str, str]:
    """``team=search`` and others as a mapping; which names and values there are is said by who takes them."""
    found: dict[str, str] = {}
    for word in filter(None, map(str.strip, words)):
        name, sign, value = word.partition("=")
        if not sign:
            raise wrong(field, name, "is written name=value")
        if found.setdefault(name.strip(), value.strip()) != value.strip():
            raise wrong(field, word, "is a second value of the same name; give one")
    return found
