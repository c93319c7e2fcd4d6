import os
from pathlib import Path

import pytest
from tool_executor.errors import ToolError
from tool_executor.tools.workspace import Workspace


@pytest.fixture
def workspace(workspace_dir: Path) -> Workspace:
    return Workspace(workspace_dir, file_bytes_max=1000, total_bytes_max=1500)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret.txt"
    path.write_text("secret")
    return path


def kind_of_failure(act) -> str:
    with pytest.raises(ToolError) as caught:
        act()
    return caught.value.kind


OUTSIDE = ["/etc/passwd", "../secret.txt", "a/../../secret.txt", "..", ".", "", "a/" * 20 + "x", "a\0b", "x" * 600]


@pytest.mark.parametrize("path", OUTSIDE)
def test_refuses_to_read_and_write_outside(workspace: Workspace, secret: Path, path: str) -> None:
    assert kind_of_failure(lambda: workspace.read_bytes(path)) == "INVALID_PATH"
    assert kind_of_failure(lambda: workspace.write_bytes(path, b"x")) == "INVALID_PATH"
    assert secret.read_text() == "secret"


def test_does_not_follow_a_link_to_a_file(workspace: Workspace, workspace_dir: Path, secret: Path) -> None:
    (workspace_dir / "link.txt").symlink_to(secret)
    assert kind_of_failure(lambda: workspace.read_bytes("link.txt")) == "INVALID_PATH"


def test_does_not_follow_a_link_to_a_directory(workspace: Workspace, workspace_dir: Path, secret: Path) -> None:
    (workspace_dir / "up").symlink_to(secret.parent)
    assert kind_of_failure(lambda: workspace.read_bytes("up/secret.txt")) == "INVALID_PATH"
    assert kind_of_failure(lambda: workspace.write_bytes("up/new.txt", b"x")) == "INVALID_PATH"
    assert not (secret.parent / "new.txt").exists()


def test_replaces_a_link_instead_of_writing_through_it(workspace: Workspace, workspace_dir: Path, secret: Path) -> None:
    (workspace_dir / "link.txt").symlink_to(secret)
    workspace.write_bytes("link.txt", b"mine")
    assert secret.read_text() == "secret"
    assert (workspace_dir / "link.txt").read_bytes() == b"mine"
    assert not (workspace_dir / "link.txt").is_symlink()


def test_does_not_wait_for_a_pipe_or_read_a_directory(workspace: Workspace, workspace_dir: Path) -> None:
    os.mkfifo(workspace_dir / "pipe")
    (workspace_dir / "folder").mkdir()
    assert kind_of_failure(lambda: workspace.read_bytes("pipe")) == "INVALID_PATH"
    assert kind_of_failure(lambda: workspace.read_bytes("folder")) == "INVALID_PATH"


def test_writes_into_new_directories_and_reads_back(workspace: Workspace, workspace_dir: Path) -> None:
    workspace.write_bytes("a/b/c.txt", b"deep")
    assert workspace.read_bytes("a/b/c.txt") == b"deep"
    assert [file.path for file in workspace.files()] == ["a/b/c.txt"]
    assert (workspace_dir / "a/b/c.txt").stat().st_mode & 0o777 == 0o600


def test_keeps_an_existing_file_if_asked(workspace: Workspace) -> None:
    workspace.write_bytes("a.txt", b"first")
    assert kind_of_failure(lambda: workspace.write_bytes("a.txt", b"second", replace=False)) == "FILE_EXISTS"
    assert workspace.read_bytes("a.txt") == b"first"


def test_limits_one_file_and_all_files_together(workspace: Workspace) -> None:
    assert kind_of_failure(lambda: workspace.write_bytes("big", bytes(1001))) == "TOO_LARGE"
    workspace.write_bytes("a", bytes(1000))
    assert kind_of_failure(lambda: workspace.write_bytes("b", bytes(501))) == "TOO_LARGE"
    workspace.write_bytes("a", bytes(900))  # counts once, although it replaces itself
    workspace.write_bytes("b", bytes(500))
    assert [(file.path, file.size_bytes) for file in workspace.files()] == [("a", 900), ("b", 500)]


def test_refuses_to_read_a_file_over_the_limit(workspace: Workspace, workspace_dir: Path) -> None:
    (workspace_dir / "big").write_bytes(bytes(1001))
    assert kind_of_failure(lambda: workspace.read_bytes("big")) == "TOO_LARGE"


def test_passes_links_over_in_its_list(workspace: Workspace, workspace_dir: Path, secret: Path) -> None:
    (workspace_dir / "link.txt").symlink_to(secret)
    workspace.write_bytes("a.txt", b"a")
    assert [file.path for file in workspace.files()] == ["a.txt"]


def test_leaves_no_half_written_file(workspace: Workspace, workspace_dir: Path) -> None:
    (workspace_dir / "folder").mkdir()
    assert kind_of_failure(lambda: workspace.write_bytes("folder", b"x")) == "INVALID_PATH"
    assert [each.name for each in workspace_dir.iterdir()] == ["folder"]
