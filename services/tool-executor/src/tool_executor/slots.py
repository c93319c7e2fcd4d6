"""How many calls may run at once: in all, and of one agent. What is over a limit is refused at once, not queued."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tool_executor.errors import TooManyCalls

RETRY_AFTER_S = 1.0


@dataclass(slots=True)
class Slots:
    calls_max: int
    calls_per_agent_max: int
    _running: Counter[tuple[str, str]] = field(default_factory=Counter)

    @contextmanager
    def taken(self, tenant: str, agent: str) -> Iterator[None]:
        """A slot for the block. Raises TooManyCalls."""
        self._expect_room(tenant, agent)
        self._running[tenant, agent] += 1
        try:
            yield
        finally:
            self._running[tenant, agent] -= 1
            if not self._running[tenant, agent]:
                del self._running[tenant, agent]

    @property
    def running(self) -> int:
        return self._running.total()

    def _expect_room(self, tenant: str, agent: str) -> None:
        if self._running[tenant, agent] >= self.calls_per_agent_max:
            raise TooManyCalls(f"agent {agent!r}", self.calls_per_agent_max, RETRY_AFTER_S)
        if self.running >= self.calls_max:
            raise TooManyCalls("this executor", self.calls_max, RETRY_AFTER_S)
