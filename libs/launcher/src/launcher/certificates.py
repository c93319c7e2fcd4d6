"""A certificate authority for development, and the certificates of everybody who speaks TLS, in <data>/tls.

| file | what | mode |
|---|---|---|
| ca/authority.crt, ca/authority.key | who signs now | the key 0600 |
| ca/next.crt, ca/next.key | who will sign after the next rotation: believed already | the key 0600 |
| ca/former-<serial>.crt | who signed before: still believed, until it is retired | |
| <holder>/ca.crt | all of these, who are believed | 0644 |
| <holder>/tls.crt, <holder>/tls.key | the holder's certificate and its key, as Kubernetes names them | 0644 |

A holder is a service, a server, or a kind of client. Its folder is all that its container is given; since containers have
users of their own, keys are readable inside <data>/tls, which is closed to everybody but its owner.

Everything is renewed in place, and whoever uses it follows the files. An authority is replaced in steps, each of which all
must have taken up before the next: `introduce` (both are believed), `renew` (the new one signs), `retire` (it alone is
believed).
"""

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from servicekit.tls import SPIFFE, TlsFiles

from launcher.errors import KeyLost, SettingInvalid
from launcher.keys import write_secret
from launcher.layout import SERVICES, Service

NATS, CLIENT, NATS_ADMIN = "nats", "client", "nats-admin"
LIFE = timedelta(days=30)
AUTHORITY_LIFE = timedelta(days=730)
RENEW_SHARE = 2 / 3
"""A certificate is renewed when this share of its life is over."""
AUTHORITY_NAME_MAX = 40
SETTLE = timedelta(seconds=30)
"""Until everybody believes an authority that was introduced: several looks at the files (servicekit.tls.CHECK_S)."""
SKEW = timedelta(minutes=5)
"""By how much clocks may differ."""
_READABLE = 0o644


@dataclass(frozen=True, slots=True)
class Holder:
    """Who gets a certificate, and what it is good for: to be called, to call, or both."""

    name: str
    serves: bool = False
    calls: bool = False


@dataclass(frozen=True, slots=True)
class Shown:
    """What there is, for people: one certificate."""

    name: str
    serial: str
    expires_at: datetime
    signed_by: str


def holders(services: Iterable[Service] = SERVICES) -> tuple[Holder, ...]:
    """Everybody who speaks TLS in a system."""
    each = (Holder(service.name, serves=True, calls=True) for service in services)
    return (*each, Holder(NATS, serves=True), Holder(NATS_ADMIN, calls=True), Holder(CLIENT, calls=True))


def files_of(directory: Path, name: str) -> TlsFiles:
    """Where the certificates and the key of a holder are."""
    folder = directory / name
    return TlsFiles(folder / "ca.crt", folder / "tls.crt", folder / "tls.key")


def settings_of(directory: Path, name: str) -> Mapping[str, str]:
    """The same as variables of an environment."""
    files = files_of(directory, name)
    return {
        "SYNOD_TLS_CA_FILE": str(files.ca),
        "SYNOD_TLS_CERTIFICATE_FILE": str(files.certificate),
        "SYNOD_TLS_KEY_FILE": str(files.key),
    }


def ensure(directory: Path, now: datetime, everybody: Iterable[Holder] | None = None) -> tuple[str, ...]:
    """Makes what is missing and renews what is due; answers whose certificates are new.

    Raises KeyLost if the authority's key is gone, SettingInvalid if its time is over.
    """
    authority = _authority(directory, now)
    due = [each for each in everybody or holders() if _is_due(directory, each.name, now)]
    return _issue(directory, authority, due, now)


def renew(directory: Path, now: datetime) -> tuple[str, ...]:
    """New certificates for everybody, by the next authority if there is one. Raises KeyLost, SettingInvalid."""
    authority = _authority(directory, now)
    if (directory / "ca" / "next.crt").exists():
        authority = _promoted(directory, now)
    return _issue(directory, authority, _known(directory), now)


