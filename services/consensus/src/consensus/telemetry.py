"""What consensus tells of the proposals that wait for votes."""

from datetime import datetime

from prometheus_client import CollectorRegistry, Gauge

from consensus.projections import OpenProposals


class Telemetry:
    def __init__(self, registry: CollectorRegistry) -> None:
        self._open = Gauge("proposals_open", "Proposals that wait for votes", registry=registry)
        self._overdue = Gauge("proposals_overdue", "Of those, past their deadline", registry=registry)
        self._oldest = Gauge(
            "proposals_open_oldest_seconds", "How long the oldest of them waits; 0 without any", registry=registry
        )

    def waiting(self, proposals: OpenProposals, now: datetime) -> None:
        self._open.set(proposals.count)
        self._overdue.set(proposals.overdue)
        waited_s = 0.0 if proposals.oldest is None else (now - proposals.oldest).total_seconds()
        self._oldest.set(max(0.0, waited_s))
