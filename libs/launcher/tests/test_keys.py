"""The secrets of one system."""

import hashlib
import json
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
from launcher.keys import ensure_keys

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


def test_secrets_do_not_show_in_a_representation(tmp_path: Path) -> None:
    credentials = ensure_keys(tmp_path, SERVICES)
    assert repr(credentials) == "Credentials(dev_key_is_new=True)"
