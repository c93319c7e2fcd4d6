"""By the component observe the namespace `monitoring` measures the services, and nothing more is opened."""

from pathlib import Path

import pytest
import yaml

from .kustomize import Manifest, build, by_name
from .overlays import NAMES, OVERLAYS, ROOT, container, overlay
from .reach import neighbours, pods, strangers
from .schemas import problems

MONITORING = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
COLLECTOR = {"podSelector": {"matchLabels": {"app.kubernetes.io/name": "otel-collector"}}}
ADDED = {
    "ingress": {"from": [MONITORING], "ports": [{"protocol": "TCP", "port": "http"}]},
    "egress": {"to": [{**MONITORING, **COLLECTOR}], "ports": [{"protocol": "TCP", "port": 4317}]},
}
"""What a service may receive and send with it."""


@pytest.fixture(params=OVERLAYS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def measured(name: str, tmp_path: Path) -> list[Manifest]:
    parts = {"resources": [f"overlays/{name}"], "components": ["components/observe"]}
    paths = {field: [str(ROOT / "deploy/kubernetes" / part) for part in found] for field, found in parts.items()}
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(paths))
    return build(tmp_path)


def test_the_api_knows_every_manifest(measured: list[Manifest]) -> None:
    assert [problems(each) for each in measured if problems(each)] == []


def test_services_are_measured_and_send_spans_and_nobody_else_is_reached(measured: list[Manifest], name: str) -> None:
    for pod, labels in pods(measured).items():
        for direction, rule in ADDED.items():
            known = strangers(overlay(name), direction, labels)
            added = [each for each in strangers(measured, direction, labels) if each not in known]
            assert added == ([rule] if pod in NAMES else [])


def test_within_the_namespace_nothing_is_opened(measured: list[Manifest], name: str) -> None:
    labels = pods(measured)
    for pod in labels:
        assert neighbours(measured, pod, labels) == neighbours(overlay(name), pod, labels)


def test_every_service_is_told_where_spans_go(measured: list[Manifest]) -> None:
    found = by_name(measured)
    for service in NAMES:
        (settings, _) = container(found["Deployment", service])["envFrom"]
        told = found["ConfigMap", settings["configMapRef"]["name"]]["data"]["SYNOD_OTLP_ENDPOINT"]
        assert told == "http://otel-collector.monitoring.svc:4317"
