"""What a cluster is given is the system of compose.yaml, closed as there, in manifests that its API knows."""

import json
import re
from copy import deepcopy
from pathlib import Path

import pytest
import yaml
from agent_runtime.settings import Settings as RuntimeSettings
from launcher.bus import HUB
from launcher.cluster import secret_files
from launcher.layout import SERVICES, Layout, Service
from servicekit.settings import ServiceSettings

from .kustomize import Manifest
from .overlays import (
    CONTAINERS,
    NAMES,
    OVERLAYS,
    ROOT,
    container,
    environment_of_compose,
    manifest,
    of_kind,
    overlay,
    pod,
    same,
    secrets_of_compose,
    settings,
)
from .quantities import bytes_of, cores_of
from .reach import WORKLOADS, pods
from .schemas import problems

LAYOUT = Layout(Path())
README = (ROOT / "deploy/kubernetes/README.md").read_text()
SERVERS = ("postgres", "nats")
PREPARES = "SYNOD_PREPARE_ONLY"
SHUTDOWN_GRACE_S = ServiceSettings.model_fields["shutdown_grace_s"].default

each_overlay = pytest.mark.parametrize("name", OVERLAYS)
each_service = pytest.mark.parametrize("service", SERVICES, ids=lambda service: service.name)


def workloads(name: str) -> list[Manifest]:
    return of_kind(name, *WORKLOADS)


@each_overlay
def test_the_api_knows_every_manifest(name: str) -> None:
    assert [(each["metadata"]["name"], problems(each)) for each in overlay(name) if problems(each)] == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"replica": 2}, "$.spec.replica is unknown"),
        ({"replicas": "2"}, "Expected `int | null`, got `str` - at `$.spec.replicas`"),
        ({"template": None}, "Expected `object`, got `null` - at `$.spec.template`"),
    ],
)
def test_what_the_api_does_not_know_is_found(change: Manifest, problem: str) -> None:
    deployment = deepcopy(manifest("small", "Deployment", "consensus"))
    deployment["spec"] |= change
    assert problems(deployment) == [problem]


def test_a_trigger_that_keda_does_not_know_is_found() -> None:
    scaled = deepcopy(manifest("production", "ScaledObject", "agent-runtime"))
    metadata = scaled["spec"]["triggers"][0]["metadata"]
    metadata["lagTreshold"] = metadata.pop("lagThreshold")
    assert len(problems(scaled)) == 2


RESTORE = ROOT / "deploy/kubernetes/overlays/small/restore.yaml"


@pytest.mark.parametrize(
    ("restores", "kind", "owner"),
    [("restore", "StatefulSet", "postgres"), ("restore-files", "Deployment", "tool-executor")],
)
def test_what_restores_is_known_and_closed_as_those_whose_volumes_it_mounts(
    restores: str, kind: str, owner: str
) -> None:
    (found,) = [each for each in yaml.safe_load_all(RESTORE.read_text()) if each["metadata"]["name"] == restores]
    assert problems(found) == []
    spec, (only,), owning = found["spec"], found["spec"]["containers"], manifest("small", kind, owner)
    assert spec["securityContext"] == pod(owning)["securityContext"]
    assert only["securityContext"] == container(owning)["securityContext"]
    assert only["image"] == container(manifest("small", "StatefulSet", "postgres"))["image"]
    claims = [each["persistentVolumeClaim"]["claimName"] for each in spec["volumes"]]
    assert claims == claims_of(owning)


def claims_of(workload: Manifest) -> list[str]:
    """The names of the volumes that its first pod keeps, in order."""
    own = [f"{each['metadata']['name']}-postgres-0" for each in workload["spec"].get("volumeClaimTemplates", ())]
    shared = [
        each["persistentVolumeClaim"]["claimName"]
        for each in pod(workload).get("volumes", ())
        if "persistentVolumeClaim" in each
    ]
    return own + sorted(shared)


