"""What each container is given by the engine is written down here a second time, and a wider gift is noticed."""

import json
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
CLOSED = {
    "read_only": True,
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges:true"],
    "logging": {"driver": "json-file", "options": {"max-size": "16m", "max-file": "4"}},
}
"""What every container says of itself."""
HARMLESS = {
    *("profiles", "depends_on", "restart", "stop_grace_period", "mem_limit", "cpus", "pids_limit", "shm_size"),
    *("image", "build"),  # below
    *(
        "healthcheck",
        "tmpfs",
        "networks",
    ),  # but for what they can give, below; test_compose.py has whom networks lead to
}
"""Keys that give a container nothing of the machine or of another container. Whatever is not here is a permission."""

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


def service(
    name: str,
    *more: str,
    calls: tuple[str, ...] = ("agent-registry",),
    told: Mapping[str, str] | None = None,
    mounts: tuple[str, ...] = (),
    **others: Any,
) -> dict[str, Any]:
    key = {} if name == "agent-registry" else {"service.key": f"{name}.key"}
    archive = f"{name}-archive:/var/lib/synod-archive"
    return {
        "environment": environment(name, calls) | (told or {}),
        "secrets": of_a_service(name, *more) | key,
        "volumes": {*mounts, archive},
        **others,
    }


def environment(name: str, calls: tuple[str, ...]) -> dict[str, Any]:
    key = {} if name == "agent-registry" else {"SYNOD_SERVICE_KEY_FILE": "/run/secrets/service.key"}
    return {
        "SYNOD_NATS_URL": "nats://nats:4222",
        "SYNOD_NATS_USER": name,
        "SYNOD_NATS_PASSWORD_FILE": "/run/secrets/nats.password",
        "SYNOD_POSTGRES_DSN_FILE": "/run/secrets/postgres.dsn",
        "SYNOD_AUTH_PUBLIC_KEY_FILE": "/run/secrets/public.pem",
        "SYNOD_CHECKPOINT_KEY_FILE": "/run/secrets/checkpoint.pem",
        "SYNOD_FORMER_CHECKPOINT_KEY_FILES": '["/run/secrets/former-checkpoints.pem"]',
        "SYNOD_MASTER_KEY_FILE": "/run/secrets/master.key",
        "SYNOD_REQUIRE_SEALING": "true",
        "SYNOD_FORMER_MASTER_KEY_FILES": '["/run/secrets/former-masters.keys"]',
        "SYNOD_SHUTDOWN_DRAIN_S": "2",
        "SYNOD_ENCRYPT_AT_REST": "${SYNOD_ENCRYPT_AT_REST:-false}",
        "SYNOD_LOG_LEVEL": "${SYNOD_LOG_LEVEL:-INFO}",
        "SYNOD_OTLP_ENDPOINT": "${SYNOD_OTLP_ENDPOINT:-}",
        "SYNOD_PEERS": {callee: f"{callee}:{PORTS[callee]}" for callee in calls},
        **key,
    }


def asks_itself(page: str) -> list[str]:
    return ["CMD", "wget", "-q", "-O", "/dev/null", f"http://127.0.0.1:{page}"]


