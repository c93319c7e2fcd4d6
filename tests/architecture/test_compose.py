"""compose.yaml is the system that the launcher runs, closed where containers can be closed."""

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from agent_runtime.subscriptions import ACK_WAIT_S
from agent_runtime.work.dispatch import VERB
from launcher.certificates import CLIENT, holders, settings_of
from launcher.keys import ensure_keys
from launcher.layout import AUTHORITY, EDGE, MODELS, SERVICES, SIMULATOR, Layout, Service
from launcher.nats import tls_block
from launcher.programs import NATS, POSTGRES, environment, needed
from servicekit.limits import Limits
from servicekit.settings import ServiceSettings
from synod.common.streams import CommandConsumer

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
DEVELOPMENT: dict[str, Any] = yaml.safe_load((ROOT / "deploy/compose/compose.dev.yaml").read_text())
SECURED: dict[str, Any] = yaml.safe_load((ROOT / "deploy/compose/compose.tls.yaml").read_text())
CONTAINERS: dict[str, dict[str, Any]] = COMPOSE["services"]
PROFILE = "observability"
OBSERVERS = {name: each for name, each in CONTAINERS.items() if each.get("profiles") == [PROFILE]}
GRAFANA = "grafana"
IN_A_FILE = ("SYNOD_POSTGRES_DSN", "SYNOD_NATS_PASSWORD")
NATS_ADMIN = "nats-admin"
OWNERS = {POSTGRES: "postgres-owner", NATS: "nats-owner"}
USERS = {POSTGRES: "999:999", NATS: "10001:10001"}
"""Of the servers' images; those of the services say it themselves."""
ARCHIVE = "/var/lib/synod-archive"
OUT, IN = "(outside)", "(edge)"
"""The networks that are not internal: a way to providers of models, and the way in."""
CALLS = {
    "agent-registry": {"agent-runtime", "consensus", "cost-ledger", "llm-gateway", "tool-executor", "ws-gateway"},
    "cost-ledger": {"agent-registry", "agent-runtime", "llm-gateway", "tool-executor", "ws-gateway"},
    "consensus": {"agent-registry", "agent-runtime", "ws-gateway"},
    "tool-executor": {"agent-registry", "agent-runtime", "cost-ledger", "ws-gateway"},
    "llm-gateway": {"agent-registry", "agent-runtime", "cost-ledger", "ws-gateway", SIMULATOR, OUT},
    "agent-runtime": {"agent-registry", "consensus", "cost-ledger", "llm-gateway", "tool-executor", "ws-gateway"},
    "ws-gateway": {
        "agent-registry",
        "agent-runtime",
        "consensus",
        "cost-ledger",
        "llm-gateway",
        "tool-executor",
        IN,
    },
}
"""Whom each service calls or is called by, of architecture.md, written down a second time on purpose."""
WATCHERS = {"prometheus", "otel-collector"}
"""They scrape, and take traces."""
LOOKERS = WATCHERS | {"jaeger", "grafana", "volume-exporter", "postgres-exporter"}
REACH = {
    **{name: others | WATCHERS | {POSTGRES, NATS} for name, others in CALLS.items()},
    POSTGRES: {*CALLS, NATS, "postgres-monitor", "postgres-exporter"} | WATCHERS,
    NATS: {*CALLS, POSTGRES, NATS_ADMIN} | WATCHERS,
    **{name: {*CALLS, POSTGRES, NATS} | LOOKERS - {name} for name in WATCHERS},
    **{name: LOOKERS - {name} for name in ("jaeger", "volume-exporter")},
    GRAFANA: LOOKERS - {GRAFANA} | {"(publish-grafana)"},
    "postgres-exporter": LOOKERS - {"postgres-exporter"} | {POSTGRES, "postgres-monitor"},
    "postgres-monitor": {POSTGRES, "postgres-exporter"},
    NATS_ADMIN: {NATS},
    SIMULATOR: {"llm-gateway"},
    **{owner: set() for owner in OWNERS.values()},
}
"""What each container can open a connection to. Networks join both ways, and the two servers stand beside each other."""

PROCESSES_MAX = 512
TOOLS = next(service for service in SERVICES if service.name == "tool-executor")

