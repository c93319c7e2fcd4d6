"""The committed gRPC code is what proto/ generates."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
COMMITTED = ROOT / "libs" / "contracts" / "src"
PROTOS = sorted(str(path.relative_to(ROOT / "proto")) for path in (ROOT / "proto").glob("synod/*/v1/*.proto"))


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("generated")
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I", str(ROOT / "proto")]
    subprocess.run([*command, f"--python_out={out}", f"--grpc_python_out={out}", *PROTOS], check=True)
    return out


@pytest.mark.parametrize("proto", PROTOS)
@pytest.mark.parametrize("suffix", ["_pb2.py", "_pb2_grpc.py"])
def test_generated_code_is_current(generated: Path, proto: str, suffix: str) -> None:
    name = proto.removesuffix(".proto") + suffix
    assert (generated / name).read_text() == (COMMITTED / name).read_text(), "run `make proto`"