def introduce(directory: Path, now: datetime) -> None:
    """Makes the authority of after the next `renew`, which everybody believes beside the present one from now on."""
    _authority(directory, now)
    ca = directory / "ca"
    if not (ca / "next.crt").exists():
        _make_authority(ca / "next.key", ca / "next.crt", now)
    _distribute(directory)


def retire(directory: Path, now: datetime) -> tuple[str, ...]:
    """Former authorities are believed no more; answers which. Raises SettingInvalid while a certificate is by one of them."""
    signer = _certificate(directory / "ca" / "authority.crt").subject
    for holder in _known(directory):
        if _certificate(files_of(directory, holder.name).certificate).issuer != signer:
            problem = f"the certificate of {holder.name} is by a former authority"
            raise SettingInvalid("tls", directory, problem, "Renew it first: synod tls rotate.")
    former = sorted((directory / "ca").glob("former-*.crt"))
    for file in former:
        file.unlink()
    _distribute(directory)
    return tuple(file.stem for file in former)


def issue(directory: Path, name: str, now: datetime) -> TlsFiles:
    """A certificate for one more client outside, such as a host of agents. Raises SettingInvalid for a name that is taken."""
    reserved = {*(each.name for each in holders()), "ca"}
    if name in reserved or not name.replace("-", "").isalnum() or not name.islower():
        problem = "must be of small letters, digits and dashes, and not that of a service or server"
        raise SettingInvalid("name", name, problem, "Choose another.")
    _issue(directory, _authority(directory, now), [Holder(name, calls=True)], now)
    return files_of(directory, name)


def shown(directory: Path) -> tuple[Shown, ...]:
    """All certificates that there are, authorities first."""
    authorities = sorted((directory / "ca").glob("*.crt"))
    own = [files_of(directory, holder.name).certificate for holder in _known(directory)]
    return tuple(_shown(file) for file in (*authorities, *own))


def _shown(file: Path) -> Shown:
    found = _certificate(file)
    name = file.stem if file.parent.name == "ca" else file.parent.name
    return Shown(name, f"{found.serial_number:x}", found.not_valid_after_utc, _name(found.issuer))


def _known(directory: Path) -> tuple[Holder, ...]:
    """Everybody who has a certificate: the holders of a system, and clients that were added."""
    usual = {each.name: each for each in holders()}
    names = sorted(file.parent.name for file in directory.glob("*/tls.crt"))
    return tuple(usual.get(name, Holder(name, calls=True)) for name in names)


def _is_due(directory: Path, name: str, now: datetime) -> bool:
    files = files_of(directory, name)
    if not (files.ca.exists() and files.key.exists() and files.certificate.exists()):
        return True
    found = _certificate(files.certificate)
    life = found.not_valid_after_utc - found.not_valid_before_utc
    return now >= found.not_valid_before_utc + life * RENEW_SHARE


@dataclass(frozen=True, slots=True)
class _Authority:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def _authority(directory: Path, now: datetime) -> _Authority:
    ca = directory / "ca"
    certificate, key = ca / "authority.crt", ca / "authority.key"
    if certificate.exists() and not key.exists():
        problem = "the key of the certificate authority is lost"
        raise KeyLost("key", key, problem, f"Put it back from a copy, or remove {directory} to begin with another.")
    if not certificate.exists():
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.chmod(0o700)
        ca.mkdir(mode=0o700, exist_ok=True)
        _make_authority(key, certificate, now)
    authority = _loaded(certificate, key)
    if now >= (end := authority.certificate.not_valid_after_utc):
        problem = f"its certificate authority ended at {end:%Y-%m-%d %H:%M} UTC"
        raise SettingInvalid("tls", directory, problem, f"Remove {directory} to begin with another.")
    return authority


def _make_authority(key_file: Path, certificate_file: Path, now: datetime) -> None:
    key, serial = ec.generate_private_key(ec.SECP256R1()), x509.random_serial_number()
    name = x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, f"Synod development authority {serial:x}"[:AUTHORITY_NAME_MAX])]
    )
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        _builder(name, name, key.public_key(), serial, now, AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, SHA256())
    )
    write_secret(key_file, _pem(key))
    write_secret(certificate_file, certificate.public_bytes(Encoding.PEM).decode(), _READABLE)


