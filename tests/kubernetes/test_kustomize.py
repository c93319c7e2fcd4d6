"""What is built here is what Kustomize builds; `make kubernetes-lint` compares the whole."""

from pathlib import Path
from textwrap import dedent

import pytest

from .kustomize import build, by_name, config_hash, merged, selects


def write(directory: Path, **files: str) -> Path:
    for name, text in files.items():
        (directory / f"{name}.yaml").write_text(dedent(text))
    return directory


def test_a_patch_changes_entries_of_the_same_name_and_replaces_other_lists() -> None:
    base = {"containers": [{"name": "a", "image": "one", "args": ["x"]}, {"name": "b"}], "keys": [1, 2]}
    patch = {"containers": [{"name": "a", "args": ["y"]}, {"name": "c"}], "keys": [3]}
    containers = [{"name": "a", "image": "one", "args": ["y"]}, {"name": "b"}, {"name": "c"}]
    assert merged(base, patch) == {"containers": containers, "keys": [3]}


def test_null_in_a_patch_removes() -> None:
    assert merged({"strategy": {"rollingUpdate": {"maxSurge": 1}}}, {"strategy": {"rollingUpdate": None}}) == {
        "strategy": {}
    }
    assert merged({}, {"strategy": {"type": "Recreate", "rollingUpdate": None}}) == {"strategy": {"type": "Recreate"}}


def test_the_end_of_a_generated_name_is_that_of_kustomize() -> None:
    """Those that kubectl 1.32 (Kustomize 5.5) gave."""
    data = {
        "SYNOD_NATS_USER": "agent-registry",
        "SYNOD_PEERS": "{}",
        "SYNOD_SIGNING_KEY_FILE": "/run/secrets/signing.pem",
        "SYNOD_SERVICE_KEYS_FILE": "/run/secrets/service-keys.json",
        "SYNOD_DEV_KEY_FILE": "/run/secrets/dev.key",
    }
    assert config_hash({"data": data}) == "2gkkh664hc"


def test_a_reference_follows_a_generated_name(tmp_path: Path) -> None:
    write(
        tmp_path,
        kustomization="""
            resources: [job.yaml]
            configMapGenerator: [{name: settings, literals: [A=1, B=x=y]}]
            namespace: there
        """,
        job="""
            apiVersion: batch/v1
            kind: Job
            metadata: {name: job}
            spec: {template: {spec: {containers: [{name: c, envFrom: [{configMapRef: {name: settings}}]}]}}}
        """,
    )
    job, settings = build(tmp_path)
    assert settings["data"] == {"A": "1", "B": "x=y"}
    assert settings["metadata"]["name"].startswith("settings-")
    reference = job["spec"]["template"]["spec"]["containers"][0]["envFrom"][0]["configMapRef"]
    assert reference == {"name": settings["metadata"]["name"]}
    assert job["metadata"]["namespace"] == settings["metadata"]["namespace"] == "there"


def test_an_overlay_changes_its_base(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    write(
        tmp_path / "base",
        kustomization="""
            resources: [work.yaml]
            configMapGenerator: [{name: settings, literals: [A=1, B=2]}]
        """,
        work="""
            apiVersion: apps/v1
            kind: Deployment
            metadata: {name: work, labels: {part: service}}
            spec: {template: {spec: {containers: [{name: c, image: "team/work:dev"}]}}}
        """,
    )
    write(
        tmp_path,
        kustomization="""
            resources: [base]
            configMapGenerator: [{name: settings, behavior: merge, literals: [B=3]}]
            images: [{name: team/work, newName: registry/work, newTag: "1.0"}]
            replicas: [{name: work, count: 2}]
            labels: [{pairs: {of: us}}]
            patches: [{path: patch.yaml, target: {kind: Deployment, labelSelector: part=service}}]
        """,
        patch="""
            apiVersion: apps/v1
            kind: Deployment
            metadata: {name: any}
            spec: {template: {spec: {containers: [{name: c, tty: true}]}}}
        """,
    )
    work = by_name(build(tmp_path))["Deployment", "work"]
    assert work["metadata"]["labels"] == {"part": "service", "of": "us"}
    assert work["spec"]["replicas"] == 2
    assert work["spec"]["template"]["spec"]["containers"] == [{"name": "c", "image": "registry/work:1.0", "tty": True}]
    (settings,) = [each for each in build(tmp_path) if each["kind"] == "ConfigMap"]
    assert settings["data"] == {"A": "1", "B": "3"}


@pytest.mark.parametrize(
    ("selector", "expected"), [("part=service", True), ("part=job", False), ("part in (job, service)", True)]
)
def test_a_selector_is_read(selector: str, expected: bool) -> None:
    assert selects(selector, {"part": "service"}) is expected


@pytest.mark.parametrize(
    "kustomization",
    [
        "namePrefix: x-",
        "configMapGenerator: [{name: a, options: {immutable: true}}]",
        "patches: [{path: patch.yaml, target: {kind: Deployment}}]",
    ],
)
def test_what_is_not_understood_is_refused(kustomization: str, tmp_path: Path) -> None:
    write(tmp_path, kustomization=kustomization, patch="{kind: Deployment, metadata: {name: a}}")
    with pytest.raises(ValueError, match=r"known here|nothing to patch"):
        build(tmp_path)


def test_a_selector_that_is_not_understood_is_refused() -> None:
    with pytest.raises(ValueError, match="selector"):
        selects("part!=service", {})