OF_NODE = {"user": "10001:10001"}
"""A user that owns nothing on the machine; the services' images say so themselves."""
OWNER = {"cap_add": ["CHOWN", "DAC_OVERRIDE"], "network_mode": "none"}
OBSERVABILITY = "./deploy/observability"
LEDGER_AND_REGISTRY = ("agent-registry", "cost-ledger")
ALL_BELOW = (*LEDGER_AND_REGISTRY, "consensus", "llm-gateway", "tool-executor")
PERMISSIONS: dict[str, dict[str, Any]] = {
    "agent-registry": service(
        "agent-registry",
        *("signing.pem", "service-keys.json", "dev.key"),
        calls=(),
        told={
            "SYNOD_SIGNING_KEY_FILE": "/run/secrets/signing.pem",
            "SYNOD_SERVICE_KEYS_FILE": "/run/secrets/service-keys.json",
            "SYNOD_DEV_KEY_FILE": "/run/secrets/dev.key",
        },
    ),
    "cost-ledger": service(
        "cost-ledger",
        told={"SYNOD_FIRST_PRICES": '{"simulator/sim-1": [100000, 400000], "simulator/sim-embed": [20000, 0]}'},
    ),
    "consensus": service("consensus"),
    "tool-executor": service("tool-executor", calls=LEDGER_AND_REGISTRY, mounts=("workspaces:/var/lib/synod",)),
    "llm-gateway": service(
        "llm-gateway",
        *("openai.key", "anthropic.key"),
        calls=LEDGER_AND_REGISTRY,
        told={
            "SYNOD_EDGE_HOST": "0.0.0.0",
            "SYNOD_EDGE_PORT": "8081",
            "SYNOD_SIMULATOR_URL": "http://provider-simulator:7199",
            "OPENAI_API_KEY_FILE": "/run/secrets/openai.key",
            "ANTHROPIC_API_KEY_FILE": "/run/secrets/anthropic.key",
        },
        ports=["127.0.0.1:${SYNOD_MODELS_PORT:-8081}:8081"],
    ),
    "agent-runtime": service("agent-runtime", calls=ALL_BELOW),
    "ws-gateway": service(
        "ws-gateway",
        calls=(*ALL_BELOW, "agent-runtime"),
        told={"SYNOD_EDGE_HOST": "0.0.0.0", "SYNOD_EDGE_PORT": "8080"},
        ports=["127.0.0.1:${SYNOD_EDGE_PORT:-8080}:8080"],
    ),
    "provider-simulator": {
        "command": ["python", "-m", "provider_simulator", "--host", "0.0.0.0"],
        "environment": {"SYNOD_HTTP_PORT": "7199"},
    },
    "postgres-owner": {
        **OWNER,
        "entrypoint": ["sh", "-c", "! test -O /var/lib/postgresql || chown -R 999:999 /var/lib/postgresql"],
        "volumes": {"postgres:/var/lib/postgresql"},
    },
    "postgres": {
        "user": "999:999",
        "tmpfs": {"uid=999", "gid=999"},
        "healthcheck": ["CMD", "pg_isready", "--quiet", "--host=127.0.0.1", "--username=postgres"],
        "command": ["postgres", *("-c", "max_connections=400"), *("-c", "wal_compression=on"), *("-c", "jit=off")],
        "environment": {"POSTGRES_PASSWORD_FILE": "/run/secrets/postgres.password"},
        "secrets": secrets("postgres.password", "postgres.roles"),
        "volumes": {
            "postgres:/var/lib/postgresql",
            "./deploy/postgres/roles.sh:/docker-entrypoint-initdb.d/roles.sh:ro",
        },
    },
    "nats-owner": {
        **OWNER,
        "entrypoint": ["sh", "-c", "! test -O /data || chown -R 10001:10001 /data"],
        "volumes": {"nats:/data"},
    },
    "nats": {
        **OF_NODE,
        "healthcheck": asks_itself("8222/healthz"),
        "command": ["--config", "/etc/nats/synod.conf"],
        "environment": {"GOMEMLIMIT": "400MiB"},
        "secrets": {"/etc/nats/passwords.conf": "nats.passwords"},
        "volumes": {"nats:/data", "./deploy/nats/nats.conf:/etc/nats/synod.conf:ro"},
    },
    "nats-admin": {
        "command": ["python", "-m", "servicekit.nats_admin", "apply", "/etc/nats/jetstream.json"],
        "environment": {
            "SYNOD_NATS_URL": "nats://nats:4222",
            "SYNOD_NATS_USER": "administrator",
            "SYNOD_NATS_PASSWORD_FILE": "/run/secrets/nats.password",
        },
        "secrets": {"nats.password": "administrator.nats"},
        "volumes": {"./deploy/nats/jetstream.json:/etc/nats/jetstream.json:ro"},
    },
    "postgres-monitor": {
        **OF_NODE,
        "entrypoint": [
            *("sh", "-c"),
            "PGPASSWORD=$$(cat /run/secrets/postgres.password) exec psql --quiet --no-psqlrc --host=postgres "
            "--username=postgres --file=/etc/monitor.sql",
        ],
        "secrets": secrets("postgres.password", "monitor.password"),
        "volumes": {f"{OBSERVABILITY}/postgres/monitor.sql:/etc/monitor.sql:ro"},
    },
    "postgres-exporter": {
        **OF_NODE,
        "environment": {
            "DATA_SOURCE_URI": "postgres:5432/postgres?sslmode=disable",
            "DATA_SOURCE_USER": "monitor",
            "DATA_SOURCE_PASS_FILE": "/run/secrets/monitor.password",
        },
        "secrets": secrets("monitor.password"),
    },
    "nats-exporter": {
        **OF_NODE,
        "command": ["-varz", "-healthz", "-jsz=all", "-port=7777", "http://127.0.0.1:8222"],
        "network_mode": "service:nats",
    },
    "volume-exporter": {
        "user": "65534:65534",  # none of the files that it sees are its own
        "command": [
            "--collector.disable-defaults",
            "--collector.filesystem",
            "--collector.filesystem.mount-points-exclude=^/($$|[^v]|v[^o])",
        ],
        "volumes": {f"{volume}:/volumes/{volume}:ro" for volume in ("postgres", "nats", "workspaces")},
    },
    "otel-collector": {
        **OF_NODE,
        "command": ["--config=/etc/otelcol/synod.yaml"],
        "volumes": {f"{OBSERVABILITY}/collector.yaml:/etc/otelcol/synod.yaml:ro"},
    },
    "jaeger": {
        **OF_NODE,
        "command": ["--set=extensions.jaeger_storage.backends.some_storage.memory.max_traces=20000"],
    },
    "prometheus": {
        "healthcheck": asks_itself("9090/-/ready"),
        # Without --web.enable-admin-api and --web.enable-lifecycle: whoever reaches it may ask, and do nothing else.
        "command": [
            "--config.file=/etc/prometheus/prometheus.yml",
            "--storage.tsdb.path=/prometheus",
            "--storage.tsdb.retention.time=15d",
            "--storage.tsdb.retention.size=4GB",
        ],
        "volumes": {
            "prometheus:/prometheus",
            *(f"{OBSERVABILITY}/prometheus/{f}.yml:/etc/prometheus/{f}.yml:ro" for f in ("prometheus", "alerts")),
        },
    },
    "grafana": {
        "healthcheck": asks_itself("3000/api/health"),
        # Nobody looks without the password, and nothing is sent or fetched by itself.
        "environment": {
            "GF_SECURITY_ADMIN_PASSWORD__FILE": "/run/secrets/grafana.password",
            "GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH": "/etc/grafana/dashboards/fleet.json",
            "GF_PLUGINS_PREINSTALL_DISABLED": "true",
            **{f"GF_ANALYTICS_{what}": "false" for what in ("ENABLED", "REPORTING_ENABLED", "CHECK_FOR_UPDATES")},
            "GF_ANALYTICS_CHECK_FOR_PLUGIN_UPDATES": "false",
            "GF_NEWS_NEWS_FEED_ENABLED": "false",
            "GF_SECURITY_DISABLE_GRAVATAR": "true",
            "GF_LOG_MODE": "console",
        },
        "secrets": secrets("grafana.password"),
        "volumes": {
            "grafana:/var/lib/grafana",
            *(f"{OBSERVABILITY}/grafana/{part}:/etc/grafana/{part}:ro" for part in ("provisioning", "dashboards")),
        },
        "ports": ["127.0.0.1:${SYNOD_GRAFANA_PORT:-3000}:3000"],
    },
}

