"""Who acts: taken from the calling thread or task, for events recorded there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from eventlog.records import Context

_ACTING: ContextVar[Context | None] = ContextVar("eventlog_acting", default=None)


@contextmanager
def acting(context: Context) -> Iterator[None]:
    """Record this tenant, actor, correlation and traceparent with every event saved inside the block.

    >>> with acting(Context(tenant="acme", actor="usr_1", correlation="run_7")):  # doctest: +SKIP
    ...     application.save(account)
    """
    token = _ACTING.set(context)
    try:
        yield
    finally:
        _ACTING.reset(token)


def acting_context(default: Context) -> Context:
    """The context of the innermost `acting` block, or the default outside of all."""
    return _ACTING.get() or default