each_service = pytest.mark.parametrize("service", SERVICES, ids=lambda service: service.name)
each_container = pytest.mark.parametrize("name", CONTAINERS)
each_attached = pytest.mark.parametrize("name", [name for name in CONTAINERS if name != "nats-exporter"])


def networks(name: str) -> frozenset[str]:
    return frozenset(CONTAINERS[name].get("networks", ()))


NEIGHBOUR_OF_NATS = "nats-exporter"
"""It has no network of its own: it is in that of NATS, and reaches what NATS reaches."""
ATTACHED: Mapping[str, frozenset[str]] = {name: networks(name) for name in CONTAINERS if name != NEIGHBOUR_OF_NATS}
"""The networks of every container."""
OPEN = frozenset(name for name, network in COMPOSE["networks"].items() if not network.get("internal"))


def reach(attached: Mapping[str, frozenset[str]]) -> dict[str, set[str]]:
    """The containers that share a network with each, and the networks that lead further."""
    found = {name: {other for other in attached if attached[name] & attached[other]} - {name} for name in attached}
    return {name: found[name] | {f"({network})" for network in attached[name] & OPEN} for name in attached}


def of_the_image(service: Service) -> set[str]:
    """The variables that the Dockerfile sets."""
    return set(re.findall(r"\b(SYNOD_[A-Z_]+)=", (ROOT / "services" / service.name / "Dockerfile").read_text()))


def test_every_program_of_the_launcher_is_a_container() -> None:
    assert set(CONTAINERS) - set(OBSERVERS) == {
        POSTGRES,
        NATS,
        NATS_ADMIN,
        *OWNERS.values(),
        SIMULATOR,
        *(service.name for service in SERVICES),
    }


@each_service
def test_a_service_is_told_what_the_launcher_tells_it(service: Service, tmp_path: Path) -> None:
    layout = Layout(tmp_path, simulator=True, environment={})
    credentials = ensure_keys(tmp_path, (each.name for each in SERVICES))
    expected = {
        f"{name}_FILE" if name in IN_A_FILE else name
        for name in environment(layout, credentials, service)
        if name.startswith("SYNOD_")
    }
    told = set(CONTAINERS[service.name]["environment"]) | of_the_image(service)
    assert expected <= told
    # The launcher passes on what its caller's environment says.
    chosen = {"SYNOD_LOG_LEVEL", "SYNOD_ENCRYPT_AT_REST", "SYNOD_OTLP_ENDPOINT"}
    former = {"SYNOD_FORMER_CHECKPOINT_KEY_FILES", "SYNOD_FORMER_MASTER_KEY_FILES"}  # so it does after a rotation
    where_replicas_are = {"SYNOD_GRPC_HOST", "SYNOD_SHUTDOWN_DRAIN_S"}
    extra = {"OPENAI_API_KEY_FILE", "ANTHROPIC_API_KEY_FILE"} | chosen | former | where_replicas_are
    assert told - expected <= extra


@each_service
def test_a_service_waits_for_what_it_needs_and_knows_its_peers(service: Service) -> None:
    layout, container = Layout(Path()), CONTAINERS[service.name]
    peers = {other.name: f"{other.name}:{layout.grpc_port(other)}" for other in needed(layout, service)}
    assert json.loads(container["environment"]["SYNOD_PEERS"]) == peers
    simulator = {SIMULATOR} if service.name == "llm-gateway" else set()
    assert set(container["depends_on"]) == {POSTGRES, NATS, NATS_ADMIN, *service.needs} | simulator
    for name, wanted in container["depends_on"].items():
        assert wanted["condition"] == f"service_{'completed_successfully' if name == NATS_ADMIN else 'healthy'}"


def test_the_streams_are_made_by_the_administrator_alone_before_any_service_starts() -> None:
    administrator = CONTAINERS[NATS_ADMIN]
    assert administrator["command"][-2:] == ["apply", "/etc/nats/jetstream.json"]
    assert administrator["volumes"] == ["./deploy/nats/jetstream.json:/etc/nats/jetstream.json:ro"]
    holders = {name for name, each in CONTAINERS.items() if "administrator.nats" in str(each.get("secrets"))}
    assert holders == {NATS_ADMIN}


