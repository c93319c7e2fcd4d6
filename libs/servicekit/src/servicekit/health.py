"""Whether the service lives, is ready and is well, and what is wrong if not."""

from dataclasses import dataclass, field

from grpc_health.v1.health_pb2 import HealthCheckResponse
from prometheus_client import Gauge

_Status = HealthCheckResponse.ServingStatus.ValueType


@dataclass(slots=True)
class Health:
    """The state of the process, as /ready, /health and grpc.health.v1 tell it.

    Ready means: send work. Degraded means: it works, and a component that is named does not.
    """

    ready_gauge: Gauge
    problem_gauge: Gauge
    """By component."""
    phase: str = "starting"
    ready: bool = False
    _problems: dict[str, str] = field(default_factory=dict)

    def enter(self, phase: str) -> None:
        self.phase = phase
        self.ready = phase == "ready"
        self.ready_gauge.set(self.ready)

    def degrade(self, component: str, problem: str) -> None:
        """Name a component that does not work, with the reason."""
        self._problems[component] = problem
        self.problem_gauge.labels(component).set(1)

    def recover(self, component: str) -> None:
        if self._problems.pop(component, None) is not None:
            self.problem_gauge.labels(component).set(0)

    @property
    def problems(self) -> dict[str, str]:
        return dict(self._problems)

    @property
    def status(self) -> str:
        """starting, ok, degraded or stopping; a short word for a table."""
        if not self.ready:
            return "stopping" if self.phase == "stopping" else "starting"
        return "degraded" if self._problems else "ok"
