"""Same thing, same place, same name in every service."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SERVICES = sorted(path for path in (ROOT / "services").iterdir() if (path / "pyproject.toml").exists())
REQUIRED = {
    "__init__.py",
    "__main__.py",
    "domain.py",
    "application.py",
    "errors.py",
    "translate.py",
    "rpc.py",
    "settings.py",
    "main.py",
}
BANNED_NAMES = {
    "utils": "name the file after its noun",
    "helpers": "name the file after its noun",
    "misc": "name the file after its noun",
    "common_utils": "name the file after its noun",
}
BANNED_CALLS = {
    "datetime.now()": "ask the clock",
    "datetime.utcnow": "ask the clock",
    "uuid.uuid4": "synod.common.ids",
    "uuid4(": "synod.common.ids",
    "float(cost": "money is integer",
}


def package(service: Path) -> Path:
    return service / "src" / service.name.replace("-", "_")


def modules() -> list[Path]:
    found = [path for part in ("libs", "services") for path in (ROOT / part).glob("*/src/**/*.py")]
    return sorted(path for path in found if "_pb2" not in path.name)


@pytest.mark.parametrize("service", SERVICES, ids=lambda path: path.name)
def test_every_service_has_the_same_files(service: Path) -> None:
    assert {path.name for path in package(service).iterdir()} >= REQUIRED
    assert {"README.md", "pyproject.toml", "requirements.lock", "tests", "Dockerfile"} <= {
        path.name for path in service.iterdir()
    }


@pytest.mark.parametrize("service", SERVICES, ids=lambda path: path.name)
def test_main_module_is_two_lines(service: Path) -> None:
    lines = [
        line
        for line in (package(service) / "__main__.py").read_text().splitlines()
        if line and not line.startswith('"')
    ]
    assert len(lines) <= 3
    assert any("main" in line for line in lines)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_says_what_it_is(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert not tree.body or ast.get_docstring(tree)


def test_no_file_has_a_name_that_says_nothing() -> None:
    found = {str(path.relative_to(ROOT)): BANNED_NAMES[path.stem] for path in modules() if path.stem in BANNED_NAMES}
    assert not found


def test_no_banned_call_is_made() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {call} -> {instead}"
        for path in modules()
        for call, instead in BANNED_CALLS.items()
        if call in path.read_text()
    ]
    assert not found


def test_functions_stay_small() -> None:
    """Nine in ten functions are under 25 lines, and none passes 80; a flat match is the one excuse and is still bounded."""
    sizes = sorted(
        (node.end_lineno or 0) - node.lineno + 1
        for path in modules()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    assert sizes[len(sizes) * 9 // 10] <= 25
    assert sizes[-1] <= 80


def test_make_and_just_agree() -> None:
    targets = set(re.findall(r"^([a-z][a-z0-9-]*):.*?## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    recipes = set(re.findall(r"^([a-z][a-z0-9-]*)(?: \*args)?:", (ROOT / "justfile").read_text(), re.MULTILINE))
    assert targets == recipes


def test_locks_have_hashes_and_no_addresses() -> None:
    for lock in [ROOT / "requirements.lock", *(service / "requirements.lock" for service in SERVICES)]:
        text = lock.read_text()
        assert "--hash=sha256:" in text
        assert "://" not in text
        assert "--index-url" not in text


def test_top_level_holds_only_what_belongs_there() -> None:
    allowed = {"README.md", "CHANGELOG.md", "LICENSE", "services", "libs", "proto", "deploy", "tests", "compose.yaml", "Makefile", "justfile", "pyproject.toml", "requirements.lock", "build"}  # fmt: skip
    assert {path.name for path in ROOT.iterdir() if not path.name.startswith(".")} <= allowed