IMAGES = {
    "nats-admin": "synod/agent-registry",
    "provider-simulator": "synod/llm-gateway",
    **dict.fromkeys(("postgres-owner", "postgres", "postgres-monitor"), "pgvector/pgvector"),
    **dict.fromkeys(("nats-owner", "nats"), "nats"),
    "postgres-exporter": "prometheuscommunity/postgres-exporter",
    "nats-exporter": "natsio/prometheus-nats-exporter",
    "volume-exporter": "prom/node-exporter",
    "otel-collector": "otel/opentelemetry-collector",
    "jaeger": "jaegertracing/jaeger",
    "prometheus": "prom/prometheus",
    "grafana": "grafana/grafana",
}
"""Of those that are no service."""

ONE_WAY = {"driver_opts": {"com.docker.network.bridge.enable_ip_masquerade": "false"}}
INSIDE = {"internal": True, "driver_opts": {"com.docker.network.bridge.inhibit_ipv4": "true"}}
NETWORKS = {
    **dict.fromkeys(("models", "tools", "votes", "providers", "admin", "observe", "statistics"), INSIDE),
    **dict.fromkeys(("edge", "publish-grafana"), ONE_WAY),
    "outside": {},
}

TLS = {f"SYNOD_TLS_{what}_FILE": f"/run/tls/{file}" for what, file in (("CA", "ca.crt"), ("CERTIFICATE", "tls.crt"))}
TLS |= {"SYNOD_TLS_KEY_FILE": "/run/tls/tls.key"}


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
    {"environment": {"GF_AUTH_ANONYMOUS_ENABLED": "true", "GF_AUTH_ANONYMOUS_ORG_ROLE": "Admin"}},
    {"environment": {"SYNOD_REQUIRE_SEALING": "maybe"}},
    {"logging": {"driver": "syslog", "options": {"syslog-address": "tcp://192.0.2.1:514"}}},
    {"tmpfs": ["/tmp:size=64m,exec"]},
    {"healthcheck": {"test": ["CMD-SHELL", "nc 192.0.2.1 514 < /run/secrets/master.key"]}},
    {"networks": {"tools": {"aliases": ["agent-registry"]}}},
    {"command": ["--web.enable-admin-api"]},
    {"command": ["-c", "listen_addresses=*"]},
    {"entrypoint": ["sh", "-c"]},
)
MORE = {"secrets", "volumes", "ports", "command", "entrypoint"}
"""Keys of a list to which a widening adds."""