def test_nothing_that_has_ended_keeps_a_restore_waiting() -> None:
    """The pod of a finished job stays, and is waited for with all others that mount volumes."""
    restore = README[README.index("To restore, start NATS from nothing") :]
    assert restore.index("kubectl delete job --namespace synod --all") < restore.index(
        "kubectl wait --namespace synod --for=delete"
    )


@each_overlay
def test_no_two_manifests_have_a_name(name: str) -> None:
    names = [(each["kind"], each["metadata"]["name"]) for each in overlay(name)]
    assert len(names) == len(set(names))
    assert {each["metadata"].get("namespace") for each in overlay(name) if each["kind"] != "Namespace"} == {"synod"}


@each_overlay
def test_every_service_runs_and_has_its_migration(name: str) -> None:
    deployments = {each["metadata"]["name"] for each in of_kind(name, "Deployment")}
    assert deployments - {"provider-simulator"} == set(NAMES)
    jobs = {each["metadata"]["name"] for each in of_kind(name, "Job")} - {"databases"}
    assert jobs == {"nats-admin", *(f"migrate-{service}" for service in NAMES)}


def test_servers_and_the_simulator_are_in_the_cluster_on_one_machine_only() -> None:
    assert {each["metadata"]["name"] for each in of_kind("small", "StatefulSet")} == set(SERVERS)
    assert not of_kind("production", "StatefulSet")
    assert "provider-simulator" not in pods(overlay("production"))
    assert "SYNOD_SIMULATOR_URL" not in settings("production", manifest("production", "Deployment", "llm-gateway"))


@each_overlay
@each_service
def test_a_service_is_told_what_compose_tells_it(service: Service, name: str) -> None:
    told = settings(name, manifest(name, "Deployment", service.name))
    expected = environment_of_compose(service.name)
    of_one_machine = {"SYNOD_SIMULATOR_URL", "SYNOD_FIRST_PRICES", "SYNOD_NATS_URL"} if name == "production" else set()
    assert told.keys() == expected.keys() - (of_one_machine - {"SYNOD_NATS_URL"})
    assert {key for key, value in told.items() if not same(value, expected[key])} <= of_one_machine


@each_overlay
@each_service
def test_a_migration_is_its_service_told_to_prepare_only(service: Service, name: str) -> None:
    runs, migrates = (manifest(name, kind, f"{prefix}{service.name}") for kind, prefix in KINDS)
    assert settings(name, migrates) == {**settings(name, runs), PREPARES: "true"}
    for field in ("image", "resources", "volumeMounts", "securityContext"):
        assert container(migrates)[field] == container(runs)[field]
    secrets = [[volume for volume in pod(each)["volumes"] if "secret" in volume] for each in (runs, migrates)]
    assert secrets[0] == secrets[1]
    assert "prepare_only" in ServiceSettings.model_fields


KINDS = (("Deployment", ""), ("Job", "migrate-"))


def test_servers_and_jobs_are_told_what_compose_tells_them() -> None:
    for kind, name in (("StatefulSet", "postgres"), ("Job", "nats-admin")):
        assert settings("small", manifest("small", kind, name)) == environment_of_compose(name)
    simulator = container(manifest("small", "Deployment", "provider-simulator"))
    assert simulator["command"] == CONTAINERS["provider-simulator"]["command"]
    administrator = container(manifest("small", "Job", "nats-admin"))
    assert administrator["command"] + administrator["args"] == CONTAINERS["nats-admin"]["command"]
    for name in SERVERS:
        assert container(manifest("small", "StatefulSet", name))["args"] == CONTAINERS[name]["command"]


def test_a_cluster_keeps_every_stream_three_times() -> None:
    assert container(manifest("production", "Job", "nats-admin"))["args"][-2:] == ["--replicas", "3"]


@each_overlay
def test_images_are_those_of_compose(name: str) -> None:
    prefix = "registry.example.org/" if name == "production" else ""
    for each in workloads(name):
        image = container(each)["image"]
        of_compose = CONTAINERS.get(each["metadata"]["name"].removeprefix("migrate-"), CONTAINERS["postgres"])["image"]
        wanted, _, _ = of_compose.partition(":")
        assert image.rpartition(":")[0].removeprefix(prefix) == wanted
        if not wanted.startswith("synod/"):
            assert image == of_compose
    assert len({container(each)["image"].rpartition(":")[2] for each in of_kind(name, "Deployment")}) == 1