def test_the_streams_are_those_that_the_services_take_commands_from() -> None:
    queues = {(each.service, each.verb): each for service in SERVICES for each in service.commands}
    assert queues == {("agent-runtime", VERB): CommandConsumer("agent-runtime", VERB, ACK_WAIT_S)}
    makers = {
        path.parts[-4] for path in (ROOT / "services").glob("*/src/*/main.py") if "add_command(" in path.read_text()
    }
    assert makers == {"agent-runtime"}


@each_service
def test_a_service_may_read_the_events_that_its_code_follows(service: Service) -> None:
    code = "".join(path.read_text() for path in (ROOT / "services" / service.name / "src").rglob("*.py"))
    named = set(re.findall(r"StreamSource\((?:host\.nats|self\.client), (\"[a-z-]+\"|[A-Z_]+|service)\)", code))
    constants = dict(re.findall(r'^([A-Z_]+)\b.* = "([a-z-]+)"$', code, re.MULTILINE))
    followed = {constants.get(each, each.strip('"')) for each in named}
    everybody = {each.name for each in SERVICES}
    assert set(service.reads) == (everybody if followed == {"service"} else followed)


def test_what_measures_nats_is_where_nats_is() -> None:
    assert CONTAINERS[NEIGHBOUR_OF_NATS]["network_mode"] == f"service:{NATS}"
    assert "networks" not in CONTAINERS[NEIGHBOUR_OF_NATS]


@each_attached
def test_a_container_reaches_what_the_architecture_says_and_nothing_else(name: str) -> None:
    assert reach(ATTACHED)[name] == REACH[name]


def test_tool_executor_reaches_nats_its_database_whom_it_asks_and_who_calls_it() -> None:
    """It keeps its own log, asks the registry who may use which tool and the ledger what it may spend; tools reach nothing."""
    assert {other.name for other in needed(Layout(Path()), TOOLS)} == {AUTHORITY, "cost-ledger"}
    near = reach({name: joined for name, joined in ATTACHED.items() if name not in OBSERVERS})["tool-executor"]
    assert near == {NATS, POSTGRES, AUTHORITY, "cost-ledger", "agent-runtime", "ws-gateway"}


def test_whom_a_service_calls_is_what_the_launcher_says() -> None:
    callees = {service.name: {other.name for other in needed(Layout(Path()), service)} for service in SERVICES}
    for name, others in CALLS.items():
        callers = {other for other, called in callees.items() if name in called}
        assert others - {SIMULATOR, OUT, IN} == callees[name] | callers


@each_attached
@pytest.mark.parametrize("network", COMPOSE["networks"])
def test_a_network_that_one_more_container_joins_is_noticed(name: str, network: str) -> None:
    if network not in ATTACHED[name]:
        widened = {**ATTACHED, name: ATTACHED[name] | {network}}
        assert reach(widened) != REACH


@each_service
@pytest.mark.parametrize("kind", ["checkpoint", "master"])
def test_what_a_rotation_leaves_behind_is_at_hand(service: Service, kind: str) -> None:
    container = CONTAINERS[service.name]
    (file,) = json.loads(container["environment"][f"SYNOD_FORMER_{kind.upper()}_KEY_FILES"])
    targets = {each["target"]: each["source"] for each in container["secrets"] if isinstance(each, dict)}
    assert targets[file.removeprefix("/run/secrets/")] == f"{service.name}.former-{kind}s"


@each_service
def test_a_service_can_archive_its_events_and_nobody_else_has_them(service: Service) -> None:
    volume = f"{service.name}-archive:{ARCHIVE}"
    assert {name for name, each in CONTAINERS.items() if volume in each.get("volumes", ())} == {service.name}
    dockerfile = (ROOT / "services" / service.name / "Dockerfile").read_text()
    assert f"SYNOD_ARCHIVE_DIRECTORY={ARCHIVE}\n" in dockerfile
    assert f"install -d -m 0700 -o synod -g synod /var/lib/synod {ARCHIVE}\n" in dockerfile


@each_container
def test_a_container_has_limits_and_networks_that_are_named(name: str) -> None:
    container = CONTAINERS[name]
    assert networks(name) or container["network_mode"] in {"none", f"service:{NATS}"}
    assert {"mem_limit", "cpus", "pids_limit", "logging"} <= set(container)
    assert 0 < container["pids_limit"] <= PROCESSES_MAX


