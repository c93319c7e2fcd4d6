"""Mutual TLS between services and to NATS: the certificate a process shows, whom it believes, and both renewed in place.

Three files in PEM: the authorities that are believed, the process's own certificate, and its key. The certificate names
its holder by the URI spiffe://synod/<name> (SPIFFE-ID) and, for a service, by the DNS name <name>: a caller insists on
the name of the service it calls, at whatever address that is.

The files are read again when they change. Each new handshake then uses what they hold; a connection that is there is not
disturbed, and ends by itself (limits.py, connection_age_s). What cannot be used is reported, and the former goes on.
"""

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from servicekit.auth import Principal, service_principal
from servicekit.clock import Clock
from servicekit.errors import Unauthenticated
from servicekit.health import Health
from servicekit.telemetry import Logger, Metrics

SPIFFE = "spiffe://synod/"
CA, CERTIFICATE, KEY = "SYNOD_TLS_CA_FILE", "SYNOD_TLS_CERTIFICATE_FILE", "SYNOD_TLS_KEY_FILE"
CHECK_S = 2.0
"""How often the files are looked at."""
LATE_SHARE = 0.1
"""A certificate of whose life less than this is left should have been renewed; it degrades health."""
_REMEDY = "`synod tls init` makes the files of a development authority"
_AUTH_CONTEXT_ID = "peer_spiffe_id"


class TlsInvalid(Exception):
    """Files that no connection can be made with. The text names the setting, the file and what to do."""


