"""Every service's image is made the same way: its Dockerfile is one text with the service's own names, ports and libraries."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from launcher.layout import EDGES, PORT_BASE, SERVICES, Layout, Service

ROOT = Path(__file__).parents[2]
MODEL, *OTHERS = SERVICES
LIBRARIES = ("contracts", "eventlog", "servicekit")
"""Of every service."""
FURTHER = dict.fromkeys(EDGES, ("httpedge",))
"""Of those that serve an edge: a change of it leaves the images of others as they are."""


def dockerfile(service: Service) -> str:
    return (ROOT / "services" / service.name / "Dockerfile").read_text()


def renamed(text: str, old: Service, new: Service) -> str:
    layout = Layout(Path(), PORT_BASE)
    names = {old.name: new.name, old.module: new.module}
    ports = {layout.grpc_port(old): layout.grpc_port(new), layout.http_port(old): layout.http_port(new)}
    for before, after in (names | ports).items():
        text = text.replace(str(before), str(after))
    return text


def with_libraries(text: str, service: Service) -> str:
    """The text, and what further libraries of its own the service has."""
    libraries, own = FURTHER.get(service.name, ()), f"services/{service.name}"
    copies = "".join(f"COPY libs/{name} libs/{name}\n" for name in libraries)
    text = text.replace(f"COPY {own} {own}\n", f"{copies}COPY {own} {own}\n")
    wheels = "".join(f"libs/{name} " for name in libraries)
    return text.replace(f"--wheel-dir wheels {own} ", f"--wheel-dir wheels {wheels}{own} ")


@pytest.mark.parametrize("service", OTHERS, ids=lambda service: service.name)
def test_dockerfiles_differ_in_names_ports_and_further_libraries_only(service: Service) -> None:
    assert dockerfile(service) == with_libraries(renamed(dockerfile(MODEL), MODEL, service), service)


def test_an_image_runs_without_root_and_stops_on_sigterm() -> None:
    lines = dockerfile(MODEL).rpartition("\nFROM ")[2].splitlines()
    assert "USER 10001:10001" in lines
    assert "STOPSIGNAL SIGTERM" in lines
    assert 'CMD ["python", "-m", "agent_registry"]' in lines


@pytest.mark.parametrize("service", SERVICES, ids=lambda service: service.name)
def test_an_image_says_what_it_is_and_what_it_was_made_of(service: Service) -> None:
    """But not when it was made: then no two builds of the same would be the same. The commit it names has a date."""
    project = tomllib.loads((ROOT / "services" / service.name / "pyproject.toml").read_text())["project"]
    labels = dict(re.findall(r'org\.opencontainers\.image\.(\w+)="([^"]*)"', dockerfile(service)))
    assert labels == {
        "title": f"synod/{service.name}",
        "description": f"{service.name}, a service of Synod",
        "licenses": project["license"],
        "version": project["version"],
        "source": "${SOURCE}",
        "revision": "${REVISION}",
    }
    args = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"][service.name]["build"]["args"]
    assert {name: args[name] for name in ("SOURCE", "REVISION")} == {
        "SOURCE": "${SOURCE:-unknown}",
        "REVISION": "${REVISION:-unknown}",
    }


def test_what_an_image_is_built_on_may_be_pinned_and_is_else_what_its_dockerfile_says() -> None:
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    (default,) = re.findall(r"^ARG PYTHON_IMAGE=(.+)$", dockerfile(MODEL), re.MULTILINE)
    told = {compose[service.name]["build"]["args"]["PYTHON_IMAGE"] for service in SERVICES}
    assert told == {f"${{PYTHON_IMAGE:-{default}}}"}
    based_on = {line.split()[1] for line in dockerfile(MODEL).splitlines() if line.startswith("FROM ")}
    assert based_on == {"${PYTHON_IMAGE}", "libraries"}


def test_an_image_is_built_with_and_without_buildkit() -> None:
    """None of these is known to the builder of older engines."""
    features = ("# syntax", "--mount", "--link", "--chmod", "--parents", "<<")
    assert not [feature for feature in features if feature in dockerfile(MODEL)]


def test_nothing_is_installed_without_a_hash_or_from_source() -> None:
    installed = [line for line in dockerfile(MODEL).splitlines() if re.search(r"\bpip\b.*\binstall\b", line)]
    from_index = [line for line in installed if "--no-index" not in line]
    assert (len(from_index), len(installed)) == (3, 4)
    assert all("--require-hashes" in line and "--only-binary :all:" in line for line in from_index)


def test_what_runs_in_an_image_is_put_there_by_nothing_but_these() -> None:
    """After the base: no other command, no other file."""
    last = dockerfile(MODEL).rpartition("\nFROM ")[2].splitlines()
    assert [
        line for line in last if line.startswith(("RUN ", "COPY ", "ADD ", "ONBUILD ", "ENTRYPOINT ", "VOLUME "))
    ] == [
        "RUN useradd --system --uid 10001 --user-group --home-dir /tmp synod "
        "&& install -d -m 0700 -o synod -g synod /var/lib/synod /var/lib/synod-archive",
        "COPY --from=packages /opt/synod /opt/synod",
        "RUN echo /opt/synod/code > /opt/synod/lib/python3.11/site-packages/synod.pth",
        "COPY --from=service /code /opt/synod/code",
    ]


@pytest.mark.parametrize("service", SERVICES, ids=lambda service: service.name)
def test_what_every_service_needs_is_what_this_one_needs(service: Service) -> None:
    """The layer that all images share holds no other version, and nothing that a service does without."""
    own = ROOT / "services" / service.name / "requirements.lock"
    assert pins(ROOT / "deploy/images/common.lock") <= pins(own)


def pins(lock: Path) -> set[str]:
    """name==version of each package, without hashes and markers."""
    return {line.split()[0] for line in lock.read_text().splitlines() if "==" in line and not line.startswith(" ")}


@pytest.mark.parametrize("service", SERVICES, ids=lambda service: service.name)
def test_a_service_uses_exactly_the_libraries_that_its_image_holds(service: Service) -> None:
    project = tomllib.loads((ROOT / "services" / service.name / "pyproject.toml").read_text())["project"]
    libraries = (*LIBRARIES, *FURTHER.get(service.name, ()))
    assert {name for name in project["dependencies"] if name.startswith("synod-")} == {f"synod-{e}" for e in libraries}
    makes_wheels = [line for line in dockerfile(service).splitlines() if " pip wheel " in line]
    built = [word for line in makes_wheels for word in line.split() if word.startswith(("libs/", "services/"))]
    assert built == [*(f"libs/{each}" for each in libraries), f"services/{service.name}"]


def test_a_file_that_no_image_needs_is_not_sent_to_the_engine() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    assert not any(rule.startswith(("!deploy/compose", "!.git", "!.venv")) for rule in rules)
