"""Dashboards, alerts and runbook speak of what is there: every metric is exported, every alert is tested and explained."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from agent_runtime.telemetry import Telemetry as RuntimeTelemetry
from consensus.telemetry import Telemetry as ConsensusTelemetry
from cost_ledger.telemetry import Telemetry as LedgerTelemetry
from launcher.layout import SERVICES, Layout
from llm_gateway.telemetry import Telemetry as GatewayTelemetry
from opentelemetry.trace import NoOpTracer
from prometheus_client import CollectorRegistry
from servicekit.telemetry import Logger, Metrics
from synod_client.cli import app
from tool_executor.telemetry import Telemetry as ToolTelemetry
from ws_gateway.sessions import Meters

ROOT = Path(__file__).parents[2]
HERE = ROOT / "deploy/observability"
PROMETHEUS: dict[str, Any] = yaml.safe_load((HERE / "prometheus/prometheus.yml").read_text())
ALERTS: dict[str, dict[str, Any]] = {
    rule["alert"]: rule
    for group in yaml.safe_load((HERE / "prometheus/alerts.yml").read_text())["groups"]
    for rule in group["rules"]
}
TESTS = {file: yaml.safe_load(file.read_text())["tests"] for file in sorted((HERE / "tests").glob("*.yaml"))}
DASHBOARDS: dict[str, dict[str, Any]] = {
    file.stem: json.loads(file.read_text()) for file in sorted((HERE / "grafana/dashboards").glob("*.json"))
}
RUNBOOK = (HERE / "RUNBOOK.md").read_text()
PROMTOOL_S = 120

ADDED_BY_PROMETHEUS = {"service", "instance", "job"}
OF_PROMETHEUS = {"up": set[str](), "ALERTS": {"alertstate", "alertname"}}
OF_STREAMS = {"stream_name", "account"}
OF_EXPORTERS: Mapping[str, set[str]] = {
    # natsio/prometheus-nats-exporter 0.20.1, -varz -healthz -jsz=all
    "gnatsd_varz_connections": set(),
    "gnatsd_varz_in_bytes": set(),
    "gnatsd_varz_in_msgs": set(),
    "gnatsd_varz_mem": set(),
    "gnatsd_varz_out_bytes": set(),
    "gnatsd_varz_out_msgs": set(),
    "gnatsd_varz_slow_consumers": set(),
    "jetstream_consumer_num_ack_pending": OF_STREAMS | {"consumer_name"},
    "jetstream_consumer_num_pending": OF_STREAMS | {"consumer_name"},
    "jetstream_consumer_num_redelivered": OF_STREAMS | {"consumer_name"},
    "jetstream_server_max_storage": set(),
    "jetstream_server_total_consumers": set(),
    "jetstream_server_total_message_bytes": set(),
    "jetstream_server_total_streams": set(),
    "jetstream_stream_last_seq": OF_STREAMS,
    "jetstream_stream_total_messages": OF_STREAMS,
    # prometheuscommunity/postgres-exporter 0.20.1
    "pg_up": set(),
    "pg_database_size_bytes": {"datname"},
    "pg_locks_count": {"datname", "mode"},
    "pg_settings_max_connections": set(),
    "pg_stat_activity_max_tx_duration": {"datname", "state"},
    "pg_stat_database_blks_hit": {"datname"},
    "pg_stat_database_blks_read": {"datname"},
    "pg_stat_database_deadlocks": {"datname"},
    "pg_stat_database_numbackends": {"datname"},
    "pg_stat_database_tup_deleted": {"datname"},
    "pg_stat_database_tup_inserted": {"datname"},
    "pg_stat_database_tup_updated": {"datname"},
    "pg_stat_database_xact_commit": {"datname"},
    "pg_stat_database_xact_rollback": {"datname"},
    # prom/node-exporter 1.9.1, --collector.filesystem
    "node_filesystem_avail_bytes": {"mountpoint"},
    "node_filesystem_size_bytes": {"mountpoint"},
}
"""What the programs of others export, of what is used here."""

PROCESS = ("resident_memory_bytes", "cpu_seconds_total", "start_time_seconds", "open_fds", "max_fds")
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum"), "gauge": ("",)}
IDS = {"tenant", "tenant_id", "conversation", "conversation_id", "run", "run_id", "call", "user", "user_id", "agent"}

each_alert = pytest.mark.parametrize("alert", ALERTS)
each_dashboard = pytest.mark.parametrize("name", DASHBOARDS)


def registry() -> CollectorRegistry:
    """The metrics of all services in one registry, made by their own classes."""
    registry, listed = Metrics().registry, frozenset({"simulator/sim-1"})
    GatewayTelemetry(NoOpTracer(), registry, Logger("test"), listed)
    ToolTelemetry(NoOpTracer(), registry, calls_max=1)
    LedgerTelemetry(registry, listed)
    RuntimeTelemetry(registry)
    ConsensusTelemetry(registry)
    Meters(registry)
    return registry


def exported() -> dict[str, set[str]]:
    """Every series of the services with its labels. A metric without a label's value has no sample to ask, hence the
    private parts."""
    found = {f"process_{name}": set[str]() for name in PROCESS}
    for metric in registry()._collector_to_names:
        for described in getattr(metric, "describe", list)():
            for suffix in SUFFIXES.get(described.type, ()):
                bucket = {"le"} if suffix == "_bucket" else set()
                found[described.name + suffix] = {*metric._labelnames, *bucket}  # type: ignore[attr-defined]
    return found


KNOWN = {**exported(), **OF_PROMETHEUS, **OF_EXPORTERS}


def panels() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, dashboard in DASHBOARDS.items():
        for panel in dashboard["panels"]:
            yield f"{name}: {panel['title']}", panel


def expressions() -> Iterator[tuple[str, str]]:
    """Every expression, with where it stands; variables of Grafana replaced as it would."""
    for alert, rule in ALERTS.items():
        yield alert, rule["expr"]
    for place, panel in panels():
        for target in panel["targets"]:
            yield place, target["expr"].replace("$__rate_interval", "1m").replace("$service", ".*")


EXPRESSIONS = [pytest.param(text, id=f"{number} {place}") for number, (place, text) in enumerate(expressions())]


def selectors(expression: str) -> Iterator[tuple[str, set[str]]]:
    """The metrics of an expression, each with the labels it is selected by."""
    text = re.sub(r"\[[^]]*\]", "", expression)
    text = re.sub(r"\b(by|on|without|ignoring|group_left|group_right)\s*\([^)]*\)", "", text)
    for name, matchers in re.findall(r"\b([a-zA-Z_][a-zA-Z0-9_]*)\b(?:\{([^}]*)\})?(?!\s*\()", _without_quotes(text)):
        if name not in {"and", "or", "unless", "bool", "offset"}:
            yield name, set(re.findall(r"([a-zA-Z_]+)\s*(?:=~|!=|!~|=)", matchers))


def _without_quotes(text: str) -> str:
    return re.sub(r'"[^"]*"', '""', text)


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_an_expression_names_only_what_is_exported(expression: str) -> None:
    named = list(selectors(expression))
    assert named
    assert {name for name, _ in named} <= set(KNOWN)
    for name, labels in named:
        assert labels <= KNOWN[name] | ADDED_BY_PROMETHEUS, name


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_an_expression_groups_by_labels_that_its_metrics_have(expression: str) -> None:
    there = set.union(ADDED_BY_PROMETHEUS, *(KNOWN[name] for name, _ in selectors(expression)))
    groups = re.findall(r"\b(?:by|on)\s*\(([^)]+)\)", expression)
    assert {label.strip() for group in groups for label in group.split(",")} <= there


def test_no_metric_is_labelled_by_whose_it_is() -> None:
    labelled = {name: labels & IDS for name, labels in exported().items()}
    assert {name: labels for name, labels in labelled.items() if labels} == {}


@each_alert
def test_an_alert_says_how_urgent_it_is_and_what_to_do(alert: str) -> None:
    rule = ALERTS[alert]
    assert rule["labels"] in ({"severity": "page"}, {"severity": "ticket"})
    assert rule["annotations"]["runbook_url"] == f"deploy/observability/RUNBOOK.md#{alert.lower()}"
    assert set(rule["annotations"]) == {"summary", "runbook_url"}


def test_the_runbook_has_a_paragraph_for_each_alert_and_for_nothing_else() -> None:
    paragraphs = dict(re.findall(r"^### (\w+)\n(.+?)(?=\n\n)", f"{RUNBOOK}\n\n", re.MULTILINE | re.DOTALL))
    assert list(paragraphs) == list(ALERTS)
    assert all(len(text) > 80 for text in paragraphs.values())


def test_the_runbook_names_only_commands_that_exist() -> None:
    named = {tuple(words.split()) for words in re.findall(r"`synod ((?:[a-z]+ ?)+)", RUNBOOK)}
    assert ("nats", "apply") in named
    assert [words for words in named if not _is_command(words)] == []


def _is_command(words: tuple[str, ...]) -> bool:
    command: Any = typer.main.get_command(app)
    for word in words:
        if not hasattr(command, "commands"):
            return True  # what follows are arguments
        if word not in command.commands:
            return False
        command = command.commands[word]
    return True


@each_alert
def test_an_alert_is_tested_to_fire_and_to_be_silent(alert: str) -> None:
    checks = [check for tests in TESTS.values() for test in tests for check in test["alert_rule_test"]]
    expected = [bool(check["exp_alerts"]) for check in checks if check["alertname"] == alert]
    assert sorted(expected) == [False, True]


@each_dashboard
def test_a_dashboard_is_whole(name: str) -> None:
    dashboard = DASHBOARDS[name]
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert (dashboard["uid"], len(set(ids))) == (name, len(ids))
    assert not _overlaps([panel["gridPos"] for panel in dashboard["panels"]])
    titles = [panel["title"] for panel in dashboard["panels"] if panel["type"] == "timeseries"]
    assert len(set(titles)) == len(titles)
    sources = {source["uid"] for source in _provisioned("datasources")["datasources"]}
    for panel in dashboard["panels"]:
        assert {each["datasource"]["uid"] for each in (panel, *panel["targets"])} <= sources
        references = [target["refId"] for target in panel["targets"]]
        assert references
        assert len(set(references)) == len(references)


def _overlaps(places: list[dict[str, int]]) -> bool:
    cells = [(x, y) for p in places for x in range(p["x"], p["x"] + p["w"]) for y in range(p["y"], p["y"] + p["h"])]
    return len(set(cells)) < len(cells) or max(x for x, _ in cells) >= 24


def test_every_part_of_the_system_has_a_dashboard() -> None:
    assert set(DASHBOARDS) == {"fleet", "runs", "models", "log", "ledger", "nats", "postgres"}
    titles = [dashboard["title"] for dashboard in DASHBOARDS.values()]
    assert len(set(titles)) == len(titles)


def _provisioned(what: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((HERE / "grafana/provisioning" / what / "synod.yaml").read_text())
    return found


def test_dashboards_are_read_from_where_the_container_has_them() -> None:
    (provider,) = _provisioned("dashboards")["providers"]
    containers = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    mounted = dict(volume.split(":")[:2][::-1] for volume in containers["grafana"]["volumes"])
    assert mounted[provider["options"]["path"]] == "./deploy/observability/grafana/dashboards"
    assert mounted["/etc/grafana/provisioning"] == "./deploy/observability/grafana/provisioning"


def test_every_service_is_scraped_at_its_port() -> None:
    (job,) = (job for job in PROMETHEUS["scrape_configs"] if job["job_name"] == "synod")
    scraped = {tuple(each["names"]): each["port"] for each in job["dns_sd_configs"]}
    assert scraped == {(service.name,): Layout(Path()).http_port(service) for service in SERVICES}


def test_a_target_is_a_container_in_a_network_of_prometheus() -> None:
    containers = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    jobs = [job for job in PROMETHEUS["scrape_configs"] if job["job_name"] not in {"synod", "prometheus"}]
    targets = [target.split(":")[0] for job in jobs for each in job["static_configs"] for target in each["targets"]]
    assert len(targets) == 5
    for target in {*targets, *(service.name for service in SERVICES)}:
        assert set(containers[target]["networks"]) & set(containers["prometheus"]["networks"])


def test_a_service_that_is_missing_altogether_is_noticed() -> None:
    assert set(re.findall(r'service="([a-z-]+)"', ALERTS["ServiceMissing"]["expr"])) == {s.name for s in SERVICES}


def test_a_stream_that_is_missing_is_noticed() -> None:
    plans = json.loads((ROOT / "deploy/nats/jetstream.json").read_text())
    made = set(re.findall(r'"((?:EVT|CMD|DLQ)_[A-Z_]+)"', json.dumps(plans))) - {"CMD_AGENTS"}
    assert set(re.findall(r'stream_name="(\w+)"', ALERTS["StreamMissing"]["expr"])) == made


def test_the_collector_uses_what_it_configures() -> None:
    collector = yaml.safe_load((HERE / "collector.yaml").read_text())
    assert set(collector["service"]["pipelines"]) == {"traces", "metrics"}
    for kind in ("receivers", "processors", "exporters"):
        used = {name for pipeline in collector["service"]["pipelines"].values() for name in pipeline[kind]}
        assert used == set(collector[kind])


def test_traces_are_sent_to_where_the_collector_listens() -> None:
    collector = yaml.safe_load((HERE / "collector.yaml").read_text())
    port = collector["receivers"]["otlp"]["protocols"]["grpc"]["endpoint"].rpartition(":")[2]
    assert f"SYNOD_OTLP_ENDPOINT ?= http://otel-collector:{port}\n" in (ROOT / "Makefile").read_text()


# --- what promtool judges ---


@pytest.fixture(scope="session")
def promtool() -> str:
    """promtool from PATH, or of Debian's package unpacked in build/. Skips where neither can be had."""
    unpacked = ROOT / "build/promtool/usr/bin/promtool"
    if found := shutil.which("promtool"):
        return found
    if not unpacked.exists():
        made = subprocess.run(["make", "promtool"], cwd=ROOT, capture_output=True, text=True, timeout=PROMTOOL_S)
        if made.returncode:
            pytest.skip(made.stdout.strip().splitlines()[-1] if made.stdout.strip() else "make promtool failed")
    return str(unpacked)


def check(promtool: str, *arguments: str | Path) -> str:
    """What promtool says, if it is content."""
    done = subprocess.run([promtool, *arguments], capture_output=True, text=True, timeout=PROMTOOL_S)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_alerts_fire_when_they_should_and_are_silent_when_not(promtool: str) -> None:
    assert check(promtool, "test", "rules", *TESTS).count("SUCCESS") == len(TESTS) > 0


def test_prometheus_understands_its_configuration(promtool: str) -> None:
    assert "SUCCESS" in check(promtool, "check", "config", "--syntax-only", HERE / "prometheus/prometheus.yml")
    assert f"{len(ALERTS)} rules found" in check(promtool, "check", "rules", HERE / "prometheus/alerts.yml")


def test_prometheus_understands_every_expression_of_the_dashboards(promtool: str, tmp_path: Path) -> None:
    rules = [{"record": f"panel:{number}", "expr": text} for number, (_, text) in enumerate(expressions())]
    file = tmp_path / "panels.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    assert f"{len(rules)} rules found" in check(promtool, "check", "rules", file)
