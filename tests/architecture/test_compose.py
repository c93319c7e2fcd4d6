"""compose.yaml is the system that the launcher runs, closed where containers can be closed."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from agent_runtime.subscriptions import ACK_WAIT_S
from agent_runtime.work.dispatch import VERB
from launcher.certificates import CLIENT, holders, settings_of
from launcher.keys import ensure_keys
from launcher.layout import AUTHORITY, EDGE, SERVICES, SIMULATOR, Layout, Service
from launcher.nats import tls_block
from launcher.programs import NATS, POSTGRES, environment, needed
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
NATS_OWNER = "nats-owner"
NOT_ROOT = "10001:10001"
CALLERS_OF_TOOLS = {"agent-runtime", EDGE}

each_service = pytest.mark.parametrize("service", SERVICES, ids=lambda service: service.name)
each_container = pytest.mark.parametrize("name", CONTAINERS)


def neighbours(name: str) -> set[str]:
    """The containers that share a network with this one."""
    return {other for other in CONTAINERS if networks(name) & networks(other)} - {name}


def networks(name: str) -> set[str]:
    """Those of the container whose network it shares, if it has none of its own."""
    shared = re.fullmatch(r"service:(.+)", CONTAINERS[name].get("network_mode", ""))
    return set(CONTAINERS[shared[1] if shared else name].get("networks", ()))


def leads_out(network: dict[str, Any]) -> bool:
    """Whether packets from it find a way out of this machine, and answers the way back."""
    masquerade = network.get("driver_opts", {}).get("com.docker.network.bridge.enable_ip_masquerade")
    return not network.get("internal") and masquerade != "false"


OF_WHO_ARCHIVES = {"SYNOD_ARCHIVE_DIRECTORY"}
"""Told by who archives, together with the volume: a container has no directory for archived events of itself."""


def of_the_image(service: Service) -> set[str]:
    """The variables that the Dockerfile sets."""
    return set(re.findall(r"\b(SYNOD_[A-Z_]+)=", (ROOT / "services" / service.name / "Dockerfile").read_text()))


def test_every_program_of_the_launcher_is_a_container() -> None:
    assert set(CONTAINERS) - set(OBSERVERS) == {
        POSTGRES,
        NATS,
        NATS_ADMIN,
        NATS_OWNER,
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
        if name.startswith("SYNOD_") and name not in OF_WHO_ARCHIVES
    }
    told = set(CONTAINERS[service.name]["environment"]) | of_the_image(service)
    assert expected <= told
    chosen = {
        "SYNOD_LOG_LEVEL",
        "SYNOD_ENCRYPT_AT_REST",
        "SYNOD_OTLP_ENDPOINT",
    }  # the launcher passes on what its caller's environment says
    extra = {"SYNOD_GRPC_HOST", "OPENAI_API_KEY_FILE", "ANTHROPIC_API_KEY_FILE"} | chosen
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
    assert neighbours(NATS_ADMIN) - set(OBSERVERS) == {NATS}


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


@each_service
def test_a_service_reaches_all_that_it_calls(service: Service) -> None:
    called = {other.name for other in needed(Layout(Path()), service)}
    assert called | {POSTGRES, NATS} <= neighbours(service.name)


@each_service
def test_a_service_is_given_its_own_secrets_only(service: Service) -> None:
    given = [each if isinstance(each, str) else each["source"] for each in CONTAINERS[service.name]["secrets"]]
    own = {"public.pem", *(f"{service.name}.{kind}" for kind in ("dsn", "nats", "checkpoint", "master"))}
    special = {
        AUTHORITY: {"signing.pem", "service-keys.json", "dev.key"},
        "llm-gateway": {"llm-gateway.key", "openai.key", "anthropic.key"},
    }
    assert set(given) == own | special.get(service.name, {f"{service.name}.key"})


@each_container
def test_a_container_can_do_no_more_than_it_must(name: str) -> None:
    container = CONTAINERS[name]
    assert container["read_only"] is True
    assert container["cap_drop"] == ["ALL"]
    assert container["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "pid", "devices"} & set(container)
    assert networks(name) or container["network_mode"] == "none"
    assert {"mem_limit", "cpus", "pids_limit", "logging"} <= set(container)
    assert ("cap_add" in container) == (name in {POSTGRES, NATS_OWNER})


def test_nats_is_not_root_and_is_given_its_volume_before_it_starts() -> None:
    owner, server = CONTAINERS[NATS_OWNER], CONTAINERS[NATS]
    assert server["user"] == NOT_ROOT
    assert server["depends_on"] == {NATS_OWNER: {"condition": "service_completed_successfully"}}
    assert owner["image"] == server["image"]
    assert f"chown -R {NOT_ROOT} /data" in owner["entrypoint"][-1]
    assert owner["volumes"] == ["nats:/data"]
    assert owner["network_mode"] == "none"


@each_container
def test_no_secret_stands_in_an_environment(name: str) -> None:
    names = CONTAINERS[name].get("environment", {})
    secret = [each for each in names if re.search(r"PASSWORD|DSN|_KEY|SECRET|TOKEN", each)]
    assert all(each.endswith("_FILE") for each in secret)


def test_only_the_edge_and_grafana_are_published_and_on_loopback() -> None:
    published = {name: container["ports"] for name, container in CONTAINERS.items() if "ports" in container}
    assert published == {
        EDGE: ["127.0.0.1:${SYNOD_EDGE_PORT:-8080}:8080"],
        GRAFANA: ["127.0.0.1:${SYNOD_GRAFANA_PORT:-3000}:3000"],
    }
    development = [port for each in DEVELOPMENT["services"].values() for port in each["ports"]]
    assert development
    assert all(port.startswith("127.0.0.1:") for port in development)


def test_only_the_gateways_have_a_way_out() -> None:
    open_networks = {name for name, network in COMPOSE["networks"].items() if leads_out(network)}
    outside = {name: open_networks & networks(name) for name in CONTAINERS}
    assert {name: found for name, found in outside.items() if found} == {EDGE: {"edge"}, "llm-gateway": {"outside"}}
    assert len({name for name in CONTAINERS if "outside" in networks(name)}) == 1


def test_tool_executor_reaches_nothing_but_servers_authority_and_its_callers() -> None:
    assert neighbours("tool-executor") - set(OBSERVERS) == {NATS, POSTGRES, AUTHORITY} | CALLERS_OF_TOOLS


def test_of_what_measures_tool_executor_reaches_what_scrapes_it_and_takes_its_traces() -> None:
    # nats-exporter is where NATS is.
    assert neighbours("tool-executor") & set(OBSERVERS) == {"prometheus", "otel-collector", "nats-exporter"}


def test_who_is_reached_from_outside_to_look_is_in_no_network_of_the_system() -> None:
    assert neighbours(GRAFANA) <= set(OBSERVERS)


@pytest.mark.parametrize("name", OBSERVERS)
def test_what_measures_is_not_root_and_is_pinned(name: str) -> None:
    container = OBSERVERS[name]
    # Two images bring a user of their own, which their volumes belong to.
    assert container.get("user", NOT_ROOT) == NOT_ROOT
    assert "user" in container or name in {"prometheus", GRAFANA}
    assert re.search(r":(v?\d+\.\d+\.\d+|pg18)$", container["image"])


@pytest.mark.parametrize("name", OBSERVERS)
def test_what_measures_can_write_no_file_of_the_system(name: str) -> None:
    written = [volume for volume in OBSERVERS[name].get("volumes", ()) if not volume.endswith(":ro")]
    assert all(volume.split(":")[0] == name for volume in written)


def test_traces_go_nowhere_unless_somebody_says_where() -> None:
    told = {name: CONTAINERS[name]["environment"]["SYNOD_OTLP_ENDPOINT"] for name in (each.name for each in SERVICES)}
    assert set(told.values()) == {"${SYNOD_OTLP_ENDPOINT:-}"}


def test_publishing_for_development_connects_no_container_with_another() -> None:
    for name, container in DEVELOPMENT["services"].items():
        assert container["networks"] == [f"publish-{name}"]
    masquerade = "com.docker.network.bridge.enable_ip_masquerade"
    assert all(each["driver_opts"][masquerade] == "false" for each in DEVELOPMENT["networks"].values())


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


@pytest.mark.parametrize(("what", "file"), [("nats", "nats.conf"), ("streams", "jetstream.json")])
def test_what_nats_is_given_is_current(what: str, file: str) -> None:
    made = subprocess.run(
        [sys.executable, "-m", "launcher.containers", what], capture_output=True, text=True, check=True, timeout=30
    )
    assert (ROOT / "deploy/nats" / file).read_text() == made.stdout, "run `make nats-conf`"
