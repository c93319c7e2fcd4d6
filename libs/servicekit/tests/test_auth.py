"""Tokens are verified offline, remembered, and expire by the clock that is handed in."""

from datetime import timedelta
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from servicekit.auth import (
    ALGORITHM,
    Authenticator,
    KeyFileInvalid,
    Principal,
    SelfIssued,
    issue,
    load_public_key,
)
from servicekit.errors import PermissionDenied, Unauthenticated
from servicekit.testing import FakeClock, write_public_key

ADA = Principal("usr_ada", "local", "user", ("runs.*", "budgets.read"))
LEDGER = Principal("svc_ledger", "*", "service", ("*",))


@pytest.fixture
def key() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.generate()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def bearer(token: str, **metadata: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"} | {key.replace("_", "-"): value for key, value in metadata.items()}


def test_a_token_gives_back_the_principal_it_was_issued_for(key: Ed25519PrivateKey, clock: FakeClock) -> None:
    agent = Principal("agt_1", "local", "agent", ("tools.execute",), on_behalf_of="usr_ada")
    token = issue(key, agent, timedelta(minutes=5), now=clock.now())
    assert Authenticator(key.public_key(), clock).authorize(bearer(token), "tools.execute") == agent


def test_a_remembered_token_expires_all_the_same(key: Ed25519PrivateKey, clock: FakeClock) -> None:
    authenticator = Authenticator(key.public_key(), clock)
    token = issue(key, ADA, timedelta(minutes=5), now=clock.now())
    assert authenticator.authorize(bearer(token), "runs.create").id == "usr_ada"
    clock.advance(5 * 60 + 61)
    with pytest.raises(Unauthenticated) as caught:
        authenticator.authorize(bearer(token), "runs.create")
    assert caught.value.message == (
        "the token of usr_ada expired at 2026-01-01T00:05:00Z (0:01:01 ago); authenticate again "
        "(synod.agent_registry.v1.AgentRegistry/Authenticate) and repeat with the new token"
    )


def test_a_token_of_another_key_is_not_valid(key: Ed25519PrivateKey, clock: FakeClock) -> None:
    forged = issue(Ed25519PrivateKey.generate(), ADA, timedelta(minutes=5), now=clock.now())
    with pytest.raises(Unauthenticated, match="Signature verification failed") as caught:
        Authenticator(key.public_key(), clock).authorize(bearer(forged), "runs.create")
    assert caught.value.reason == "TOKEN_INVALID"


@pytest.mark.parametrize(
    "claims",
    [
        {"iss": "someone", "sub": "usr_ada", "tid": "local", "knd": "user", "prm": ["*"], "exp": 9999999999},
        {"iss": "synod", "sub": "usr_ada", "tid": "local", "knd": "god", "prm": ["*"], "exp": 9999999999},
        {"iss": "synod", "sub": "usr_ada", "knd": "user", "prm": ["*"], "exp": 9999999999},
        {"iss": "synod", "sub": "usr_ada", "tid": "local", "knd": "user", "prm": ["*"]},
    ],
    ids=["other issuer", "unknown kind", "no tenant", "no expiry"],
)
def test_a_signed_token_of_the_wrong_shape_is_not_valid(
    key: Ed25519PrivateKey, clock: FakeClock, claims: dict[str, object]
) -> None:
    token = jwt.encode(claims, key, algorithm=ALGORITHM)
    with pytest.raises(Unauthenticated) as caught:
        Authenticator(key.public_key(), clock).authorize(bearer(token), "runs.create")
    assert caught.value.reason == "TOKEN_INVALID"


def test_a_token_signed_by_a_shared_secret_is_not_valid(key: Ed25519PrivateKey, clock: FakeClock) -> None:
    claims = {"iss": "synod", "sub": "x", "tid": "local", "knd": "user", "prm": ["*"], "exp": 9999999999}
    token = jwt.encode(claims, "s" * 32, algorithm="HS256")
    with pytest.raises(Unauthenticated, match="alg value is not allowed"):
        Authenticator(key.public_key(), clock).authorize(bearer(token), "runs.create")


def test_what_no_pattern_matches_is_denied(key: Ed25519PrivateKey, clock: FakeClock) -> None:
    token = issue(key, ADA, timedelta(minutes=5), now=clock.now())
    authenticator = Authenticator(key.public_key(), clock)
    assert authenticator.authorize(bearer(token), "runs.cancel") == ADA
    with pytest.raises(PermissionDenied, match=r"usr_ada lacks the permission budgets\.create"):
        authenticator.authorize(bearer(token), "budgets.create")


def test_only_a_service_of_all_tenants_speaks_for_others(key: Ed25519PrivateKey, clock: FakeClock) -> None:
    authenticator = Authenticator(key.public_key(), clock)
    service = issue(key, LEDGER, timedelta(minutes=5), now=clock.now())
    user = issue(key, ADA, timedelta(minutes=5), now=clock.now())
    acting = authenticator.authorize(bearer(service, synod_tenant="acme", synod_actor="usr_bo"), "runs.create")
    spoofed = authenticator.authorize(bearer(user, synod_tenant="local", synod_actor="usr_bo"), "runs.create")
    assert (acting.tenant, acting.actor, acting.speaks_for_others) == ("acme", "usr_bo", True)
    assert (spoofed.tenant, spoofed.actor, spoofed.speaks_for_others) == ("local", "usr_ada", False)


def test_the_tokens_remembered_are_limited(key: Ed25519PrivateKey, clock: FakeClock) -> None:
    authenticator = Authenticator(key.public_key(), clock, cache_max=2)
    for number in range(5):
        principal = Principal(f"usr_{number}", "local", "user", ("*",))
        authenticator.authorize(bearer(issue(key, principal, timedelta(minutes=5), now=clock.now())), "x")
    assert len(authenticator._cache) == 2


async def test_a_self_issued_token_is_renewed_before_it_expires(key: Ed25519PrivateKey, clock: FakeClock) -> None:
    source = SelfIssued(key, LEDGER, clock, timedelta(seconds=100))
    first = await source.token()
    clock.advance(79)
    assert await source.token() == first
    clock.advance(2)
    assert await source.token() != first


def test_a_public_key_is_read_from_pem(key: Ed25519PrivateKey, tmp_path: Path) -> None:
    assert load_public_key(write_public_key(key, tmp_path)) == key.public_key()


def test_a_missing_key_file_is_named_with_what_it_must_hold(tmp_path: Path) -> None:
    with pytest.raises(KeyFileInvalid, match=r"none\.pem cannot be read .* PEM file of the Ed25519 public key"):
        load_public_key(tmp_path / "none.pem")


def test_a_key_of_another_kind_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "ec.pem"
    public = generate_private_key(SECP256R1()).public_key()
    file.write_bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    with pytest.raises(KeyFileInvalid, match="holds a ECPublicKey, not an Ed25519 public key"):
        load_public_key(file)


def test_an_edge_learns_who_calls_whatever_they_may_do(key: Ed25519PrivateKey, clock: FakeClock) -> None:
    nobody = Principal("usr_1", "local", "user")
    token = issue(key, nobody, timedelta(minutes=5), now=clock.now())
    assert Authenticator(key.public_key(), clock).identify(bearer(token)) == nobody