@pytest.mark.parametrize(("name", "directory"), [(POSTGRES, "/var/lib/postgresql"), (NATS, "/data")])
def test_a_server_is_not_root_and_is_given_its_volume_before_it_starts(name: str, directory: str) -> None:
    owner, server = CONTAINERS[OWNERS[name]], CONTAINERS[name]
    assert server["user"] == USERS[name]
    assert server["depends_on"] == {OWNERS[name]: {"condition": "service_completed_successfully"}}
    assert owner["image"] == server["image"]
    assert f"chown -R {USERS[name]} {directory}" in owner["entrypoint"][-1]
    assert owner["volumes"] == [f"{name}:{directory}"]
    assert owner["volumes"][0] in server["volumes"]
    assert owner["network_mode"] == "none"


@each_container
def test_no_secret_stands_in_an_environment(name: str) -> None:
    names = CONTAINERS[name].get("environment", {})
    secret = [each for each in names if re.search(r"PASSWORD|DSN|_KEY|SECRET|TOKEN", each)]
    assert all(each.endswith(("_FILE", "_FILES")) for each in secret)


def test_only_the_edges_and_grafana_are_published_and_on_loopback() -> None:
    published = {name: container["ports"] for name, container in CONTAINERS.items() if "ports" in container}
    assert published == {
        EDGE: ["127.0.0.1:${SYNOD_EDGE_PORT:-8080}:8080"],
        MODELS: ["127.0.0.1:${SYNOD_MODELS_PORT:-8081}:8081"],
        GRAFANA: ["127.0.0.1:${SYNOD_GRAFANA_PORT:-3000}:3000"],
    }
    development = [port for each in DEVELOPMENT["services"].values() for port in each["ports"]]
    assert development
    assert all(port.startswith("127.0.0.1:") for port in development)


@pytest.mark.parametrize("name", OBSERVERS)
def test_what_measures_is_not_root_and_is_pinned(name: str) -> None:
    container = OBSERVERS[name]
    # Two images bring a user of their own, which their volumes belong to. Whoever sees the files of others owns none.
    nobody = name == "volume-exporter"
    assert container.get("user", USERS[NATS]) == ("65534:65534" if nobody else USERS[NATS])
    assert "user" in container or name in {"prometheus", GRAFANA}
    assert re.search(r":(v?\d+\.\d+\.\d+|pg18)$", container["image"])


@pytest.mark.parametrize("name", OBSERVERS)
def test_what_measures_can_write_no_file_of_the_system(name: str) -> None:
    written = [volume for volume in OBSERVERS[name].get("volumes", ()) if not volume.endswith(":ro")]
    assert all(volume.split(":")[0] == name for volume in written)


def test_traces_go_nowhere_unless_somebody_says_where() -> None:
    told = {name: CONTAINERS[name]["environment"]["SYNOD_OTLP_ENDPOINT"] for name in (each.name for each in SERVICES)}
    assert set(told.values()) == {"${SYNOD_OTLP_ENDPOINT:-}"}


def test_an_internal_network_does_not_lead_to_the_machine_either() -> None:
    inhibit = "com.docker.network.bridge.inhibit_ipv4"
    closed = {name: each.get("driver_opts", {}) for name, each in COMPOSE["networks"].items() if each.get("internal")}
    assert closed == {name: {inhibit: "true"} for name in COMPOSE["networks"].keys() - OPEN}
    assert {name for name, joined in ATTACHED.items() if joined & OPEN} == {"llm-gateway", EDGE, GRAFANA}


def test_only_llm_gateway_has_a_way_out() -> None:
    masquerade = "com.docker.network.bridge.enable_ip_masquerade"
    leading = {name for name in OPEN if COMPOSE["networks"][name].get("driver_opts", {}).get(masquerade) != "false"}
    assert {name for name, joined in ATTACHED.items() if joined & leading} == {"llm-gateway"}


def test_publishing_for_development_connects_no_container_with_another() -> None:
    for name, container in DEVELOPMENT["services"].items():
        assert container.get("networks", []) == ([] if ATTACHED[name] & OPEN else [f"publish-{name}"])
    masquerade = "com.docker.network.bridge.enable_ip_masquerade"
    assert all(each["driver_opts"][masquerade] == "false" for each in DEVELOPMENT["networks"].values())


