"""What each pod is given by a cluster is written down here a second time, and a wider gift is noticed."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

import pytest

from .kustomize import Manifest
from .overlays import NAMES, container, of_kind, overlay, pod
from .reach import WORKLOADS

OVERLAYS = ("small", "small-tls", "production")
KINDS = {
    *WORKLOADS,
    *("Namespace", "NetworkPolicy", "Service", "ConfigMap", "PersistentVolumeClaim"),
    *("PodDisruptionBudget", "HorizontalPodAutoscaler", "ScaledObject"),
}
"""None of them lets anybody ask the cluster for anything."""
HARMLESS_TO_PODS = {
    *("restartPolicy", "terminationGracePeriodSeconds", "topologySpreadConstraints", "affinity", "tolerations"),
    "containers",  # one each, below
}
HARMLESS_TO_CONTAINERS = {
    *("name", "resources", "lifecycle", "startupProbe", "livenessProbe", "readinessProbe"),
    *("image", "command", "args", "env", "envFrom", "volumeMounts"),  # test_manifests.py has them
}
"""Keys that give nothing of the machine, the cluster or another pod. Whatever is not here is a permission."""

POD = {"automountServiceAccountToken": False, "enableServiceLinks": False}
"""What every pod says of itself, beside its user."""
CONTAINER = {
    "securityContext": {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
}
OF_POSTGRES = ("postgres", "databases")
WITHOUT_FILES = ("provider-simulator",)
READABLE_BY_ITS_GROUP = 0o440
MEMORY = "emptyDir"

ARCHIVE, WORKSPACES = ("persistentVolumeClaim", "archive"), ("persistentVolumeClaim", "workspaces")
VOLUMES: dict[str, set[tuple[str, str]]] = {
    **{name: {("secret", name), ARCHIVE, (MEMORY, "")} for name in NAMES},
    **{f"migrate-{name}": {("secret", name), ARCHIVE, (MEMORY, "")} for name in NAMES},
    "tool-executor": {("secret", "tool-executor"), ARCHIVE, WORKSPACES, (MEMORY, "")},
    "nats-admin": {("secret", "nats-admin"), ("configMap", "nats-streams"), (MEMORY, "")},
    "databases": {("secret", "postgres"), ("configMap", "postgres-roles")},
    "postgres": {("secret", "postgres"), ("configMap", "postgres-roles"), (MEMORY, "")},
    "nats": {("secret", "nats"), ("configMap", "nats-server")},
    "provider-simulator": {(MEMORY, "")},
}
SERVED: dict[str, dict[str, int]] = {
    "agent-registry": {"grpc": 7101, "http": 7201},
    "agent-runtime": {"grpc": 7102, "http": 7202},
    "llm-gateway": {"grpc": 7103, "http": 7203, "edge": 8081},
    "tool-executor": {"grpc": 7104, "http": 7204},
    "cost-ledger": {"grpc": 7105, "http": 7205},
    "consensus": {"grpc": 7106, "http": 7206},
    "ws-gateway": {"grpc": 7107, "http": 7207, "edge": 8080},
    "postgres": {"postgres": 5432},
    "nats": {"nats": 4222},
    "provider-simulator": {"http": 7199},
}
"""The ports of each pod."""
ADDRESSED: dict[str, dict[str, int]] = {
    **{name: {"grpc": SERVED[name]["grpc"]} for name in NAMES},
    **{name: SERVED[name] for name in ("postgres", "nats", "provider-simulator")},
    "edge": {"edge": 8080},
    "models": {"edge": 8081},
}
"""Those of them by which others find them."""

Change = Callable[[Manifest], object]
"""What somebody does to a workload."""
WIDENINGS: Mapping[str, Change] = {
    "the machine's network": lambda each: pod(each).update(hostNetwork=True),
    "the machine's processes": lambda each: pod(each).update(hostPID=True),
    "processes of neighbours": lambda each: pod(each).update(shareProcessNamespace=True),
    "names of its own": lambda each: pod(each).update(hostAliases=[{"ip": "192.0.2.1", "hostnames": ["nats"]}]),
    "servers of names": lambda each: pod(each).update(dnsConfig={"nameservers": ["192.0.2.1"]}),
    "an account of the cluster": lambda each: pod(each).update(serviceAccountName="admin"),
    "a token of the cluster": lambda each: pod(each).update(automountServiceAccountToken=True),
    "root": lambda each: pod(each)["securityContext"].update(runAsUser=0),
    "root's group": lambda each: pod(each)["securityContext"].update(runAsGroup=0),
    "a group more": lambda each: pod(each)["securityContext"].update(supplementalGroups=[0]),
    "no seccomp": lambda each: pod(each)["securityContext"].update(seccompProfile={"type": "Unconfined"}),
    "a setting of the kernel": lambda each: pod(each)["securityContext"].update(sysctls=[{"name": "a", "value": "1"}]),
    "something before": lambda each: pod(each).update(initContainers=[{"name": "more", "image": "more"}]),
    "something beside": lambda each: pod(each)["containers"].append({"name": "more", "image": "more"}),
    "a capability": lambda each: container(each)["securityContext"]["capabilities"].update(add=["NET_ADMIN"]),
    "privileges": lambda each: container(each)["securityContext"].update(privileged=True),
    "a writable root": lambda each: container(each)["securityContext"].update(readOnlyRootFilesystem=False),
    "a device": lambda each: container(each).update(volumeDevices=[{"name": "disk", "devicePath": "/dev/sda"}]),
    "a port of the machine": lambda each: add_port(each, {"name": "more", "containerPort": 1, "hostPort": 1}),
    "its port on the machine": lambda each: widen_ports(each, {"hostPort": 1}),
    "a directory of the machine": lambda each: add_volume(each, {"hostPath": {"path": "/"}}),
    "another's secret": lambda each: add_volume(each, {"secret": {"secretName": "agent-registry-2"}}),
    "another's secret among others": lambda each: add_volume(
        each, {"projected": {"sources": [{"secret": {"name": "agent-registry-2"}}]}}
    ),
    "a token among others": lambda each: add_volume(
        each, {"projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}}
    ),
    "another's disk": lambda each: add_volume(each, {"persistentVolumeClaim": {"claimName": "data-postgres-0"}}),
    "a secret for everybody": lambda each: add_volume(each, {"secret": {"secretName": "nats", "defaultMode": 0o444}}),
}

each_overlay = pytest.mark.parametrize("name", OVERLAYS)


def add_port(workload: Manifest, port: Manifest) -> None:
    container(workload).setdefault("ports", []).append(port)


def widen_ports(workload: Manifest, more: Manifest) -> None:
    ports = container(workload).setdefault("ports", [{"name": "more", "containerPort": 1}])
    for port in ports:
        port.update(more)


def add_volume(workload: Manifest, volume: Manifest) -> None:
    pod(workload).setdefault("volumes", []).append({"name": "more", **volume})


def permissions(workload: Manifest) -> dict[str, Any]:
    """All that a pod is given, but for its networks, its program and its environment."""
    spec, containers = pod(workload), pod(workload)["containers"]
    given = {key: value for key, value in spec.items() if key not in HARMLESS_TO_PODS}
    of_containers = [
        {key: value for key, value in each.items() if key not in HARMLESS_TO_CONTAINERS} for each in containers
    ]
    given["volumes"] = {source for volume in spec.get("volumes", ()) for source in sources(volume)}
    given["securityContext"] = {k: v for k, v in spec["securityContext"].items() if k != "fsGroupChangePolicy"}
    return {**given, "containers": of_containers, "modes": modes(spec.get("volumes", ()))}


def sources(volume: Manifest) -> set[tuple[str, str]]:
    """What is in a volume, by its kind and its name; generated names end in a digest."""
    (kind,) = volume.keys() - {"name"}
    if kind == "projected":
        return {source for each in volume[kind]["sources"] for source in sources({"name": "", **each})}
    named = volume[kind].get("secretName") or volume[kind].get("claimName") or volume[kind].get("name", "")
    return {(kind, named.rpartition("-")[0] if kind == "configMap" else named)}


def modes(volumes: list[Manifest]) -> set[int]:
    """How those of its files that hold secrets may be read."""
    kinds = ("secret", "projected")
    return {volume[kind].get("defaultMode", 0o644) for volume in volumes for kind in kinds if kind in volume}


def written_down(name: str) -> dict[str, Any]:
    user = 999 if name in OF_POSTGRES else 10001
    ports = [{"name": port, "containerPort": number} for port, number in SERVED.get(name, {}).items()]
    identity = {"runAsNonRoot": True, "runAsUser": user, "runAsGroup": user}
    files = {} if name in WITHOUT_FILES else {"fsGroup": user}
    return {
        **POD,
        "securityContext": {**identity, **files, "seccompProfile": {"type": "RuntimeDefault"}},
        "volumes": VOLUMES[name],
        "modes": set() if name in WITHOUT_FILES else {READABLE_BY_ITS_GROUP},
        "containers": [{**CONTAINER, **({"ports": ports} if ports else {})}],
    }


def test_nothing_is_in_a_cluster_that_can_ask_it_for_anything() -> None:
    assert {each["kind"] for name in OVERLAYS for each in overlay(name)} == KINDS


@each_overlay
def test_a_pod_is_given_what_is_written_down_and_no_more(name: str) -> None:
    for each in of_kind(name, *WORKLOADS):
        workload = each["metadata"]["name"]
        assert permissions(each) == written_down(workload), workload


@each_overlay
@pytest.mark.parametrize("widening", WIDENINGS)
def test_a_pod_that_is_given_more_is_noticed(widening: str, name: str) -> None:
    for each in of_kind(name, *WORKLOADS):
        widened, workload = deepcopy(each), each["metadata"]["name"]
        WIDENINGS[widening](widened)
        assert permissions(widened) != written_down(workload), workload


@each_overlay
def test_what_has_an_address_has_it_inside_and_for_its_own_ports(name: str) -> None:
    """No node and no load balancer of a cloud listens for it: what leads to the edges is chosen by who runs this."""
    for each in of_kind(name, "Service"):
        spec = each["spec"]
        assert spec.keys() <= {"ports", "selector", "clusterIP"}
        assert all(port.keys() == {"name", "port", "targetPort"} for port in spec["ports"])
        assert {port["targetPort"]: port["port"] for port in spec["ports"]} == ADDRESSED[each["metadata"]["name"]]
