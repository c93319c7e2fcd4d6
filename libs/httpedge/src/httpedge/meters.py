"""Metrics that every edge has under one name."""

from prometheus_client import CollectorRegistry
from servicekit.meters import Counter


def answers_counter(registry: CollectorRegistry) -> Counter:
    """HTTP answers by method and status."""
    return Counter("edge_requests_total", "HTTP requests", ("method", "status"), registry=registry)