def test_every_service_can_have_replicas() -> None:
    replicated = yaml.safe_load((ROOT / "deploy/compose/compose.replicas.yaml").read_text())["services"]
    assert replicated == {service.name: {"scale": "${SYNOD_REPLICAS:-2}"} for service in SERVICES}
    assert not [name for name in replicated if "container_name" in CONTAINERS[name]]


def test_a_replica_that_stops_has_time_to_be_left_and_to_finish() -> None:
    drain_s = float(CONTAINERS[EDGE]["environment"]["SYNOD_SHUTDOWN_DRAIN_S"])
    grace_s = ServiceSettings.model_fields["shutdown_grace_s"].default
    assert Limits().peer_lookup_s < drain_s
    assert drain_s < grace_s <= 10
    assert grace_s < float(CONTAINERS[EDGE]["stop_grace_period"].removesuffix("s"))


def test_by_tls_everybody_is_given_its_own_certificate_and_no_other() -> None:
    given = {name: container["volumes"][-1] for name, container in SECURED["services"].items()}
    assert set(given) == {each.name for each in holders()} - {CLIENT}
    assert given == {name: f"./deploy/compose/secrets/tls/{name}:/run/tls:ro" for name in given}


def test_by_tls_a_container_is_told_what_the_launcher_tells_it() -> None:
    told = settings_of(Path("/run"), "tls")
    for name, container in SECURED["services"].items():
        assert container.get("environment", told) == told
        assert ("environment" in container) == (name != NATS)
        assert set(container) <= {"environment", "volumes", "command"}


def test_by_tls_nats_is_told_what_the_launcher_tells_it() -> None:
    nats = SECURED["services"][NATS]
    assert nats["command"] == ["--config", "/etc/nats/synod.tls.conf"]
    assert nats["volumes"][0] == "./deploy/nats/nats.tls.conf:/etc/nats/synod.tls.conf:ro"
    text = (ROOT / "deploy/nats/nats.tls.conf").read_text()
    settings = dict(re.findall(r'^  (\w+): "?([^"\n]+)"?$', text, re.MULTILINE))
    told = tls_block("/run/tls/tls.crt", "/run/tls/tls.key", "/run/tls/ca.crt")
    assert settings == {name: str(value).lower() for name, value in told.items()}
    assert 'include "synod.conf"' in text


def test_every_secret_that_is_named_is_made_and_every_one_made_is_used(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "launcher.containers", "secrets", str(tmp_path)]
    subprocess.run(command, check=True, timeout=30)
    used = {
        each if isinstance(each, str) else each["source"]
        for container in CONTAINERS.values()
        for each in container.get("secrets", ())
    }
    assert {file.name for file in (tmp_path / "files").iterdir()} == set(COMPOSE["secrets"]) == used
    assert all(each["file"] == f"deploy/compose/secrets/files/{name}" for name, each in COMPOSE["secrets"].items())


def test_no_secret_can_be_committed() -> None:
    assert "deploy/compose/secrets/" in (ROOT / ".gitignore").read_text().splitlines()


def test_no_backup_that_is_taken_as_the_readmes_say_can_be_committed() -> None:
    """Among them is secrets.tar."""
    told = [(ROOT / "deploy" / where / "README.md").read_text() for where in ("", "kubernetes")]
    files = {file for text in told for file in re.findall(r"> ([\w$-]+\.tar)\b", text)}
    assert files == {"secrets.tar", "synod.tar", "$s-archive.tar", "workspaces.tar", "synod-data.tar"}
    assert "/*.tar" in (ROOT / ".gitignore").read_text().splitlines()


@pytest.mark.parametrize(("what", "file"), [("nats", "nats.conf"), ("streams", "jetstream.json")])
def test_what_nats_is_given_is_current(what: str, file: str) -> None:
    made = subprocess.run(
        [sys.executable, "-m", "launcher.containers", what], capture_output=True, text=True, check=True, timeout=30
    )
    assert (ROOT / "deploy/nats" / file).read_text() == made.stdout, "run `make nats-conf`"
