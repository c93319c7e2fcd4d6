"""What each container is given by the engine is written down here a second time, and a wider gift is noticed."""

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from launcher.layout import SERVICES

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
CONTAINERS: dict[str, dict[str, Any]] = COMPOSE["services"]
NAMES = tuple(service.name for service in SERVICES)
CLOSED = {"read_only": True, "cap_drop": ["ALL"], "security_opt": ["no-new-privileges:true"]}
"""What every container says of itself."""
HARMLESS = {
    *("image", "build", "command", "entrypoint", "environment", "profiles", "depends_on", "healthcheck", "restart"),
    *("logging", "stop_grace_period", "mem_limit", "cpus", "pids_limit", "shm_size", "tmpfs"),
    "networks",  # test_compose.py has whom they lead to
}
"""Keys that give a container nothing of the machine or of another container. Whatever is not here is a permission."""


def secrets(*names: str) -> dict[str, str]:
    """The secret in each file, which is named like it."""
    return {name: name for name in names}


def of_a_service(name: str, *more: str) -> dict[str, str]:
    files = {
        "postgres.dsn": f"{name}.dsn",
        "nats.password": f"{name}.nats",
        "checkpoint.pem": f"{name}.checkpoint",
        "former-checkpoints.pem": f"{name}.former-checkpoints",
        "master.key": f"{name}.master",
        "former-masters.keys": f"{name}.former-masters",
    }
    return files | secrets("public.pem", *more)


def service(name: str, *more: str, mounts: tuple[str, ...] = (), **others: Any) -> dict[str, Any]:
    key = {} if name == "agent-registry" else {"service.key": f"{name}.key"}
    archive = f"{name}-archive:/var/lib/synod-archive"
    return {"secrets": of_a_service(name, *more) | key, "volumes": {*mounts, archive}, **others}


OF_NODE = {"user": "10001:10001"}
"""A user that owns nothing on the machine; the services' images say so themselves."""
OWNER = {"cap_add": ["CHOWN", "DAC_OVERRIDE"], "network_mode": "none"}
OBSERVABILITY = "./deploy/observability"
PERMISSIONS: dict[str, dict[str, Any]] = {
    "agent-registry": service("agent-registry", "signing.pem", "service-keys.json", "dev.key"),
    "cost-ledger": service("cost-ledger"),
    "consensus": service("consensus"),
    "tool-executor": service("tool-executor", mounts=("workspaces:/var/lib/synod",)),
    "llm-gateway": service("llm-gateway", "openai.key", "anthropic.key"),
    "agent-runtime": service("agent-runtime"),
    "ws-gateway": service("ws-gateway", ports=["127.0.0.1:${SYNOD_EDGE_PORT:-8080}:8080"]),
    "provider-simulator": {},
    "postgres-owner": {**OWNER, "volumes": {"postgres:/var/lib/postgresql"}},
    "postgres": {
        "user": "999:999",
        "secrets": secrets("postgres.password", "postgres.roles"),
        "volumes": {
            "postgres:/var/lib/postgresql",
            "./deploy/postgres/roles.sh:/docker-entrypoint-initdb.d/roles.sh:ro",
        },
    },
    "nats-owner": {**OWNER, "volumes": {"nats:/data"}},
    "nats": {
        **OF_NODE,
        "secrets": {"/etc/nats/passwords.conf": "nats.passwords"},
        "volumes": {"nats:/data", "./deploy/nats/nats.conf:/etc/nats/synod.conf:ro"},
    },
    "nats-admin": {
        "secrets": {"nats.password": "administrator.nats"},
        "volumes": {"./deploy/nats/jetstream.json:/etc/nats/jetstream.json:ro"},
    },
    "postgres-monitor": {
        **OF_NODE,
        "secrets": secrets("postgres.password", "monitor.password"),
        "volumes": {f"{OBSERVABILITY}/postgres/monitor.sql:/etc/monitor.sql:ro"},
    },
    "postgres-exporter": {**OF_NODE, "secrets": secrets("monitor.password")},
    "nats-exporter": {**OF_NODE, "network_mode": "service:nats"},
    "volume-exporter": {
        "user": "65534:65534",  # none of the files that it sees are its own
        "volumes": {f"{volume}:/volumes/{volume}:ro" for volume in ("postgres", "nats", "workspaces")},
    },
    "otel-collector": {**OF_NODE, "volumes": {f"{OBSERVABILITY}/collector.yaml:/etc/otelcol/synod.yaml:ro"}},
    "jaeger": OF_NODE,
    "prometheus": {
        "volumes": {
            "prometheus:/prometheus",
            *(f"{OBSERVABILITY}/prometheus/{f}.yml:/etc/prometheus/{f}.yml:ro" for f in ("prometheus", "alerts")),
        }
    },
    "grafana": {
        "secrets": secrets("grafana.password"),
        "volumes": {
            "grafana:/var/lib/grafana",
            *(f"{OBSERVABILITY}/grafana/{part}:/etc/grafana/{part}:ro" for part in ("provisioning", "dashboards")),
        },
        "ports": ["127.0.0.1:${SYNOD_GRAFANA_PORT:-3000}:3000"],
    },
}

TLS = {f"SYNOD_TLS_{what}_FILE": f"/run/tls/{file}" for what, file in (("CA", "ca.crt"), ("CERTIFICATE", "tls.crt"))}
TLS |= {"SYNOD_TLS_KEY_FILE": "/run/tls/tls.key"}
PORTS = {
    "agent-registry": 7101,
    "agent-runtime": 7102,
    "llm-gateway": 7103,
    "tool-executor": 7104,
    "cost-ledger": 7105,
    "consensus": 7106,
    "ws-gateway": 7107,
    "nats": 4222,
}


