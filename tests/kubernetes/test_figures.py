"""The sums in deploy/kubernetes/README.md are those of the manifests and of the limits of the code."""

import re

import pytest
from eventlog.limits import Limits as LogLimits
from launcher.layout import MODELS, TOOLS
from servicekit.limits import Limits

from .kustomize import Manifest
from .overlays import NAMES, ROOT, container, of_kind
from .quantities import bytes_of, cores_of
from .reach import WORKLOADS

README = (ROOT / "deploy/kubernetes/README.md").read_text()
MIB = 2**20
WRITER, LISTENER = 1, 1
OWN = {MODELS: 2, TOOLS: 1}
"""A lock by which others see that the process lives; of llm-gateway also the writer of answers that are kept."""


def least() -> dict[str, int]:
    return {name: counts[0] for name, counts in replicas().items()}


def most() -> dict[str, int]:
    return {name: counts[1] for name, counts in replicas().items()}


def replicas() -> dict[str, tuple[int, int]]:
    """Of each service in production, at least and at most."""
    fixed = {
        each["metadata"]["name"]: (each["spec"].get("replicas", 1),) * 2 for each in of_kind("production", "Deployment")
    }
    scaled = {
        each["metadata"]["name"]: _bounds(each["spec"])
        for each in of_kind("production", "HorizontalPodAutoscaler", "ScaledObject")
    }
    return fixed | scaled


def _bounds(spec: Manifest) -> tuple[int, int]:
    if "minReplicas" in spec:
        return spec["minReplicas"], spec["maxReplicas"]
    return spec["minReplicaCount"], spec["maxReplicaCount"]


def connections(counts: dict[str, int]) -> int:
    """To PostgreSQL, at most: a pool, the readers, the writer and the listener of the log, and what two services add."""
    each = Limits().postgres_connections_max + LogLimits().readers_max + WRITER + LISTENER
    return sum(count * (each + OWN.get(name, 0)) for name, count in counts.items())


def requested(name: str, counts: dict[str, int]) -> tuple[float, int, int]:
    """Cores and MiB that the pods ask for, and MiB that they may use, jobs aside."""
    works = [
        each for each in of_kind(name, *WORKLOADS - {"Job"}) for _ in range(counts.get(each["metadata"]["name"], 1))
    ]
    resources = [container(each)["resources"] for each in works]
    return (
        round(sum(cores_of(each["requests"]["cpu"]) for each in resources), 2),
        sum(bytes_of(each["requests"]["memory"]) for each in resources) // MIB,
        sum(bytes_of(each["limits"]["memory"]) for each in resources) // MIB,
    )


ONE_EACH = dict.fromkeys(NAMES, 1)


@pytest.mark.parametrize(
    ("row", "overlay", "counts"),
    [
        ("small", "small", ONE_EACH),
        ("production, at least", "production", least()),
        ("production, at most", "production", most()),
    ],
)
def test_a_row_of_the_table_is_what_the_manifests_add_up_to(row: str, overlay: str, counts: dict[str, int]) -> None:
    cores, asked_mib, limit_mib = requested(overlay, counts)
    (line,) = re.findall(rf"^\| {row} \|(.*)\|$", README, re.MULTILINE)
    pods = sum(counts.values()) + (3 if overlay == "small" else 0)
    assert [cell.strip() for cell in line.split("|")] == [
        str(pods),
        f"{cores:g}",
        f"{asked_mib:,} MiB",
        f"{limit_mib:,} MiB",
        str(connections(counts)),
    ]