def _loaded(certificate_file: Path, key_file: Path) -> _Authority:
    key = load_pem_private_key(key_file.read_bytes(), password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return _Authority(_certificate(certificate_file), key)


def _promoted(directory: Path, now: datetime) -> _Authority:
    """The next authority, as the one that signs. Raises SettingInvalid while not everybody may believe it yet."""
    ca = directory / "ca"
    following, present = _certificate(ca / "next.crt"), _certificate(ca / "authority.crt")
    settled_at = following.not_valid_before_utc + SKEW + SETTLE
    if now < settled_at:
        problem = "its next authority was introduced a moment ago, and not everybody may believe it yet"
        raise SettingInvalid("tls", directory, problem, f"Repeat it after {settled_at:%H:%M:%S} UTC.")
    shutil.copy(ca / "authority.crt", ca / f"former-{present.serial_number:x}.crt")
    # The key first: a certificate without its key would be taken for a loss.
    if (ca / "next.key").exists():  # else an earlier attempt came to here
        (ca / "next.key").replace(ca / "authority.key")
    (ca / "next.crt").replace(ca / "authority.crt")
    return _loaded(ca / "authority.crt", ca / "authority.key")


def _issue(directory: Path, authority: _Authority, due: Iterable[Holder], now: datetime) -> tuple[str, ...]:
    """Writes the key before the certificate; whoever reads between the two finds that they do not fit, and waits."""
    believed = _believed(directory)
    names = []
    for holder in due:
        files = files_of(directory, holder.name)
        files.ca.parent.mkdir(exist_ok=True)
        files.ca.parent.chmod(0o755)
        key = ec.generate_private_key(ec.SECP256R1())
        write_secret(files.ca, believed, _READABLE)
        write_secret(files.key, _pem(key), _READABLE)
        write_secret(files.certificate, _signed(authority, holder, key, now), _READABLE)
        names.append(holder.name)
    return tuple(names)


def _signed(authority: _Authority, holder: Holder, key: ec.EllipticCurvePrivateKey, now: datetime) -> str:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, holder.name)])
    uses = [ExtendedKeyUsageOID.SERVER_AUTH] * holder.serves + [ExtendedKeyUsageOID.CLIENT_AUTH] * holder.calls
    issuer_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())
    life = min(LIFE, authority.certificate.not_valid_after_utc - now)
    certificate = (
        _builder(subject, authority.certificate.subject, key.public_key(), x509.random_serial_number(), now, life)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(_names(holder)), critical=False)
        .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
        .add_extension(issuer_id, critical=False)
        .sign(authority.key, SHA256())
    )
    return certificate.public_bytes(Encoding.PEM).decode()


def _names(holder: Holder) -> list[x509.GeneralName]:
    identity: list[x509.GeneralName] = [x509.UniformResourceIdentifier(f"{SPIFFE}{holder.name}")]
    if not holder.serves:
        return identity
    # On this machine, and through a published port, a server is at loopback.
    addresses = [x509.DNSName(holder.name), x509.DNSName("localhost"), x509.IPAddress(IPv4Address("127.0.0.1"))]
    return identity + addresses


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    serial: int,
    now: datetime,
    life: timedelta,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(serial)
        .not_valid_before(now - SKEW)
        .not_valid_after(now + life)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _distribute(directory: Path) -> None:
    believed = _believed(directory)
    for holder in _known(directory):
        write_secret(files_of(directory, holder.name).ca, believed, _READABLE)


def _believed(directory: Path) -> str:
    return "".join(file.read_text() for file in sorted((directory / "ca").glob("*.crt")))


def _certificate(file: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(file.read_bytes())


def _name(name: x509.Name) -> str:
    return str(name.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)


def _pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def utc_now() -> datetime:
    return datetime.now(UTC)
