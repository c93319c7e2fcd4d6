"""The certificate that the public edge shows to browsers and programs, renewed in place."""

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from servicekit.health import Health
from servicekit.telemetry import Logger
from servicekit.tls import TlsInvalid

CERTIFICATE, KEY = "SYNOD_EDGE_TLS_CERTIFICATE_FILE", "SYNOD_EDGE_TLS_KEY_FILE"
CHECK_S: Final = 2.0
_COMPONENT: Final = "edge certificate"


class EdgeCertificate:
    """One context for the life of the server; its files are read again when they change, for the connections after that.

    Raises TlsInvalid for files that cannot be used.
    """

    def __init__(self, certificate: Path, key: Path) -> None:
        self._files = (certificate, key)
        self._stamp = self._look()
        self.context = self._loaded()

    @classmethod
    def named(cls, certificate: Path | None, key: Path | None) -> "EdgeCertificate | None":
        """None if neither is given. Raises TlsInvalid for one without the other."""
        if certificate and key:
            return cls(certificate, key)
        if certificate or key:
            raise TlsInvalid(
                f"{KEY if certificate else CERTIFICATE} must be set too: the edge speaks TLS by both, or not"
            )
        return None

    def refresh(self) -> bool:
        """Whether the files changed and are used from now on. Raises TlsInvalid, and goes on with the former ones."""
        if self._stamp == (stamp := self._look()):
            return False
        self._loaded()  # a pair that does not fit would leave the context in use without a key
        self.context.load_cert_chain(*self._files)
        self._stamp = stamp
        return True

    def follow(self, health: Health, log: Logger) -> Callable[[], Awaitable[None]]:
        """A task that takes up the files as they change, and tells when they cannot be used."""

        async def watch() -> None:
            while True:
                try:
                    if self.refresh():
                        health.recover(_COMPONENT)
                        log.info("edge_certificate_renewed", file=str(self._files[0]))
                except TlsInvalid as error:
                    health.degrade(_COMPONENT, str(error))
                await asyncio.sleep(CHECK_S)

        return watch

    def _loaded(self) -> ssl.SSLContext:
        certificate, key = self._files
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_cert_chain(certificate, key)
        except OSError as error:
            raise TlsInvalid(
                f"{CERTIFICATE}={certificate} and {KEY}={key} cannot be used ({error.strerror or error}); "
                "give a certificate chain and its key in PEM"
            ) from error
        return context

    def _look(self) -> tuple[int, ...]:
        try:
            return tuple(file.stat().st_mtime_ns for file in self._files)
        except OSError:
            return ()  # reading them says which one is gone