@dataclass(frozen=True, slots=True)
class Material:
    """What the files held at one moment, found to fit together."""

    ca: bytes
    certificate: bytes
    key: bytes = field(repr=False)
    holder: str
    """The name in the certificate's SPIFFE-ID."""
    serial: int
    due_at: datetime
    """When whoever renews it is late."""
    expires_at: datetime
    context: ssl.SSLContext = field(repr=False, compare=False)
    """For a connection to NATS, whose name is that of its address."""

    def channel_credentials(self) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(self.ca, self.key, self.certificate)

    def server_configuration(self) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration([(self.key, self.certificate)], self.ca)

    def nats_options(self) -> dict[str, Any]:
        """For nats.connect: TLS from the first byte, so that nobody between can talk the client out of it."""
        return {"tls": self.context, "tls_handshake_first": True}


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Where the certificates and the key are."""

    ca: Path
    certificate: Path
    key: Path

    @classmethod
    def named(cls, ca: Path | None, certificate: Path | None, key: Path | None) -> "TlsFiles | None":
        """None if none is given. Raises TlsInvalid unless all or none are."""
        if ca and certificate and key:
            return cls(ca, certificate, key)
        given = {CA: ca, CERTIFICATE: certificate, KEY: key}
        missing = [name for name, path in given.items() if path is None]
        if len(missing) == len(given):
            return None
        raise TlsInvalid(f"{' and '.join(missing)} must be set too: TLS needs all of {', '.join(given)}, or none")

    @classmethod
    def of_environment(cls, environment: Mapping[str, str]) -> "TlsFiles | None":
        """The files that its variables name. Raises TlsInvalid unless all or none are set."""
        return cls.named(
            *(Path(environment[name]) if environment.get(name) else None for name in (CA, CERTIFICATE, KEY))
        )

    def read(self, now: datetime) -> Material:
        """Raises TlsInvalid for files that cannot be read, do not fit together, or do not hold `now`."""
        authorities = _parsed(CA, self.ca, "certificates", x509.load_pem_x509_certificates)
        chain = _parsed(CERTIFICATE, self.certificate, "a certificate", x509.load_pem_x509_certificates)
        key, key_pem = _parsed(KEY, self.key, "a private key", lambda pem: (load_pem_private_key(pem, None), pem))
        own = chain[0]
        if _public(own.public_key()) != _public(key.public_key()):
            raise TlsInvalid(
                f"{KEY}={self.key} is not the key of {CERTIFICATE}={self.certificate}; give both of one issue"
            )
        self._check_time(own, now)
        return Material(
            ca=_pem(authorities),
            certificate=_pem(chain),
            key=key_pem,
            holder=self._holder(own),
            serial=own.serial_number,
            due_at=own.not_valid_after_utc - (own.not_valid_after_utc - own.not_valid_before_utc) * LATE_SHARE,
            expires_at=own.not_valid_after_utc,
            context=self._context(),
        )

    def stamp(self) -> tuple[tuple[int, int, int], ...]:
        """Differs when a file does; a file that is gone has a stamp too."""
        return tuple(_stamp(path) for path in (self.ca, self.certificate, self.key))

    def _check_time(self, own: x509.Certificate, now: datetime) -> None:
        if not own.not_valid_before_utc <= now < own.not_valid_after_utc:
            raise TlsInvalid(
                f"{CERTIFICATE}={self.certificate} holds from {own.not_valid_before_utc:%Y-%m-%d %H:%M} to "
                f"{own.not_valid_after_utc:%Y-%m-%d %H:%M} UTC, and it is {now:%Y-%m-%d %H:%M}; renew it"
            )

    def _holder(self, own: x509.Certificate) -> str:
        try:
            names = own.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except x509.ExtensionNotFound:
            names = x509.SubjectAlternativeName([])
        for uri in names.get_values_for_type(x509.UniformResourceIdentifier):
            if uri.startswith(SPIFFE):
                return uri.removeprefix(SPIFFE)
        raise TlsInvalid(
            f"{CERTIFICATE}={self.certificate} names no holder; it needs the URI {SPIFFE}<service> among its alternative names"
        )

    def _context(self) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(cafile=str(self.ca))
            context.load_cert_chain(self.certificate, self.key)
        except OSError as error:
            # Replaced since they were read above; the next reading finds what they are now.
            raise TlsInvalid(f"{CERTIFICATE}={self.certificate} and {KEY}={self.key} do not fit ({error})") from error
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        return context


class Tls:
    """What a process shows and believes now. Raises TlsInvalid unless the files can be used from the start."""

    def __init__(self, files: TlsFiles, clock: Clock) -> None:
        self._files = files
        self._clock = clock
        self._stamp = files.stamp()
        self.current = files.read(clock.now())

    def refresh(self) -> bool:
        """Whether the files changed and are used from now on. Raises TlsInvalid, and goes on with the former ones."""
        stamp = self._files.stamp()
        if stamp == self._stamp:
            return False
        self.current = self._files.read(self._clock.now())
        self._stamp = stamp
        return True

    def server_credentials(self) -> grpc.ServerCredentials:
        """For a server that lets in holders of certificates only; each handshake shows the newest one."""
        shown = self.current

        def renewed() -> grpc.ServerCertificateConfiguration | None:
            """Asked before each handshake, on a thread of gRPC."""
            nonlocal shown
            if shown is self.current:
                return None
            shown = self.current
            return shown.server_configuration()

        return grpc.dynamic_ssl_server_credentials(
            shown.server_configuration(),
            renewed,  # type: ignore[arg-type]  # its stubs do not know None, which means no change
            require_client_authentication=True,
        )


def check_holder(connection: Mapping[str, Any], principal: Principal) -> None:
    """Whether `principal` may speak on a connection (its gRPC auth context): a service on its own only.

    So a token or key that was taken from a service is of no use without its certificate. Raises Unauthenticated.
    """
    holder = _holder_of(connection)
    if not holder:
        raise Unauthenticated(
            f"the certificate of this connection names nobody; it needs the URI {SPIFFE}<service>",
            reason="CERTIFICATE_UNNAMED",
        )
    if principal.kind == "service" and principal.id != service_principal(holder):
        raise Unauthenticated(
            f"the token of {principal.id} came over a connection of {holder}; a service's token is good on its own only",
            reason="TOKEN_OF_ANOTHER",
            metadata={"principal": principal.id, "holder": holder},
        )


def follow(
    tls: Tls, health: Health, metrics: Metrics, log: Logger, on_change: Callable[[Material], None], clock: Clock
) -> Callable[[], Awaitable[None]]:
    """A task that takes up files as they change, and tells when they cannot be used or were not renewed in time."""

    def look() -> None:
        if tls.refresh():
            on_change(tls.current)
            log.info("tls_renewed", serial=f"{tls.current.serial:x}", expires_at=tls.current.expires_at.isoformat())
        metrics.certificate_expires.set(tls.current.expires_at.timestamp())
        if tls.current.due_at <= clock.now():
            ends = f"{tls.current.expires_at:%Y-%m-%d %H:%M} UTC"
            raise TlsInvalid(f"the certificate of {tls.current.holder} ends at {ends}; renew it, no restart is needed")

    async def watch() -> None:
        said = ""
        while True:
            try:
                look()
            except TlsInvalid as error:
                if said != (said := str(error)):
                    health.degrade("tls", said)
                    log.warning("tls_unusable", problem=said)
            else:
                said = ""
                health.recover("tls")
            await asyncio.sleep(CHECK_S)

    return watch


def _holder_of(connection: Mapping[str, Any]) -> str:
    (uri, *_) = connection.get(_AUTH_CONTEXT_ID) or (b"",)
    text = uri.decode(errors="replace")
    return text.removeprefix(SPIFFE) if text.startswith(SPIFFE) else ""


def _parsed(setting: str, path: Path, what: str, parse: Callable[[bytes], Any]) -> Any:
    try:
        return parse(path.read_bytes())
    except OSError as error:
        raise TlsInvalid(f"{setting}={path} cannot be read ({error.strerror}); {_REMEDY}") from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise TlsInvalid(f"{setting}={path} is not {what} in PEM; {_REMEDY}") from error


def _pem(certificates: list[x509.Certificate]) -> bytes:
    return b"".join(each.public_bytes(Encoding.PEM) for each in certificates)


def _public(key: Any) -> bytes:
    encoded: bytes = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return encoded


def _stamp(path: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except OSError:
        return (0, 0, 0)
    return (found.st_ino, found.st_mtime_ns, found.st_size)
