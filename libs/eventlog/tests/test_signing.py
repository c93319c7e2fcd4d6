"""Checkpoints as documents, and the keys that sign them."""

from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from eventlog.errors import KeyUnusable
from eventlog.signing import Checkpoint, SigningKey, TrustedKeys
from eventlog.testing import NOON

KEY = SigningKey.generate()
CHECKPOINT = KEY.sign("orders", 17, b"h" * 32, b"r" * 32, NOON)


def test_the_signed_text_is_what_the_documentation_says() -> None:
    lines = ["synod.eventlog.checkpoint.v1", "orders", "17", "68" * 32, "72" * 32, "1767268800000000"]
    assert CHECKPOINT.text.decode() == "\n".join(lines) + "\n"


def test_a_checkpoint_survives_its_json_form() -> None:
    assert Checkpoint.from_json(CHECKPOINT.to_json()) == CHECKPOINT
    assert "\n" not in CHECKPOINT.to_json()


def test_what_the_key_signed_is_believed() -> None:
    assert KEY.trusted.problem(CHECKPOINT, "orders") == ""


@pytest.mark.parametrize(
    "change",
    [
        {"position": 18},
        {"head_hash": b"x" * 32},
        {"root_hash": b"x" * 32},
        {"signed_at": NOON.replace(microsecond=1)},
        {"signature": b"x" * 64},
        {"signature": b""},
    ],
)
def test_whatever_is_changed_makes_the_signature_invalid(change: dict[str, object]) -> None:
    forged = replace(CHECKPOINT, **change)  # type: ignore[arg-type]
    assert KEY.trusted.problem(forged, "orders") == "its signature is not valid"


def test_a_checkpoint_of_another_log_or_key_is_not_believed() -> None:
    other = SigningKey.generate()
    assert "of the log orders" in KEY.trusted.problem(CHECKPOINT, "payments")
    assert "is not trusted" in other.trusted.problem(CHECKPOINT, "orders")
    assert other.trusted.including(KEY.trusted).problem(CHECKPOINT, "orders") == ""


def test_keys_are_saved_for_their_owner_and_loaded_again(tmp_path: Path) -> None:
    private, public = tmp_path / "key.pem", tmp_path / "public.pem"
    KEY.save(private)
    public.write_bytes(KEY.public_pem)
    assert private.stat().st_mode & 0o777 == 0o600
    assert SigningKey.load(private).key_id == KEY.key_id
    assert TrustedKeys.load(public).problem(CHECKPOINT, "orders") == ""
    with pytest.raises(FileExistsError):
        SigningKey.generate().save(private)


def test_a_file_may_hold_the_keys_of_many_rotations_or_of_none(tmp_path: Path) -> None:
    many, none = tmp_path / "many.pem", tmp_path / "none.pem"
    many.write_bytes(SigningKey.generate().public_pem + KEY.public_pem)
    none.touch()
    assert TrustedKeys.load(many).problem(CHECKPOINT, "orders") == ""
    assert "is not trusted" in TrustedKeys.load(none).problem(CHECKPOINT, "orders")
    many.write_bytes(KEY.public_pem + b"and more")
    with pytest.raises(KeyUnusable, match=r"many\.pem.*something else"):
        TrustedKeys.load(many)


def test_a_file_without_a_fitting_key_is_named(tmp_path: Path) -> None:
    missing, garbage, private, public = (tmp_path / name for name in ("missing", "garbage", "private", "public"))
    garbage.write_text("no key")
    other = X25519PrivateKey.generate()
    private.write_bytes(other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(other.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    for path in (missing, garbage, private):
        with pytest.raises(KeyUnusable, match=path.name):
            SigningKey.load(path)
    for path in (missing, garbage, public):
        with pytest.raises(KeyUnusable, match=path.name):
            TrustedKeys.load(path)


def test_a_name_that_could_forge_a_line_is_refused() -> None:
    with pytest.raises(ValueError, match="log"):
        KEY.sign("orders\n18", 17, b"", b"", NOON)
