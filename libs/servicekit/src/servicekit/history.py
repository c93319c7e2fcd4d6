"""The errors of the event log, as callers of a service see them."""

from eventlog.errors import (
    EventTooLarge,
    LogClosed,
    LogUnavailable,
    QueueFull,
    UnknownView,
    VersionConflict,
)

from servicekit.errors import Aborted, ErrorMap, InvalidArgument, NotFound, ResourceExhausted, Unavailable

LOG_ERRORS = (
    ErrorMap()
    .add(
        VersionConflict,
        lambda error: Aborted(
            f"{error.stream} was changed meanwhile (now at version {error.actual}); read it again and repeat",
            reason="VERSION_CONFLICT",
            metadata={"stream": str(error.stream), "actual": str(error.actual)},
        ),
    )
    .add(QueueFull, lambda error: ResourceExhausted(str(error), 1.0, reason="LOG_QUEUE_FULL"))
    .add(EventTooLarge, lambda error: InvalidArgument("data", error.size, str(error), reason="EVENT_TOO_LARGE"))
    .add(LogUnavailable, lambda error: Unavailable(str(error), 1.0, reason="LOG_UNAVAILABLE"))
    .add(LogClosed, lambda error: Unavailable("the service is stopping; repeat the call", 1.0, reason="STOPPING"))
    .add(UnknownView, lambda error: NotFound("view", error.name, reason="VIEW_NOT_FOUND"))
)