@each_overlay
@each_service
def test_ports_are_those_of_the_table_and_have_a_name(service: Service, name: str) -> None:
    ports = {each["name"]: each["containerPort"] for each in container(deployment(name, service))["ports"]}
    edges = LAYOUT.edge_ports()
    edge = {"edge": edges[service.name]} if service.name in edges else {}
    assert ports == {"grpc": LAYOUT.grpc_port(service), "http": LAYOUT.http_port(service)} | edge
    served = manifest(name, "Service", service.name)["spec"]
    assert served["ports"] == [{"name": "grpc", "port": LAYOUT.grpc_port(service), "targetPort": "grpc"}]
    # No address of its own: callers see every replica.
    assert served["clusterIP"] == "None"


def deployment(name: str, service: Service) -> Manifest:
    return manifest(name, "Deployment", service.name)


@each_overlay
def test_a_service_finds_the_pods_of_one_workload_and_their_ports(name: str) -> None:
    for each in of_kind(name, "Service"):
        selector = each["spec"]["selector"].items()
        found = [work for work in workloads(name) if selector <= work["spec"]["template"]["metadata"]["labels"].items()]
        assert len(found) == 1, each["metadata"]["name"]
        ports = {port["name"]: port["containerPort"] for port in container(found[0])["ports"]}
        assert all(ports[port["targetPort"]] == port["port"] for port in each["spec"]["ports"])


@each_overlay
def test_a_workload_finds_its_own_pods_only(name: str) -> None:
    for each in of_kind(name, "Deployment", "StatefulSet"):
        selector = each["spec"]["selector"]["matchLabels"].items()
        found = [pod for pod, labels in pods(overlay(name)).items() if selector <= labels.items()]
        assert found == [each["metadata"]["name"]]


