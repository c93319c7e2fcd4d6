"""Every provider of a master key keeps the same contract."""

import os
from base64 import b64encode
from pathlib import Path

import pytest
from eventlog.errors import KeyUnusable
from eventlog.master_keys import EnvironmentMasterKey, FileMasterKey, LocalMasterKey, former_master_keys
from eventlog.testing import FakeKms, KmsMasterKey, MasterKeyContract


def secret() -> str:
    return b64encode(os.urandom(32)).decode()


class TestLocalMasterKey(MasterKeyContract):
    @pytest.fixture
    def master(self) -> LocalMasterKey:
        return LocalMasterKey(os.urandom(32), "test")

    other = master


class TestFileMasterKey(MasterKeyContract):
    @pytest.fixture
    def master(self, tmp_path: Path) -> FileMasterKey:
        return _in_file(tmp_path / "master.key")

    @pytest.fixture
    def other(self, tmp_path: Path) -> FileMasterKey:
        return _in_file(tmp_path / "other.key")


def _in_file(file: Path) -> FileMasterKey:
    file.write_text(secret() + "\n")
    return FileMasterKey(file)


class TestEnvironmentMasterKey(MasterKeyContract):
    @pytest.fixture
    def master(self, monkeypatch: pytest.MonkeyPatch) -> EnvironmentMasterKey:
        monkeypatch.setenv("MASTER_KEY", secret())
        return EnvironmentMasterKey("MASTER_KEY")

    @pytest.fixture
    def other(self, monkeypatch: pytest.MonkeyPatch) -> EnvironmentMasterKey:
        monkeypatch.setenv("OTHER_KEY", secret())
        return EnvironmentMasterKey("OTHER_KEY")


class TestKmsMasterKey(MasterKeyContract):
    @pytest.fixture
    def kms(self) -> FakeKms:
        return FakeKms()

    @pytest.fixture
    def master(self, kms: FakeKms) -> KmsMasterKey:
        return KmsMasterKey(kms, kms.create_key())

    @pytest.fixture
    def other(self, kms: FakeKms) -> KmsMasterKey:
        return KmsMasterKey(kms, kms.create_key())


async def test_the_same_key_from_a_file_and_from_the_environment_is_one_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = secret()
    (tmp_path / "master.key").write_text(text + "\n")
    monkeypatch.setenv("MASTER_KEY", text)
    from_file, from_environment = FileMasterKey(tmp_path / "master.key"), EnvironmentMasterKey("MASTER_KEY")
    assert from_file.key_id == from_environment.key_id
    assert await from_environment.unwrap(await from_file.wrap(b"key", b"for"), b"for") == b"key"


@pytest.mark.parametrize("content", ["", "not base64!", b64encode(b"short").decode()])
def test_a_master_key_that_is_none_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    path = tmp_path / "master.key"
    with pytest.raises(KeyUnusable, match=r"master\.key"):
        FileMasterKey(path)
    path.write_text(content)
    monkeypatch.setenv("MASTER_KEY", content)
    with pytest.raises(KeyUnusable, match=r"master\.key"):
        FileMasterKey(path)
    with pytest.raises(KeyUnusable, match="MASTER_KEY"):
        EnvironmentMasterKey("MASTER_KEY")


async def test_a_file_of_former_keys_holds_one_in_each_line_or_none(tmp_path: Path) -> None:
    first, second, none = (_in_file(tmp_path / name) for name in ("first", "second", "none"))
    (tmp_path / "former").write_text((tmp_path / "first").read_text() + (tmp_path / "second").read_text())
    (tmp_path / "none").write_text("")
    assert [key.key_id for key in former_master_keys(tmp_path / "former")] == [first.key_id, second.key_id]
    assert none.key_id not in {key.key_id for key in former_master_keys(tmp_path / "former")}
    assert former_master_keys(tmp_path / "none") == ()


@pytest.mark.parametrize("text", [None, "no key", "c2hvcnQ="], ids=["no file", "no base64", "too short"])
def test_a_file_of_former_keys_that_holds_something_else_is_named(tmp_path: Path, text: str | None) -> None:
    if text:
        (tmp_path / "former").write_text(text)
    with pytest.raises(KeyUnusable, match="former"):
        former_master_keys(tmp_path / "former")