def published(name: str) -> dict[str, Any]:
    last_digits = "42" if name == "nats" else str(PORTS[name])[-2:]
    ports = {"ports": [f"127.0.0.1:${{SYNOD_PORT_PREFIX:-71}}{last_digits}:{PORTS[name]}"]}
    return ports if name in {"llm-gateway", "ws-gateway"} else ports | {"networks": [f"publish-{name}"]}


def certified(name: str) -> dict[str, Any]:
    return {"environment": TLS, "volumes": [f"./deploy/compose/secrets/tls/{name}:/run/tls:ro"]}


NATS_BY_TLS = {
    "command": ["--config", "/etc/nats/synod.tls.conf"],
    "volumes": ["./deploy/nats/nats.tls.conf:/etc/nats/synod.tls.conf:ro", *certified("nats")["volumes"]],
}
OVERRIDES: dict[str, dict[str, Any]] = {
    "compose.dev.yaml": {name: published(name) for name in PORTS},
    "compose.replicas.yaml": {name: {"scale": "${SYNOD_REPLICAS:-2}"} for name in NAMES},
    "compose.tls.yaml": {"nats": NATS_BY_TLS, **{name: certified(name) for name in ("nats-admin", *NAMES)}},
}
ONE_WAY = {"driver_opts": {"com.docker.network.bridge.enable_ip_masquerade": "false"}}
NETWORKS_OF_OVERRIDES = {
    "compose.dev.yaml": {
        network: ONE_WAY for name in PORTS for network in published(name).get("networks", ()) if network != "edge"
    }
}
WIDENINGS: tuple[dict[str, Any], ...] = (
    {"read_only": False},
    {"cap_drop": ["NET_RAW"]},
    {"cap_add": ["SYS_ADMIN"]},
    {"security_opt": ["no-new-privileges:true", "seccomp:unconfined"]},
    {"security_opt": []},
    {"privileged": True},
    {"user": "0:0"},
    {"group_add": ["docker"]},
    {"devices": ["/dev/kmsg:/dev/kmsg"]},
    {"pid": "host"},
    {"ipc": "host"},
    {"userns_mode": "host"},
    {"network_mode": "host"},
    {"sysctls": {"net.ipv4.ip_forward": 1}},
    {"extra_hosts": ["elsewhere:10.0.0.1"]},
    {"ports": ["8080:8080"]},
    {"secrets": ["signing.pem", {"source": "agent-registry.master", "target": "another.key"}]},
    {"volumes": ["/var/run/docker.sock:/var/run/docker.sock"]},
    {"volumes": [{"type": "bind", "source": "/", "target": "/machine"}]},
    {"volumes_from": ["postgres"]},
    {"env_file": [".env"]},
)


def permissions(container: Mapping[str, Any]) -> dict[str, Any]:
    """All that a container is given, but for its networks; what every container says is left out if this one does."""
    given = {key: value for key, value in container.items() if key not in HARMLESS and CLOSED.get(key) != value}
    given |= {key: None for key in CLOSED if key not in container}
    if "secrets" in given:
        given["secrets"] = dict(_file_and_secret(each) for each in given["secrets"])
    if "volumes" in given:
        given["volumes"] = {each if isinstance(each, str) else str(each) for each in given["volumes"]}
    return given


def _file_and_secret(given: str | Mapping[str, str]) -> tuple[str, str]:
    return (given, given) if isinstance(given, str) else (given["target"], given["source"])


def test_every_container_has_its_permissions_written_down() -> None:
    assert set(PERMISSIONS) == set(CONTAINERS)


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_container_is_given_what_is_written_down_and_no_more(name: str) -> None:
    assert permissions(CONTAINERS[name]) == PERMISSIONS[name]


@pytest.mark.parametrize("widening", WIDENINGS, ids=str)
def test_a_container_that_is_given_more_is_noticed(widening: dict[str, Any]) -> None:
    assert [name for name in CONTAINERS if permissions(widened(name, widening)) == PERMISSIONS[name]] == []


def widened(name: str, widening: dict[str, Any]) -> dict[str, Any]:
    container = deepcopy(CONTAINERS[name])
    for key, value in widening.items():
        container[key] = [*container.get(key, ()), *value] if key in {"secrets", "volumes", "ports"} else value
    return container


@pytest.mark.parametrize("file", OVERRIDES)
def test_an_override_gives_what_is_written_down_and_no_more(file: str) -> None:
    override = yaml.safe_load((ROOT / "deploy/compose" / file).read_text())
    assert override["services"] == OVERRIDES[file]
    assert override.get("networks", {}) == NETWORKS_OF_OVERRIDES.get(file, {})
    assert {key for key in override if not key.startswith("x-")} <= {"services", "networks", "version"}


def test_every_override_has_its_permissions_written_down() -> None:
    assert {path.name for path in (ROOT / "deploy/compose").glob("*.yaml")} == set(OVERRIDES)


def test_a_container_whose_user_is_not_written_down_has_one_by_its_image() -> None:
    """The services' Dockerfiles name it, and the images of Prometheus and Grafana; the owners are root, with no network."""
    ours = {name for name, each in CONTAINERS.items() if each["image"].startswith("synod/")}
    unnamed = {name for name, each in CONTAINERS.items() if "user" not in each}
    assert ours == {*NAMES, "nats-admin", "provider-simulator"}
    assert unnamed == ours | {"prometheus", "grafana", "nats-owner", "postgres-owner"}


def test_no_volume_is_a_directory_of_the_machine() -> None:
    assert [name for name, volume in COMPOSE["volumes"].items() if volume] == []
