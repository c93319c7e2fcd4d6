"""Instructions (messages of the role system or developer): before a conversation, and in the midst of it. Pure."""

from collections.abc import Sequence
from typing import Final

from llm_gateway.domain import Message, Text

INSTRUCTING: Final = frozenset({"system", "developer"})
ONLY_INSTRUCTIONS: Final = (
    "the request holds system messages only and this provider answers users; add a message with the role user"
)


def leading(messages: Sequence[Message]) -> int:
    """How many messages instruct before anybody says anything."""
    spoken = (at for at, message in enumerate(messages) if message.role not in INSTRUCTING)
    return next(spoken, len(messages))


def told_by_users(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """The same messages, in which later instructions are a user's, each in its place."""
    first = leading(messages)
    if INSTRUCTING.isdisjoint([message.role for message in messages[first:]]):
        return messages
    later = (as_user(message) if message.role in INSTRUCTING else message for message in messages[first:])
    return (*messages[:first], *(message for message in later if message.parts))


def as_user(message: Message) -> Message:
    """Marked as what it is, since models give users less authority; without a part if there is no text."""
    ttl = next((part.cache_ttl for part in reversed(message.parts) if isinstance(part, Text)), None)
    parts = (Text(f"<system>\n{message.text}\n</system>", ttl),) if message.text else ()
    return Message("user", parts)
