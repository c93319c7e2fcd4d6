"""Certificates are made, renewed in time, and their authority is replaced so that nobody is ever not believed."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError
from launcher import certificates
from launcher.certificates import CLIENT, LIFE, NATS, SETTLE, ensure, files_of, introduce, issue, renew, retire, shown
from launcher.errors import KeyLost, SettingInvalid
from launcher.keys import ensure_keys
from launcher.layout import SERVICES, Layout
from launcher.programs import environment, nats_of

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
DAY = timedelta(days=1)
EVERYBODY = {*(service.name for service in SERVICES), NATS, CLIENT, "nats-admin"}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    ensure(tmp_path / "tls", NOW)
    return tmp_path / "tls"


def certificate(directory: Path, name: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(files_of(directory, name).certificate.read_bytes())


def believes(directory: Path, who: str, server: str, at: datetime) -> bool:
    """Whether a holder, by what it was given, lets itself be served by another."""
    believed = x509.load_pem_x509_certificates(files_of(directory, who).ca.read_bytes())
    verifier = PolicyBuilder().store(Store(believed)).time(at).build_server_verifier(x509.DNSName(server))
    try:
        verifier.verify(certificate(directory, server), [])
    except VerificationError:
        return False
    return True


def test_everybody_gets_a_certificate_that_names_it_and_is_believed(directory: Path) -> None:
    assert {each.name for each in shown(directory)} == {"authority", *EVERYBODY}
    for service in SERVICES:
        files = files_of(directory, service.name)
        assert files.read(NOW).holder == service.name
        assert believes(directory, CLIENT, service.name, NOW)


def test_a_certificate_is_good_for_its_purpose_only(directory: Path) -> None:
    def uses(name: str) -> set[str]:
        found = certificate(directory, name).extensions.get_extension_for_class(x509.ExtendedKeyUsage)
        return {each._name for each in found.value}

    assert uses("cost-ledger") == {"serverAuth", "clientAuth"}
    assert uses(NATS) == {"serverAuth"}
    assert uses(CLIENT) == uses("nats-admin") == {"clientAuth"}


def test_the_authoritys_key_is_its_owners_and_a_folder_can_be_given_to_a_container(directory: Path) -> None:
    def mode(path: Path) -> int:
        return path.stat().st_mode & 0o777

    assert mode(directory) == mode(directory / "ca") == 0o700
    assert mode(directory / "ca" / "authority.key") == 0o600
    assert mode(directory / NATS) == 0o755
    assert {mode(file) for file in (directory / NATS).iterdir()} == {0o644}
    assert {file.name for file in (directory / NATS).iterdir()} == {"ca.crt", "tls.crt", "tls.key"}


def test_nothing_is_renewed_before_two_thirds_of_its_life(directory: Path) -> None:
    before = shown(directory)
    assert ensure(directory, NOW + LIFE * 0.6) == ()
    assert shown(directory) == before


def test_what_is_due_or_missing_is_renewed_by_the_same_authority(directory: Path) -> None:
    files_of(directory, NATS).key.unlink()
    assert ensure(directory, NOW + DAY) == (NATS,)
    assert set(ensure(directory, NOW + LIFE * 0.68)) == EVERYBODY - {NATS}
    assert believes(directory, CLIENT, "cost-ledger", NOW + LIFE * 1.6)


def test_an_authority_is_replaced_and_each_step_leaves_everybody_believed(directory: Path) -> None:
    old = {name: files_of(directory, name).ca.read_text() for name in EVERYBODY}
    introduce(directory, NOW)
    assert all(believes(directory, CLIENT, name, NOW) for name in ("cost-ledger", NATS))
    assert set(renew(directory, NOW + SETTLE)) == EVERYBODY
    signer = certificate(directory, "cost-ledger").issuer
    assert signer != x509.load_pem_x509_certificates(old[NATS].encode())[0].subject
    # Who has not taken up its own new certificate yet shows one by the former authority.
    believed = x509.load_pem_x509_certificates(files_of(directory, CLIENT).ca.read_bytes())
    assert len(believed) == 2
    (former,) = retire(directory, NOW + 2 * SETTLE)
    assert former.startswith("former-")
    assert believes(directory, CLIENT, "cost-ledger", NOW + 2 * SETTLE)
    assert len(x509.load_pem_x509_certificates(files_of(directory, CLIENT).ca.read_bytes())) == 1
    assert {each.signed_by for each in shown(directory)} == {str(signer.rdns[0].rfc4514_string().removeprefix("CN="))}


def test_no_authority_signs_before_everybody_can_believe_it(directory: Path) -> None:
    introduce(directory, NOW)
    with pytest.raises(SettingInvalid, match="not everybody may believe it yet"):
        renew(directory, NOW + SETTLE / 2)


def test_no_authority_is_retired_that_somebody_still_needs(directory: Path) -> None:
    introduce(directory, NOW)
    renew(directory, NOW + SETTLE)
    (kept,) = (directory / "ca").glob("former-*.crt")
    files_of(directory, "consensus").certificate.write_bytes(_by(kept, directory))
    with pytest.raises(SettingInvalid, match="the certificate of consensus is by a former authority"):
        retire(directory, NOW + 2 * SETTLE)
    assert kept.exists()


def _by(authority: Path, directory: Path) -> bytes:
    """A certificate by a former authority; the authority's own will do."""
    return authority.read_bytes()


