"""Why ws-gateway says no by itself; what the services behind it refuse is passed on as they said it.

GatewayError
├── SessionUnknown      no such session in the tenant, or it has ended
├── FrameRefused        a frame that breaks the protocol; counted, and the connection stays open until there are many
├── ChannelRefused      a channel that cannot be followed as asked
└── HistoryLost         the stream behind a channel no longer holds what comes next
"""

from dataclasses import dataclass


@dataclass(eq=False)
class GatewayError(Exception):
    """Nothing was changed."""

    def __str__(self) -> str:
        return self.message

    @property
    def message(self) -> str:
        return type(self).__name__


@dataclass(eq=False)
class SessionUnknown(GatewayError):
    session_id: str

    @property
    def message(self) -> str:
        return f"there is no open session '{self.session_id}'; list them with ListSessions"


@dataclass(eq=False)
class FrameRefused(GatewayError):
    """`code` is stable, `ref` the id of the frame if it could be read, `text` names the field and what to do."""

    code: str
    text: str
    field: str = ""
    ref: str = ""

    @property
    def message(self) -> str:
        return self.text


@dataclass(eq=False)
class ChannelRefused(GatewayError):
    code: str
    text: str
    field: str = "channel"

    @property
    def message(self) -> str:
        return self.text


@dataclass(eq=False)
class HistoryLost(GatewayError):
    service: str

    @property
    def message(self) -> str:
        return f"the stream of {self.service} was made anew or cut short; subscribe again and reload the state by REST"