def permissions(container: Mapping[str, Any]) -> dict[str, Any]:
    """All that a container is given, but for its networks; what every container says is left out if this one does."""
    given = {key: value for key, value in container.items() if key not in HARMLESS and CLOSED.get(key) != value}
    given |= {key: None for key in CLOSED if key not in container}
    if peers := given.get("environment", {}).get("SYNOD_PEERS"):
        given["environment"] = {**given["environment"], "SYNOD_PEERS": json.loads(peers)}
    if "secrets" in given:
        given["secrets"] = dict(_file_and_secret(each) for each in given["secrets"])
    if "volumes" in given:
        given["volumes"] = {each if isinstance(each, str) else str(each) for each in given["volumes"]}
    return given | _beside(container)


def _beside(container: Mapping[str, Any]) -> dict[str, Any]:
    """What is more than the size of a tmpfs, a check that is switched off, or the names of networks."""
    options = {option for each in container.get("tmpfs", ()) for option in each.partition(":")[2].split(",")}
    found = {
        "tmpfs": {option for option in options if option and not option.startswith("size=")},
        "healthcheck": container.get("healthcheck", {}).get("test"),
        "networks": container.get("networks") if isinstance(container.get("networks"), Mapping) else None,
    }
    return {key: value for key, value in found.items() if value}


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
        if key == "environment":
            container[key] = {**container.get(key, {}), **value}
        else:
            container[key] = [*container.get(key, ()), *value] if key in MORE else value
    return container


def test_a_container_runs_what_is_written_down() -> None:
    """A newer version of it is no other program; which ones are pinned test_compose.py says."""
    programs = {name: each["image"].partition(":")[0] for name, each in CONTAINERS.items()}
    assert programs == {**{name: f"synod/{name}" for name in NAMES}, **IMAGES}
    builds = {name: each["build"] for name, each in CONTAINERS.items() if "build" in each}
    assert {name: (each["context"], each["dockerfile"]) for name, each in builds.items()} == {
        name: (".", f"services/{name}/Dockerfile") for name in NAMES
    }
    assert all(each.keys() == {"context", "dockerfile", "args"} for each in builds.values())


def test_a_network_is_what_is_written_down_and_no_more() -> None:
    assert COMPOSE["networks"] == NETWORKS


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