def test_a_rotation_that_was_cut_off_is_finished_by_the_next(directory: Path) -> None:
    introduce(directory, NOW)
    ca = directory / "ca"
    (ca / "next.key").replace(ca / "authority.key")
    assert set(renew(directory, NOW + SETTLE)) == EVERYBODY
    assert believes(directory, CLIENT, "cost-ledger", NOW + SETTLE)


def test_a_client_outside_gets_a_certificate_of_its_own_and_is_renewed_with_all(directory: Path) -> None:
    files = issue(directory, "host-7", NOW)
    assert files.read(NOW).holder == "host-7"
    assert "host-7" in renew(directory, NOW + DAY)


@pytest.mark.parametrize("name", ["cost-ledger", "ca", "../x", "Host", ""])
def test_a_client_outside_cannot_take_the_name_of_another(directory: Path, name: str) -> None:
    with pytest.raises(SettingInvalid, match="must be of small letters"):
        issue(directory, name, NOW)


def test_a_lost_authority_is_not_replaced_behind_ones_back(directory: Path) -> None:
    (directory / "ca" / "authority.key").unlink()
    with pytest.raises(KeyLost, match="key of the certificate authority is lost"):
        ensure(directory, NOW)


def test_an_authority_whose_time_is_over_says_so(directory: Path) -> None:
    with pytest.raises(SettingInvalid, match="its certificate authority ended at 2028-11-20"):
        ensure(directory, NOW + certificates.AUTHORITY_LIFE)


def test_with_tls_programs_are_told_their_files_and_without_it_nothing_of_the_callers(tmp_path: Path) -> None:
    credentials = ensure_keys(tmp_path, (each.name for each in SERVICES))
    caller = {"SYNOD_TLS_CA_FILE": "/of/another/system"}
    secured, plain = (Layout(tmp_path, environment=caller, tls=tls) for tls in (True, False))
    ledger = next(each for each in SERVICES if each.name == "cost-ledger")
    told = environment(secured, credentials, ledger)
    assert told["SYNOD_TLS_KEY_FILE"] == str(tmp_path / "tls" / "cost-ledger" / "tls.key")
    assert not any(name.startswith("SYNOD_TLS_") for name in environment(plain, credentials, ledger))
    assert nats_of(secured, credentials).tls == files_of(tmp_path / "tls", NATS)
    assert nats_of(plain, credentials).tls is None
