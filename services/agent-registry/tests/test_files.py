"""Key files that are missing or wrong stop the start with a message that says what to do."""

from pathlib import Path

import pytest
from agent_registry import files, keys
from servicekit.auth import KeyFileInvalid


def written(directory: Path, text: str) -> Path:
    file = directory / "file"
    file.write_text(text)
    return file


def test_no_file_is_no_key(tmp_path: Path) -> None:
    assert files.read_key(None) is None
    assert files.read_service_keys(None) == {}


def test_files_of_the_launcher_are_read(tmp_path: Path) -> None:
    key = "syn_dev_" + "d" * 43
    assert files.read_key(written(tmp_path, key + "\n")) == key
    digest = keys.sha256(key)
    assert files.read_service_keys(written(tmp_path, f'{{"cost-ledger": "{digest}"}}')) == {"cost-ledger": digest}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("not json", 'SYNOD_SERVICE_KEYS_FILE=.* must be JSON such as {"cost-ledger"'),
        ('{"cost-ledger": "short"}', "64 hexadecimal digits"),
        ('{"Cost Ledger": "' + "a" * 64 + '"}', "must be JSON such as"),
    ],
)
def test_wrong_service_keys_say_what_is_wanted(tmp_path: Path, text: str, wanted: str) -> None:
    with pytest.raises(KeyFileInvalid, match=wanted):
        files.read_service_keys(written(tmp_path, text))


def test_a_wrong_owner_key_is_not_repeated(tmp_path: Path) -> None:
    with pytest.raises(
        KeyFileInvalid, match=r"SYNOD_DEV_KEY_FILE=.* must be one API key, syn_<key id>_<secret>"
    ) as caught:
        files.read_key(written(tmp_path, "synod_secret"))
    assert "synod_secret" not in str(caught.value)


def test_a_missing_or_wrong_signing_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(KeyFileInvalid, match=r"SYNOD_SIGNING_KEY_FILE=.* cannot be read \(No such file or directory\)"):
        files.read_signing_key(tmp_path / "nowhere")
    with pytest.raises(KeyFileInvalid, match="must be a PEM file with the Ed25519 private key"):
        files.read_signing_key(written(tmp_path, "no key"))
