"""What the processes of a round say over their pipes. Written before and after each act, so a pipe outlives its writer."""

from collections.abc import Sequence
from typing import NamedTuple

from .history import Answer, Entry, Request


class Begun(NamedTuple):
    """The request will be sent now, for the first time or again. Time of the machine's monotonic clock."""

    request: Request
    at_s: float


class Ended(NamedTuple):
    """A caller has this answer."""

    key: str
    answer: Answer
    at_s: float


class Abandoned(NamedTuple):
    """The caller of an unanswered request will not ask again."""

    key: str


class Seen(NamedTuple):
    """A tail was given these events."""

    entries: Sequence[Entry]


class Reached(NamedTuple):
    """A view is folded up to here."""

    position: int


class Archived(NamedTuple):
    """What there was to archive is archived."""


class Failed(NamedTuple):
    """The process ends by this error."""

    error: str


class Idle(NamedTuple):
    """A writer was told to stop and has nothing on the way any more."""


Message = Begun | Ended | Abandoned | Seen | Reached | Archived | Failed | Idle


class SetClock(NamedTuple):
    """To a writer: be wrong by so much from now on."""

    offset_s: float


class Ask(NamedTuple):
    """To a writer: ask for an event of this type next."""

    event_type: str


class Stop(NamedTuple):
    """To a writer: ask for nothing new, finish, end."""


class Rebuild(NamedTuple):
    """To a projector: fold the view anew beside the live one and swap."""


class Archive(NamedTuple):
    """To an archiver: move the oldest events to files."""


Order = SetClock | Ask | Stop | Rebuild | Archive
