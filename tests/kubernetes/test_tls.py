"""By the component tls a cluster speaks mutual TLS where compose does with TLS=1."""

from pathlib import Path

import pytest
import yaml
from launcher.certificates import settings_of

from .kustomize import Manifest, build, by_name
from .overlays import NAMES, ROOT, container, manifest, overlay, pod, settings
from .reach import pods, policies
from .schemas import problems

SECURED = yaml.safe_load((ROOT / "deploy/compose/compose.tls.yaml").read_text())["services"]
TOLD = settings_of(Path("/run"), "secrets")
SMALL_TLS = "small-tls"

JOBS = ("nats-admin", *(f"migrate-{service}" for service in NAMES))
WHO_CALLS = [("Deployment", name) for name in NAMES] + [("Job", name) for name in JOBS]


def test_the_api_knows_every_manifest() -> None:
    assert [problems(each) for each in overlay(SMALL_TLS) if problems(each)] == []


@pytest.mark.parametrize(("kind", "name"), WHO_CALLS)
def test_who_calls_is_told_where_its_certificate_is_and_nothing_else_is_changed(kind: str, name: str) -> None:
    plain, secured = (settings(each, manifest(each, kind, name)) for each in ("small", SMALL_TLS))
    assert secured == {**plain, **TOLD}


def test_nats_is_started_as_compose_starts_it_with_the_same_files() -> None:
    nats = manifest(SMALL_TLS, "StatefulSet", "nats")
    assert container(nats)["args"] == SECURED["nats"]["command"]
    mounted = {each["mountPath"]: each["name"] for each in container(nats)["volumeMounts"]}
    files = {volume["name"]: set(paths(volume)) for volume in pod(nats)["volumes"]}
    assert files[mounted["/etc/nats"]] == {"synod.conf", "synod.tls.conf", "passwords.conf"}
    assert files[mounted["/run/tls"]] == {"ca.crt", "tls.crt", "tls.key"}


def paths(volume: Manifest) -> list[str]:
    sources = volume["projected"]["sources"] if "projected" in volume else [{"secret": volume["secret"]}]
    return [item["path"] for source in sources for each in source.values() for item in each["items"]]


def test_who_reaches_whom_is_not_changed() -> None:
    assert pods(overlay(SMALL_TLS)) == pods(overlay("small"))
    assert policies(overlay(SMALL_TLS)) == policies(overlay("small"))


def test_many_machines_take_the_same_component(tmp_path: Path) -> None:
    parts = {"resources": ["overlays/production"], "components": ["components/tls"]}
    for field, (part,) in parts.items():
        parts[field] = [str(ROOT / "deploy/kubernetes" / part)]
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(parts))
    secured = by_name(build(tmp_path))
    sources = container(secured["Deployment", "consensus"])["envFrom"]
    told = secured["ConfigMap", sources[0]["configMapRef"]["name"]]["data"]
    assert told.items() >= TOLD.items()
