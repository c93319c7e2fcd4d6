"""The overlays as a cluster is given them, and what compose.yaml has of the same."""

import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from launcher.layout import SERVICES

from .kustomize import Manifest, build, by_name

ROOT = Path(__file__).parents[2]
OVERLAYS = ("small", "production")
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
CONTAINERS: dict[str, dict[str, Any]] = {
    name: each for name, each in COMPOSE["services"].items() if "profiles" not in each
}
"""Those that always run; a cluster has its own of what a profile adds."""
NAMES = tuple(service.name for service in SERVICES)


@cache
def overlay(name: str) -> tuple[Manifest, ...]:
    return tuple(build(ROOT / "deploy/kubernetes/overlays" / name))


def manifest(overlay_name: str, kind: str, name: str) -> Manifest:
    return by_name(list(overlay(overlay_name)))[kind, name]


def of_kind(overlay_name: str, *kinds: str) -> list[Manifest]:
    return [each for each in overlay(overlay_name) if each["kind"] in kinds]


def pod(workload: Manifest) -> Manifest:
    return workload["spec"]["template"]["spec"]


def container(workload: Manifest) -> Manifest:
    (only,) = pod(workload)["containers"]
    return only


def settings(overlay_name: str, workload: Manifest) -> dict[str, str]:
    """The environment of a workload's container: of its ConfigMaps, the later before the earlier, and its own."""
    told: dict[str, str] = {}
    for source in container(workload).get("envFrom", ()):
        told |= manifest(overlay_name, "ConfigMap", source["configMapRef"]["name"])["data"]
    for variable in container(workload).get("env", ()):
        told[variable["name"]] = variable.get("value") or _referred(overlay_name, variable)
    return told


def _referred(overlay_name: str, variable: Manifest) -> str:
    reference = variable["valueFrom"]["configMapKeyRef"]
    return str(manifest(overlay_name, "ConfigMap", reference["name"])["data"][reference["key"]])


def environment_of_compose(name: str) -> dict[str, str]:
    """With the defaults of its variables."""
    told = CONTAINERS[name].get("environment", {})
    return {key: re.sub(r"\$\{\w+:-(.*?)\}", r"\1", str(value)) for key, value in told.items()}


def secrets_of_compose(name: str) -> Mapping[str, str]:
    """The name of the file in the container, and of the secret that is in it."""
    given: Iterator[Any] = iter(CONTAINERS[name].get("secrets", ()))
    pairs = [(each, each) if isinstance(each, str) else (each["target"], each["source"]) for each in given]
    return {Path(target).name: source for target, source in pairs}


def same(one: str, other: str) -> bool:
    """Whether two settings say the same; JSON may be written in several ways."""
    return one == other or (one[:1] in "{[" and json.loads(one) == json.loads(other))
