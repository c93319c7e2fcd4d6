"""The secrets of one system."""

import hashlib
import json
from base64 import b64decode
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
from launcher.errors import KeyLost
from launcher.keys import ensure_keys, former_checkpoint_key_files, former_master_key_files

SERVICES = ("agent-registry", "cost-ledger")


def test_what_the_private_key_signs_the_public_key_verifies(tmp_path: Path) -> None:
    ensure_keys(tmp_path, SERVICES)
    private = load_pem_private_key((tmp_path / "signing.pem").read_bytes(), None)
    public = load_pem_public_key((tmp_path / "public.pem").read_bytes())
    assert isinstance(private, Ed25519PrivateKey)
    assert isinstance(public, Ed25519PublicKey)
    assert public.verify(private.sign(b"token"), b"token") is None


def test_the_registry_learns_hashes_of_keys_and_not_keys(tmp_path: Path) -> None:
    ensure_keys(tmp_path, SERVICES)
    hashes = json.loads((tmp_path / "service-keys.json").read_text())
    keys = {name: (tmp_path / f"{name}.key").read_text() for name in SERVICES}
    assert hashes == {name: hashlib.sha256(key.encode()).hexdigest() for name, key in keys.items()}
    assert len(set(keys.values())) == len(SERVICES)


def test_a_second_start_keeps_all_secrets_and_adds_those_of_a_new_service(tmp_path: Path) -> None:
    first = ensure_keys(tmp_path, SERVICES)
    before = {file.name: file.read_text() for file in tmp_path.glob("*.key")}

    second = ensure_keys(tmp_path, (*SERVICES, "consensus"))

    assert {name: (tmp_path / name).read_text() for name in before} == before
    assert first.postgres.items() <= second.postgres.items()
    assert second.postgres.keys() - first.postgres.keys() == {"consensus"}
    assert (first.dev_key_is_new, second.dev_key_is_new) == (True, False)


def test_each_log_has_a_key_that_signs_and_one_that_seals(tmp_path: Path) -> None:
    ensure_keys(tmp_path, SERVICES)
    signed_by = {name: (tmp_path / f"{name}.checkpoint.pem").read_bytes() for name in SERVICES}
    for name, pem in signed_by.items():
        private = load_pem_private_key(pem, None)
        public = load_pem_public_key((tmp_path / f"{name}.checkpoint.pub.pem").read_bytes())
        assert isinstance(private, Ed25519PrivateKey)
        assert isinstance(public, Ed25519PublicKey)
        assert public.verify(private.sign(b"checkpoint"), b"checkpoint") is None
    masters = {b64decode((tmp_path / f"{name}.master.key").read_text()) for name in SERVICES}
    assert {len(master) for master in masters} == {32}
    assert len(masters) == len(set(signed_by.values())) == len(SERVICES)


def test_only_the_public_half_of_a_checkpoint_key_is_for_all_to_read(tmp_path: Path) -> None:
    ensure_keys(tmp_path, SERVICES)
    readable = {file.name for file in tmp_path.iterdir() if file.stat().st_mode & 0o044}
    assert readable == {f"{name}.checkpoint.pub.pem" for name in SERVICES}
    assert all(file.stat().st_mode & 0o777 in (0o600, 0o644) for file in tmp_path.iterdir())


def test_keys_of_a_log_stay_over_restarts(tmp_path: Path) -> None:
    def of_logs() -> dict[str, str]:
        return {
            file.name: file.read_text() for file in tmp_path.iterdir() if {".checkpoint", ".master"} & {*file.suffixes}
        }

    ensure_keys(tmp_path, SERVICES)
    before = of_logs()
    ensure_keys(tmp_path, SERVICES)
    assert len(before) == 3 * len(SERVICES)
    assert of_logs() == before


def test_a_public_half_that_is_missing_is_made_from_its_private_one(tmp_path: Path) -> None:
    ensure_keys(tmp_path, SERVICES)
    for name in ("public.pem", "cost-ledger.checkpoint.pub.pem"):
        public = (tmp_path / name).read_text()
        (tmp_path / name).unlink()
        ensure_keys(tmp_path, SERVICES)
        assert (tmp_path / name).read_text() == public


def test_a_lost_checkpoint_key_is_not_replaced_in_silence(tmp_path: Path) -> None:
    ensure_keys(tmp_path, SERVICES)
    (tmp_path / "cost-ledger.checkpoint.pem").unlink()
    with pytest.raises(KeyLost, match=r"rename cost-ledger\.checkpoint\.pub\.pem to (\S+):") as lost:
        ensure_keys(tmp_path, SERVICES)
    assert lost.value.field == "key"

    former = tmp_path / "cost-ledger.checkpoint.former.pub.pem"
    (tmp_path / "cost-ledger.checkpoint.pub.pem").rename(former)
    ensure_keys(tmp_path, SERVICES)
    assert former_checkpoint_key_files(tmp_path, "cost-ledger") == (former,)
    assert (tmp_path / "cost-ledger.checkpoint.pub.pem").read_text() != former.read_text()
    assert former_checkpoint_key_files(tmp_path, "agent-registry") == ()


def test_a_key_of_streams_is_made_when_asked_for_and_kept_after(tmp_path: Path) -> None:
    assert ensure_keys(tmp_path, SERVICES).nats_storage == ""
    made = ensure_keys(tmp_path, SERVICES, encrypt_at_rest=True).nats_storage
    assert len(made) >= 32
    assert ensure_keys(tmp_path, SERVICES).nats_storage == made


def test_a_master_key_that_was_set_aside_is_a_former_one_beside_a_new_one(tmp_path: Path) -> None:
    ensure_keys(tmp_path, SERVICES)
    former = tmp_path / "cost-ledger.master.2026.key"
    (tmp_path / "cost-ledger.master.key").rename(former)
    ensure_keys(tmp_path, SERVICES)
    assert former_master_key_files(tmp_path, "cost-ledger") == (former,)
    assert (tmp_path / "cost-ledger.master.key").read_text() != former.read_text()
    assert former_master_key_files(tmp_path, "agent-registry") == ()


def test_secrets_do_not_show_in_a_representation(tmp_path: Path) -> None:
    credentials = ensure_keys(tmp_path, SERVICES)
    assert repr(credentials) == "Credentials(dev_key_is_new=True)"
