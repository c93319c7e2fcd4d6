"""Every RPC is documented, guarded and served."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROTOS = sorted((ROOT / "proto").glob("synod/*/v1/*.proto"))
SERVED = [path for path in PROTOS if path.stem != "eventlog"]


def rpcs(path: Path) -> dict[str, str]:
    """Each RPC with the comment above it."""
    found = re.findall(r"((?:^  //.*\n)+)^  rpc (\w+)\(", path.read_text(), re.MULTILINE)
    return {name: " ".join(comment.replace("//", "").split()) for comment, name in found}


@pytest.mark.parametrize("path", PROTOS, ids=lambda path: path.stem)
def test_every_rpc_says_its_permission(path: Path) -> None:
    declared = len(re.findall(r"^  rpc ", path.read_text(), re.MULTILINE))
    documented = rpcs(path)
    assert len(documented) == declared
    assert [
        name for name, comment in documented.items() if "Permission: " not in comment and "Public." not in comment
    ] == []


@pytest.mark.parametrize("path", SERVED, ids=lambda path: path.stem)
def test_every_rpc_is_guarded_as_its_comment_says(path: Path) -> None:
    permissions = importlib.import_module(f"{path.stem}.rpc").PERMISSIONS
    for name, comment in rpcs(path).items():
        match = re.search(r"Permission: ([a-z.]+[a-z])", comment)
        assert permissions[name] == (match.group(1) if match else "")
