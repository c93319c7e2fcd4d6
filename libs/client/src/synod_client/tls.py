"""The certificate a client shows, and whom it believes, where Synod speaks TLS."""

import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc

from synod_client.errors import InvalidInput, NotAllowed

NAMES: Final = ("tls_ca_file", "tls_certificate_file", "tls_key_file")
"""In system.json; as variables of the environment SYNOD_TLS_CA_FILE and so on."""
VARIABLES: Final = tuple(f"SYNOD_{name.upper()}" for name in NAMES)


@dataclass(frozen=True, slots=True)
class Certificates:
    """Files in PEM. They are read whenever a connection is made, so that they can be renewed meanwhile."""

    ca: Path
    certificate: Path
    key: Path

    @classmethod
    def named(cls, files: Mapping[str, str]) -> "Certificates | None":
        """From what NAMES stand for; None if none is there. Raises InvalidInput unless all or none are."""
        given = [files.get(name) for name in NAMES]
        if not any(given):
            return None
        if missing := [variable for variable, file in zip(VARIABLES, given, strict=True) if not file]:
            raise InvalidInput(
                f"{' and '.join(missing)} must be set too: TLS needs {', '.join(VARIABLES)}", "TLS_FILES"
            )
        return cls(*(Path(file) for file in given if file))

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """Raises NotAllowed for a file that cannot be read."""
        ca, certificate, key = (_content(file) for file in (self.ca, self.certificate, self.key))
        return grpc.ssl_channel_credentials(ca, key, certificate)

    def nats_options(self) -> dict[str, Any]:
        """For nats.connect: TLS from the first byte, so that no password is said in the clear. Raises NotAllowed."""
        return {"tls": self.context(), "tls_handshake_first": True}

    def context(self) -> ssl.SSLContext:
        """Raises NotAllowed."""
        try:
            context = ssl.create_default_context(cafile=str(self.ca))
            context.load_cert_chain(self.certificate, self.key)
        except OSError as error:
            raise _unusable(self.certificate, error) from error
        return context

    def stamp(self) -> tuple[int, ...]:
        """Differs when the certificate or whom to believe does. Raises NotAllowed."""
        try:
            return tuple(file.stat().st_mtime_ns for file in (self.ca, self.certificate))
        except OSError as error:
            raise _unusable(self.certificate, error) from error


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise _unusable(file, error) from error


def _unusable(file: Path, error: OSError) -> NotAllowed:
    return NotAllowed(
        f"{file}: no TLS can be spoken with it ({error.strerror or error}); `synod tls show` lists what there is",
        "TLS_FILES",
    )
