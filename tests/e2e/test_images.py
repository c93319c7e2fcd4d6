"""What a build makes: labelled images, of which a change of one service makes one anew."""

import json
import os
import shutil
import subprocess

import pytest
from launcher.layout import SERVICES

from .conftest import ROOT, Containers, engine

pytestmark = [pytest.mark.system, pytest.mark.timeout(1200)]
NAMES = tuple(service.name for service in SERVICES)
CHANGED = "consensus"
TAG = "e2e-changed"
BUILDKIT_TAG = "e2e-buildkit"
BUILD_S = 900
BUILD_ARGUMENTS = ("PYTHON_IMAGE", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL")
SAID = ("User", "ExposedPorts", "Env", "Cmd", "Healthcheck", "WorkingDir", "Entrypoint", "StopSignal", "Labels")
LABELS = "{{json .Config.Labels}}"
LAYERS = "{{json .RootFS.Layers}}"


def of_image(service: str, tag: str, form: str) -> str:
    return engine("image", "inspect", "--format", form, f"synod/{service}:{tag}").strip()


@pytest.fixture(scope="module")
def rebuilt(port_base: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Images of the same sources, but for a line in one module of one service."""
    folder = tmp_path_factory.mktemp("changed")
    for part in ("services", "libs", "deploy"):
        shutil.copytree(
            ROOT / part, folder / part, symlinks=True, ignore=shutil.ignore_patterns("secrets", "__pycache__")
        )
    for file in ("compose.yaml", ".dockerignore"):
        shutil.copy(ROOT / file, folder)
    changed = folder / "services" / CHANGED / "src" / CHANGED / "domain.py"
    changed.write_text(changed.read_text() + "\nCHANGED = True\n")
    Containers(port_base, folder, {"SYNOD_VERSION": TAG}).compose("build", timeout_s=BUILD_S)


@pytest.mark.parametrize("service", NAMES)
def test_an_image_has_the_labels_of_the_open_container_initiative(port_base: int, service: str) -> None:
    labels = json.loads(of_image(service, "dev", LABELS))
    told = {name.removeprefix("org.opencontainers.image."): text for name, text in labels.items()}
    assert (told["title"], told["licenses"]) == (f"synod/{service}", "Apache-2.0")
    assert all(told[name] for name in ("description", "version", "source", "revision"))


def test_a_change_of_one_service_makes_one_image_anew_and_of_that_one_layer(rebuilt: None) -> None:
    ids = {name: [of_image(name, tag, "{{.Id}}") for tag in ("dev", TAG)] for name in NAMES}
    assert [name for name, (before, after) in ids.items() if before != after] == [CHANGED]
    before, after = (json.loads(of_image(CHANGED, tag, LAYERS)) for tag in ("dev", TAG))
    assert sum(one != other for one, other in zip(before, after, strict=True)) == 1


def build_by_buildkit(client: str, *arguments: str, dockerfile: str = "") -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [client, "build", *arguments],
        env={**os.environ, "DOCKER_BUILDKIT": "1"},
        cwd=ROOT,
        input=dockerfile,
        capture_output=True,
        text=True,
        timeout=BUILD_S,
        check=False,
    )


@pytest.fixture(scope="module")
def client() -> str:
    """The first `docker` on PATH that builds with BuildKit: since version 23 it needs buildx for that, before it did not."""
    places = (shutil.which("docker", path=folder) for folder in os.get_exec_path())
    for found in filter(None, places):
        if build_by_buildkit(found, "-", dockerfile="FROM scratch\nLABEL tried=yes\n").returncode == 0:
            return found
    pytest.skip("no `docker` on PATH builds with BuildKit: install its component buildx")


@pytest.mark.parametrize("service", NAMES)
def test_buildkit_makes_the_same_image(port_base: int, client: str, service: str) -> None:
    tag = f"synod/{service}:{BUILDKIT_TAG}"
    arguments = [f"--build-arg={name}" for name in BUILD_ARGUMENTS if name in os.environ]
    built = build_by_buildkit(client, *arguments, "-f", f"services/{service}/Dockerfile", "-t", tag, ".")
    assert built.returncode == 0, built.stderr[-4000:]
    configs = [json.loads(of_image(service, each, "{{json .Config}}")) for each in ("dev", BUILDKIT_TAG)]
    classic, new = ({name: config.get(name) for name in SAID} for config in configs)
    assert classic == new
    assert not engine("run", "--rm", tag, "python", "-c", f"import {service.replace('-', '_')}.main")
