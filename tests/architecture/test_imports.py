"""The dependency rule: services never import each other, cores import no I/O, libraries know no service."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SERVICES = sorted(path for path in (ROOT / "services").iterdir() if (path / "pyproject.toml").exists())
PACKAGES = {path.name.replace("-", "_") for path in SERVICES}

# What each library may import of ours.
ALLOWED = {
    "contracts": {"synod"},
    "eventlog": {"synod", "eventlog"},
    "servicekit": {"synod", "eventlog", "servicekit"},
    "httpedge": {"synod", "servicekit", "httpedge"},
    "client": {"synod", "synod_client", "launcher"},
    "launcher": {"synod", "servicekit", "launcher"},
}
OURS = {"synod", "eventlog", "servicekit", "httpedge", "synod_client", "launcher", "provider_simulator"} | PACKAGES

# Modules that reach outside the process. A pure core imports none of them.
IO_MODULES = {
    "aiohttp", "asyncio", "duckdb", "eventlog", "faststream", "grpc", "httpx", "httpx2", "nats", "os", "pathlib", "psycopg",
    "random", "requests", "secrets", "servicekit", "socket", "subprocess", "time", "uuid",
}  # fmt: skip


def imported(path: Path) -> Iterator[str]:
    """Top-level names that a file imports, wherever in it the import stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0]


def sources(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / "src").rglob("*.py") if "_pb2" not in path.name)


@pytest.mark.parametrize("service", SERVICES, ids=lambda path: path.name)
def test_services_never_import_each_other(service: Path) -> None:
    own = {path.name for path in (service / "src").iterdir()}
    foreign = (OURS - own) - {"synod", "eventlog", "servicekit", "httpedge"}
    found = {(path.name, name) for path in sources(service) for name in imported(path) if name in foreign}
    assert not found


@pytest.mark.parametrize("library", sorted(ALLOWED))
def test_libraries_import_only_libraries_below_them(library: str) -> None:
    found = {
        (path.name, name)
        for path in sources(ROOT / "libs" / library)
        for name in imported(path)
        if name in OURS and name not in ALLOWED[library]
    }
    assert not found


def cores() -> list[Path]:
    named = [path for service in SERVICES for path in sources(service) if path.stem in {"domain", "teams", "replay"}]
    behaviours = [path for service in SERVICES for path in sources(service) if path.parent.name == "behaviours"]
    events = sorted((ROOT / "libs" / "contracts" / "src").rglob("events.py"))
    return named + behaviours + events


@pytest.mark.parametrize("path", cores(), ids=lambda path: str(path.relative_to(ROOT)))
def test_pure_cores_import_no_input_or_output(path: Path) -> None:
    assert not set(imported(path)) & IO_MODULES


def test_protobuf_stays_at_the_edge_of_a_service() -> None:
    """Only translate.py knows both worlds; rpc.py and clients.py pass messages on. What is in compatible/ translates from
    one wire format to another, with no world of its own in between."""
    edge, wires = {"translate", "rpc", "clients", "main"}, "compatible"
    found = [
        path.relative_to(ROOT)
        for service in SERVICES
        for path in sources(service)
        if "_pb2" in path.read_text() and path.stem not in edge and path.parent.name != wires
    ]
    assert not found