@each_overlay
def test_a_pod_can_do_no_more_than_it_must(name: str) -> None:
    for each in workloads(name):
        spec, only = pod(each), container(each)
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] == (999 if "pgvector" in only["image"] else 10001)
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert only["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
        assert not [volume for volume in spec.get("volumes", ()) if "hostPath" in volume]


@each_overlay
def test_the_cluster_itself_refuses_a_pod_that_could_do_more(name: str) -> None:
    labels = manifest(name, "Namespace", "synod")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


@each_overlay
def test_limits_are_those_of_compose(name: str) -> None:
    for each in workloads(name):
        resources, own = container(each)["resources"], each["metadata"]["name"].removeprefix("migrate-")
        assert bytes_of(resources["requests"]["memory"]) <= bytes_of(resources["limits"]["memory"])
        if own in CONTAINERS:
            assert bytes_of(resources["limits"]["memory"]) == bytes_of(CONTAINERS[own]["mem_limit"])
            assert cores_of(resources["limits"]["cpu"]) == CONTAINERS[own]["cpus"]


@each_overlay
@each_service
def test_a_service_is_watched_by_its_own_pages(service: Service, name: str) -> None:
    only = container(deployment(name, service))
    pages = {probe: only[probe]["httpGet"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert {page["port"] for page in pages.values()} == {"http"}
    assert [page["path"] for page in pages.values()] == ["/live", "/live", "/ready"]


@each_overlay
@each_service
def test_a_service_has_time_to_stop(service: Service, name: str) -> None:
    spec, only = pod(deployment(name, service)), container(deployment(name, service))
    pause_s = only["lifecycle"]["preStop"]["sleep"]["seconds"]
    compose_s = int(CONTAINERS[service.name]["stop_grace_period"].removesuffix("s"))
    assert compose_s > SHUTDOWN_GRACE_S
    assert spec["terminationGracePeriodSeconds"] == pause_s + compose_s


@each_overlay
@each_service
def test_an_old_replica_goes_when_a_new_one_is_ready(service: Service, name: str) -> None:
    strategy = deployment(name, service)["spec"]["strategy"]
    assert strategy == {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}


# Secrets


@each_overlay
@each_service
def test_a_service_reads_its_own_secret_and_no_other(service: Service, name: str) -> None:
    for workload in (deployment(name, service), manifest(name, "Job", f"migrate-{service.name}")):
        given = [volume["secret"]["secretName"] for volume in pod(workload)["volumes"] if "secret" in volume]
        assert given == [service.name]
        assert mounts(workload)["secrets"] == {"name": "secrets", "mountPath": "/run/secrets", "readOnly": True}
        told = settings(name, workload)
        lists = [json.loads(value) for key, value in told.items() if key.endswith("_FILES")]
        files = {value for key, value in told.items() if key.endswith("_FILE")} | {
            file for each in lists for file in each
        }
        assert files == {f"/run/secrets/{file}" for file in secrets_of_compose(service.name)}


def mounts(workload: Manifest) -> dict[str, Manifest]:
    return {each["name"]: each for each in container(workload)["volumeMounts"]}


def test_the_secrets_that_are_made_are_those_of_compose() -> None:
    """By the name of the file; NATS includes its passwords from beside its configuration."""
    of_compose = {name: secrets_of_compose(name) for name in CONTAINERS if secrets_of_compose(name)}
    assert secret_files() == of_compose


@each_overlay
def test_every_secret_that_is_mounted_is_made_with_the_keys_that_are_named(name: str) -> None:
    for each in workloads(name):
        for volume in pod(each).get("volumes", ()):
            if "secret" in volume:
                assert volume["secret"]["secretName"] in secret_files()
            for source in volume.get("projected", {}).get("sources", ()):
                if "secret" in source:
                    assert {item["key"] for item in source["secret"]["items"]} == set(
                        secret_files()[source["secret"]["name"]]
                    )


@each_overlay
def test_no_secret_stands_in_a_manifest(name: str) -> None:
    assert not of_kind(name, "Secret")
    for each in workloads(name):
        told = settings(name, each)
        secret = [key for key in told if re.search(r"PASSWORD|DSN|_KEY|SECRET|TOKEN", key)]
        assert all(key.endswith(("_FILE", "_FILES")) for key in secret)
        assert not any("secretRef" in source for source in container(each).get("envFrom", ()))
    assert "PRIVATE KEY" not in json.dumps(overlay(name))


@each_overlay
def test_what_is_mounted_is_there(name: str) -> None:
    for each in workloads(name):
        templates = {claim["metadata"]["name"] for claim in each["spec"].get("volumeClaimTemplates", ())}
        volumes = {volume["name"] for volume in pod(each).get("volumes", ())} | templates
        assert {mount["name"] for mount in container(each).get("volumeMounts", ())} == volumes


@each_overlay
def test_nats_and_postgresql_are_given_the_files_of_deploy(name: str) -> None:
    given = {file: text for each in of_kind(name, "ConfigMap") for file, text in each["data"].items()}
    for file in ("nats/nats.conf", "nats/nats.tls.conf", "nats/jetstream.json", "postgres/roles.sh"):
        assert given[Path(file).name] == (ROOT / "deploy" / file).read_text()


# Many replicas


def scalers() -> list[Manifest]:
    return of_kind("production", "HorizontalPodAutoscaler", "ScaledObject")


def replicas() -> dict[str, int]:
    """How many there are of each service, at least."""
    fixed = {
        each["metadata"]["name"]: each["spec"]["replicas"]
        for each in of_kind("production", "Deployment")
        if "replicas" in each["spec"]
    }
    least = {
        each["spec"]["scaleTargetRef"]["name"]: each["spec"].get("minReplicas") or each["spec"]["minReplicaCount"]
        for each in scalers()
    }
    assert not fixed.keys() & least.keys()
    return fixed | least


def test_every_service_but_the_authority_has_replicas() -> None:
    """It keeps heartbeats in memory; see its README."""
    assert {name: count >= 2 for name, count in replicas().items()} == {
        name: name != "agent-registry" for name in NAMES
    }


def test_a_scaler_is_for_a_deployment_and_named_like_it() -> None:
    for each in scalers():
        target = each["spec"]["scaleTargetRef"]
        assert target["name"] == each["metadata"]["name"]
        assert manifest("production", "Deployment", target["name"])


def test_disruption_budgets_find_the_replicas_of_their_service() -> None:
    budgets = {each["metadata"]["name"]: each["spec"] for each in of_kind("production", "PodDisruptionBudget")}
    assert set(budgets) == set(NAMES)
    for name, spec in budgets.items():
        assert spec["selector"] == manifest("production", "Deployment", name)["spec"]["selector"]
        assert spec["maxUnavailable"] == 1


@each_service
def test_replicas_are_spread(service: Service) -> None:
    spec = pod(deployment("production", service))
    (zones,) = spec["topologySpreadConstraints"]
    (machines,) = spec["affinity"]["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    labels = deployment("production", service)["spec"]["template"]["metadata"]["labels"]
    for spread in (zones, machines["podAffinityTerm"]):
        assert spread["labelSelector"]["matchLabels"].items() <= labels.items()
        assert spread["matchLabelKeys"] == ["app.kubernetes.io/name", "pod-template-hash"]


@each_service
def test_a_replica_whose_machine_is_lost_is_soon_elsewhere(service: Service) -> None:
    """A cluster waits five minutes by itself. README.md tells these seconds."""
    tolerations = {each["key"]: each for each in pod(deployment("production", service))["tolerations"]}
    assert set(tolerations) == {f"node.kubernetes.io/{what}" for what in ("not-ready", "unreachable")}
    for each in tolerations.values():
        assert (each["operator"], each["effect"]) == ("Exists", "NoExecute")
        assert f"waits {each['tolerationSeconds']} s more (`tolerationSeconds`)" in README


def test_the_runtime_is_scaled_by_its_own_queue() -> None:
    (trigger,) = manifest("production", "ScaledObject", "agent-runtime")["spec"]["triggers"]
    told = trigger["metadata"]
    streams = json.loads((ROOT / "deploy/nats/jetstream.json").read_text())["streams"]
    (queue,) = [each for each in streams if each["config"]["name"] == told["stream"]]
    assert [consumer["durable_name"] for consumer in queue["consumers"]] == [told["consumer"]]
    assert told["account"] == HUB
    at_once = RuntimeSettings.model_fields["runs_concurrent_max"].default
    assert int(told["lagThreshold"]) < at_once
    # What its replicas may work on together, the consumer lets out.
    most = manifest("production", "ScaledObject", "agent-runtime")["spec"]["maxReplicaCount"]
    assert most * at_once <= queue["consumers"][0]["max_ack_pending"]


def test_every_machine_mounts_what_replicas_share() -> None:
    claims = {
        name: {each["metadata"]["name"]: each["spec"] for each in of_kind(name, "PersistentVolumeClaim")}
        for name in OVERLAYS
    }
    assert [set(found) for found in claims.values()] == [{"archive", "workspaces"}] * 2
    assert {tuple(spec["accessModes"]) for spec in claims["small"].values()} == {("ReadWriteOnce",)}
    assert {tuple(spec["accessModes"]) for spec in claims["production"].values()} == {("ReadWriteMany",)}


@each_overlay
@each_service
def test_a_service_keeps_its_files_where_compose_has_them(service: Service, name: str) -> None:
    volumes = dict(each.rpartition(":")[::2] for each in CONTAINERS[service.name]["volumes"])
    mounted = mounts(deployment(name, service))
    claimed = {each["name"] for each in pod(deployment(name, service))["volumes"] if "persistentVolumeClaim" in each}
    assert {mounted[claim]["mountPath"] for claim in claimed} == set(volumes.values())
    # Of the volume that all share, each sees a directory of its own.
    for workload in (deployment(name, service), manifest(name, "Job", f"migrate-{service.name}")):
        assert mounts(workload)["archive"]["subPath"] == service.name
